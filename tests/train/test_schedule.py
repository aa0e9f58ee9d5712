from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.train.schedule import Schedule


def test_the_trapezoid():
    s = Schedule(1000)
    assert s.lr(0) == pytest.approx(1 / 40)
    assert s.lr(39) == 1.0
    assert s.lr(350) == 1.0
    assert s.lr(675) == pytest.approx(0.525)
    assert s.lr(1000) == pytest.approx(0.05)


def test_cosine_warmdown():
    s = Schedule(100, warmup=0, warmdown=1.0, final=0.0, shape="cosine")
    assert [s.lr(0), s.lr(50), s.lr(100)] == pytest.approx([1.0, 0.5, 0.0])
    assert s.lr(25) == pytest.approx(0.8535, abs=1e-4)


def test_constant():
    s = Schedule(10, warmup=0, warmdown=0.0)
    assert {s.lr(i) for i in range(10)} == {1.0}


def test_muon_momentum_rises_then_falls():
    s = Schedule(4000)
    assert s.muon_momentum(0) == pytest.approx(0.85)
    assert s.muon_momentum(200) == pytest.approx(0.91)
    assert s.muon_momentum(400) == pytest.approx(0.97)
    assert s.muon_momentum(1400) == pytest.approx(0.97)
    assert s.muon_momentum(4000) == pytest.approx(0.90)
    assert Schedule(90).muon_momentum(30) == pytest.approx(0.97, abs=2e-2), "a short stage gets there too"


def test_weight_decay_fades_to_nothing():
    s = Schedule(100)
    assert [s.weight_decay(0), s.weight_decay(50), s.weight_decay(100)] == pytest.approx([1.0, 0.5, 0.0])


@given(
    steps=st.integers(1, 500), warmup=st.integers(0, 60), warmdown=st.floats(0, 1), final=st.floats(0, 1),
    shape=st.sampled_from(["linear", "cosine"]),
)  # fmt: skip
def test_multipliers_stay_within_bounds(steps, warmup, warmdown, final, shape):
    s = Schedule(steps, warmup=warmup, warmdown=warmdown, final=final, shape=shape)
    for step in range(steps):
        assert 0 <= s.lr(step) <= 1
        assert 0.85 <= s.muon_momentum(step) <= 0.97
        assert 0 <= s.weight_decay(step) <= 1
