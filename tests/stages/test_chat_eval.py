"""Chat eval with toy tasks and engines: what a resumed attempt keeps, says again and does anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from picollm.run import config, event_file, failures, pipeline
from picollm.run import events as ev
from picollm.run import stage as stages_of
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from picollm.train.device import Ranks
from stages import chat_eval
from tests.evals.fakes import Capitals, TableEngine
from tests.infer.fakes import ByteTokenizer

TASKS = {"capitals": Capitals(), "again": Capitals()}
PROMPTS = ["Who are you?", "Why?"]


class Killed(Exception):
    """As good as kill -9: nothing catches it."""


class Bench:
    """One run; `attempt` makes an attempt at chat eval in which `before(model)` may get in the way."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.loaded, self.asked = run, list[str](), 0
        self.tasks: dict[str, Capitals] = dict(TASKS)
        self.before: Callable[[str], None] = lambda model: None
        self.at: Callable[[int], None] = lambda asked: None
        self.reply: Callable[[str], str] | None = None
        monkeypatch.setattr(chat_eval, "start_ranks", lambda ctx: Ranks(torch.device("cpu")))
        monkeypatch.setattr(chat_eval, "Tokenizer", SimpleNamespace(load=lambda path: ByteTokenizer()))
        monkeypatch.setattr(chat_eval, "tasks", lambda ctx: self.tasks)
        monkeypatch.setattr(chat_eval, "load_model", self._load)
        monkeypatch.setattr(stages_of.StageContext, "output", lambda ctx, stage, key: Path(stage))

    def _load(self, checkpoint: Path, tokenizer: Path, device: object) -> TableEngine:
        model = next(model for model, stage in pipeline.MODEL_STAGES.items() if stage == str(checkpoint))
        self.loaded.append(model)
        self.before(model)

        def answer(prompt: str) -> str:
            self.asked += prompt.startswith("say")
            self.at(self.asked)
            return prompt.split()[-1]

        return TableEngine(self.reply or answer)

    def attempt(self, number: int, fresh: bool = False) -> StageHistory:
        self.loaded, self.asked = [], 0
        ctx = stages_of.StageContext(self.run, "chat_eval", number, fresh)
        ctx.emit(stages_of._started(ctx))
        try:
            self.outcome = chat_eval.work(ctx)
        finally:
            ctx.close()
        return self.history()

    def history(self) -> StageHistory:
        return StageHistory(self.run, "chat_eval").read_all()

    @property
    def partial(self) -> Path:
        return self.run.dir / "eval" / "chat_eval.partial.json"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path))
    run = Run.create("r", config.load(sets=["chat_eval.items=8"], environ={}))
    (run.dir / "prompts.txt").write_text("\n".join(PROMPTS))
    return Bench(run, monkeypatch)


def all_there(history: StageHistory) -> None:
    names = [f"{m}/{t}" for m in pipeline.MODEL_STAGES for t in (*TASKS, "ChatCORE")]
    assert [event.name for event in history.evals] == names
    assert [(event.model, event.prompt) for event in history.samples] == [
        (model, prompt) for model in pipeline.MODEL_STAGES for prompt in PROMPTS
    ]


def kill_at(model: str) -> Callable[[str], None]:
    def before(loading: str) -> None:
        if loading == model:
            raise Killed

    return before


def test_undisturbed(bench: Bench) -> None:
    all_there(bench.attempt(1))
    table = json.loads((bench.run.dir / "eval" / "chat_eval.json").read_text())["models"]
    assert {name: cell["n"] for name, cell in table["sft"].items()} == {"capitals": 8, "again": 8}
    assert not bench.partial.exists()


def test_a_resumed_attempt_says_again_what_was_kept(bench: Bench) -> None:
    bench.before = kill_at("sft")
    with pytest.raises(Killed):
        bench.attempt(1)
    bench.before = lambda model: None
    all_there(bench.attempt(2))
    assert bench.loaded == ["sft", "rl"]


def test_a_model_without_its_samples_is_not_finished(bench: Bench) -> None:
    bench.before = kill_at("sft")
    with pytest.raises(Killed):
        bench.attempt(1)
    kept = json.loads(bench.partial.read_text())
    del kept["samples"]["mid"]
    bench.partial.write_text(json.dumps(kept))
    with pytest.raises(Killed):
        bench.attempt(2)
    assert bench.loaded == ["mid", "sft"] and bench.asked == 0
    assert [event.model for event in bench.history().samples] == ["base", "base", "mid", "mid"]


def test_other_prompts_are_asked_again(bench: Bench) -> None:
    bench.before = kill_at("mid")
    with pytest.raises(Killed):
        bench.attempt(1)
    (bench.run.dir / "prompts.txt").write_text("Something else?")
    bench.before = lambda model: None
    history = bench.attempt(2)
    assert {event.prompt for event in history.samples} == {"Something else?"} and len(history.samples) == 4


@pytest.mark.parametrize("spoilt", ["{", '{"fingerprint": "x"}', "[]", '{"models": {}}'])
def test_a_partial_file_that_is_no_use_is_left_aside(bench: Bench, spoilt: str) -> None:
    bench.partial.parent.mkdir()
    bench.partial.write_text(spoilt)
    all_there(bench.attempt(1))


def test_the_results_have_a_hash_that_the_report_is_made_from(bench: Bench) -> None:
    def hashed(number: int) -> str:
        bench.attempt(number, fresh=True)
        return bench.outcome.artifacts["results"]

    once = hashed(1)
    assert hashed(2) == once
    bench.reply = lambda prompt: "no idea"
    assert hashed(3) != once


def test_a_fresh_start_keeps_nothing(bench: Bench) -> None:
    bench.before = kill_at("rl")
    with pytest.raises(Killed):
        bench.attempt(1)
    with pytest.raises(Killed):
        bench.attempt(2, fresh=True)
    assert bench.loaded == list(pipeline.MODEL_STAGES)


