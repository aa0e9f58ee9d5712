"""One optimizer for the whole model: Muon for the matrices of the blocks, AdamW for everything else.

Muon (Jordan et al. 2024) replaces a matrix's momentum by the nearest orthogonal matrix, so that every direction is
learnt at the same rate. The variant here: Nesterov momentum; rows equalised; five Polar Express iterations
(Amsel et al. 2025) instead of Newton-Schulz; the second moment per neuron of NorMuon (Li et al. 2025); decoupled
weight decay only where it agrees with the update ("cautious"). Matrices of one shape are stacked, so that a handful
of batched products serves the whole model.

AdamW (Loshchilov & Hutter 2019) is torch's fused kernel with a learning rate, betas and decay for each group.

State is a flat dict keyed by parameter name: it does not depend on stacking, world size or order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from picollm.run import scaling
from picollm.train.spans import span

POLAR_EXPRESS = (
    (8.1566, -22.4833, 15.8788),
    (4.0429, -2.8089, 0.5000),
    (3.8917, -2.7725, 0.5061),
    (3.2858, -2.3681, 0.4645),
    (2.3465, -1.7098, 0.4232),
)
EPS = 1e-10


@dataclass(frozen=True, slots=True)
class AdamGroup:
    lr: float
    betas: tuple[float, float]
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Learning rates and the rest, group by group; the defaults are the recipe's base values (batch 2^19, dim 768)."""

    wte: AdamGroup = AdamGroup(0.3, (0.8, 0.995), 0.001)
    lm_head: AdamGroup = AdamGroup(0.008, (0.8, 0.96), 0.01)
    value_embeds: AdamGroup = AdamGroup(0.15, (0.8, 0.995), 0.01)
    resid: AdamGroup = AdamGroup(0.005, (0.8, 0.95), 0.05)
    x0: AdamGroup = AdamGroup(0.5, (0.96, 0.95), 0.0)
    smear: AdamGroup = AdamGroup(0.2, (0.8, 0.95), 0.0)
    matrix_lr: float = 0.02
    matrix_weight_decay: float = 0.28
    muon_beta2: float = 0.9
    muon_dtype: torch.dtype = field(default=torch.float32)

    def scaled(self, factor: float) -> OptimizerSettings:
        """Every learning rate times `factor` (a later stage's LR as a multiple of pretraining's)."""
        names = ("wte", "lm_head", "value_embeds", "resid", "x0", "smear")
        groups = {n: replace(getattr(self, n), lr=getattr(self, n).lr * factor) for n in names}
        return replace(self, matrix_lr=self.matrix_lr * factor, **groups)

    def for_run(self, dim: int, batch: int | None = None) -> OptimizerSettings:
        """Scaled by the rules of `picollm.run.scaling`: AdamW by width, all but smear by √batch (tokens) if given."""
        scales = scaling.lr_scales(dim, batch)
        matrix_lr = self.matrix_lr * scales.pop("matrices")
        groups = {n: replace(getattr(self, n), lr=getattr(self, n).lr * scale) for n, scale in scales.items()}
        return replace(self, matrix_lr=matrix_lr, **groups)


