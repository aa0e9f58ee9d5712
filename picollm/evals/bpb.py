"""Bits per byte: how well a model compresses text, whatever its tokenizer.

    bpb = Σ nats / (ln 2 · Σ bytes)

over the predicted tokens, where a token counts the bytes of its text. A special token is not text: it has 0 bytes, and
its nats are left out too, as are positions with a negative target or weight 0. B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from picollm.run.errors import UserError
from picollm.train.loss import LanguageModel, token_nll


class TextLoss(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all ranks: nats and bytes of the text, tokens that are text, and tokens in all."""

    nats: float
    bytes: int
    tokens: int

    @property
    def bpb(self) -> float:
        """Bits per byte of text."""
        return self.nats / (math.log(2) * self.bytes)

    @property
    def loss(self) -> float:
        """Nats per text token: comparable between models with the same tokenizer only."""
        return self.nats / self.tokens


def bits_per_byte(
    model: LanguageModel, loader: Any, token_bytes: np.ndarray | Tensor, steps: int | None = None
) -> float:
    """`text_loss(...).bpb`."""
    return text_loss(model, loader, token_bytes, steps).bpb


@torch.inference_mode()
def text_loss(
    model: LanguageModel,
    loader: Any,
    token_bytes: np.ndarray | Tensor,
    steps: int | None = None,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> TextLoss:
    """Loss of the model on the loader's text, summed over ranks; every rank gets the same result.

    Args:
        model: anything with `hidden(ids_BT)` and `lm_head`, in the dtype it should compute in.
        loader: an iterable of batches, or something with `batch(step)` of which the first `steps` are read. A batch
            is (inputs, targets[, weights, ...]) or has these as attributes; (B, T) arrays or tensors. Under torchrun
            each rank's loader gives its own rows.
        token_bytes: (V,) bytes of each token's text, 0 for specials (`Tokenizer.token_bytes()`).
        on_batch: called with the number of batches read, after each; it may use collectives if every rank's loader has
            as many batches, and may raise to leave.

    Raises:
        UserError: no batch holds any text.
    """
    device = model.lm_head.weight.device
    sizes = torch.as_tensor(token_bytes, dtype=torch.int64).to(device)
    sums = torch.zeros(3, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    for number, (inputs, targets, weights) in enumerate(_batches(loader, steps), 1):
        inputs, targets = inputs.to(device), targets.to(device)
        counted = targets >= 0
        if weights is not None:
            counted &= weights.to(device) != 0
        targets = targets.clamp(min=0).flatten()
        size = sizes[targets] * counted.flatten()
        x = model.hidden(inputs).flatten(0, 1)
        head = model.lm_head.weight[: model.shape.vocab_size]
        nll = token_nll(x, head, targets, softcap=model.shape.softcap)
        text = size > 0
        # float64 sums in a fixed order: ranks and batch sizes may differ in the last digits only
        found = [torch.where(text, nll, 0.0).to(sums.device, torch.float64).sum(), size.sum(), text.sum()]
        sums += torch.stack([part.to(sums.device, torch.float64) for part in found])
        if on_batch is not None:
            on_batch(number)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    nats, size_sum, tokens = sums.tolist()
    if not size_sum:
        raise UserError("bits per byte: the validation text is empty; give more text or a larger validation share")
    return TextLoss(nats=nats, bytes=int(size_sum), tokens=int(tokens))


def _batches(loader: Any, steps: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    if steps is not None and hasattr(loader, "batch"):
        source: Iterable[Any] = (loader.batch(step) for step in range(steps))
    elif hasattr(loader, "__iter__"):
        source = loader
    else:
        raise ValueError("this loader is endless: say how many steps to read")
    for number, batch in enumerate(source):
        if steps is not None and number == steps:
            return
        if hasattr(batch, "inputs"):
            inputs, targets, weights = batch.inputs, batch.targets, getattr(batch, "weights", None)
        else:
            inputs, targets, weights = batch[0], batch[1], batch[2] if len(batch) > 2 else None
        yield _tensor(inputs), _tensor(targets), None if weights is None else torch.as_tensor(weights)


def _tensor(ids: np.ndarray | Tensor) -> Tensor:
    return ids.long() if isinstance(ids, Tensor) else torch.from_numpy(ids.astype(np.int64))
