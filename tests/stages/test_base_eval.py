"""Base eval with a toy engine and a miniature CORE bundle: what is reported, kept, taken up again and left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from picollm.data.shards import Tokens
from picollm.infer.engine import Engine
from picollm.run import config, event_file
from picollm.run import events as ev
from picollm.run import stage as stages_of
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from picollm.train.device import Ranks
from stages import base_eval
from tests.evals.bundle import write_bundle, zip_bundle
from tests.hub import LoopbackHub
from tests.infer.fakes import ByteTokenizer, tiny_model

LABELS = ["letters", "winograd", "repeat"]


class Killed(Exception):
    """As good as kill -9: nothing catches it."""


class Sized(ByteTokenizer):
    def token_bytes(self) -> np.ndarray:
        return np.array([1] * 256 + [0] * 9)


class Bench:
    """One run; `attempt` makes an attempt at base eval in which `before(task)` may get in the way."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.measured = folder, list[str]()
        self.bundle = write_bundle(folder / "bundle")
        self.before: Callable[[str], None] = lambda label: None
        text = np.frombuffer(b"Some text that was set aside. " * 9, np.uint8)
        shards = SimpleNamespace(val=Tokens([text], [np.array([0, len(text)])]), manifest={"text": "its hash"})
        monkeypatch.setattr(base_eval, "start_ranks", lambda ctx: Ranks(torch.device("cpu")))
        monkeypatch.setattr(base_eval, "Tokenizer", SimpleNamespace(load=lambda path: Sized()))
        monkeypatch.setattr(base_eval, "ShardSet", SimpleNamespace(open=lambda path: shards))
        monkeypatch.setattr(base_eval, "load_model", lambda *a, **how: Engine(tiny_model(), Sized(), live=False))
        monkeypatch.setattr(stages_of.StageContext, "output", lambda ctx, stage, key: Path(stage))
        honest = base_eval.evaluate_task

        def evaluate(task, *args, **how):
            self.before(task.label)
            self.measured.append(task.label)
            return honest(task, *args, **how)

        monkeypatch.setattr(base_eval, "evaluate_task", evaluate)

    def kill_before(self, task: str) -> None:
        """Every attempt from now on is killed when it comes to `task`."""

        def kill(label: str) -> None:
            if label == task:
                raise Killed

        self.before = kill

    def run(self, *sets: str) -> Run:
        sizes = ("model.seq_len=64", "pretrain.rows=2", "base_eval.sample_tokens=4", "tokenizer.vocab_size=300")
        return Run.create("r", config.load(sets=[*sizes, *sets], environ={}))

    def attempt(self, run: Run, number: int, fresh: bool = False) -> stages_of.Outcome:
        self.measured = []
        ctx = stages_of.StageContext(run, "base_eval", number, fresh)
        ctx.emit(stages_of._started(ctx))
        try:
            return base_eval.work(ctx)
        finally:
            ctx.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return Bench(tmp_path, monkeypatch)


def evals(run: Run) -> list[str]:
    return [event.name for event in StageHistory(run, "base_eval").read_all().evals]


def test_core_is_measured_told_and_kept(bench: Bench) -> None:
    run = bench.run(f"base_eval.core={bench.bundle}")
    done = bench.attempt(run, 1)
    assert evals(run) == ["val", *(f"core/{label}" for label in LABELS), "core"]
    kept = json.loads((run.dir / done.paths["core"]).read_text())
    assert list(kept["cells"]) == LABELS and kept["core"] == done.summary["core"]
    assert kept["bundle"]["baselines"]["file"] == "eval_meta_data.csv"
    assert done.summary["core_baselines"].startswith("eval_meta_data.csv sha256 ")
    assert (done.summary["core_n"], done.summary["core_complete"]) == (13, False)
    assert done.artifacts["core"] == f"{kept['core']:.6f}"
    assert set(kept["cells"]["letters"]) == {
        *("task", "kind", "shots", "n", "correct", "accuracy", "low", "high", "baseline"),
        *("centered", "centered_low", "centered_high", "truncated", "sha256", "seconds"),
    }
    assert not list((run.dir / "eval").glob("*.partial.json"))


def test_without_a_bundle_there_is_no_core(bench: Bench) -> None:
    run = bench.run()
    (run.dir / "eval").mkdir()
    (run.dir / "eval" / "core.json").write_text("of other settings")
    done = bench.attempt(run, 1)
    assert evals(run) == ["val"] and "core" not in done.summary and not done.paths
    assert done.summary["val_text"] == "its hash"
    assert not (run.dir / "eval" / "core.json").exists()


