"""Text from the Hub through the real stages: they overlap, wait visibly, are killed, and go on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from picollm.data.hub import SOURCES
from picollm.data.hub_text import HubText, open_text
from picollm.data.pydocs import documents
from picollm.run import event_file
from picollm.run import events as ev
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from tests import published
from tests.hub import LoopbackHub, parquet
from tests.stages.conftest import WAIT_S, Workplace, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SOURCE = SOURCES["climbmix"]
PER_FILE = 120
SETS = ("data.source=climbmix", "data.shards=3", "tokenizer.vocab_size=400", "pretrain.steps=30",
        "pretrain.save_every=0.1", "machine.attention=sdpa")  # fmt: skip
"""Attention is set because each run's preflight takes the faster one, and they round differently."""
TOKEN = "hf_averysecrettoken"


class Place:
    """A workplace of its own that is sent to a loopback Hub with three training files and the validation file."""

    def __init__(self, folder: Path, hub: LoopbackHub) -> None:
        self.work, self.hub, self.folder = Workplace(folder), hub, folder
        self.work.env |= hub.environment(folder / "hf", TOKEN) | {
            "HF_HUB_DOWNLOAD_TIMEOUT": "500",
            "HF_HUB_ETAG_TIMEOUT": "500",
        }
        texts = [document.text[:200] for document in documents()]  # two files have less than 30 steps read
        for place, number in enumerate((0, 1, 2, 6542)):
            data = parquet(texts[place * PER_FILE : (place + 1) * PER_FILE])
            hub.add(SOURCE.repo, {SOURCE.name(number): data}, card={"license": "cc-by-nc-4.0"})

    def make(self, name: str, *more: str) -> Run:
        """A run whose preflight is done."""
        sets = [word for pair in (*SETS, *more) for word in ("--set", pair)]
        made = self.work.picollm("run", "--profile", "smoke", "--run", name, *sets, "--only", "doctor")
        assert made.returncode == 0, made.stdout + made.stderr
        self.do(self.work.run(name), "preflight")
        return self.work.run(name)

    def do(self, run: Run, *stages: str) -> None:
        for stage in stages:
            code = self.work.launch(run, stage).wait(WAIT_S)
            assert code == 0, (stage, run.status(stage).reason)

    def parquet_requests(self) -> int:
        return sum(request.path.endswith(".parquet") for request in self.hub.requests)

    def said(self) -> str:
        return "".join(p.read_text(errors="replace") for p in self.work.runs.rglob("*") if p.is_file() and p.suffix in (
            ".log", ".jsonl", ".json", ".toml"))  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with LoopbackHub() as hub:
        yield Place(tmp_path, hub)


def losses(run: Run) -> list[float]:
    return StageHistory(run, "pretrain").read_all().series["loss"].values


def phase(run: Run, stage: str) -> str:
    return run.status(stage).phase


def test_training_begins_with_the_first_files_and_waits_for_the_rest(place: Place) -> None:
    place.hub.fault(SOURCE.name(2), "slow", times=None, seconds=500)
    run = place.make("first")
    dataset = place.work.launch(run, "dataset")
    wait_for(lambda: run.attempts("dataset") != [] and run.ready("dataset", 1) is not None, WAIT_S, "the first files")
    tokenizer = place.work.launch(run, "tokenizer")
    wait_for(
        lambda: run.attempts("tokenizer") != [] and run.ready("tokenizer", 1) is not None, WAIT_S, "the first shards"
    )
    place.do(run, "tokenizer_eval")
    pretrain = place.work.launch(run, "pretrain")
    wait_for(lambda: phase(run, "pretrain") == "wait for data", WAIT_S, "pretrain to wait")
    assert run.status("dataset").state == "running" and run.status("tokenizer").state == "running"
    run.request_stop("pretrain")
    assert pretrain.wait(WAIT_S) == 0 and run.status("pretrain").state == "stopped"
    place.hub.release()
    assert dataset.wait(WAIT_S) == 0 and tokenizer.wait(WAIT_S) == 0
    assert run.ready("tokenizer", 1).artifacts == run.finished("tokenizer").artifacts  # type: ignore[union-attr]
    place.do(run, "pretrain")
    assert len(losses(run)) == 30
    summary = run.finished("pretrain").summary  # type: ignore[union-attr]
    assert summary["dropped_tokens"] == 0
    assert "not for commercial use" in run.finished("dataset").summary["licence"]  # type: ignore[union-attr]

    # another run: nothing is fetched or encoded, no network is needed, and it learns the same, bit for bit
    before = place.parquet_requests()
    place.work.env["HF_HUB_OFFLINE"] = "1"
    again = place.make("again")
    place.do(again, "dataset", "tokenizer", "tokenizer_eval", "pretrain")
    assert losses(again) == losses(run) and place.parquet_requests() == before
    assert TOKEN not in place.said()


