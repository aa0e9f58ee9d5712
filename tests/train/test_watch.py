"""Synthetic curves: what must be said, once, and what must not."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest

from picollm.train.watch import MIXTURE_STEPS, RISE_BLOCK, Watch

VOCAB, TOKENS = 4096, 4096


def said(watch: Watch, losses: Iterable[float], norms: Iterable[float] = (), seconds: float = 0.2) -> dict[int, str]:
    """What was said after which step; warnings begin with an exclamation mark."""
    given = list(norms)
    found: dict[int, str] = {}
    for step, loss in enumerate(losses, 1):
        norm = given[step - 1] if given else 0.4
        for notice in watch.step(step, tokens=TOKENS, loss=loss, grad_norm=norm, seconds=seconds):
            found[step] = ("!" if notice.warning else "") + notice.text
    return found


def healthy(steps: int, start: float = 8.3, end: float = 3.6, noise: float = 0.15, seed: int = 0) -> list[float]:
    """Falls like a real run's: half of the way in the first steps, then slowly, with the scatter of small batches."""
    draw = random.Random(seed)
    fall = [0.5 * math.exp(-i / 15) + 0.5 * math.exp(-4 * i / steps) for i in range(steps)]
    return [end + (start - end) * share + draw.gauss(0, noise) for share in fall]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("stage", "start", "end", "noise"), [("pretrain", 8.3, 3.6, 0.15), ("sft", 0.95, 0.7, 0.13)])
def test_a_healthy_curve_is_passed_over_in_silence(
    stage: str, start: float, end: float, noise: float, seed: int
) -> None:
    draw = random.Random(seed)
    norms = [0.4 * math.exp(draw.gauss(0, 0.3)) for _ in range(1500)]
    watch = Watch(stage, VOCAB, warmup=20, planned_tok_s=TOKENS / 0.25)
    assert said(watch, healthy(1500, start, end, noise, seed), norms) == {}


def test_a_loss_near_guessing_is_told_once_with_the_cure() -> None:
    found = said(Watch("pretrain", VOCAB, warmup=20), [math.log(VOCAB) - 0.1] * 400)
    [(step, text)] = found.items()
    assert step >= 100 and text.startswith("!") and "ln(vocabulary) = 8.32" in text and "data.source" in text


def test_guessing_is_not_told_before_there_were_tokens_enough() -> None:
    watch = Watch("pretrain", 10**6, warmup=20)
    assert said(watch, [math.log(10**6)] * 400) == {}


def midtrain(first: float, rest: float, parent: float = 3.8) -> dict[int, str]:
    watch = Watch("midtrain", VOCAB, parent_loss=parent)
    return said(watch, [first, (first + rest) / 2] + [rest] * 100)


def test_a_mixture_that_was_not_loaded() -> None:
    [(step, text)] = midtrain(3.8, 3.78).items()
    assert step == MIXTURE_STEPS and text.startswith("!") and "midtrain.mixture" in text


def test_the_spike_of_midtraining_is_told_with_its_recovery() -> None:
    found = midtrain(7.1, 2.4)
    assert sorted(found) == [2, 4] and not any(text.startswith("!") for text in found.values())
    assert "7.10 where pretraining ended at 3.80" in found[2] and "since step 4" in found[4]


def test_a_mixture_that_begins_low_and_falls_is_a_mixture() -> None:
    assert midtrain(3.7, 2.9) == {}


def test_midtraining_that_was_resumed_says_nothing_of_its_beginning() -> None:
    watch = Watch("midtrain", VOCAB, parent_loss=3.8)
    said_later = [
        watch.step(step, tokens=TOKENS, loss=3.8, grad_norm=0.3, seconds=1.0) for step in range(40, 40 + MIXTURE_STEPS)
    ]
    assert not any(said_later)


def test_a_spike_is_told_with_its_step_and_its_recovery() -> None:
    losses = healthy(400)
    losses[200:212] = [9.0] * 12
    found = said(Watch("pretrain", VOCAB), losses)
    assert list(found) == [202, 215]
    assert "loss spike at step 201" in found[202] and "to 9.00" in found[202]
    assert "step 201 (up to 9.00) is over since step 213" in found[215]


def test_one_bad_batch_is_no_spike() -> None:
    losses = healthy(400)
    losses[200] = 9.0
    assert said(Watch("pretrain", VOCAB), losses) == {}


