"""Checkpoints while training goes on: a copy on the host, then a thread of rank 0 that writes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from picollm.model.gpt import GPT
from picollm.run.errors import UserError
from picollm.train import checkpoint
from picollm.train.device import Ranks
from picollm.train.meter import Context
from picollm.train.sharded import AnyOptimizer


class Saver:
    """One save under way at most. All ranks call `begin`, `settle` and `save` at the same steps.

    Training waits for the copy only. How the writing ended is told to all ranks by `settle`, so that a full disk ends
    all of them, in one line; `landed` says on rank 0 that there is something to tell.

    Attributes:
        score: the newest validation reading, stored with each checkpoint; lower is better.
        last: the last checkpoint that is whole.
    """

    def __init__(
        self,
        ctx: Context,
        model: GPT,
        optimizer: AnyOptimizer,
        folder: Path,
        meta: dict[str, Any],
        keep: checkpoint.Keep,
        ranks: Ranks,
        first: int,
        figures: Callable[[], dict[str, Any]],
    ) -> None:
        self.ctx, self.model, self.optimizer, self.folder = ctx, model, optimizer, folder
        self.meta, self.keep, self.ranks = meta, keep, ranks
        self.first, self.figures = first, figures
        self.score: float | None = None
        self.last: checkpoint.CheckpointInfo | None = None
        self._step: int | None = None  # of the save under way, known to every rank
        self._writing: Future[checkpoint.CheckpointInfo] | None = None  # rank 0 only
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._buffers: dict[str, torch.Tensor] = {}

    def idle(self) -> bool:
        return self._step is None

    def landed(self) -> bool:
        """Whether the writing has ended, well or badly, and nobody was told."""
        return self._writing is not None and self._writing.done()

    def begin(self, step: int) -> None:
        """Copy the state after `step` and start to write it; waits for the save before, if there is one."""
        self.settle()
        if self.last is not None and self.last.step == step:
            return
        if step == self.first:
            self.last = self.ranks.share(self._resumed_from(step) if self.ranks.rank == 0 else None)
            if self.last is not None:
                return
        taken = checkpoint.snapshot(self.model, self.optimizer, self._buffers, wanted=self.ranks.rank == 0)
        if taken is not None:
            meta = {"stage": self.ctx.name, **self.meta, "figures": self.figures(), "score": self.score}
            self._writing = self._thread.submit(self._write, step, taken, meta)
        self._step = step

    def settle(self, _: int = 0) -> None:
        """Wait for the save under way, on every rank. Raises UserError when it failed."""
        if self._step is None:
            return
        outcome: checkpoint.CheckpointInfo | UserError | None = None
        if self._writing is not None:
            try:
                outcome = self._writing.result()
            except UserError as error:
                outcome = error
        self._step = self._writing = None
        outcome = self.ranks.share(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        assert outcome is not None
        self.last = outcome
        self.ctx.checkpoint(outcome.step, self.ctx.relative(outcome.path), outcome.bytes, outcome.seconds)

    def save(self, step: int) -> checkpoint.CheckpointInfo:
        """Save and wait until it is whole."""
        self.begin(step)
        self.settle()
        assert self.last is not None
        return self.last

    def read(self, score: object) -> None:
        """Note what an evaluation found, if it is a number."""
        if isinstance(score, float) and math.isfinite(score):
            self.score = score

    def _write(self, step: int, taken: checkpoint.Snapshot, meta: dict[str, Any]) -> checkpoint.CheckpointInfo:
        if taken.copied is not None:
            taken.copied.synchronize()
        # A finite gradient can still make an update that overflows; such weights must not replace good ones.
        for name, t in taken.files["model.safetensors"].items():
            if not bool(np.isfinite(t.numpy()).all()):
                raise UserError(
                    f"{self.ctx.name}: {name} is not finite after step {step}, so it was not saved; "
                    "lower the learning rate, then resume from the checkpoint before"
                )
        return checkpoint.write(self.folder, step, taken, meta, keep=self.keep)

    def _resumed_from(self, step: int) -> checkpoint.CheckpointInfo | None:
        """The checkpoint of `step` if this attempt began from it: writing the same again could only lose it."""
        path = checkpoint.path_of(self.folder, step)
        if not path.exists() or checkpoint.problem(path) is not None:
            return None
        return checkpoint.info(path)
