from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from picollm.evals.bpb import bits_per_byte, text_loss
from picollm.run.errors import UserError
from tests.infer.fakes import tiny_model

SIZES = np.array([1] * 256 + [0] * 9)


def batch(seed: int, rows: int = 2, high: int = 265) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, high, (rows, 17))
    return ids[:, :-1], ids[:, 1:]


def test_it_is_the_formula():
    model, (x, y) = tiny_model(), batch(0)
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.from_numpy(x)).double(), -1)
    nats = [-logs[b, t, y[b, t]].item() for b in range(2) for t in range(16) if y[b, t] < 256]
    found = text_loss(model, [(x, y)], SIZES)
    assert (found.tokens, found.bytes) == (len(nats), len(nats))
    assert found.nats == pytest.approx(sum(nats), rel=1e-5)
    assert found.bpb == pytest.approx(sum(nats) / (math.log(2) * len(nats)), rel=1e-5)
    assert bits_per_byte(model, [(x, y)], SIZES) == found.bpb


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert bits_per_byte(model, [batch(1)], SIZES) == pytest.approx(math.log2(265), rel=1e-6)
    assert bits_per_byte(model, [batch(1)], SIZES * 3) == pytest.approx(math.log2(265) / 3, rel=1e-6)


def test_masked_positions_do_not_count():
    model, (x, y) = tiny_model(), batch(2, high=256)
    half = text_loss(model, [(x[:1], y[:1])], SIZES)
    masked = y.copy()
    masked[1] = -1
    weights = np.ones(y.shape, np.float32)
    weights[1] = 0
    for got in (text_loss(model, [(x, masked)], SIZES), text_loss(model, [(x, y, weights)], SIZES)):
        assert got.tokens == half.tokens and got.nats == pytest.approx(half.nats, rel=1e-5)


def test_every_form_of_loader_is_read_alike():
    model = tiny_model()
    loader = SimpleNamespace(batch=batch)
    tensors = [tuple(map(torch.from_numpy, batch(step))) for step in range(3)]
    as_objects = [SimpleNamespace(inputs=x, targets=y) for x, y in tensors]
    one = text_loss(model, loader, SIZES, steps=3)
    assert one == text_loss(model, map(batch, range(3)), torch.from_numpy(SIZES)) == text_loss(model, as_objects, SIZES)
    assert text_loss(model, map(batch, range(9)), SIZES, steps=3) == one
    with pytest.raises(ValueError, match="how many steps"):
        text_loss(model, loader, SIZES)


def test_every_batch_is_told_and_may_be_the_last():
    seen = []

    def look(batches: int) -> None:
        seen.append(batches)
        if batches == 3:
            raise InterruptedError

    text_loss(tiny_model(), map(batch, range(2)), SIZES, on_batch=look)
    assert seen == [1, 2]
    with pytest.raises(InterruptedError):
        text_loss(tiny_model(), map(batch, range(9)), SIZES, on_batch=look)
    assert seen == [1, 2, 1, 2, 3]


def test_text_without_bytes_is_an_error():
    with pytest.raises(UserError, match="validation text is empty"):
        bits_per_byte(tiny_model(), [], SIZES)
