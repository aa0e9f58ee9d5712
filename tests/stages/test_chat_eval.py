"""Chat eval with toy tasks and engines: what a resumed attempt keeps, says again and does anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from picollm.run import config, pipeline
from picollm.run import events as ev
from picollm.run import stage as stages_of
from picollm.run.errors import StopRequested
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
        self.before: Callable[[str], None] = lambda model: None
        self.at: Callable[[int], None] = lambda asked: None
        monkeypatch.setattr(chat_eval, "start_ranks", lambda ctx: Ranks(torch.device("cpu")))
        monkeypatch.setattr(chat_eval, "Tokenizer", SimpleNamespace(load=lambda path: ByteTokenizer()))
        monkeypatch.setattr(chat_eval, "tasks", lambda ctx: TASKS)
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

        return TableEngine(answer)

    def attempt(self, number: int, fresh: bool = False) -> StageHistory:
        self.loaded, self.asked = [], 0
        ctx = stages_of.StageContext(self.run, "chat_eval", number, fresh)
        ctx.emit(stages_of._started(ctx))
        try:
            chat_eval.work(ctx)
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
    assert [event.name for event in history.evals] == [f"{m}/{t}" for m in pipeline.MODEL_STAGES for t in TASKS]
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
    told = [event for event in ev.read_events(bench.run.events_file("chat_eval", 1)) if isinstance(event, ev.Progress)]
    assert (told[-1].step, told[-1].steps) == (64, 64)