def test_text_that_is_not_kept_is_not_missed(place: Place) -> None:
    run = place.make("dropped", "data.keep_text=false")
    place.do(run, "dataset", "tokenizer", "tokenizer_eval")
    cache = place.work.home / "hub" / "cache"
    assert not list(cache.rglob("*.parquet")) and not (place.folder / "hf" / "hub").exists()
    before = place.parquet_requests()
    text = open_text(run.output("dataset", "text"))
    assert isinstance(text, HubText)
    left = cache / "left.parquet"  # as after a kill between its encoding and its end
    left.write_bytes(b"x" * text.train[0].bytes)
    record = {"path": str(left), "mtime_ns": left.stat().st_mtime_ns}
    (cache.parent / "verified" / f"{text.train[0].sha256}.json").write_text(json.dumps(record))
    place.do(run, "dataset", "tokenizer", "tokenizer_eval", "pretrain")
    assert place.parquet_requests() == before and not left.exists()
    run.set(["tokenizer.vocab_size=350"])
    place.do(run, "tokenizer")
    assert place.parquet_requests() > before and not list(cache.rglob("*.parquet"))


def test_killed_while_downloading(place: Place) -> None:
    place.hub.fault(SOURCE.name(1), "slow", times=1, seconds=500)
    run = place.make("killed", "data.first_shards=3")
    process = place.work.launch(run, "dataset")
    wait_for(
        lambda: (run.status("dataset").phase if run.attempts("dataset") else "") == "download", WAIT_S, "downloading"
    )
    store = place.folder / "home" / "hub" / "verified"
    wait_for(lambda: len(list(store.glob("*.json"))) == 3, WAIT_S, "the other three files")
    pid = next(e.pid for e in event_file.head_events(run.events_file("dataset", 1)) if isinstance(e, ev.Started))
    os.kill(pid, signal.SIGKILL)
    process.wait(WAIT_S)
    assert run.status("dataset").state == "crashed"
    place.do(run, "dataset")
    assert place.hub.asked(SOURCE.name(0)) == 1 and place.hub.asked(SOURCE.name(1)) == 2
    place.do(run, "tokenizer")


def test_who_waits_is_told_when_the_one_before_fails(place: Place) -> None:
    place.hub.fault(SOURCE.name(2), "slow", times=None, seconds=500)
    run = place.make("failing")
    dataset = place.work.launch(run, "dataset")
    wait_for(lambda: run.attempts("dataset") != [] and run.ready("dataset", 1) is not None, WAIT_S, "the first files")
    tokenizer = place.work.launch(run, "tokenizer")
    wait_for(lambda: run.attempts("tokenizer") != [] and phase(run, "tokenizer") == "wait for data", WAIT_S, "the wait")
    place.hub.fault(SOURCE.name(2), "missing", times=None, method="")
    place.hub.faults[SOURCE.name(2)].pop(0)
    run.request_stop("dataset")
    assert dataset.wait(WAIT_S) == 0
    assert tokenizer.wait(WAIT_S) == 2
    assert "shard_00002.parquet is missing and the dataset stage has ended (stopped" in run.status("tokenizer").reason
    assert place.work.launch(run, "dataset").wait(WAIT_S) == 2
    reason = run.status("dataset").reason
    assert "cannot get shard_00002.parquet" in reason and "404 not found" in reason
    assert TOKEN not in place.said()


def test_rows_of_tasks_that_cannot_be_had_or_used_are_known_before_training(place: Place) -> None:
    rows = published.gsm8k(20)
    rows[4] = rows[4] | {"answer": "I do not know."}
    published.publish(place.hub, gsm8k=rows)
    file = "main/train-00000-of-00001.parquet"
    place.hub.fault(file, "missing", times=None, method="")
    run = place.make("tasks", 'sft.mixture={ gsm8k = 20, "gsm8k:rows=5" = 5 }')
    assert place.work.launch(run, "dataset").wait(WAIT_S) == 2
    reason = run.status("dataset").reason
    assert f"cannot get {file} of openai/gsm8k" in reason and "404 not found" in reason
    place.hub.faults.clear()
    place.do(run, "dataset")
    said = [e.text for e in event_file.tail_events(run.events_file("dataset", 2)) if isinstance(e, ev.Warning)]
    assert said == [f"gsm8k: 1 of 20 rows cannot be used: {file} row 5: answer has no number after ####"]
    tasks = run.finished("dataset").summary["tasks"]  # type: ignore[union-attr]
    assert tasks.keys() == {"gsm8k", "gsm8k:rows=5"}, "each with its settings"
    kept = tasks["gsm8k"]
    assert kept["licence"] == "MIT" and len(kept["revision"]) == 40 and len(kept["sha256"][file]) == 64
    assert TOKEN not in place.said()