def polar_express(x_SMN: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrix to each of a stack, by five quintic iterations; ‖x‖ must be at most 1.

    Works on the smaller side, in the dtype given (bf16 is precise enough: the singular values only need to be near 1).
    """
    tall = x_SMN.size(-2) > x_SMN.size(-1)
    x = x_SMN.mT.contiguous() if tall else x_SMN
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x.mT if tall else x


def muon_update(
    p_SMN: Tensor,
    gradient_SMN: Tensor,
    momentum_buffer: Tensor,
    second_moment: Tensor,
    momentum: Tensor | float,
    lr: Tensor | float,
    weight_decay: Tensor | float,
    beta2: float,
    dtype: torch.dtype,
) -> None:
    """One step for a stack of matrices; `p_SMN` and both buffers change in place, `gradient_SMN` is used up.

    The direction has the Frobenius norm √min(M, N), whatever the gradient's, and is then scaled by
    lr·√max(1, M/N). `second_moment` is (S, M, 1) or (S, 1, N): one number per neuron, along the longer side.
    All the scalings between the products are per row, per column or per matrix: they are worked out on small tensors
    and applied at once, because each pass over the matrices costs as much as a good part of a product.
    """  # fmt: skip
    momentum_buffer.lerp_(gradient_SMN, 1 - momentum)
    g = gradient_SMN.lerp_(momentum_buffer, momentum)
    rows = g.norm(dim=-1, keepdim=True)
    equalised = rows / (rows + 1e-7)  # the rows' norms once divided: 1, or 0 for a row without gradient
    total = equalised.norm(dim=-2, keepdim=True)
    u = polar_express((g * (1 / ((rows + 1e-7) * (total * 1.01 + 1e-6)))).to(dtype))

    axis = -1 if second_moment.shape[-1] == 1 else -2
    target = float(min(u.shape[-2:])) ** 0.5
    power = torch.linalg.vector_norm(u, dim=axis, keepdim=True, dtype=torch.float32).square() / u.shape[axis]
    per_neuron = u.shape[axis]
    scale = target / (power.sum(dim=(-2, -1), keepdim=True) * per_neuron).sqrt().clamp(min=EPS)
    power = power * scale * scale
    second_moment.lerp_(power, 1 - beta2)
    adapt = second_moment.clamp(min=EPS).rsqrt()
    adapted = ((power * adapt * adapt).sum(dim=(-2, -1), keepdim=True) * per_neuron).sqrt()
    scale = scale * adapt * (target / adapted.clamp(min=EPS))

    rate = lr * max(1.0, p_SMN.size(-2) / p_SMN.size(-1)) ** 0.5
    u = u * scale  # back to fp32
    decayed = torch.where(u * p_SMN >= 0, p_SMN, 0.0)
    p_SMN.sub_(u.add_(decayed.mul_(weight_decay)).mul_(rate))


class Muon:
    """`muon_update` with a run's settings; where it is to be compiled and cannot be, `warnings` gets one line."""

    def __init__(self, settings: OptimizerSettings, compiled: bool) -> None:
        self._constants = settings.muon_beta2, settings.muon_dtype
        self._compiled: Any = torch.compile(muon_update, dynamic=False) if compiled else None

    def __call__(self, p_SMN: Tensor, gradient_SMN: Tensor, momentum: Tensor, second: Tensor, *now: Any) -> None:
        """`now`: momentum, learning rate and weight decay of this step."""
        tensors, (beta2, dtype) = (p_SMN, gradient_SMN, momentum, second), self._constants
        if self._compiled is not None:
            # As 0-d tensors: a float that changes every step would be compiled anew every step. Filled in on the
            # device: a copy would wait for it.
            filled = [torch.full((), value, dtype=torch.float32, device=momentum.device) for value in now]
            try:
                self._compiled(*tensors, *filled, beta2, dtype)
                return
            except torch.OutOfMemoryError:
                raise  # uncompiled would need more
            except Exception as error:  # the compiler's failures have no common base class, and come before any change
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
                warnings.warn(f"the optimizer goes on without torch.compile ({reason})", stacklevel=2)
                self._compiled = None
        momentum_now, lr, decay = now
        muon_update(*tensors, momentum_now, lr, decay, beta2, dtype)


class _Stack:
    """The parameters of one shape with their Muon state; buffers (S, M, N) and (S, M, 1) or (S, 1, N)."""

    def __init__(self, named: list[tuple[str, nn.Parameter]]) -> None:
        self.names = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        rows, columns = self.params[0].shape
        device = self.params[0].device
        self.momentum = torch.zeros((len(named), rows, columns), dtype=torch.float32, device=device)
        second = (len(named), rows, 1) if rows >= columns else (len(named), 1, columns)
        self.second = torch.zeros(second, dtype=torch.float32, device=device)


class Optimizer:
    """Muon and AdamW behind one `step`. Gradients are read from `.grad` (None counts as zero) and left in place."""

    def __init__(
        self, groups: dict[str, list[tuple[str, nn.Parameter]]], settings: OptimizerSettings, *, compiled: bool = False
    ) -> None:
        self.settings = settings
        shapes: dict[tuple[int, ...], list[tuple[str, nn.Parameter]]] = {}
        for name, p in groups.get("matrices", []):
            shapes.setdefault(tuple(p.shape), []).append((name, p))
        self.stacks = [_Stack(named) for _, named in sorted(shapes.items())]
        self.adam_params: dict[str, nn.Parameter] = {}
        adam_groups: list[dict[str, Any]] = []
        for key, named in groups.items():
            if key == "matrices":
                continue
            rule: AdamGroup = getattr(settings, key)
            self.adam_params |= dict(named)
            values = {"lr": rule.lr, "base_lr": rule.lr, "betas": rule.betas, "weight_decay": rule.weight_decay}
            adam_groups.append({"params": [p for _, p in named], **values})
        fused = all(p.device.type in ("cpu", "cuda", "mps") for p in self.adam_params.values())
        self.adam = torch.optim.AdamW(adam_groups, eps=EPS, fused=fused) if adam_groups else None
        self._muon = Muon(settings, compiled)

    def params(self) -> Iterator[Tensor]:
        for stack in self.stacks:
            yield from stack.params
        yield from self.adam_params.values()

    def arm(self) -> None:
        """The next backward pass is the last of this step; of interest where gradients travel."""

    @torch.no_grad()
    def collect(self) -> Tensor:
        """The squared 2-norm of all gradients, 0-d; from here on they are whole."""
        gradients = []
        for p in self.params():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            gradients.append(p.grad)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return wide(norm).square()

    @torch.no_grad()
    def step(self, lr_mult: float = 1.0, momentum: float = 0.95, wd_mult: float = 1.0) -> None:
        """One update from the gradients at hand; the multipliers come from the schedule (`wd_mult` is Muon's)."""
        for p in self.params():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.adam is not None:
            for group in self.adam.param_groups:
                group["lr"] = group["base_lr"] * lr_mult
            with span("adamw"):
                self.adam.step()
        s = self.settings
        for stack in self.stacks:
            now = momentum, s.matrix_lr * lr_mult, s.matrix_weight_decay * wd_mult
            with span("muon"):
                gradients = torch.stack([p.grad for p in stack.params if p.grad is not None])
                values_SMN = torch.stack(stack.params)
                self._muon(values_SMN, gradients, stack.momentum, stack.second, *now)
                torch._foreach_copy_(stack.params, list(values_SMN.unbind(0)))

    def zero_grad(self) -> None:
        for p in self.params():
            p.grad = None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """`<parameter>.momentum`, `.second` (Muon) and `.exp_avg`, `.exp_avg_sq`, `.step` (AdamW), not copied."""
        for stack in self.stacks:
            for i, name in enumerate(stack.names):
                yield f"{name}.momentum", stack.momentum[i]
                yield f"{name}.second", stack.second[i]
        for name, p in self.adam_params.items():
            for key, value in (self.adam.state[p] if self.adam else {}).items():
                yield f"{name}.{key}", value

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.state())

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore exactly what `state_dict` gave; KeyError names what is missing or left over."""
        left = set(state)
        for stack in self.stacks:
            for i, name in enumerate(stack.names):
                for key, buffer in (("momentum", stack.momentum), ("second", stack.second)):
                    buffer[i].copy_(state[f"{name}.{key}"])
                    left.discard(f"{name}.{key}")
        for name, p in self.adam_params.items():
            saved = take_adam(state, name, left) if self.adam else {}
            if self.adam and saved:
                self.adam.state[p] = {key: t.detach().clone().to(p.device, torch.float32) for key, t in saved.items()}
        refuse_unknown(left)


def take_adam(state: dict[str, Tensor], name: str, left: set[str]) -> dict[str, Tensor]:
    """AdamW's part of a saved state for one parameter, by its own keys, taken off `left`; empty before the first step.

    KeyError when some of it is missing.
    """
    found = {key: state[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in state}
    if found and len(found) < 3:
        raise KeyError(f"optimizer state of {name} is incomplete: only {', '.join(found)}")
    left.difference_update(f"{name}.{key}" for key in found)
    return found


def refuse_unknown(left: set[str]) -> None:
    """KeyError for what no parameter took of a saved state."""
    if left:
        raise KeyError(f"optimizer state for unknown parameters: {', '.join(sorted(left)[:3])}")


def wide(t: Tensor) -> Tensor:
    """In fp64, where the device has it: squares of large norms fit, counts of tokens are exact."""
    return t if t.device.type == "mps" else t.double()


def build_optimizer(model: Any, settings: OptimizerSettings, *, compiled: bool = False) -> Optimizer:
    """The optimizer of `model`, grouped by its `param_groups()`; `compiled` fuses Muon's elementwise work.

    For one process; over several ranks it is `picollm.train.sharded.ShardedOptimizer`.
    """
    return Optimizer(model.param_groups(), settings, compiled=compiled)
