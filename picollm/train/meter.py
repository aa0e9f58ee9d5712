"""From the loop's reports to what a person sees: metrics, progress, the figures of the summary."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from picollm.model.gpt import GPT
from picollm.run.neighbours import Neighbours
from picollm.run.scaling import flops_per_token
from picollm.train.device import Ranks, peak_flops
from picollm.train.loop import Report
from picollm.train.step import ForwardBackward
from picollm.train.watch import Watch

RECENT = 8
"""Steps whose median is the loss at which a stage ended, for the next one to compare with: one batch tells little."""


class Context(Protocol):
    """The part of `picollm.run.stage.StageContext` that training uses."""

    name: str

    def phase(self, name: str) -> None: ...
    def progress(self, step: int, steps: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def checkpoint(self, step: int, path: str, bytes: int, seconds: float) -> None: ...
    def resumed(self, step: int, path: str = "") -> None: ...
    def warning(self, text: str) -> None: ...
    def message(self, text: str) -> None: ...
    def note(self, step: int, text: str) -> None: ...
    def stop_requested(self) -> bool: ...
    def relative(self, path: Path) -> str: ...


class Meter:
    """Turns the loop's reports into metrics, progress and the figures of the summary."""

    def __init__(
        self,
        ctx: Context,
        model: GPT,
        steps: int,
        ranks: Ranks,
        run: ForwardBackward,
        extra: Callable[[int], dict[str, float]] | None,
        *,
        warmup: int = 0,
        planned_tok_s: float = 0.0,
    ) -> None:
        self.ctx, self.steps, self.run, self.extra = ctx, steps, run, extra
        self.flops = flops_per_token(model.shape)
        self.peak = peak_flops(run.compute.dtype, ranks.device) * ranks.world
        self.compiling = run.compiled
        self.loss, self.tokens, self.skipped = float("nan"), 0, 0
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.speeds: list[float] = []
        self.earlier_tok_s = 0.0
        self.neighbours: Neighbours | None = None
        self.watch = Watch(ctx.name, model.shape.vocab_size, warmup, planned_tok_s)
        if ranks.rank == 0:
            self.watch.who = self._who

    def figures(self) -> dict[str, Any]:
        """What a checkpoint remembers, so that an attempt with little or nothing left to do has something to say."""
        found: dict[str, Any] = {"loss": self.loss, "tokens": self.tokens, "tok_s": self.median_tok_s()}
        found["usual_loss"] = median(self.recent) if self.recent else self.loss
        found["recent"] = list(self.recent)
        return found | {"parent_loss": self.watch.parent_loss, "opening": self.watch.opening}

    def restore(self, figures: dict[str, Any]) -> None:
        loss = figures.get("loss")
        self.loss = float("nan") if loss is None else float(loss)
        self.tokens = int(figures.get("tokens") or 0)
        self.recent.extend(map(float, figures.get("recent") or ()))
        self.earlier_tok_s = float(figures.get("tok_s") or 0.0)
        parent = figures.get("parent_loss")
        self.watch.parent_loss = None if parent is None else float(parent)
        if (opening := figures.get("opening")) is not None:
            self.watch.opening = [(int(step), float(loss)) for step, loss in opening]

    def mfu(self, tok_s: float) -> float:
        return tok_s * self.flops / self.peak

    def median_tok_s(self) -> float:
        return sorted(self.speeds)[len(self.speeds) // 2] if self.speeds else self.earlier_tok_s

    def report(self, r: Report) -> None:
        timed = not self.compiling
        if self.compiling:
            self.compiling = False
            if self.run.compiled:
                self.ctx.message(f"compiled in {self.run.compile_seconds:.1f} s")
            self.ctx.phase("train")
        else:
            self.speeds.append(r.tokens / r.seconds)
        tok_s = r.tokens / r.seconds
        self.tokens += r.tokens
        values = {"lr": r.lr, "tok_s": tok_s, "mfu": self.mfu(tok_s), "step_s": r.seconds}
        if r.skipped > self.skipped:
            self.ctx.warning(f"step {r.step} skipped: loss {r.loss}, gradient norm {r.grad_norm}")
            self.skipped = r.skipped
            values["skipped"] = float(r.skipped)
        else:
            self.loss = r.loss
            self.recent.append(r.loss)
            values |= {"loss": r.loss, "grad_norm": r.grad_norm}
        if self.extra is not None:
            values |= self.extra(r.step)
        self.ctx.metrics(r.step, values)
        self.ctx.progress(r.step, self.steps)
        if "loss" in values:
            for notice in self.watch.step(
                r.step, tokens=r.tokens, loss=r.loss, grad_norm=r.grad_norm, seconds=r.seconds, timed=timed
            ):
                if notice.step:
                    self.ctx.note(notice.step, notice.text)
                else:
                    (self.ctx.warning if notice.warning else self.ctx.message)(notice.text)

    def _who(self) -> str:
        """Who else is busy, counted since the first time it was asked."""
        if self.neighbours is None:
            self.neighbours = Neighbours()
            return ""
        return self.neighbours.busiest()
