"""pass@k: the estimator against counting, and the reading the same under any number of ranks."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm.evals.pass_at import PassAt, mean_with_interval, pass_at_k, sample_pass_at
from picollm.infer.engine import Engine
from picollm.infer.sampling import Sampling
from picollm.run.errors import UserError
from picollm.tasks.base import BaseTask, Example
from picollm.train.device import Ranks
from tests.evals.fakes import Capitals, TableEngine
from tests.infer.fakes import ByteTokenizer, tiny_model
from tests.train.ranked import on_ranks

HOW = Sampling(temperature=1.0, top_k=0, max_tokens=12)
ALONE = Ranks(torch.device("cpu"))


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_the_estimate_is_the_share_of_choices_with_a_right_one(case: tuple[int, int, int]) -> None:
    n, c, k = case
    choices = list(itertools.combinations([i < c for i in range(n)], k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_known_values_and_refusals() -> None:
    assert pass_at_k(8, 0, 8) == 0 and pass_at_k(8, 8, 1) == 1 and pass_at_k(8, 1, 8) == 1
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    for wrong in ((4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)):
        with pytest.raises(ValueError):
            pass_at_k(*wrong)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_interval_holds_the_mean(values: list[float]) -> None:
    mean, low, high = mean_with_interval(values)
    assert 0 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1 + 1e-12
    assert mean == pytest.approx(math.fsum(values) / len(values))


def test_an_interval_is_not_empty_where_all_agree() -> None:
    assert mean_with_interval([0.0] * 64)[1:] == (0.0, pytest.approx(0.0566, abs=1e-3))
    assert mean_with_interval([0.0, 1.0] * 50)[1:] == (pytest.approx(0.402, abs=1e-2), pytest.approx(0.598, abs=1e-2))


def test_counted_by_item_and_every_item_asked_often_enough() -> None:
    engine = TableEngine(lambda text: text.split()[-1] if int(text.split()[-1]) % 4 == 0 else "?")
    found = sample_pass_at(Capitals(), engine, engine.tok, 12, ALONE, sampling=HOW)  # type: ignore[arg-type]
    items = [int(example.answer) for example in Capitals().heldout()[:12]]
    assert found.right == [8 if item % 4 == 0 else 0 for item in items]
    share = sum(item % 4 == 0 for item in items) / 12
    assert {k: rate[0] for k, rate in found.rates.items()} == dict.fromkeys((1, 2, 4, 8), pytest.approx(share))
    assert found.n == 12 and found.samples == 8 and sum(engine.batches) == 96


def test_a_question_without_room_counts_as_wrong() -> None:
    class Long(Capitals):
        def _make(self, split):
            short = super()._make(split)[:2]
            long = Example(messages=[{"role": "user", "content": "x" * 400}, short[0].messages[1]], answer="0")
            return [*short, long]

    engine = TableEngine(lambda text: text.split()[-1])
    found = sample_pass_at(Long(), engine, engine.tok, 3, ALONE, sampling=HOW, samples=2)  # type: ignore[arg-type]
    assert sorted(found.right) == [0, 2, 2] and found.too_long == 1 and set(found.rates) == {1, 2}


class EvenLength(Capitals):
    name = "even"

    def score(self, example: Example, answer_text: str) -> bool:
        return len(answer_text) % 2 == 0


def test_samples_differ_and_ranks_agree(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> PassAt:
        torch.set_num_threads(1)
        tok = ByteTokenizer()
        looks: list[list[int]] = []  # a collective, so that ranks that call it unequally often would not end
        engine, look = Engine(tiny_model(), tok), lambda: looks.append(ranks.gather(ranks.rank))
        found = sample_pass_at(EvenLength(), engine, tok, 18, ranks, sampling=HOW, seed=3, on_progress=look)
        assert looks
        return found

    [one] = on_ranks(1, work, tmp_path)
    two = on_ranks(2, work, tmp_path)
    assert two == [one, one]
    assert 0 < one.rates[1][0] < one.rates[8][0] <= 1
    assert len(set(one.right)) > 2


def test_nothing_held_out() -> None:
    class Empty(BaseTask):
        name = "empty"

        def _make(self, split):
            return []

    engine = TableEngine(lambda text: "x")
    with pytest.raises(UserError, match="no held-out"):
        sample_pass_at(Empty(), engine, engine.tok, 4, ALONE, sampling=HOW)  # type: ignore[arg-type]
