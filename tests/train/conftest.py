"""A small model, a context that remembers what it was told, and batches that are pure functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from picollm.model.gpt import GPT
from picollm.run.scaling import ModelShape, shape_for
from picollm.train.batch import Batch

VOCAB, ROWS, T = 96, 4, 16


def small_shape() -> ModelShape:
    return shape_for(2, VOCAB, T, dim=32, head_dim=16)


def small_model(seed: int = 1) -> GPT:
    model = GPT(small_shape())
    model.init_weights(seed)
    return model


def counting_rows(step: int, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, T) inputs and targets that count upwards from a random start: learnable within a few steps."""
    start = torch.randint(0, VOCAB, (rows, 1), generator=torch.Generator().manual_seed(step))
    ids = (start + torch.arange(T + 1)) % VOCAB
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def counting_batches(step: int) -> Iterator[Batch]:
    yield Batch(*counting_rows(step), None, float(ROWS * T))


class FakeContext:
    """Stands in for a stage's context: keeps every call, and asks for a stop once `stop_at` steps are done."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.name = "pretrain"
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.stop_at, self.done = stop_at, 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **_: self.calls.append((name, args))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.done = step
        self.calls.append(("metrics", (step, values)))

    def stop_requested(self) -> bool:
        # Asked while step done+1 is under way.
        return self.stop_at is not None and self.done + 1 >= self.stop_at

    def relative(self, path: Path) -> str:
        return path.name

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [args for called, args in self.calls if called == name]

    def losses(self) -> list[float]:
        return [values["loss"] for _, values in self.of("metrics") if "loss" in values]


@pytest.fixture(autouse=True)
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MFU is measured against is given: every training here would measure it first, for longer than it trains."""
    monkeypatch.setattr("picollm.train.meter.peak_flops", lambda *_: 1e11)


@pytest.fixture(autouse=True)
def one_repeatable_thread() -> Iterator[None]:
    from picollm.train.device import set_deterministic

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    set_deterministic(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
