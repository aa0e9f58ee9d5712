from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from picollm.infer.engine import Engine
from picollm.run.errors import StopRequested
from picollm.tasks import make
from picollm.tasks.base import BaseTask
from picollm.text.chat import render
from picollm.train.batch import Batch
from picollm.train.device import Ranks
from picollm.train.loss import weighted_nll
from picollm.train.readings import FEWEST, HeldOut, Reader, held_out
from picollm.train.session import Session
from picollm.train.step import Compute
from tests.infer.fakes import ByteTokenizer, tiny_model
from tests.train.ranked import on_ranks

TOK, T = ByteTokenizer(), 128
TABLE = {"arithmetic": 900, "spelling": 90, "counting": 0}


class Told:
    """A stage's context, of which only the settings and the evaluations are needed."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(machine=SimpleNamespace(device_rows=2))
        self.evals: list[tuple[str, int, dict[str, float], int]] = []
        self.warnings: list[str] = []
        self.phases: list[str] = []
        self.stop = False

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def stop_requested(self) -> bool:
        return self.stop

    def eval(self, name: str, step: int, values: dict[str, float], n: int) -> None:
        self.evals.append((name, step, values, n))


def a_reader(ranks: Ranks, held: HeldOut, *, all_tokens: bool = False) -> tuple[Reader, Told]:
    told = Told()
    session = Session(told, ranks, Compute(), TOK, tiny_model())  # type: ignore[arg-type]
    return Reader(session, held, 6, all_tokens=all_tokens), told


def some(items: int = 5) -> HeldOut:
    return held_out(TABLE, TOK, T + 1, 7, items)  # type: ignore[arg-type]


def one() -> Ranks:
    return Ranks(torch.device("cpu"), 0, 1, 0)


def test_what_is_held_out_follows_the_mixture() -> None:
    held = some()
    assert set(held.asked) == {"arithmetic", "spelling"}  # nothing is drawn from counting
    assert all(len(items) == 5 for _, items in held.asked.values())
    arithmetic = make("arithmetic", seed=7)
    trained = {example.key for example in arithmetic.train()}
    assert not any(example.key in trained for example in held.asked["arithmetic"][1])
    rendered = [render(example.messages, TOK, T + 1) for example in arithmetic.heldout()]  # type: ignore[arg-type]
    shared = sum(conversation in rendered for conversation in held.conversations)
    assert len(held.conversations) - shared >= FEWEST and shared > 5 * FEWEST
    assert some(0).asked == {} and len(some(0).conversations) == len(held.conversations)


def test_a_task_that_cannot_be_judged_here_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseTask, "unavailable", lambda self: "no sandbox", raising=False)
    assert some().asked == {} and some().conversations


def test_own_conversations_are_held_out_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(f'{{"prompt": "question {i}?", "answer": "answer {i}"}}' for i in range(200)))
    held = held_out(TABLE, TOK, T + 1, 7, 3, custom=str(file))  # type: ignore[arg-type]
    task, items = held.asked["custom"]
    assert len(items) == 3 and not {e.key for e in items} & {e.key for e in task.train()}


@pytest.mark.parametrize("all_tokens", [False, True])
def test_the_loss_is_that_of_training_on_the_same_conversations(all_tokens: bool) -> None:
    held = some(0)
    reader, told = a_reader(one(), held, all_tokens=all_tokens)
    loss = reader.read(3)
    rows = list(reader._batches())
    counted = sum(int((weights != 0).sum()) for _, _, weights in rows)
    expected = sum(
        weighted_nll(reader.session.model, Batch.from_numpy(*row, denom=counted)).item()
        for row in rows  # type: ignore[misc]
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    assert told.evals == [("val", 3, {"loss": loss}, counted)]
    tokens = sum(sum(mask[1:]) if not all_tokens else len(mask) - 1 for _, mask in held.conversations)
    assert counted == tokens


def test_reading_changes_no_weight() -> None:
    reader, told = a_reader(one(), some())
    before = {name: p.clone() for name, p in reader.session.model.named_parameters()}
    state = torch.get_rng_state()
    reader.read(0)
    assert all(torch.equal(p, before[name]) for name, p in reader.session.model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    names = [name for name, *_ in told.evals]
    assert names == ["val", "arithmetic", "spelling"]
    for _, _, values, n in told.evals[1:]:
        assert n == 5 and values["low"] <= values["accuracy"] <= values["high"]


def test_a_long_reading_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, told = a_reader(one(), some())
    monkeypatch.setattr("picollm.train.session.SIGN_S", 3600.0)
    reader.read(4)
    assert not told.phases
    monkeypatch.setattr("picollm.train.session.SIGN_S", 0.0)
    reader.read(5)
    assert set(told.phases) == {"held-out reading"} and len(told.phases) >= 2


def test_a_stop_leaves_a_reading() -> None:
    reader, told = a_reader(one(), some())
    told.stop = True
    with pytest.raises(StopRequested) as left:
        reader.read(4)
    assert left.value.step == 4 and [name for name, *_ in told.evals] == ["val"]


@pytest.mark.parametrize("fits", [2, 0])
def test_with_little_memory_on_one_rank_fewer_are_asked_at_a_time_or_training_goes_on_without(
    tmp_path: Path, fits: int
) -> None:
    def read(ranks: Ranks, fits: int = 64) -> tuple[list[Any], list[str]]:
        whole = Engine.generate

        def scarce(self: Engine, prompts: Any, *args: Any, **more: Any) -> Any:
            if ranks.rank == 1 and len(prompts) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(self, prompts, *args, **more)

        reader, told = a_reader(ranks, some(70))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "generate", scarce)
            reader.read(1)
            reader.read(2)
        return told.evals, told.warnings

    plenty = on_ranks(2, read, tmp_path)
    for (evals, warnings), (expected, none) in zip(on_ranks(2, lambda r: read(r, fits), tmp_path), plenty, strict=True):
        assert not none
        if fits:
            assert evals == expected and not warnings
        else:
            assert evals == [event for event in expected if event[0] == "val"]
            assert len(warnings) == 1 and "no memory" in warnings[0]


def test_two_ranks_read_what_one_reads(tmp_path: Path) -> None:
    def read(ranks: Ranks) -> list[Any]:
        reader, told = a_reader(ranks, some(3))
        reader.read(2)
        return told.evals

    [alone] = on_ranks(1, read, tmp_path / "one")
    for evals in on_ranks(2, read, tmp_path / "two"):
        for mine, theirs in zip(evals, alone, strict=True):
            assert mine[:2] == theirs[:2] and mine[3] == theirs[3]
            assert mine[2] == pytest.approx(theirs[2], rel=1e-6)
