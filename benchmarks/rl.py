"""Does RL help, and by more than chance? One finished SFT, several seeds of RL, held-out accuracy before and after.

python benchmarks/rl.py RUN [--seeds 3] [--set rl.steps=100 ...] [--keep]

Copies runs/RUN (or $PICOLLM_RUNS/RUN) once per seed, makes stage rl of the copy anew with `run.seed` set to it, and
prints a line of it: accuracy on the held-out items with SFT's 95 % interval, pass@k by sampling, and the seconds spent.
The seed changes the questions, their order, the held-out items and the sampling; the SFT checkpoint stays. The copies
(RUN-rl-1, ...) are removed at the end unless --keep.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
from pathlib import Path

from picollm.run import launch
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.history import Series, StageHistory

LEFT_OUT = ("rl", "rl_checkpoints", "report", "eval", "conductor")


def copy(run: Run, name: str, settings: list[str]) -> Run:
    """A copy of the run without its RL. Raises `UserError` when the name is taken."""
    target = run.dir.with_name(name)
    if target.exists():
        raise UserError(f"{target} is there already: remove it, or rename it")
    shutil.copytree(run.dir, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    made = Run(target)
    made.set(settings)
    return made


def share(series: Series | None, place: int) -> str:
    value = series.values[place] if series and series.values else None
    return "–" if value is None else f"{100 * value:.1f}"


def line(run: Run, seed: int, cpu_s: float) -> tuple[list[str], bool]:
    """The cells of one seed, and whether its accuracy rose above SFT's interval."""
    history = StageHistory(run, "rl").read_all()
    found = history.series
    if history.finished is None or len(found["heldout/accuracy"].values) < 2:
        raise UserError(f"{run.name}: RL did not finish; see {run.console_file('rl', run.attempts('rl')[-1])}")
    before, after = found["heldout/accuracy"].values[0], found["heldout/accuracy"].values[-1]
    high = found["heldout/high"].values[0]
    interval = f"{share(found['heldout/low'], 0)}–{share(found['heldout/high'], 0)}"
    passes = [f"{share(found.get(f'sampled/pass_at_{k}'), 0)} → {share(found.get(f'sampled/pass_at_{k}'), -1)}"
              for k in (1, 8)]  # fmt: skip
    above = bool(after > high)
    asked = next(event.n for event in history.evals if event.name == "heldout")
    cells = [str(seed), str(found["reward"].steps[-1]), str(asked), f"{100 * before:.1f} ({interval})",
             f"{100 * after:.1f}", "yes" if above else "no", *passes,
             f"{history.seconds:.0f} s", f"{cpu_s:.0f} s"]  # fmt: skip
    return cells, above


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of RL")
    parser.add_argument("--keep", action="store_true", help="leave the copies")
    options = parser.parse_args()
    run = Run.open(options.run)
    if not run.finished("sft"):
        raise UserError(f"{run.name} has no finished SFT: picollm run --run {run.name}")
    print(
        "| seed | steps | n | SFT % (95 % interval) | RL % | above | pass@1 | pass@8 | wall | CPU |\n"
        + "|---" * 10
        + "|"
    )
    risen, folders = 0, list[Path]()
    for seed in range(1, options.seeds + 1):
        made = copy(run, f"{run.name}-rl-{seed}", [*options.set, f"run.seed={seed}"])
        folders.append(made.dir)
        spent = children_cpu()
        code = launch.launch_here(made.dir, "rl", fresh=True)
        if code:
            raise UserError(f"{made.name}: RL ended with code {code}; see {made.dir / 'stages' / 'rl'}")
        cells, above = line(made, seed, children_cpu() - spent)
        risen += above
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nabove SFT's 95 % interval in {risen} of {options.seeds} seeds; load now {os.getloadavg()[0]:.1f}")
    for folder in [] if options.keep else folders:
        shutil.rmtree(folder)


def children_cpu() -> float:
    """Processor seconds of the processes started here and ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
