"""The model computes what it says, whichever way it is asked."""

from __future__ import annotations

import pytest
import torch

from picollm.model.attention import attention, visible
from picollm.model.gpt import GPT
from picollm.run.scaling import ModelShape


def shape(**changes) -> ModelShape:
    base = dict(depth=3, dim=64, heads=4, kv_heads=2, head_dim=16, vocab_size=100, seq_len=256, window_pattern="SL")
    return ModelShape(**{**base, **changes})


def lively(model: GPT, seed: int = 0) -> GPT:
    """Random values everywhere: the real init zeroes the output projections, which would hide mistakes."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> GPT:
    return lively(GPT(shape()))


def ids(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 100, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_starts_at_uniform_prediction() -> None:
    m = GPT(shape())
    m.init_weights(0)
    logits = m(ids(2, 32))
    assert logits.shape == (2, 32, 100) and logits.dtype == torch.float32
    assert logits.abs().max() < 0.1


def test_init_is_a_function_of_seed_and_name() -> None:
    a, b, deeper = GPT(shape()), GPT(shape()), GPT(shape(depth=5))
    a.init_weights(3)
    torch.manual_seed(99)
    b.init_weights(3)
    deeper.init_weights(3)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert torch.equal(a.blocks[0].attn.q.weight, deeper.blocks[0].attn.q.weight)
    b.init_weights(4)
    assert not torch.equal(a.wte.weight, b.wte.weight)


def test_groups_hold_every_parameter_once(model: GPT) -> None:
    groups = model.param_groups()
    assert set(groups) == {"wte", "lm_head", "value_embeds", "matrices", "resid", "x0", "smear"}
    names = [name for group in groups.values() for name, _ in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(p.dim() == 2 for _, p in groups["matrices"])


def test_the_future_is_not_seen(model: GPT) -> None:
    a = ids(1, 200)
    b = a.clone()
    b[:, 150:] = 7
    assert torch.allclose(model(a)[:, :150], model(b)[:, :150], atol=1e-5)
    assert not torch.allclose(model(a)[:, 150:], model(b)[:, 150:])


def test_window_limits_what_is_seen() -> None:
    m = lively(GPT(shape(depth=2, window_pattern="SL", smear=False)))
    assert m.windows == [128, None]
    q = torch.randn(1, 2, 200, 8)
    out = attention(q, q, q, window=16)
    moved = q.clone()
    moved[:, :, :100] = 0
    assert torch.allclose(out[:, :, 116:], attention(q, moved, moved, window=16)[:, :, 116:], atol=1e-6)
    assert not torch.allclose(out[:, :, 114], attention(q, moved, moved, window=16)[:, :, 114], atol=1e-6)


@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("start", [0, 7, "rows"])
@pytest.mark.parametrize("queries", [1, 9])
def test_backends_agree(window: int | None, start: int | str, queries: int) -> None:
    g = torch.Generator().manual_seed(0)
    first = torch.tensor([2, 7]) if start == "rows" else start
    keys = queries + 7 if start != 0 else queries
    q = torch.randn(2, 4, queries, 8, generator=g)
    k, v = torch.randn(2, 2, 2, keys, 8, generator=g)
    how = {"window": window, "start": first}
    a = attention(q, k, v, backend="explicit", **how)
    b = attention(q, k, v, backend="sdpa", **how)
    mask = visible(queries, keys, **how)
    c = attention(q, k, v, mask=mask, backend="sdpa", **how)
    assert a.shape == q.shape
    assert torch.allclose(a, b, atol=1e-5) and torch.allclose(a, c, atol=1e-5)


@pytest.mark.parametrize("length", [32, 36])
def test_long_windows_agree(length: int) -> None:
    q = torch.randn(2, 4, length, 8)
    k, v = torch.randn(2, 2, 2, length, 8)
    a = attention(q, k, v, backend="explicit", window=8)
    assert torch.allclose(a, attention(q, k, v, backend="sdpa", window=8), atol=1e-5)


def test_whole_model_agrees_between_backends() -> None:
    m = lively(GPT(shape()))
    x = ids(2, 200)
    m.attention_backend = "explicit"
    a = m(x)
    m.attention_backend = "sdpa"
    assert torch.allclose(a, m(x), atol=1e-4)


def test_segments_are_independent(model: GPT) -> None:
    x = ids(1, 30)
    segments = torch.tensor([[0] * 12 + [1] * 18])
    both = model.logits(model.hidden(x, segments_BT=segments))
    # Rotary positions are relative, so the second document may stand anywhere.
    assert torch.allclose(both[:, :12], model(x[:, :12]), atol=1e-4)
    assert torch.allclose(both[:, 12:], model(x[:, 12:]), atol=1e-4)


def test_bf16_copy_of_the_weights_runs() -> None:
    m = lively(GPT(shape()))
    full = m(ids(2, 40))
    copies = {name: p.to(torch.bfloat16) for name, p in m.named_parameters()}
    half = torch.func.functional_call(m, copies, (ids(2, 40),))
    assert half.dtype == torch.float32
    assert (full - half).abs().mean() < 0.2 * full.abs().mean()
    m.compute_dtype = torch.bfloat16
    assert torch.allclose(m(ids(2, 40)), half, atol=0.5)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_backing_out_more_changes_little_at_a_time(depth: int) -> None:
    m = lively(GPT(shape(depth=depth)))
    with torch.no_grad():
        before, after = (m.backout_lambda.fill_(share) and m(ids(2, 32)) for share in (0.99, 1.01))
    assert (after - before).norm() < 0.2 * before.norm()  # were the last layer backed out, all signs would turn at 1


def test_one_layer_has_no_middle() -> None:
    m = lively(GPT(shape(depth=1)))
    assert not any("backout" in name for name, _ in m.named_parameters())
    assert m(ids(1, 8)).isfinite().all()


def test_every_parameter_gets_a_gradient() -> None:
    m = lively(GPT(shape()))
    m(ids(2, 40)).square().sum().backward()
    for name, p in m.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    m = lively(GPT(shape(depth=2)))
    compiled = torch.compile(m, fullgraph=True, dynamic=False)
    assert torch.allclose(compiled(ids(2, 40)), m(ids(2, 40)), atol=1e-4)
