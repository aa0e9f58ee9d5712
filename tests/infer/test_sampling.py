"""Choosing a token: the right distribution, from numbers that depend on position only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm.infer.sampling import Sampling, logprob_of, pick, row_seed, uniforms
from picollm.run.errors import UserError


def frequencies(logits: list[float], sampling: Sampling, n: int = 20_000) -> torch.Tensor:
    u = torch.from_numpy(uniforms([7], n)[0])
    tokens = pick(torch.tensor([logits]).expand(n, -1), sampling, u)
    return torch.bincount(tokens, minlength=len(logits)) / n


LOGITS = [1.0, 3.0, 0.0, 2.0, -1.0]


def test_zero_temperature_takes_the_likeliest() -> None:
    assert pick(torch.tensor([LOGITS]), Sampling(temperature=0), torch.tensor([0.9])).tolist() == [1]


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


def test_logprob() -> None:
    got = logprob_of(torch.tensor([LOGITS]), torch.tensor([3]))
    assert torch.allclose(got, torch.log_softmax(torch.tensor([LOGITS]), -1)[:, 3])


@pytest.mark.parametrize(
    "bad", [{"top_p": 0.0}, {"top_k": -1}, {"temperature": -0.1}, {"max_tokens": 0}, {"stop": ("",)}]
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)
