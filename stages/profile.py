"""Profile: some steps of a training stage, in a copy of its run, timed part by part; leaves nothing behind.

`python -m stages.profile --run COPY --stage pretrain --steps 20 --out FILE`, perhaps under torchrun; `picollm profile`
makes the copy and prints the table. It is the stage itself that runs, with its own batches, model and optimizer.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

import torch

from picollm.run.errors import UserError
from picollm.run.folder import Run, write_atomic
from picollm.run.stage import StageContext
from picollm.train.device import pick_device
from picollm.train.trace import StepTrace


class Enough(Exception):
    """All steps that were asked for are done."""


class ProfiledContext(StageContext):
    """Counts the steps that training reports, on every rank, and ends it when there are enough."""

    def __init__(self, run: Run, name: str, trace: StepTrace) -> None:
        super().__init__(run, name, 1)
        self.trace = trace
        self.tokens = 0

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.tokens = round(values["tok_s"] * values["step_s"])
        if self.trace.stepped():
            raise Enough


def title(ctx: StageContext, device: torch.device) -> str:
    model, plan = ctx.config.model, ctx.run.plan()
    choices = ", ".join(f"{key} {value}" for key, value in (plan.choices if plan else {}).items())
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{ctx.name}: {model.depth} layers × {model.dim}, {ctx.world} × {device.type} ({where}); planned: {choices}"


def work(folder: Path, name: str, steps: int, out: Path, trace_file: Path | None) -> None:
    run = Run(folder)
    device = pick_device(run.config().machine.device, int(os.environ.get("LOCAL_RANK", "0")))
    trace = StepTrace(steps, device)
    ctx = ProfiledContext(run, name, trace)
    try:
        importlib.import_module(f"stages.{name}").work(ctx)
    except Enough:
        pass
    else:
        raise UserError(f"{name} ended after {trace.seen} steps and {trace.needed} are needed; ask for fewer --steps")
    finally:
        ctx.close()
    if ctx.rank == 0:
        write_atomic(out, trace.table(title(ctx, device), ctx.tokens))
        if trace_file is not None:
            trace.save(trace_file)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stages.profile", description="Time the parts of a training step.")
    parser.add_argument("--run", required=True, type=Path, help="a run folder of its own: it is written to")
    parser.add_argument("--stage", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="where the table goes")
    parser.add_argument("--trace", type=Path, help="a Chrome trace of the recorded steps, of rank 0")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        work(options.run.absolute(), options.stage, options.steps, options.out, options.trace)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
