from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.data.chat_loader import ChatLoader
from picollm.run.errors import UserError

PAD, T = 0, 12
Conversation = tuple[list[int], list[int]]


def a_conversation(number: int, length: int) -> Conversation:
    """Ids that name the conversation, the second half of them supervised."""
    ids = [1 + number * 100 + i for i in range(length)]
    return ids, [int(i >= length // 2) for i in range(length)]


lengths = st.lists(st.integers(2, T + 1), min_size=1, max_size=25)
worlds = st.integers(1, 4)


def loaded(sizes: list[int], rows: int, **how: int) -> ChatLoader:
    return ChatLoader([a_conversation(i, n) for i, n in enumerate(sizes)], T, rows, 7, PAD, **how)


def supervised(batches: list[tuple[np.ndarray, ...]]) -> Counter[tuple[int, int]]:
    """(input, target) of every counted position."""
    pairs: Counter[tuple[int, int]] = Counter()
    for inputs, targets, weights, *_ in batches:
        counted = weights > 0
        pairs.update(zip(inputs[counted].tolist(), targets[counted].tolist(), strict=True))
    return pairs


def expected(sizes: list[int], *, all_tokens: bool = False) -> Counter[tuple[int, int]]:
    found = [a_conversation(i, n) for i, n in enumerate(sizes)]
    return Counter((ids[i - 1], ids[i]) for ids, mask in found for i in range(1, len(ids)) if mask[i] or all_tokens)


@given(lengths, st.integers(1, 6), st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_a_batch_depends_on_its_step_only(sizes: list[int], rows: int, steps: list[int]) -> None:
    one = loaded(sizes, rows)
    for step in steps:
        for mine, fresh in zip(one.batch(step), loaded(sizes, rows).batch(step), strict=True):
            assert np.array_equal(mine, fresh)


@given(lengths, st.integers(4, 9), worlds, st.integers(0, 20))
def test_any_world_size_sees_the_same_batch(sizes: list[int], rows: int, world: int, step: int) -> None:
    whole = loaded(sizes, rows).batch(step)
    parts = [loaded(sizes, rows, rank=rank, world=world).batch(step) for rank in range(world)]
    for k in range(3):
        assert np.array_equal(np.concatenate([part[k] for part in parts]), whole[k])
    assert {part[3] for part in parts} == {whole[3]} == {float((whole[2] != 0).sum())}
    assert all(array.shape[1:] == (T,) for array in whole[:3])


@given(lengths, st.booleans())
def test_every_epoch_reads_every_conversation_once(sizes: list[int], all_tokens: bool) -> None:
    loader = loaded(sizes, 1, all_tokens=all_tokens)
    epoch = loader.rows_per_epoch
    for first in (0, epoch, 2 * epoch):
        batches = [loader.batch(step) for step in range(first, first + epoch)]
        assert supervised(batches) == expected(sizes, all_tokens=all_tokens)


def test_epochs_differ_in_their_order() -> None:
    loader = loaded([3] * 30, 1)
    rows = loader.rows_per_epoch
    one, two = (np.concatenate([loader.batch(s + k * rows)[0] for s in range(rows)]) for k in (0, 1))
    assert sorted(one.flat) == sorted(two.flat) and not np.array_equal(one, two)


@pytest.mark.parametrize(("rows", "step", "epochs"), [(5, 0, 0.0), (5, 2, 1.0), (10, 3, 3.0)])
def test_epochs_are_counted(rows: int, step: int, epochs: float) -> None:
    loader = loaded([T + 1] * 10, rows)
    assert loader.rows_per_epoch == 10 and loader.epoch(step) == epochs


def test_more_rows_than_an_epoch_has() -> None:
    inputs, _, _, denom = loaded([T + 1], 3).batch(0)
    assert np.array_equal(inputs[0], inputs[1]) and len(inputs) == 3 and denom == 3 * (T + 1 - (T + 1) // 2)


def test_one_that_is_too_long_is_counted_and_holds_up_nothing() -> None:
    loader = loaded([T + 2, 4, 10**4, 5], 1)
    assert loader.dropped == 2 and loader.rows_per_epoch == 1
    assert loader.batch(0)[3] == 2 + 3  # the second halves of the two that fit
    with pytest.raises(UserError, match=r"no conversation fits a row of 12 tokens"):
        loaded([T + 2], 1)


def test_conversations_are_asked_for_when_their_step_comes() -> None:
    class Told(list):  # type: ignore[type-arg]
        lengths = np.array([T + 1] * 50)
        asked = 0

        def __getitem__(self, index: object) -> object:
            self.asked += 1
            return super().__getitem__(index)  # type: ignore[call-overload]

    told = Told(a_conversation(i, T + 1) for i in range(50))
    loader = ChatLoader(told, T, 3, 7, PAD)
    assert told.asked == 0
    loader.batch(4)
    assert told.asked == 3


def test_how_full_the_rows_are() -> None:
    assert loaded([T + 1] * 5, 1).fullness == 1.0
    assert loaded([T, 7], 1).fullness == pytest.approx((T + 7) / (2 * (T + 1)))
