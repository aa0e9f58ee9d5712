from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from picollm.data.loader import ValLoader
from picollm.data.shards import Tokens
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


class Bytes:
    """A vocabulary of single bytes, or of pairs where the text has them."""

    def __init__(self, pairs: bool) -> None:
        self.pairs = sorted({TEXT[i : i + 2] for i in range(0, len(TEXT) - 1, 3)}) if pairs else []
        self.sizes = np.array([1] * 256 + [0] + [2] * len(self.pairs))

    def encode(self, text: bytes) -> list[int]:
        ids, at = [256], 0  # bos
        while at < len(text):
            pair = text[at : at + 2]
            known = pair in self.pairs
            ids.append(257 + self.pairs.index(pair) if known else text[at])
            at += 2 if known else 1
        return ids


TEXT = " ".join(f"The {n} words of the text that was set aside, naïvely." for n in range(30)).encode()


@pytest.mark.parametrize("T", [7, 16, 4000])
def test_two_tokenizers_are_measured_on_the_same_bytes(T):
    found = []
    for tok in (Bytes(pairs=False), Bytes(pairs=True)):
        ids = np.array(tok.encode(TEXT), np.uint16)
        model = tiny_model(vocab_size=len(tok.sizes), seq_len=T)
        with torch.no_grad():
            model.lm_head.weight.zero_()  # every token costs ln V
        val = ValLoader(SimpleNamespace(val=Tokens([ids], [np.array([0, len(ids)])])), T, rows=3)
        loss = text_loss(model, val, tok.sizes)
        found.append(loss)
        assert loss.bytes == len(TEXT)
        assert loss.bpb == pytest.approx((len(ids) - 1) * math.log2(len(tok.sizes)) / len(TEXT), rel=1e-5)
    assert found[0].tokens > found[1].tokens
    assert found[1].loss > found[0].loss and found[1].bpb < found[0].bpb  # per token it seems worse, per byte it is not


def test_the_windows_and_ranks_change_neither_text_nor_bytes():
    tok = Bytes(pairs=True)
    ids = np.array(tok.encode(TEXT), np.uint16)
    shards = SimpleNamespace(val=Tokens([ids[:100], ids[100:]], [np.array([0, 100]), np.array([0, len(ids) - 100])]))
    seen = set()
    for T, rows, world in ((16, 2, 1), (16, 4, 2), (33, 3, 3)):
        targets = [y[w > 0] for rank in range(world) for _, y, w in ValLoader(shards, T, rows, rank=rank, world=world)]
        counts = np.bincount(np.concatenate(targets), minlength=len(tok.sizes))
        seen.add((int(counts @ tok.sizes), counts.tobytes()))
    assert len(seen) == 1 and next(iter(seen))[0] == len(TEXT)
