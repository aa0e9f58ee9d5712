"""What the app costs on a terminal while a run is live: bytes and processor time a second, data to screen, memory.

    python benchmarks/tui_live.py [--seconds 60] [--rate 2] [--earlier 20000] [--size 120x40] [--tab 2]
    python benchmarks/tui_live.py --minutes 120 --rate 20      memory over time, a line every ten minutes

A stage with eight metrics a step is fed as a training loop would write it; the curves are on the screen. "Data to
screen" is from the moment a step was written to the first frame that shows its loss, or a later one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tui_ruler  # noqa: E402
from benchmarks.tui_start import FRAME, size  # noqa: E402
from tests.fixtures import long_run  # noqa: E402

SHOWN = re.compile(r"Loss +(\d+\.\d+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the measured window")
    parser.add_argument("--minutes", type=float, default=0.0, help="watch the memory for so long instead")
    parser.add_argument("--rate", type=float, default=2.0, help="training steps a second")
    parser.add_argument("--earlier", type=int, default=20_000, help="steps that are there already")
    parser.add_argument("--size", type=size, default=(120, 40), metavar="COLUMNSxROWS")
    parser.add_argument("--tab", default="2", help="the tab to measure, as its key")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        horizon = 5 * options.earlier
        run = long_run.write(runs, options.earlier, name="live", horizon=horizon, finished=False)
        feeder = long_run.Feeder(run, options.earlier, horizon, options.rate)
        feeder.start()
        environ = tui_ruler.environment(runs)
        terminal = tui_ruler.Terminal(tui_ruler.app("--run", "live"), options.size, environ)
        terminal.until(FRAME)
        terminal.press(options.tab)
        terminal.quiet(0.3, 5)
        time.sleep(5)
        terminal.text()
        print(f"{options.size[0]}x{options.size[1]}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; "
              f"{options.rate:g} steps/s after {options.earlier:,}")  # fmt: skip
        if options.minutes:
            memory(terminal, options.minutes)
        else:
            live(terminal, feeder, options.seconds)
        terminal.close()
        feeder.close()


def live(terminal: tui_ruler.Terminal, feeder: long_run.Feeder, seconds: float) -> None:
    index, cpu, began = len(terminal.reads), terminal.cpu(), time.monotonic()
    time.sleep(seconds)
    ended = time.monotonic()
    spent, cpu = ended - began, terminal.cpu() - cpu
    sent, frames = terminal.since(index), len(terminal.reads) - index
    print(
        f"live                   {sent / spent:,.0f} B/s in {frames / spent:.1f} writes/s, {cpu / spent:.1%} of a core"
    )
    shown: list[tuple[float, float]] = []

    def look(at: float) -> None:
        if found := SHOWN.search("\n".join(terminal.screen.display)):
            shown.append((at, round(float(found[1]), 3)))

    terminal.text(look)
    delays = lags([said for said in feeder.said if said[0] < ended - 3], shown, began)
    print(f"data to screen         {tui_ruler.spread(delays)} of {len(delays)} steps")
    print(f"memory                 {terminal.memory() / 2**20:.0f} MiB")


def lags(said: list[tuple[float, float]], shown: list[tuple[float, float]], began: float) -> list[float]:
    """Seconds from each step said after `began` to the first frame that shows it or a later one."""
    delays, frame = [], 0
    number = {loss: index for index, (_, loss) in enumerate(said)}
    steps = [(at, number[loss]) for at, loss in shown if loss in number]
    for index, (at, _) in enumerate(said):
        if at < began:
            continue
        while frame < len(steps) and (steps[frame][1] < index or steps[frame][0] < at):
            frame += 1
        if frame < len(steps):
            delays.append(steps[frame][0] - at)
    return delays


def memory(terminal: tui_ruler.Terminal, minutes: float) -> None:
    began, cpu = time.monotonic(), terminal.cpu()
    every = max(1.0, minutes / 12 * 60)
    while (spent := time.monotonic() - began) < minutes * 60:
        share = (terminal.cpu() - cpu) / spent if spent > 1 else 0.0
        print(f"{spent / 60:6.1f} min   {terminal.memory() / 2**20:6.1f} MiB   {share:.1%} of a core", flush=True)
        time.sleep(every)
        terminal.text()
        terminal.forget()
    print(f"{spent / 60:6.1f} min   {terminal.memory() / 2**20:6.1f} MiB")


if __name__ == "__main__":
    main()
