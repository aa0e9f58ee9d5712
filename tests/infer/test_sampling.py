"""Choosing a token: the right distribution, from numbers that depend on position only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm.infer.sampling import Sampling, logprobs_of, penalise, pick, row_seed, uniforms
from picollm.run.errors import UserError


def frequencies(logits: list[float], sampling: Sampling, n: int = 20_000) -> torch.Tensor:
    u = torch.from_numpy(uniforms([7], n)[0])
    tokens = pick(torch.tensor([logits]).expand(n, -1), sampling, u)
    return torch.bincount(tokens, minlength=len(logits)) / n


LOGITS = [1.0, 3.0, 0.0, 2.0, -1.0]


def test_zero_temperature_takes_the_likeliest() -> None:
    for temperature in (0, 5e-324, 1e-5, 1e-4):
        how = Sampling(temperature=temperature, top_p=1e-9, min_p=0.5)
        assert pick(torch.tensor([LOGITS]) * 1e3, how, torch.tensor([0.9])).tolist() == [1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_follows_the_softmax(temperature: float) -> None:
    got = frequencies(LOGITS, Sampling(temperature=temperature, top_k=0))
    assert torch.allclose(got, torch.softmax(torch.tensor(LOGITS) / temperature, 0).float(), atol=0.015)


def test_top_k_keeps_k_and_renormalises() -> None:
    got = frequencies(LOGITS, Sampling(temperature=1, top_k=2))
    expected = torch.softmax(torch.tensor([3.0, 2.0]), 0)
    assert got[[0, 2, 4]].sum() == 0
    assert torch.allclose(got[[1, 3]], expected, atol=0.015)


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
    assert penalise(torch.tensor([LOGITS]), seen, 2.0).tolist() == [[1.0, 1.5, 0.0, 2.0, -2.0]]


def test_logprobs() -> None:
    expected = torch.log_softmax(torch.tensor(LOGITS), -1)
    [plain] = logprobs_of(torch.tensor([LOGITS]), torch.tensor([3]))
    assert plain.id == 3 and plain.logprob == pytest.approx(float(expected[3])) and plain.top == ()
    [more] = logprobs_of(torch.tensor([LOGITS]), torch.tensor([3]), top=2)
    assert [who for who, _ in more.top] == [1, 3]
    assert [how for _, how in more.top] == pytest.approx([float(expected[1]), float(expected[3])])
    assert len(logprobs_of(torch.tensor([LOGITS]), torch.tensor([3]), top=20)[0].top) == 5


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