def test_no_prompts_are_no_samples(bench: Bench) -> None:
    (bench.run.dir / "prompts.txt").write_text("# none\n")
    assert bench.attempt(1).samples == []


def test_a_stop_is_heard_while_a_task_is_asked(bench: Bench) -> None:
    bench.run.stage_dir("chat_eval").mkdir(parents=True)
    bench.at = lambda asked: bench.run.request_stop("chat_eval") if asked == 9 else None
    with pytest.raises(StopRequested):
        bench.attempt(1)
    assert len(bench.history().evals) == 1 and bench.asked == 16
    bench.run.stop_file("chat_eval").unlink()
    bench.at = lambda asked: None
    all_there(bench.attempt(2))
    assert bench.asked == 7 * 8


def test_progress_counts_items(bench: Bench) -> None:
    bench.attempt(1)
    told = [
        event
        for event in event_file.read_events(bench.run.events_file("chat_eval", 1))
        if isinstance(event, ev.Progress)
    ]
    assert (told[-1].step, told[-1].steps) == (64, 64)


def test_the_wrong_answers_are_all_kept_by_model_and_task(bench: Bench) -> None:
    bench.run.set(["chat_eval.items=24"])
    bench.reply = lambda prompt: "no\u2028 idea"
    bench.attempt(1)
    name, file = failures.find(bench.run, "sft/cap")
    rows = failures.read(file)
    assert name == "sft/capitals" and [row["index"] for row in rows] == list(range(20))
    assert rows[3] | {"topic": ""} == {
        "index": 3,
        "topic": "",
        "prompt": f"say {rows[3]['expected']}",
        "expected": rows[3]["expected"],
        "got": "no\u2028 idea",
    }
    with pytest.raises(UserError, match=r"names 0 of .* base/again, base/capitals, mid/again"):
        failures.find(bench.run, "sft/spelling")
    bench.reply = None
    bench.attempt(2, fresh=True)
    assert failures.read(failures.find(bench.run, "sft/capitals")[1]) == []


def test_an_evaluation_made_again_takes_the_wrong_answers_when_it_is_done(bench: Bench) -> None:
    def rows() -> list[int]:
        return [len(failures.read(file)) for tasks in failures.kept(bench.run).values() for file in tasks.values()]

    bench.reply = lambda prompt: "no idea"
    bench.attempt(1)
    assert rows() == [8] * 8
    bench.reply, bench.before = None, kill_at("sft")
    with pytest.raises(Killed):
        bench.attempt(2, fresh=True)
    assert rows() == [8] * 8, "attempt 1 is still the newest that finished"
    bench.before = lambda model: None
    bench.attempt(3)
    assert bench.loaded == ["sft", "rl"] and rows() == [0] * 8
    assert not (bench.run.dir / "eval" / failures.UNFINISHED).exists()


def test_a_task_of_any_name_has_a_file(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for task in ("custom:path=/a/b.jsonl", "x" * 400):
        failures.write(run, "sft", task, [{"index": 0, "got": "\ud800"}])
    assert failures.read(failures.find(run, "sft/custom:path=/a/b.jsonl")[1]) == [{"index": 0, "got": "?"}]
    assert failures.read(failures.find(run, "sft/xx")[1])[0]["index"] == 0


def test_a_task_that_cannot_be_judged_here_is_left_out_with_the_reason(bench: Bench) -> None:
    class Programs(Capitals):
        def unavailable(self) -> str:
            return "no sandbox: the kernel has neither"

    bench.tasks["programs"] = Programs()

    class Talk(Capitals):
        judged = False

        def unavailable(self) -> str:
            return "free conversation has no right answers"

    bench.tasks["talk"] = Talk()
    history = bench.attempt(1)
    all_there(history)
    assert any("programs is left out" in text and "neither" in text for text in history.warnings)
    assert not any("talk" in text for text in history.warnings), "nothing is wrong with it"
    found = json.loads((bench.run.dir / "eval" / "chat_eval.json").read_text())
    assert found["skipped"].pop("talk").startswith("free conversation")
    assert found["skipped"] == {"programs": "no sandbox: the kernel has neither"}
    assert found["chatcore"]["sft"]["tasks"] == 2 and "programs" not in found["models"]["sft"]


def test_what_a_task_needs_is_fetched_first_and_its_broken_rows_are_told(bench: Bench) -> None:
    class Published(Capitals):
        here = False

        def fetch(self, mirrors: str = "", say: object = None, look: object = None) -> dict:
            self.here = True
            return {}

        def problems(self, look: object = None) -> list[str]:
            return ["published: test.parquet row 3: question is empty"]

        def heldout(self) -> list:
            assert self.here
            return super().heldout()

    bench.tasks["published"] = Published()
    history = bench.attempt(1)
    assert history.warnings == ["published: test.parquet row 3: question is empty"]
    assert len([event for event in history.evals if event.name == "mid/published"]) == 1


def test_each_task_may_have_its_own_number_of_items(bench: Bench) -> None:
    bench.run.set(["chat_eval.tasks={again = 3, capitals = 0}"])
    bench.attempt(1)
    cells = json.loads((bench.run.dir / "eval" / "chat_eval.json").read_text())["models"]["rl"]
    assert {name: cell["n"] for name, cell in cells.items()} == {"capitals": 8, "again": 3}
    assert cells["again"]["sampling"] == {"temperature": 0.0, "max_tokens": 48, "tools": True}


def test_nothing_to_ask_is_said(bench: Bench) -> None:
    bench.tasks = {}
    with pytest.raises(UserError, match=r"chat_eval\.tasks"):
        bench.attempt(1)
