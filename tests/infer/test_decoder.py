"""The decoder computes what the model computes, however a row's tokens are brought to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.infer.cache import KVCache, continuing, next_token, opening
from picollm.infer.decoder import Decoder
from tests.infer.fakes import tiny_model

SHAPES = st.fixed_dictionaries({
    "depth": st.integers(1, 4),
    "heads": st.just(4),
    "kv_heads": st.sampled_from([1, 2, 4]),
    "head_dim": st.just(8),
    "seq_len": st.just(256),
    "window_pattern": st.sampled_from(["L", "SL", "SSSL"]),
    "value_embeds": st.booleans(),
    "smear": st.booleans(),
    "backout": st.booleans(),
})  # fmt: skip


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Logits reach 7 here; what fp32 leaves of them in another order of sums differs by up to 4e-4."""
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


@given(SHAPES, st.integers(0, 100))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_any_way_of_reading_is_reading_the_whole(shape: dict, seed: int) -> None:
    model = tiny_model(seed, **shape)
    decoder = Decoder(model, torch.float32)
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (3, 256), generator=g)
    whole = model(ids)
    close(decoder.logits(decoder.hidden(ids)), whole)

    cache, slots, lengths = KVCache(model.shape, 4, 256), [2, 0, 1], [140, 3, 150]
    x = decoder.hidden(ids[:, :150], opening(cache, slots, 150))
    for b, n in enumerate(lengths):
        close(decoder.logits(x[b, :n]), whole[b, :n])

    more = torch.stack([ids[b, n - 1 : n + 20] for b, n in enumerate(lengths)])
    x = decoder.hidden(more, continuing(cache, slots, lengths, 20, model.windows))
    for b, n in enumerate(lengths):
        close(decoder.logits(x[b]), whole[b, n : n + 20])

    by_slot = [1, 2, 0]
    places = torch.tensor([lengths[b] + 20 for b in by_slot])
    for step in range(4):
        tail = torch.stack([ids[b, p - 1 : p + 1] for b, p in zip(by_slot, (places + step).tolist(), strict=True)])
        span = next_token(cache, places + step, 200, model.windows, alike=False)
        logits = decoder.logits(decoder.hidden(tail, span))[:, 0]
        close(logits, torch.stack([whole[b, p] for b, p in zip(by_slot, (places + step).tolist(), strict=True)]))


@pytest.mark.parametrize("windows", ["L", "SL"])
@torch.no_grad()
def test_rows_that_stand_alike_need_no_mask(windows: str) -> None:
    model = tiny_model(seq_len=256, window_pattern=windows, depth=3)
    decoder, ids = Decoder(model, torch.float32), torch.arange(200).repeat(2, 1)
    whole, cache = model(ids), KVCache(model.shape, 2, 256)
    decoder.hidden(ids[:, :190], opening(cache, [0, 1], 190))
    for at in range(190, 200):
        span = next_token(cache, torch.tensor([at, at]), at + 1, model.windows, alike=True)
        assert not span.masks
        close(decoder.logits(decoder.hidden(ids[:, at - 1 : at + 1], span))[:, 0], whole[:, at])


@torch.no_grad()
def test_new_weights_come_into_the_same_memory() -> None:
    model = tiny_model()
    decoder, ids = Decoder(model, torch.bfloat16), torch.arange(20)[None]
    where = {name: tensor.data_ptr() for name, tensor in decoder._weights.items()}
    model.init_weights(3)
    decoder.refresh(model)
    assert {name: tensor.data_ptr() for name, tensor in decoder._weights.items()} == where
    torch.testing.assert_close(decoder.logits(decoder.hidden(ids)), model(ids), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_eight_bits_change_logits_little(seed: int) -> None:
    model = tiny_model(seed, dim=64, heads=4, head_dim=16, scale=0.1)
    ids = torch.arange(60).view(3, 20)
    eight, exact = Decoder(model, torch.float32, int8=True), model(ids)
    off = (eight.logits(eight.hidden(ids)) - exact).norm() / exact.norm()
    assert 0 < off < 0.05


def test_a_cache_grows_with_what_it_holds() -> None:
    shape = tiny_model().shape
    cache = KVCache(shape, 2, 64)
    cache.k.normal_()
    cache.copy(0, [1], 10)
    assert torch.equal(cache.k[:, 1, :, :10], cache.k[:, 0, :, :10])
    larger = cache.resized(4, 128)
    assert torch.equal(larger.k[:, :2, :, :64], cache.k) and not larger.k[:, 2:].any()
    size = larger.k.numel() * larger.k.itemsize + larger.v.numel() * larger.v.itemsize
    assert size == 4 * 128 * KVCache.token_bytes(shape, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_products_without_the_layout_of_the_cpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(), torch.arange(40).view(2, 20)
    usual = Decoder(model, dtype)
    monkeypatch.setattr("picollm.infer.products._blocked_products_work", lambda dtype: False)
    plain = Decoder(model, dtype)
    assert not any(multiply.copied for multiply in plain._products.values())
    error = 2e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(usual.logits(usual.hidden(ids)), plain.logits(plain.hidden(ids)), atol=error, rtol=error)
