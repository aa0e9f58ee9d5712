from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from picollm.data.packing import best_fit, pack_conversations

PAD = 9999
lengths = st.lists(st.integers(0, 30), max_size=60)


@given(lengths, st.integers(1, 25))
def test_nothing_is_lost_and_no_row_overflows(found: list[int], capacity: int) -> None:
    rows = best_fit(found, capacity)
    placed = [index for row in rows for index in row]
    assert sorted(placed) == [i for i, length in enumerate(found) if length <= capacity]
    assert all(row and sum(found[i] for i in row) <= capacity for row in rows)


@given(lengths, st.integers(1, 25))
def test_rows_are_well_filled(found: list[int], capacity: int) -> None:
    """First bound of any-fit packing: no two rows could have been one."""
    loads = sorted(sum(found[i] for i in row) for row in best_fit(found, capacity))
    assert len(loads) < 2 or loads[0] + loads[1] > capacity or loads[0] == 0


def test_best_fit_takes_the_tightest_row() -> None:
    assert best_fit([7, 6, 3, 4], 10) == [[0, 2], [1, 3]]
    assert best_fit([], 10) == [] and best_fit([11], 10) == []


def test_an_overlong_item_never_blocks() -> None:
    assert best_fit([10**9, 2, 3], 5) == [[2, 1]]


conversation = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 500), min_size=n, max_size=n), st.lists(st.integers(0, 1), min_size=n, max_size=n)
    )
)


@given(st.lists(conversation, max_size=20), st.integers(1, 16))
def test_masks_are_aligned_with_targets(conversations: list[tuple[list[int], list[int]]], T: int) -> None:
    packed = pack_conversations(conversations, T, PAD)
    inputs, targets, weights = packed
    fitting = [(ids, mask) for ids, mask in conversations if len(ids) <= T + 1]
    assert packed.dropped == len(conversations) - len(fitting)
    assert packed.used == sum(len(ids) for ids, _ in fitting)
    assert inputs.shape == targets.shape == weights.shape and inputs.shape[1:] == (T,)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    expected = Counter(
        (ids[i - 1], ids[i]) for ids, mask in fitting for i in range(1, len(ids)) if mask[i]
    )  # every supervised target with the token before it
    counted = weights > 0
    assert Counter(zip(inputs[counted].tolist(), targets[counted].tolist(), strict=True)) == expected
    real = np.concatenate([inputs[:, :1], targets], axis=1)
    assert Counter(real[real != PAD].tolist()) == Counter(i for ids, _ in fitting for i in ids)


def test_golden() -> None:
    inputs, targets, weights = pack_conversations([([1, 2, 3], [0, 0, 1]), ([1, 4], [1, 1])], 5, PAD)
    assert inputs.tolist() == [[1, 2, 3, 1, 4]]
    assert targets.tolist() == [[2, 3, 1, 4, PAD]]
    assert weights.tolist() == [[0, 1, 0, 1, 0]]
    assert (inputs.dtype, weights.dtype) == (np.int64, np.float32)


def test_no_conversations() -> None:
    packed = pack_conversations([], 4, PAD)
    assert packed.inputs.shape == (0, 4) and len(packed) == 3 and packed[2].shape == (0, 4)
