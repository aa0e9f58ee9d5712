"""How long the app takes to start: its first frame, a long run completely drawn; what it costs when nothing happens.

    python benchmarks/tui_start.py [--starts 7] [--steps 100000] [--size 120x40] [--idle 20]

A first frame is the first read after which the screen shows the footer. "Completely drawn" is the last byte before a
second of silence, after the curves of a run with eight metrics a step were asked for as soon as the first frame stood.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tui_ruler  # noqa: E402
from tests.fixtures import long_run, make_runs  # noqa: E402

TRAIN = "2"
FRAME = "Quit"


def size(text: str) -> tuple[int, int]:
    columns, _, rows = text.partition("x")
    return int(columns), int(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=7, help="starts to take the first frame from")
    parser.add_argument("--steps", type=int, default=100_000, help="steps of the long run")
    parser.add_argument("--size", type=size, default=(120, 40), metavar="COLUMNSxROWS")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds to watch the finished run")
    options = parser.parse_args()
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{options.size[0]}x{options.size[1]}, {load}")
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        make_runs.make(runs, "finished")
        first_frame(runs, options)
        long_run.write(runs, options.steps)
        completely(runs, options)


def first_frame(runs: Path, options: argparse.Namespace) -> None:
    times, costs = [], []
    for _ in range(options.starts + 1):  # the first warms the disk's cache up
        terminal = tui_ruler.Terminal(tui_ruler.app("--run", "finished"), options.size, tui_ruler.environment(runs))
        times.append(terminal.until(FRAME) - terminal.begun)
        costs.append(terminal.cpu())
        terminal.close()
    del times[0], costs[0]
    print(f"first frame            {min(times):.2f} s best, {statistics.median(times):.2f} s median, "
          f"{max(times):.2f} s worst of {len(times)}; {statistics.median(costs):.2f} s of CPU")  # fmt: skip


def completely(runs: Path, options: argparse.Namespace) -> None:
    for last in (False, False, True):
        terminal = tui_ruler.Terminal(tui_ruler.app("--run", "long"), options.size, tui_ruler.environment(runs))
        frame = terminal.until(FRAME) - terminal.begun
        terminal.press(TRAIN)
        loss = terminal.until(r"Loss +\d") - terminal.begun
        terminal.quiet(1.0, 60)
        drawn, cpu = terminal.reads[-1][0] - terminal.begun, terminal.cpu()
        print(f"{options.steps:,} steps x {len(long_run.METRICS)}     frame {frame:.2f} s, first curve {loss:.2f} s, "
              f"completely drawn {drawn:.2f} s, {cpu:.2f} s of CPU, {terminal.memory() / 2**20:.0f} MiB")  # fmt: skip
        if last:
            idle(terminal, options.idle)
        terminal.close()


def idle(terminal: tui_ruler.Terminal, seconds: float) -> None:
    index, cpu, began = len(terminal.reads), terminal.cpu(), time.monotonic()
    time.sleep(seconds)
    spent = time.monotonic() - began
    share = (terminal.cpu() - cpu) / spent
    print(f"nothing new            {terminal.since(index) / spent:.0f} B/s, {share:.1%} of a core")


if __name__ == "__main__":
    main()
