from __future__ import annotations

from collections import Counter

import pytest

from picollm.data.mixture import Mixture
from picollm.run.errors import UserError

PARTS = {"a": ([1, 2, 3, 4], 2.0), "b": ([10, 20, 30, 40], 0.5), "c": ([7], 1.0), "none": ([8], 0.0), "empty": ([], 3)}


def test_weights_are_epochs() -> None:
    mixture = Mixture(PARTS, seed=1)
    drawn = [mixture[i] for i in range(len(mixture))]
    assert mixture.counts() == {"a": 8, "b": 2, "c": 1, "none": 0, "empty": 0}
    assert len(drawn) == 11
    assert Counter(item for name, item in drawn if name == "a") == {1: 2, 2: 2, 3: 2, 4: 2}
    assert len({item for name, item in drawn if name == "b"}) == 2


def test_one_seed_one_order() -> None:
    def order(seed: int) -> list[tuple[str, int]]:
        mixture = Mixture(PARTS, seed)
        return [mixture[i] for i in range(len(mixture))]

    assert order(1) == order(1) != order(2)
    with pytest.raises(IndexError):
        Mixture(PARTS, 1)[11]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="nothing is drawn"):
        Mixture({"a": ([1], 0.0)}, 0)
    with pytest.raises(UserError, match="weight of a is -1"):
        Mixture({"a": ([1], -1)}, 0)
