"""The same optimizer over several ranks: each keeps the state, and makes the update, of its share of the parameters.

As in ZeRO-2 (Rajbhandari et al. 2020): gradients are summed and scattered to their owners, who update, and the new
values are gathered by all. Muon needs whole matrices, so those of one shape are dealt out whole; AdamW works on single
numbers, so a table is cut anywhere. What does not divide evenly is padded with zeros: any number of ranks will do.

Both exchanges are hidden behind arithmetic. A bucket of gradients leaves as soon as the backward pass of the last
micro-batch has filled it and all buckets before it have left: the order is the same on every rank, also on one that had
no batch. New values travel while the next stack of matrices is being updated.

State is gathered by parameter name, so that what one world size saved another resumes, as does a single process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from picollm.train.device import Ranks
from picollm.train.optim import (
    EPS,
    AdamGroup,
    Muon,
    Optimizer,
    OptimizerSettings,
    refuse_unknown,
    take_adam,
    wide,
)
from picollm.train.spans import span

BUCKET_BYTES = 8 * 2**20
"""Matrices of one shape travel together in buckets of at least so much: smaller messages would waste the links."""

Named = list[tuple[str, nn.Parameter]]


class Bucket:
    """Parameters that travel together, as one row of numbers cut into a share of equal size for each rank.

    A share is a multiple of `unit` numbers, so that a matrix is never cut when the unit is a matrix.
    """

    def __init__(self, named: Named, unit: int, ranks: Ranks) -> None:
        self.names = [name for name, _ in named]
        self.params = [p for _, p in named]
        self.unit, self.ranks = unit, ranks
        self.numel = sum(p.numel() for p in self.params)
        self.share = -(-self.numel // (unit * ranks.world)) * unit
        self.gradient = self.params[0].new_empty(self.share, requires_grad=False)  # this rank's share, summed
        self.values = torch.zeros_like(self.gradient)
        self.missing = len(self.params)  # gradients still to come from the backward pass
        self.flying: Tensor | None = None
        self.work: Any = None

    @property
    def size(self) -> int:
        """Numbers with padding."""
        return self.share * self.ranks.world

    def row(self, tensors: list[Tensor]) -> Tensor:
        """(size,): the tensors one after another, then zeros. A view of a single tensor that needs no padding."""
        parts = [t.reshape(-1) for t in tensors]
        if self.size > self.numel:
            parts.append(parts[0].new_zeros(self.size - self.numel))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def owned(self, tensors: list[Tensor]) -> Tensor:
        """(share,): this rank's part of `row(tensors)`, always a copy."""
        begin = self.ranks.rank * self.share
        end, at, parts = begin + self.share, 0, []
        for t in tensors:
            low, high = max(begin, at), min(end, at + t.numel())
            if low < high:
                parts.append(t.reshape(-1)[low - at : high - at])
            at += t.numel()
        found = sum(part.numel() for part in parts)
        return torch.cat([*parts, tensors[0].new_zeros(self.share - found)])

    def split(self, row: Tensor) -> list[Tensor]:
        """The inverse of `row`: views in the parameters' shapes."""
        parts = row[: self.numel].split([p.numel() for p in self.params])
        return [part.view(p.shape) for part, p in zip(parts, self.params, strict=True)]

    def send_gradients(self) -> None:
        """Begin to sum the gradients to their owners; they leave `.grad`. None counts as zero."""
        self.flying = self.row([torch.zeros_like(p) if p.grad is None else p.grad for p in self.params])
        for p in self.params:
            p.grad = None
        self.work = _scatter(self.gradient, self.flying)

    def send_values(self) -> None:
        """Begin to gather every rank's `values`."""
        exact = len(self.params) == 1 and self.size == self.numel and self.params[0].is_contiguous()
        self.flying = self.params[0].view(-1) if exact else self.values.new_empty(self.size)
        self.work = _gather(self.flying, self.values)

    def arrive(self) -> Tensor:
        """Wait for what was begun (on CUDA the stream waits, the program does not); returns what travelled."""
        assert self.flying is not None
        self.work.wait()
        arrived, self.flying, self.work = self.flying, None, None
        return arrived

    def gathered(self, share: Tensor) -> Tensor:
        """The `share` of every rank, one after another along the first dimension; waits."""
        whole = share.new_empty(share.shape[0] * self.ranks.world, *share.shape[1:])
        _gather(whole, share.contiguous()).wait()
        return whole


