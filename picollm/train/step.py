"""Forward and backward of one micro-batch, with the parts that are worth compiling compiled.

Those are the block, compiled once and used by every layer of the same kind, and the softmax of the loss. Against one
graph of the whole model this runs as fast within a few percent, compiles in half the time at 4 layers and in the same
time at any depth, and does not depend on the number of loss chunks. All inputs are tensors of one shape, weights and
denominator included, so pretraining, midtraining, SFT and RL at the same (B, T) share the code, and so do their
processes through the compiler's cache. Evaluation and generation on the same model stay uncompiled.
The optimizer stays outside: on a CPU its matrix products dominate and compiling them buys little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from picollm.model.fp8 import EightBitWeights, why_not
from picollm.model.gpt import GPT
from picollm.train.batch import Batch
from picollm.train.device import dtype_of
from picollm.train.loss import Terms, fastest_terms, loss_and_gradient, step_nll
from picollm.train.spans import span


@dataclass(frozen=True, slots=True)
class Compute:
    """How the arithmetic is done; changes speed, memory and rounding, not what is learnt.

    `fp8`: the large matrix products of the blocks in 8 bits while training. `checkpointing`: activations inside a block
    are computed again in backward instead of kept.
    """

    precision: str = "fp32"
    attention: str = "auto"
    compile: bool = False
    fp8: bool = False
    checkpointing: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.precision)

    def apply(self, model: GPT) -> None:
        """Set the model's activations and attention; its parameters stay fp32 masters, cast where they are used."""
        model.compute_dtype = None if self.dtype == torch.float32 else self.dtype
        model.attention_backend = self.attention
        model.checkpointing = self.checkpointing
        if model.eight_bit is not None:
            model.eight_bit.remove()
        model.eight_bit = EightBitWeights(model) if self.fp8 else None


class ForwardBackward:
    """Callable: adds a batch's gradients to `.grad` and returns its share of the loss.

    The first call compiles where `compute.compile` asks for it. What fails then, is wrong, or is missing (a compiler,
    an 8-bit product, the loss kernel) is done without, and `warn` gets one line. `compile_seconds` is what that call
    took; `compute` says what is in use.
    """

    def __init__(self, model: GPT, compute: Compute, warn: Callable[[str], None] = print) -> None:
        compute.apply(model)
        self.model = model
        self.compute = compute
        self.compile_seconds = 0.0
        self._warn = warn
        self._first = True
        self._forwards: list[Callable[..., Tensor]] = []
        self._terms: Terms = loss_and_gradient
        self._uncompiled_terms: Terms = loss_and_gradient
        if compute.compile:
            # The compiler keeps few versions of a function, and earlier shapes and backends may have used them up.
            torch.compiler.reset()
            self._forwards = [torch.compile(block.forward, dynamic=False) for block in model.blocks]
            self._terms = torch.compile(loss_and_gradient, dynamic=False)

    def __call__(self, batch: Batch) -> Tensor:
        device = batch.inputs.device
        weights = torch.ones(batch.targets.shape, device=device) if batch.weights is None else batch.weights
        denom = torch.full((), batch.denom, dtype=torch.float32, device=device)  # a copy would wait for the device
        if self._first:
            self._choose_terms(device)
            self._check_eight_bit(device, batch.inputs.numel())
        if self.model.eight_bit is not None:
            self.model.eight_bit.refresh()
        if not (self._first and self.compute.compile):
            self._first = False
            return self._run(batch, weights, denom)
        self._first = False
        begun = time.perf_counter()
        try:
            loss = self._run(batch, weights, denom)
        except torch.OutOfMemoryError:
            raise  # uncompiled would need more
        except Exception as error:  # the compiler's failures have no common base class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            self._forwards, self._terms = [], self._uncompiled_terms
            self.compute = replace(self.compute, compile=False)
            for p in self.model.parameters():
                p.grad = None
            loss = self._run(batch, weights, denom)  # a mistake that is not the compiler's is raised again here
            self._warn(f"torch.compile does not work here, training goes on without it ({reason})")
        self.compile_seconds = time.perf_counter() - begun
        return loss

    @property
    def compiled(self) -> bool:
        return self.compute.compile

    def _choose_terms(self, device: torch.device) -> None:
        """The loss kernel where it runs and is right; then there is nothing left of the loss to compile."""
        shape = self.model.shape
        best = fastest_terms(device, self.compute.dtype, shape.vocab_size, shape.softcap, self._warn)
        if best is not loss_and_gradient:
            self._terms = self._uncompiled_terms = best

    def _check_eight_bit(self, device: torch.device, positions: int) -> None:
        if not self.compute.fp8:
            return
        dim = self.model.shape.dim
        if reason := why_not(dim, 4 * dim, min(positions, 4096), device, self.compute.dtype):
            self._warn(f"8-bit products are not used: {reason}; training goes on in {self.compute.precision}")
            self.compute = replace(self.compute, fp8=False)
            self.compute.apply(self.model)

    def _run(self, batch: Batch, weights: Tensor, denom: Tensor) -> Tensor:
        with self._compiled_blocks():
            loss = step_nll(self.model, batch.inputs, batch.targets, weights, denom, terms=self._terms)
            with span("backward"):
                loss.backward()  # inside: checkpointing enters the blocks again, and must meet the same code
        return loss.detach()

    @contextmanager
    def _compiled_blocks(self) -> Iterator[None]:
        """The model's blocks run their compiled code inside, and only there."""
        pairs = list(zip(self.model.blocks, self._forwards, strict=False))
        for block, forward in pairs:
            block.forward = forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block, _ in pairs:
                del block.forward
