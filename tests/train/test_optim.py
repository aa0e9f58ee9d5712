from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from picollm.train.loss import weighted_nll
from picollm.train.optim import AdamGroup, Optimizer, OptimizerSettings, build_optimizer, muon_update, polar_express
from tests.train.conftest import counting_batches, small_model


def unit(x):
    return x / x.norm(dim=(-2, -1), keepdim=True)


@pytest.mark.parametrize("size", [(3, 32, 32), (2, 64, 16), (2, 16, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_polar_express_makes_singular_values_near_one(size, dtype):
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    result = polar_express(unit(x).to(dtype) / 1.01).float()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.4
    cosine = torch.nn.functional.cosine_similarity(result.flatten(1), (u @ vh).flatten(1))
    assert cosine.min() > 0.98


def step_once(p, g, *, momentum=0.9, lr=0.1, wd=0.0, second=None):
    second = torch.zeros(p.shape[0], p.shape[1], 1) if second is None else second
    before = p.clone()
    muon_update(p, g.clone(), torch.zeros_like(p), second, momentum, lr, wd, 0.9, torch.float32)
    return p - before


def test_an_update_has_a_norm_of_its_own():
    for scale in (1e-6, 1.0, 1e4):
        g = torch.randn(2, 48, 16) * scale
        change = step_once(torch.zeros(2, 48, 16), g)
        expected = 0.1 * (48 / 16) ** 0.5 * 16**0.5
        assert change.norm(dim=(-2, -1)).tolist() == pytest.approx([expected] * 2, rel=1e-3)


def test_an_update_goes_against_the_gradient():
    g = torch.randn(1, 16, 16)
    change = step_once(torch.zeros(1, 16, 16), g)
    assert (change * g).sum() < 0


def test_an_update_is_nearly_orthogonal():
    g = torch.randn(1, 24, 96) * torch.logspace(0, -2, 24)[None, :, None]
    assert torch.linalg.cond(g) > 50
    values = torch.linalg.svdvals(step_once(torch.zeros(1, 24, 96), g, second=torch.zeros(1, 1, 96)) / 0.1)[0]
    assert values.min() > 0.5 and values.max() < 1.5


def test_weight_decay_is_cautious():
    g, p = torch.randn(1, 16, 16), torch.randn(1, 16, 16)
    plain = step_once(p.clone(), g)
    decayed = step_once(p.clone(), g, wd=0.5)
    shrunk = decayed - plain
    agrees = -plain * p >= 0
    torch.testing.assert_close(shrunk[agrees], -0.1 * 0.5 * p[agrees], rtol=1e-3, atol=1e-6)
    assert bool((shrunk[~agrees].abs() < 1e-6).all())


def test_no_gradient_no_nan():
    change = step_once(torch.ones(1, 8, 8), torch.zeros(1, 8, 8))
    assert torch.isfinite(change).all()
    one_row = torch.zeros(1, 8, 8)
    one_row[0, 3] = 1.0
    assert torch.isfinite(step_once(torch.ones(1, 8, 8), one_row)).all()


def test_stacking_does_not_change_the_update():
    p, g = torch.randn(3, 16, 32), torch.randn(3, 16, 32)
    second = lambda n: torch.zeros(n, 1, 32)  # noqa: E731
    together = step_once(p.clone(), g, second=second(3))
    for i in range(3):
        alone = step_once(p[i : i + 1].clone(), g[i : i + 1], second=second(1))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-6)


def test_adamw_follows_the_formula():
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    settings = OptimizerSettings(wte=AdamGroup(0.1, (0.8, 0.9), 0.5))
    optimizer = Optimizer({"wte": [("w", p)]}, settings)
    p.grad = torch.tensor([0.3, -0.7])
    optimizer.step(lr_mult=0.5)
    # After one bias-corrected step the update is lr · sign(gradient), on weights shrunk by lr · wd.
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.05 * 0.5) - 0.05 * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(p.detach(), expected)


def test_every_parameter_is_in_exactly_one_place():
    model = small_model()
    optimizer = build_optimizer(model, OptimizerSettings())
    assert sorted(map(id, optimizer.params())) == sorted(map(id, model.parameters()))


def test_it_learns():
    model = small_model()
    optimizer = build_optimizer(model, OptimizerSettings())
    losses = []
    for step in range(25):
        loss = sum(weighted_nll(model, b) for b in counting_batches(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_state_goes_by_name_and_comes_back():
    model = small_model()
    optimizer = build_optimizer(model, OptimizerSettings())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    state = {k: v.clone() for k, v in optimizer.state_dict().items()}
    assert "blocks.0.attn.q.weight.momentum" in state
    assert "wte.weight.exp_avg" in state
    other = build_optimizer(small_model(2), OptimizerSettings())
    other.load_state_dict(state)
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(other.state_dict()[k], v) for k, v in state.items())


def test_wrong_state_is_refused():
    optimizer = build_optimizer(small_model(), OptimizerSettings())
    state = optimizer.state_dict()
    with pytest.raises(KeyError, match="stranger"):
        optimizer.load_state_dict({**state, "stranger.momentum": torch.zeros(1)})
    with pytest.raises(KeyError, match=r"attn\.q"):
        optimizer.load_state_dict({k: v for k, v in state.items() if k != "blocks.0.attn.q.weight.momentum"})


def test_settings_scale_by_the_rules():
    base = OptimizerSettings()
    run = base.for_run(dim=192, batch=2**17)
    assert run.matrix_lr == pytest.approx(base.matrix_lr / 2)
    assert run.wte.lr == pytest.approx(base.wte.lr)  # twice for the width, half for the batch
    assert run.x0.lr == pytest.approx(base.x0.lr / 2)
    assert run.smear == base.smear
    assert base.scaled(0.5).smear.lr == pytest.approx(0.1)


def trained(optimizer_compiled, steps=3):
    """(weights, graphs compiled after each step) with other scalars in every step."""
    model, graphs = small_model(), []
    optimizer = build_optimizer(model, OptimizerSettings(), compiled=optimizer_compiled)
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=g)
        optimizer.step(1 - 0.1 * step, 0.85 + 0.01 * step, 1 - 0.2 * step)
        optimizer.zero_grad()
        graphs.append(counters["stats"]["unique_graphs"])
    return model.state_dict(), graphs


def test_compiled_it_does_the_same_and_is_compiled_once(monkeypatch):
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    compiled, graphs = trained(True)
    assert graphs[0] > 0 and len(set(graphs)) == 1
    plain, _ = trained(False)
    for name, t in plain.items():
        torch.testing.assert_close(compiled[name], t, rtol=1e-5, atol=1e-6)


def test_without_a_compiler_it_goes_on(monkeypatch):
    def nothing(*_):
        raise RuntimeError("Failed to find C compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: nothing)
    with pytest.warns(UserWarning, match=r"without torch.compile \(Failed to find C compiler\)") as said:
        compiled, _ = trained(True)
    assert len([warning for warning in said if "torch.compile" in str(warning.message)]) == 1
    plain, _ = trained(False)
    assert all(torch.equal(compiled[name], t) for name, t in plain.items())
