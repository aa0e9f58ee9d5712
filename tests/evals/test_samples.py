from __future__ import annotations

import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import torch

from picollm.evals import samples
from picollm.evals.samples import (
    CHECKPOINT_TOKENS,
    DOCS_PROMPTS,
    GENERAL_PROMPTS,
    BaseSample,
    CheckpointSamples,
    base_samples,
    prompts_for,
)
from picollm.infer.engine import Engine
from picollm.train.loop import frozen_gc
from tests.evals.fakes import TableEngine
from tests.infer.fakes import ByteTokenizer, tiny_model


def test_a_base_prompt_is_plain_text_without_turns():
    engine = TableEngine(lambda text: f"[{text}] goes on")
    found = base_samples(engine, ByteTokenizer(), ["The list is", "Why?"])
    assert [(s.prompt, s.text) for s in found] == [("The list is", "[The list is] goes on"), ("Why?", "[Why?] goes on")]


def test_the_same_seed_writes_the_same_and_equal_prompts_differ():
    engine = Engine(tiny_model(), ByteTokenizer())
    how = dict(max_tokens=20, temperature=1.0)
    one, two, other = (base_samples(engine, engine.tok, ["a", "a"], seed=seed, **how) for seed in (1, 1, 2))
    assert [s.text for s in one] == [s.text for s in two] != [s.text for s in other]
    assert one[0].text != one[1].text and one[0].tokens <= 20


def test_prompts_suit_the_text():
    assert prompts_for("pydocs") == DOCS_PROMPTS and prompts_for("books/") == GENERAL_PROMPTS


class Looks:
    """`CheckpointSamples` over a tiny model, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.model, self.shown, self.warned = tiny_model(), [], []
        self.folder = folder / "samples"

        def show(step: int, sample: BaseSample) -> None:
            self.shown.append((step, sample.prompt, sample.text))

        self.at = CheckpointSamples(self.model, ByteTokenizer(), ["a", "b"], self.folder, show, self.warned.append)


def test_samples_at_checkpoints_are_told_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "MOST_SHARE", 1e9)
    looks = Looks(tmp_path)
    looks.at(5)
    with torch.no_grad():
        looks.model.lm_head.weight.neg_()
    looks.at(10)
    rows = {n: [json.loads(line) for line in (looks.folder / f"step-{n:06d}.jsonl").open()] for n in (5, 10)}
    assert [set(row) for row in rows[5]] == [{"step", "prompt", "text", "finish_reason", "tokens", "tok_s"}] * 2
    assert [(row["step"], row["prompt"], row["text"]) for n in (5, 10) for row in rows[n]] == looks.shown
    assert rows[5][0]["tokens"] <= CHECKPOINT_TOKENS
    assert rows[5][0]["text"] != rows[10][0]["text"]  # the weights of the moment
    again = Looks(tmp_path / "again")
    again.at(5)
    assert [text for _, _, text in again.shown] == [row["text"] for row in rows[5]]


def test_a_checkpoint_that_comes_too_soon_is_passed_over(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(samples, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    looks = Looks(tmp_path)
    honest = samples.base_samples

    def slow(*args, **how):
        clock[0] += 1.0
        return honest(*args, **how)

    monkeypatch.setattr(samples, "base_samples", slow)
    for step, now in ((1, 10.0), (2, 30.0), (3, 62.0), (4, 100.0)):  # the first look, at 10, ends at 11: 50 s of rest
        clock[0] = now
        looks.at(step)
    assert sorted(path.name for path in looks.folder.iterdir()) == ["step-000001.jsonl", "step-000003.jsonl"]


def test_without_memory_training_goes_on_without_samples(tmp_path, monkeypatch):
    looks = Looks(tmp_path)

    def full(*args, **how):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(samples, "Engine", full)
    looks.at(1)
    looks.at(2)
    assert len(looks.warned) == 1 and "no memory left for samples" in looks.warned[0] and not looks.folder.exists()


def test_what_a_look_took_is_given_back_at_once(tmp_path, monkeypatch):
    """Without the garbage collector, which sleeps while training."""
    made, honest = [], samples.Engine

    def engine(*args):
        made.append(honest(*args))
        refs.append(weakref.ref(made[-1].model))
        return made.pop()

    refs: list[weakref.ref] = []
    monkeypatch.setattr(samples, "Engine", engine)
    with frozen_gc():
        Looks(tmp_path).at(1)
        assert len(refs) == 1 and refs[0]() is None
