"""Choosing a token: the right distribution, from numbers that depend on position only."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm.infer.sampling import (
    Sampling,
    Settings,
    exact,
    logprobs_of,
    penalise,
    pick,
    ranks_of,
    row_seed,
    uniforms,
)
from picollm.run.errors import UserError


def choose(logits: torch.Tensor, samplings: list[Sampling], u: torch.Tensor) -> torch.Tensor:
    """One token per row of logits (B, V), each with its own settings."""
    settings = Settings.empty(len(samplings), logits.device)
    for row, sampling in enumerate(samplings):
        settings.put(row, sampling, logits.shape[1])
    return pick(logits, settings, u, max(ranks_of(sampling, logits.shape[1]) for sampling in samplings))


def frequencies(logits: list[float], sampling: Sampling, n: int = 5_000) -> torch.Tensor:
    u = torch.from_numpy(uniforms([7], n)[0])
    tokens = choose(torch.tensor([logits]).expand(n, -1), [sampling] * n, u)
    return torch.bincount(tokens, minlength=len(logits)) / n


LOGITS = [1.0, 3.0, 0.0, 2.0, -1.0]


def test_zero_temperature_takes_the_likeliest() -> None:
    for temperature in (0, 5e-324, 1e-5, 1e-4):
        how = Sampling(temperature=temperature, top_p=1e-9, min_p=0.5)
        wild = Sampling(temperature=9.0, top_k=0)  # company that makes the row go the way of sampling
        u = torch.tensor([0.9, 0.9], dtype=torch.float64)
        assert choose(torch.tensor([LOGITS]) * 1e3, [how], u[:1]).tolist() == [1]
        assert choose(torch.tensor([LOGITS] * 2), [how, wild], u).tolist()[0] == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_follows_the_softmax(temperature: float) -> None:
    got = frequencies(LOGITS, Sampling(temperature=temperature, top_k=0))
    assert torch.allclose(got, torch.softmax(torch.tensor(LOGITS) / temperature, 0).float(), atol=0.025)


def test_top_k_keeps_k_and_renormalises() -> None:
    got = frequencies(LOGITS, Sampling(temperature=1, top_k=2))
    expected = torch.softmax(torch.tensor([3.0, 2.0]), 0)
    assert got[[0, 2, 4]].sum() == 0
    assert torch.allclose(got[[1, 3]], expected, atol=0.025)


def test_top_p_keeps_the_head() -> None:
    # p = .63 .23 .09 .03 .01: .7 needs the first two, .6 only the first.
    got = frequencies(LOGITS, Sampling(temperature=1, top_k=0, top_p=0.7))
    assert got[[0, 2, 4]].sum() == 0 and got[3] > 0.2
    assert frequencies(LOGITS, Sampling(temperature=1, top_k=0, top_p=0.6))[1] == 1
    assert frequencies(LOGITS, Sampling(temperature=1, top_k=3, top_p=0.6))[1] == 1


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=4), st.integers(1, 20))
def test_numbers_depend_on_seed_and_position_only(seeds: list[int], count: int) -> None:
    table = uniforms(seeds, count)
    assert ((table >= 0) & (table < 1)).all()
    for b, seed in enumerate(seeds):
        assert np.array_equal(table[b], uniforms([seed], 25)[0, :count])


def test_numbers_look_uniform() -> None:
    table = uniforms(list(range(100)), 100)
    assert abs(table.mean() - 0.5) < 0.01 and abs(table.std() - 12**-0.5) < 0.01
    assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.05
    assert len({row_seed(0, 1, r, s) for r in range(20) for s in range(20)}) == 400


def test_min_p_keeps_what_is_near_the_likeliest() -> None:
    # p / p_max = .135 1 .050 .368 .018
    for top_k in (0, 4):
        got = frequencies(LOGITS, Sampling(temperature=1, top_k=top_k, min_p=0.1))
        assert got[[2, 4]].sum() == 0 and (got[[0, 1, 3]] > 0.05).all()
    assert frequencies(LOGITS, Sampling(temperature=1, top_k=0, min_p=1.0))[1] == 1
    both = frequencies(LOGITS, Sampling(temperature=1, top_k=0, min_p=0.1, top_p=0.7))
    assert both[[0, 2, 4]].sum() == 0 and both[3] > 0.2


def test_penalty_on_repetition() -> None:
    seen = torch.tensor([[False, True, False, False, True]])
    two = penalise(torch.tensor([LOGITS] * 2), seen.expand(2, -1), torch.tensor([2.0, 1.0]))
    assert two.tolist() == [[1.0, 1.5, 0.0, 2.0, -2.0], LOGITS]


def test_logprobs() -> None:
    expected = torch.log_softmax(torch.tensor(LOGITS), -1)
    plain = logprobs_of(torch.tensor([LOGITS]), torch.tensor([3]))
    assert plain.chosen.tolist() == pytest.approx([float(expected[3])]) and plain.ids.shape == (1, 0)
    more = logprobs_of(torch.tensor([LOGITS]), torch.tensor([3]), top=2)
    assert more.ids.tolist() == [[1, 3]]
    assert more.values[0].tolist() == pytest.approx([float(expected[1]), float(expected[3])])
    assert logprobs_of(torch.tensor([LOGITS]), torch.tensor([3]), top=20).ids.shape == (1, 5)
    assert plain.entropy.tolist() == pytest.approx([-float((expected.exp() * expected).sum())])
    even = logprobs_of(torch.zeros(1, 8), torch.tensor([3]))
    assert even.entropy.tolist() == pytest.approx([math.log(8)])


SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([0.1, 0.7, 1.0]),
    min_p=st.sampled_from([0.0, 0.3]),
)


@given(st.lists(SETTINGS, min_size=2, max_size=5), st.integers(0, 1000))
def test_a_row_is_picked_the_same_whatever_the_settings_of_others(samplings: list[Sampling], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (len(samplings), 12), generator=g).float() * 0.5  # many equals
    u = torch.rand(len(samplings), generator=g, dtype=torch.float64)
    together = choose(logits, samplings, u)
    for b, sampling in enumerate(samplings):
        assert choose(logits[b : b + 1], [sampling], u[b : b + 1]).tolist() == [together[b]]


@pytest.mark.parametrize(
    "bad",
    [
        {"top_p": 0.0},
        {"top_k": -1},
        {"temperature": -0.1},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"top_logprobs": -1},
    ],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)


def test_logits_that_are_no_numbers_are_nobody_elses_business() -> None:
    how = Sampling(temperature=1.0, top_k=4)
    u = torch.tensor([0.5, 0.5], dtype=torch.float64)
    broken = torch.tensor([[math.nan] * 5, LOGITS])
    assert choose(broken, [how, how], u)[1] == choose(torch.tensor([LOGITS]), [how], u[:1])[0]


def test_without_double_precision() -> None:
    assert exact(torch.device("mps")) == torch.float32 and exact(torch.device("cpu")) == torch.float64
    settings = Settings.empty(200, torch.device("cpu"))
    for row in range(200):
        settings.put(row, Sampling(temperature=1.0, top_p=0.9), 5)
    single = Settings(*(t.float() if t.dtype == torch.float64 else t for t in settings))
    u = torch.from_numpy(uniforms([3], 200)[0])
    logits = torch.tensor([LOGITS]).expand(200, -1)
    assert pick(logits, single, u.float(), 5).tolist() == pick(logits, settings, u, 5).tolist()
