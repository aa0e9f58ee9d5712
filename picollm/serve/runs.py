"""The finished checkpoints of runs as models of one hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from picollm.infer.engine import Engine
from picollm.infer.load import load_model
from picollm.infer.products import WrongPrecision
from picollm.run import models, pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.serve.hub import ModelHub
from picollm.text.tokenizer import Tokenizer
from picollm.train import checkpoint

LOOK_EVERY_S = 2.0


class RunModels:
    """Looks at the runs again now and then, for stages finish while we serve.

    Models are called base, mid, sft and rl; of several runs, `run/base` and so on. What cannot be served is said once,
    with the command that makes it again. `precision` goes before that of the runs' settings. With `checkpoints` also
    what the training stages saved on their way is served, as `sft@310`.
    """

    def __init__(
        self, runs: Sequence[Run], *, device: torch.device | str = "cpu", precision: str | None = None,
        keep: int | None = None, checkpoints: bool = False, say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        names = [run.name for run in runs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UserError(f"two runs are called {twice!r}; their models could not be told apart: rename a folder")
        self.runs, self.device, self.precision, self.say = list(runs), device, precision, say
        self.checkpoints = checkpoints
        self.hub = ModelHub(keep)
        self._seen: dict[str, str] = {}
        self._problems: dict[str, str] = {}
        self._saved: dict[str, dict[str, models.Model]] = {}
        self.look()

    def require(self) -> None:
        """Raises `UserError`, saying what to run, when there is nothing to serve."""
        if self.hub.names:
            return
        if self._problems:
            raise UserError(next(iter(self._problems.values())))
        name = self.runs[0].name
        raise UserError(f"{name}: no model yet: finish pretrain first (picollm run --run {name})")

    def look_now_and_then(self) -> None:
        if time.monotonic() - self._looked > LOOK_EVERY_S:
            self.look()

    def look(self) -> None:
        self._looked = time.monotonic()
        for run in self.runs:
            if self.checkpoints:
                self._look_at_checkpoints(run)
            for model, stage in pipeline.MODEL_STAGES.items():
                done = run.finished(stage)
                name = model if len(self.runs) == 1 else f"{run.name}/{model}"
                if done is None or self._seen.get(name) == done.artifacts.get("checkpoint"):
                    continue
                try:
                    folder, tokenizer = run.output(stage, "checkpoint"), run.output("tokenizer", "tokenizer")
                    _check(folder, tokenizer)
                except UserError as error:
                    self._complain(name, f"{error}; {_cure(run, stage)}")
                    continue
                self._seen[name] = done.artifacts["checkpoint"]
                self.hub.add(
                    name,
                    partial(self._load, run, folder, tokenizer, _cure(run, stage)),
                    run=run.name,
                    stage=stage,
                    checkpoint=folder.name,
                )
                self.say(f"{name}: {folder}")

    def _look_at_checkpoints(self, run: Run) -> None:
        """Those before the last. They come and go while a stage trains; what is wrong with one is said when asked."""
        there = {}
        for model in models.models(run):
            if not model.finished:
                there[model.name if len(self.runs) == 1 else f"{run.name}/{model.name}"] = model
        for name in [name for name in self._saved.get(run.name, ()) if name not in there]:
            self.hub.remove(name)
        for name, model in there.items():
            if self._saved.get(run.name, {}).get(name) == model:
                continue
            try:
                tokenizer = run.output("tokenizer", "tokenizer")
            except UserError as error:
                self._complain(name, str(error))
                continue
            load = partial(self._load, run, model.folder, tokenizer, _cure(run, model.stage))
            self.hub.add(name, load, run=run.name, stage=model.stage, checkpoint=model.folder.name)
        self._saved[run.name] = there

    def _load(self, run: Run, folder: Path, tokenizer: Path, cure: str) -> Engine:
        precision = self.precision or run.config().chat.precision
        try:
            return load_model(folder, tokenizer, device=self.device, precision=precision, only_decode=True)
        except WrongPrecision as error:  # which making the model again would not mend
            raise UserError(f"{error}: --precision, or chat.precision in the settings of {run.name}") from None
        except UserError as error:
            raise UserError(f"{error}; {cure}") from None

    def _complain(self, name: str, problem: str) -> None:
        if self._problems.get(name) != problem:
            self._problems[name] = problem
            self.say(f"{name}: {problem}")


def _cure(run: Run, stage: str) -> str:
    return f"to make it again: picollm run --run {run.name} --from {stage}"


def _check(folder: Path, tokenizer: Path) -> None:
    """Whether it is a checkpoint of ours, of this tokenizer, before anybody asks it. Raises `UserError`."""
    meta = checkpoint.read_meta(folder)
    checkpoint.check_format(meta, folder)
    checkpoint.check_tokenizer(meta, Tokenizer.load(tokenizer).hash, folder)