def test_a_spike_that_stays_asks_for_a_lower_learning_rate() -> None:
    losses = healthy(200) + [7.5] * 300
    warnings = [text for text in said(Watch("pretrain", VOCAB), losses).values() if text.startswith("!")]
    assert any("jumped at step 201" in text and "pretrain.matrix_lr" in text for text in warnings)


def test_a_rising_loss_is_told_once() -> None:
    draw = random.Random(1)
    losses = [1.0 + draw.gauss(0, 0.05) for _ in range(200)]
    losses += [1.0 + 0.001 * i + draw.gauss(0, 0.05) for i in range(600)]
    warnings = {step: text for step, text in said(Watch("sft", VOCAB), losses).items() if text.startswith("!")}
    [(step, text)] = warnings.items()
    assert 200 < step <= 200 + 5 * RISE_BLOCK and "loss is rising" in text and "sft.lr" in text


def test_exploding_gradients_are_told_once_and_one_large_one_is_not() -> None:
    losses, norms = healthy(300), [0.4] * 300
    norms[100] = 50.0
    assert said(Watch("pretrain", VOCAB), losses, norms) == {}
    norms[200:] = [8.0 + i for i in range(100)]
    found = said(Watch("pretrain", VOCAB), losses, norms)
    assert list(found) == [203] and "25 times the usual 0.4" in found[203]


def test_rl_is_watched_for_its_gradients_only() -> None:
    rewards = [random.Random(2).gauss(0, 1) for _ in range(300)]
    assert said(Watch("rl", VOCAB), rewards, [0.0] * 300) == {}
    assert "rl.lr" in next(iter(said(Watch("rl", VOCAB), rewards, [0.1] * 200 + [9.0] * 100).values()))


class Asked:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> str:
        self.times += 1
        return "" if self.times == 1 else "also busy here: stranger (pid 7, 99 % of a core)"


def slow(seconds: float, **more: Any) -> tuple[dict[int, str], Asked]:
    who = Asked()
    watch = Watch("pretrain", VOCAB, planned_tok_s=TOKENS / 0.2, who=who, **more)
    return said(watch, healthy(200), seconds=seconds), who


def test_slower_than_planned_says_who_else_is_there() -> None:
    found, who = slow(0.5)
    [(step, text)] = found.items()
    assert "8,192 tok/s" in text and "the plan has 20,480" in text and "stranger (pid 7" in text
    assert who.times == 2 and step == 40


def test_nearly_as_fast_as_planned_is_fast_enough() -> None:
    found, who = slow(0.25)
    assert found == {} and who.times == 0


def test_a_resumed_midtraining_goes_on_watching_its_jump() -> None:
    losses = [7.1, 6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.9]
    whole, first = Watch("midtrain", VOCAB, parent_loss=3.8), Watch("midtrain", VOCAB, parent_loss=3.8)
    said(whole, losses)
    said(first, losses[:4])
    assert first.spike() is not None and first.spike().recovered_step is None  # type: ignore[union-attr]
    second = Watch("midtrain", VOCAB, parent_loss=3.8, opening=first.opening)
    notices = [
        notice
        for step, loss in enumerate(losses[4:], 5)
        for notice in second.step(step, tokens=TOKENS, loss=loss, grad_norm=0.3, seconds=1.0)
    ]
    assert second.spike() == whole.spike()
    assert [notice.step for notice in notices] == [7] and "since step 7" in notices[0].text


@pytest.mark.parametrize("losses", [[7.1] + [5.0] * 30, [3.7] * 40])
def test_a_beginning_that_was_followed_to_its_end_is_not_followed_on(
    monkeypatch: pytest.MonkeyPatch, losses: list[float]
) -> None:
    monkeypatch.setattr("picollm.train.watch.MOST_OPENING", 30)
    whole = Watch("midtrain", VOCAB, parent_loss=3.8)
    said(whole, losses)
    before = list(whole.opening or [])
    assert len(before) == 30
    second = Watch("midtrain", VOCAB, parent_loss=3.8, opening=list(before))
    for step in range(41, 61):  # it falls only now
        second.step(step, tokens=TOKENS, loss=1.0, grad_norm=0.3, seconds=1.0)
    assert second.opening == before and second.spike() == whole.spike()