def test_the_text_read_is_named(bench: Bench) -> None:
    hub = {"text": "hash of all files", "val": [{"file": "shard_06542.parquet", "shard": "abc"}]}
    assert base_eval.pinned(SimpleNamespace(manifest=hub)) == "shard_06542.parquet"
    assert base_eval.pinned(SimpleNamespace(manifest={"text": "its hash"})) == "its hash"


def test_a_resumed_attempt_measures_what_is_left(bench: Bench) -> None:
    run = bench.run(f"base_eval.core={bench.bundle}")
    whole = bench.attempt(run, 1).summary
    bench.kill_before("repeat")
    with pytest.raises(Killed):
        bench.attempt(run, 2)
    assert bench.measured == ["letters", "winograd"]
    bench.before = lambda label: None
    assert bench.attempt(run, 3).summary == whole and bench.measured == ["repeat"]
    assert evals(run)[-5:] == ["val", *(f"core/{label}" for label in LABELS), "core"]


def test_what_was_kept_of_other_items_or_damaged_is_not_used(bench: Bench) -> None:
    run = bench.run(f"base_eval.core={bench.bundle}")
    bench.kill_before("repeat")
    with pytest.raises(Killed):
        bench.attempt(run, 1)
    file = bench.bundle / "eval_data" / "reading" / "letters.jsonl"
    file.write_text(file.read_text().replace("q0", "another question"))
    with pytest.raises(Killed):
        bench.attempt(run, 2)
    assert bench.measured == ["letters"]
    (run.dir / "eval" / "core.partial.json").write_text("{")
    with pytest.raises(Killed):
        bench.attempt(run, 3)
    assert bench.measured == ["letters", "winograd"]
    assert any("CORE starts over" in text for text in StageHistory(run, "base_eval").read_all().warnings)
    bench.before = lambda label: None
    bench.attempt(run, 4, fresh=True)
    assert bench.measured == LABELS


def test_a_stop_is_heard_between_tasks(bench: Bench) -> None:
    run = bench.run(f"base_eval.core={bench.bundle}")
    bench.before = lambda label: run.request_stop("base_eval") if label == "winograd" else None
    with pytest.raises(StopRequested):
        bench.attempt(run, 1)
    assert bench.measured == ["letters", "winograd"]
    assert list(json.loads((run.dir / "eval" / "core.partial.json").read_text())["cells"]) == ["letters"]


def test_the_bundle_is_downloaded_and_its_absence_is_a_warning(bench: Bench) -> None:
    with LoopbackHub() as hub:
        hub.add("some/core", {"b.zip": zip_bundle(bench.bundle, bench.folder / "b.zip").read_bytes()})
        url = f"{hub.url}/datasets/some/core/resolve/main"
        run = bench.run("base_eval.core=auto", f"base_eval.core_url={url}/nothing.zip")
        done = bench.attempt(run, 1)
        [warning] = StageHistory(run, "base_eval").read_all().warnings
        assert "CORE cannot be measured: cannot get the CORE bundle from 127.0.0.1" in warning and "404" in warning
        assert "core" not in done.summary and "bpb" in done.summary
    with LoopbackHub() as hub:
        hub.add("some/core", {"b.zip": (bench.folder / "b.zip").read_bytes()})
        sets = ["base_eval.core=auto", f"base_eval.core_url={hub.url}/datasets/some/core/resolve/main/b.zip"]
        other = Run.create("other", config.load(sets=["model.seq_len=64", "pretrain.rows=2", *sets], environ={}))
        assert bench.attempt(other, 1).summary["core_tasks"] == 3


@pytest.mark.parametrize("bundle", ["bundle", "auto"])
def test_too_few_items_are_told_before_anything_is_measured(bench: Bench, bundle: str) -> None:
    url = "https://example.org/bundle.zip"
    copy = bench.folder / "home" / "core" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.zip"
    copy.parent.mkdir(parents=True)
    zip_bundle(bench.bundle, copy)
    where = bench.bundle if bundle == "bundle" else "auto"
    run = bench.run(f"base_eval.core={where}", f"base_eval.core_url={url}", "base_eval.core_items=2")
    with pytest.raises(UserError, match="repeat shows 2 solved examples and has 2 items"):
        bench.attempt(run, 1)
    assert bench.measured == [] and evals(run) == []


def test_a_path_that_is_wrong_or_damaged_stops_before_anything_is_measured(bench: Bench) -> None:
    run = bench.run(f"base_eval.core={bench.bundle}")
    (bench.bundle / "eval_data" / "symbols" / "repeat.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"repeat.jsonl, line 1: 'context' is missing"):
        bench.attempt(run, 1)
    assert not any(isinstance(event, ev.Eval) for event in event_file.read_events(run.events_file("base_eval", 1)))
