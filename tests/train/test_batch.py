from __future__ import annotations

import numpy as np
import torch

from picollm.train.batch import Batch


def test_any_integer_arrays_become_ids():
    batch = Batch.from_numpy(np.arange(6, dtype=np.uint16).reshape(2, 3), np.ones((2, 3), np.int32))
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.weights is None
    assert batch.denom == 6


def test_negative_targets_do_not_count():
    batch = Batch.from_numpy(np.zeros((1, 4), np.int64), np.array([[-1, 5, -1, 7]]))
    assert batch.weights is not None
    assert batch.weights.tolist() == [[0, 1, 0, 1]]
    assert batch.targets.min() == 0
    assert batch.denom == 2


def test_denom_counts_weighted_tokens_unless_given():
    weights = np.array([[0, 0.5, -2.0]], np.float32)
    ids = np.zeros((1, 3), np.int64)
    assert Batch.from_numpy(ids, ids, weights).denom == 2
    assert Batch.from_numpy(ids, ids, weights, denom=32).denom == 32


def test_splitting_keeps_rows_and_denom_and_fills_up():
    ids = np.arange(20).reshape(5, 4)
    whole = Batch.from_numpy(ids, ids + 1)
    parts = list(whole.split(2))
    assert [p.inputs.shape[0] for p in parts] == [2, 2, 2] and [p.padding for p in parts] == [0, 0, 1]
    assert {p.denom for p in parts} == {20.0} and sum(p.tokens for p in parts) == whole.tokens == 20
    assert torch.cat([p.inputs for p in parts])[:5].tolist() == ids.tolist()
    assert parts[0].weights is None
    assert parts[2].weights is not None and parts[2].weights.tolist() == [[1] * 4, [0] * 4]
    assert parts[2].to(torch.device("cpu")).tokens == 4


def test_as_many_parts_as_the_other_ranks_make():
    ids = np.arange(8).reshape(2, 4)
    parts = list(Batch.from_numpy(ids, ids, np.full((2, 4), 0.5)).split(2, 3))
    assert [p.tokens for p in parts] == [8, 0, 0]
    assert [p.inputs.shape for p in parts] == [(2, 4)] * 3
    assert parts[2].weights is not None and not parts[2].weights.any()
    (alone,) = Batch.from_numpy(ids[:0], ids[:0], denom=8).split(2, 1)
    assert alone.inputs.shape == (2, 4) and alone.tokens == 0


def test_on_a_device_weights_are_explicit():
    ids = np.zeros((1, 3), np.int64)
    moved = Batch.from_numpy(ids, ids).to(torch.device("cpu"))
    assert moved.weights is not None and moved.weights.tolist() == [[1, 1, 1]]
    assert moved.tokens == 3
