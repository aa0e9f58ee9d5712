"""Forward and backward of one micro-batch: the part of a step that is worth compiling.

One graph holds the model, the loss and both directions. Its inputs are tensors of one shape, weights and denominator
included, so pretraining, midtraining, SFT and RL at the same (B, T) share it, and so do their processes through the
compiler's cache. The optimizer stays outside: on a CPU its matrix products dominate and compiling buys little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from picollm.model.gpt import GPT
from picollm.train.batch import Batch
from picollm.train.device import dtype_of
from picollm.train.loss import step_nll


@dataclass(frozen=True, slots=True)
class Compute:
    """How the arithmetic is done; changes speed and rounding, not what is learnt."""

    precision: str = "fp32"
    attention: str = "auto"
    compile: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.precision)

    def apply(self, model: GPT) -> None:
        """Set the model's activations and attention; its parameters stay fp32 masters, cast where they are used."""
        model.compute_dtype = None if self.dtype == torch.float32 else self.dtype
        model.attention_backend = self.attention


class ForwardBackward:
    """Callable: adds a batch's gradients to `.grad` and returns its share of the loss.

    With `compute.compile` the first call compiles; if that fails (no C++ compiler, an unsupported machine) `warn` gets
    one line and everything goes on uncompiled. `compile_seconds` is what the first call took.
    """

    def __init__(self, model: GPT, compute: Compute, warn: Callable[[str], None] = print) -> None:
        compute.apply(model)
        self.model = model
        self.compiled = compute.compile
        self.compile_seconds = 0.0
        self._warn = warn
        self._first = True
        self._fn = torch.compile(step_nll, dynamic=False) if compute.compile else step_nll

    def __call__(self, batch: Batch) -> Tensor:
        device = batch.inputs.device
        weights = torch.ones(batch.targets.shape, device=device) if batch.weights is None else batch.weights
        denom = torch.tensor(batch.denom, dtype=torch.float32, device=device)
        if not (self._first and self.compiled):
            return self._run(batch, weights, denom)
        self._first = False
        begun = time.perf_counter()
        try:
            loss = self._run(batch, weights, denom)
        except Exception as error:  # the compiler's failures have no common base class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            self._fn, self.compiled = step_nll, False
            for p in self.model.parameters():
                p.grad = None
            loss = self._run(batch, weights, denom)  # a mistake that is not the compiler's is raised again here
            self._warn(f"torch.compile does not work here, training goes on without it ({reason})")
        self.compile_seconds = time.perf_counter() - begun
        return loss

    def _run(self, batch: Batch, weights: Tensor, denom: Tensor) -> Tensor:
        loss = self._fn(self.model, batch.inputs, batch.targets, weights, denom)
        loss.backward()
        return loss.detach()
