"""Synthetic curves of RL: what must be said, once, and what must not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from picollm.train.collapse import FIRST, WINDOW, Collapse

STEPS = 200
GOOD = {"reward": 0.4, "useful": 0.4, "entropy": 0.5, "ended": 0.98, "tokens": 20.0}


def said(change: Callable[[float], dict[str, float]], steps: int = STEPS, seed: int = 0) -> dict[int, str]:
    """What was said after which step; `change(share of the steps)` says what is not as in GOOD."""
    draw, collapse, found = random.Random(seed), Collapse(), {}
    for step in range(1, steps + 1):
        values = GOOD | change(step / steps)
        noisy = {key: value * (1 + 0.2 * draw.uniform(-1, 1)) for key, value in values.items()}
        for notice in collapse.step(step, noisy):
            found[step] = ("!" if notice.warning else "") + notice.text
    return found


@pytest.mark.parametrize("seed", range(5))
def test_healthy_curves_are_passed_over_in_silence(seed: int) -> None:
    assert said(lambda t: {"reward": 0.1 + 0.6 * t, "entropy": 0.7 - 0.4 * t, "useful": 0.2 + 0.2 * t}, seed=seed) == {}


def test_a_task_that_is_learnt_is_no_failure() -> None:
    found = said(lambda t: {"reward": 0.1 + 0.9 * t, "entropy": 0.6 * (1 - t) + 0.001, "useful": 0.5 * (1 - t)})
    assert all(not text.startswith("!") for text in found.values())


def test_solved_is_told_once_and_is_no_warning() -> None:
    [(step, text)] = said(lambda t: {"reward": 1.2 if t > 0.5 else 0.4, "useful": 0.0 if t > 0.5 else 0.4}).items()
    assert STEPS / 2 < step <= STEPS / 2 + WINDOW and not text.startswith("!") and "harder rl.task" in text


def test_nothing_right_is_told_with_the_cure() -> None:
    [(step, text)] = said(lambda t: {"reward": 0.0, "useful": 0.0}).items()
    assert step == FIRST + WINDOW and text.startswith("!") and "rl.samples" in text


def test_entropy_that_is_gone() -> None:
    [text] = said(lambda t: {"entropy": 0.5 * max(0.001, 1 - 2 * t)}).values()
    assert text.startswith("!") and "stopped trying" in text and "cosine" in text


def test_entropy_that_grows() -> None:
    [(step, text)] = said(lambda t: {"entropy": 0.8 * 6**t}).items()
    assert step < STEPS * 0.75 and text.startswith("!") and "lower rl.lr" in text


def test_a_reward_that_falls() -> None:
    [(step, text)] = said(lambda t: {"reward": 0.4 if t < 0.5 else 0.1}).items()
    assert STEPS / 2 < step <= STEPS / 2 + WINDOW and text.startswith("!") and "the reward fell from 0.4" in text


def test_answers_that_no_longer_end() -> None:
    [text] = said(lambda t: {"ended": 0.98 if t < 0.5 else 0.2}).values()
    assert text.startswith("!") and "rl.max_tokens" in text


def test_nothing_is_said_of_a_few_steps() -> None:
    assert said(lambda t: {"reward": 0.0, "useful": 0.0, "entropy": 0.0}, steps=FIRST + WINDOW - 1) == {}
