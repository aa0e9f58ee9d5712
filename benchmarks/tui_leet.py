"""The same measurements of a neighbour: `wandb leet` on a run of the same length, by the same ruler.

    python benchmarks/tui_leet.py --wandb VENV/bin [--steps 100000] [--size 120x40] [--seconds 60] [--presses 60]

VENV is an environment with wandb, which also writes the runs (offline). "Data to screen" is through wandb's own writer.
Compare with tui_start.py, tui_live.py and tui_keys.py, run on the same machine right before or after.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tui_ruler  # noqa: E402
from benchmarks.tui_start import size  # noqa: E402

SOMETHING = r"\S"
WRITER = """
import math, random, sys, time, wandb
folder, steps, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True)
run = wandb.init(mode="offline", dir=folder, project="ruler", settings=quiet)
draw = random.Random(1)
def read(step):
    return {f"m{n}": 2 + 6 * math.exp(-step / 8000) + draw.gauss(0, 0.08) for n in range(7)} | {"step": step}
for step in range(1, steps + 1):
    run.log(read(step))
print("there", flush=True)
while rate:
    time.sleep(1 / rate)
    steps += 1
    print(steps, time.monotonic(), flush=True)
    run.log(read(steps))
run.finish()
"""


def written(options: argparse.Namespace, folder: Path, steps: int, rate: float) -> subprocess.Popen[str]:
    """A writer that has written `steps` and goes on at `rate` a second; with rate 0 it has ended."""
    argv = [str(options.wandb / "python"), "-c", WRITER, str(folder), str(steps), str(rate)]
    writer = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert writer.stdout and writer.stdout.readline() == "there\n"
    if not rate:
        writer.wait()
    return writer


def leet(options: argparse.Namespace, folder: Path) -> tui_ruler.Terminal:
    run = next((folder / "wandb").glob("offline-run-*"))
    environ = tui_ruler.environment(folder, WANDB_CONFIG_DIR=str(folder / "config"), HOME=str(folder))
    return tui_ruler.Terminal([str(options.wandb / "wandb"), "leet", str(run)], options.size, environ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--wandb", type=Path, required=True, metavar="BIN", help="folder of that environment's programs"
    )
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--earlier", type=int, default=20_000, help="steps before the live ones")
    parser.add_argument("--size", type=size, default=(120, 40), metavar="COLUMNSxROWS")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the live run")
    parser.add_argument("--presses", type=int, default=60)
    options = parser.parse_args()
    print(f"{options.size[0]}x{options.size[1]}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(options, folder, options.steps, 0)
        finished(options, folder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = written(options, folder, options.earlier, 2.0)
        try:
            live(options, folder, writer)
        finally:
            writer.kill()
            writer.wait()


def finished(options: argparse.Namespace, folder: Path) -> None:
    for last in (False, False, True):
        terminal = leet(options, folder)
        frame = terminal.until(SOMETHING) - terminal.begun
        terminal.quiet(1.0, 120)
        drawn = terminal.reads[-1][0] - terminal.begun
        print(f"{options.steps:,} steps x 8     frame {frame:.2f} s, completely drawn {drawn:.2f} s, "
              f"{terminal.cpu():.2f} s of CPU, {terminal.memory() / 2**20:.0f} MiB")  # fmt: skip
        if last:
            found = tui_ruler.keys(terminal, "\t", options.presses)
            for what in ("first", "settled"):
                print(f"key, {what:<18}{tui_ruler.spread(found[what])}")
        terminal.close()


def live(options: argparse.Namespace, folder: Path, writer: subprocess.Popen[str]) -> None:
    terminal = leet(options, folder)
    terminal.until(SOMETHING)
    terminal.quiet(1.0, 60)
    index, cpu, began = len(terminal.reads), terminal.cpu(), time.monotonic()
    time.sleep(options.seconds)
    ended = time.monotonic()
    spent = ended - began
    print(f"live                   {terminal.since(index) / spent:,.0f} B/s, "
          f"{(terminal.cpu() - cpu) / spent:.1%} of a core, {terminal.memory() / 2**20:.0f} MiB")  # fmt: skip
    shown: list[tuple[float, int]] = []

    def look(at: float) -> None:
        found = [int(number) for number in re.findall(r"\bstep\D+(\d{4,})", "\n".join(terminal.screen.display))]
        if found:
            shown.append((at, max(found)))

    terminal.text(look)
    writer.kill()
    assert writer.stdout
    said = [(int(step), float(at)) for step, at in (line.split() for line in writer.stdout if line.count(" ") == 1)]
    delays = [next((at - then for at, number in shown if number >= step and at >= then), None) for step, then in said
              if began < then < ended - 10]  # fmt: skip
    print(f"data to screen         {tui_ruler.spread([delay for delay in delays if delay is not None])}")
    terminal.close()


if __name__ == "__main__":
    main()