class _Stack:
    """The matrices of one shape that this rank owns, and their Muon state: bucket by bucket, `per` of each."""

    def __init__(self, named: Named, ranks: Ranks) -> None:
        self.shape = tuple(named[0][1].shape)
        rows, columns = self.shape
        unit = rows * columns
        per = max(1, BUCKET_BYTES // (4 * unit * ranks.world))
        self.per = min(per, -(-len(named) // ranks.world))
        step = self.per * ranks.world
        self.buckets = [Bucket(named[i : i + step], unit, ranks) for i in range(0, len(named), step)]
        # The last bucket may be smaller; shares of one size keep the stack in one piece.
        owned = sum(bucket.share for bucket in self.buckets) // unit
        device = named[0][1].device
        self.gradient = torch.zeros((owned, rows, columns), dtype=torch.float32, device=device)
        self.values = torch.zeros_like(self.gradient)
        self.momentum = torch.zeros_like(self.gradient)
        second = (owned, rows, 1) if rows >= columns else (owned, 1, columns)
        self.second = torch.zeros(second, dtype=torch.float32, device=device)
        at = 0
        for bucket in self.buckets:
            count = bucket.share // unit
            bucket.gradient = self.gradient[at : at + count].view(-1)
            bucket.values = self.values[at : at + count].view(-1)
            at += count

    def places(self) -> Iterator[tuple[Bucket, slice]]:
        """Each bucket with where its matrices are in the stack."""
        at = 0
        for bucket in self.buckets:
            count = bucket.share // bucket.unit
            yield bucket, slice(at, at + count)
            at += count


class ShardedOptimizer:
    """`picollm.train.optim.Optimizer` over several ranks, with the same methods; every rank must call them alike."""

    def __init__(
        self, groups: dict[str, Named], settings: OptimizerSettings, ranks: Ranks, *, compiled: bool = False
    ) -> None:
        self.settings, self.ranks = settings, ranks
        self._muon = Muon(settings, compiled)
        shapes: dict[tuple[int, ...], Named] = {}
        for name, p in sorted(groups.get("matrices", []), key=lambda item: backward_order(item[0])):
            shapes.setdefault(tuple(p.shape), []).append((name, p))
        self.stacks = [_Stack(named, ranks) for _, named in sorted(shapes.items())]
        self.tables: list[Bucket] = []  # AdamW's
        adam_groups = []
        for key, named in groups.items():
            if key == "matrices":
                continue
            rule: AdamGroup = getattr(settings, key)
            own = [Bucket([item], 1, ranks) for item in named]
            self.tables += own
            values = {"lr": rule.lr, "base_lr": rule.lr, "betas": rule.betas, "weight_decay": rule.weight_decay}
            adam_groups.append({"params": [bucket.values for bucket in own], **values})
        self.adam = torch.optim.AdamW(adam_groups, eps=EPS, fused=True) if adam_groups else None

        matrices = [bucket for stack in self.stacks for bucket in stack.buckets]
        # A bucket is full when the last of its parameters is, counted from the loss.
        self.buckets = sorted([*self.tables, *matrices], key=lambda b: max(backward_order(name) for name in b.names))
        self._sent, self._armed = 0, False
        for bucket in self.buckets:
            for p in bucket.params:
                p.register_post_accumulate_grad_hook(self._filled(bucket))

    def params(self) -> Iterator[Tensor]:
        for bucket in self.buckets:
            yield from bucket.params

    def arm(self) -> None:
        """The next backward pass is the last of this step: gradients may leave as soon as they are whole."""
        for bucket in self.buckets:
            bucket.missing = len(bucket.params)
        self._armed = True

    def _filled(self, bucket: Bucket) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            if self._armed:
                bucket.missing -= 1
                while self._sent < len(self.buckets) and self.buckets[self._sent].missing == 0:
                    self._send_next()

        return hook

    def _send_next(self) -> None:
        self.buckets[self._sent].send_gradients()
        self._sent += 1

    @torch.no_grad()
    def collect(self) -> Tensor:
        """Send what has not left yet and wait for this rank's share; returns the share's squared 2-norm, 0-d."""
        while self._sent < len(self.buckets):
            self._send_next()
        for bucket in self.buckets:
            bucket.arrive()
        self._sent, self._armed = 0, False
        norms = torch._foreach_norm([bucket.gradient for bucket in self.buckets])
        return wide(torch.linalg.vector_norm(torch.stack(norms))).square()

    @torch.no_grad()
    def step(self, lr_mult: float = 1.0, momentum: float = 0.95, wd_mult: float = 1.0) -> None:
        """One update from the gradients collected; the multipliers come from the schedule (`wd_mult` is Muon's)."""
        for bucket in self.buckets:
            bucket.values.copy_(bucket.owned([p.detach() for p in bucket.params]))
        if self.adam is not None:
            for group in self.adam.param_groups:
                group["lr"] = group["base_lr"] * lr_mult
            for bucket in self.tables:
                bucket.values.grad = bucket.gradient
            with span("adamw"):
                self.adam.step()
            for bucket in self.tables:
                bucket.send_values()
        s = self.settings
        for stack in self.stacks:
            now = momentum, s.matrix_lr * lr_mult, s.matrix_weight_decay * wd_mult
            with span("muon"):
                self._muon(stack.values, stack.gradient, stack.momentum, stack.second, *now)
            for bucket in stack.buckets:
                bucket.send_values()
        with span("gather"):
            for bucket in self.buckets:
                arrived = bucket.arrive()
                if arrived.data_ptr() != bucket.params[0].data_ptr():
                    torch._foreach_copy_([p.detach() for p in bucket.params], bucket.split(arrived))

    def zero_grad(self) -> None:
        for p in self.params():
            p.grad = None

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) as in `Optimizer.state_dict`, gathered bucket by bucket; every rank must read to the end."""
        for stack in self.stacks:
            for bucket, place in stack.places():
                for key, owned in (("momentum", stack.momentum), ("second", stack.second)):
                    whole = bucket.gathered(owned[place])
                    yield from ((f"{name}.{key}", whole[i]) for i, name in enumerate(bucket.names))
        for bucket in self.tables:
            for key, value in (self.adam.state[bucket.values] if self.adam else {}).items():
                whole = value if key == "step" else bucket.split(bucket.gathered(value))[0]
                yield f"{bucket.names[0]}.{key}", whole

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.state())

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take this rank's share of what any `state_dict` gave; KeyError names what is missing or left over."""
        left = set(state)
        for stack in self.stacks:
            for bucket, place in stack.places():
                for key, owned in (("momentum", stack.momentum), ("second", stack.second)):
                    found = [state[f"{name}.{key}"] for name in bucket.names]
                    first = self.ranks.rank * (place.stop - place.start)
                    for i, value in enumerate(found[first : first + place.stop - place.start]):
                        owned[place.start + i].copy_(value)
                    left.difference_update(f"{name}.{key}" for name in bucket.names)
        for bucket in self.tables:
            (name,) = bucket.names
            saved = take_adam(state, name, left) if self.adam else {}
            if self.adam and saved:
                own = {key: bucket.owned([saved[key]]) for key in ("exp_avg", "exp_avg_sq")}
                own["step"] = saved["step"].detach().clone()
                device = bucket.values.device
                self.adam.state[bucket.values] = {key: t.to(device, torch.float32) for key, t in own.items()}
        refuse_unknown(left)


AnyOptimizer: TypeAlias = Optimizer | ShardedOptimizer


def backward_order(name: str) -> tuple[int, int]:
    """Where, counted from the loss, the gradient of this parameter becomes whole: lm_head, the layers from the last to
    the first with their value embeddings, and then what every layer or the input uses."""
    if name.startswith("lm_head."):
        return (0, 0)
    layer = re.match(r"(?:blocks|value_embeds)\.(\d+)\.", name)
    return (1, -int(layer[1])) if layer else (2, 0)


def _scatter(share: Tensor, row: Tensor) -> Any:
    """Sum `row` over the ranks, each getting its share; returns the work under way."""
    # The old name is deprecated where there is a new one.
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return scatter(share, row, async_op=True)


def _gather(row: Tensor, share: Tensor) -> Any:
    """Put the ranks' shares one after another into `row`; returns the work under way."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return gather(row, share, async_op=True)
