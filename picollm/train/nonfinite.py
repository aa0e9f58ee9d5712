"""Where a loss stopped being a number: the batches are computed once more, uncompiled, and every layer is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from picollm.model.gpt import GPT
from picollm.train.batch import Batch
from picollm.train.device import Ranks
from picollm.train.loss import weighted_nll


def where_not_finite(model: GPT, batches: Iterable[Batch], ranks: Ranks) -> str:
    """One clause for an error message that names the first place with an infinity or a NaN; the same on every rank.

    Every rank must call it with its own micro-batches. Gradients are gone afterwards, weights are untouched.
    """
    for rank, found in enumerate(ranks.gather(_first(model, batches))):
        if found:
            return f"it begins in {found}" + (f" on rank {rank}" if ranks.world > 1 else "")
    return "computed once more without compiling it is finite everywhere"


def _first(model: GPT, batches: Iterable[Batch]) -> str | None:
    """This rank's first bad place: a weight, else in the order of the forward pass, else of the backward pass."""
    for name, p in model.named_parameters():
        if _bad(p):
            return f"the weights: {name} is not finite"
    found: list[str] = []

    def after_forward(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if any(_bad(t) for t in inputs):
                found.append(f"the input of {name}")
            elif _bad(output):
                found.append(f"the output of {name}")

        return hook

    def after_backward(name: str) -> Callable[[Tensor], None]:
        return lambda p: found.append(f"the gradient of {name}") if _bad(p.grad) else None

    hooks = [module.register_forward_hook(after_forward(name)) for name, module in model.named_modules() if name]
    hooks += [p.register_post_accumulate_grad_hook(after_backward(name)) for name, p in model.named_parameters()]
    try:
        for batch in batches:
            loss = weighted_nll(model, batch)
            if not found and _bad(loss):
                return "the loss, from finite activations: look at lm_head and at the weights of the batch"
            if not found:
                loss.backward()
            if found:
                return found[0]
            model.zero_grad()
    finally:
        for handle in hooks:
            handle.remove()
        model.zero_grad()
    return None


def _bad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all())
