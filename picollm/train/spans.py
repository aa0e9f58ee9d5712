"""Names for the parts of a training step, as `picollm profile` shows them; a microsecond each when nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from torch.profiler import record_function

PREFIX = "picollm/"
PHASES = {
    "data": "waiting for the batch, sampling included",
    "forward": "embeddings to hidden states",
    "loss": "logits, loss and their gradient",
    "backward": "hidden states to gradients",
    "gradients": "sum over the ranks, norm",
    "sync": "waiting for the device and the other ranks",
    "adamw": "optimizer: tables and scalars",
    "muon": "optimizer: matrices",
    "gather": "optimizer: new values from the ranks that own them",
}

Item = TypeVar("Item")


def span(name: str) -> record_function:
    """A context: what happens inside belongs to this phase, one of `PHASES`."""
    return record_function(PREFIX + name)


def spanned(name: str, make: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """The items of `make()`, the time until each is there in `span(name)`."""
    with span(name):
        items = iter(make())
    while True:
        with span(name):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
