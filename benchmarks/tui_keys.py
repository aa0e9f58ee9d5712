"""How quickly the app answers a key: to the first byte, to the last before 80 ms of silence; bytes of an answer.

    python benchmarks/tui_keys.py [--presses 60] [--steps 100000] [--size 120x40]

On the pipeline of a finished run, and among the charts of a run with eight metrics a step.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tui_ruler  # noqa: E402
from benchmarks.tui_start import FRAME, TRAIN, size  # noqa: E402
from tests.fixtures import long_run, make_runs  # noqa: E402

PAGE_DOWN, PAGE_UP = "\x1b[6~", "\x1b[5~"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presses", type=int, default=60)
    parser.add_argument("--steps", type=int, default=100_000, help="steps of the long run")
    parser.add_argument("--size", type=size, default=(120, 40), metavar="COLUMNSxROWS")
    options = parser.parse_args()
    print(f"{options.size[0]}x{options.size[1]}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        make_runs.make(runs, "finished")
        measure(runs, "finished", "", {"next stage": "jjjkkk"}, options)
        long_run.write(runs, options.steps)
        among = {"next chart": "nnnppp", "zoom": "++--", "another place": "\t", "page": [PAGE_DOWN, PAGE_UP],
                 "next stage": "jk", "another tab": "12"}  # fmt: skip
        measure(runs, "long", TRAIN, among, options)


def measure(
    runs: Path, run: str, opening: str, cycles: dict[str, str] | dict[str, list[str]], options: argparse.Namespace
) -> None:
    terminal = tui_ruler.Terminal(tui_ruler.app("--run", run), options.size, tui_ruler.environment(runs))
    terminal.until(FRAME)
    terminal.quiet(1.0, 10)
    if opening:
        terminal.press(opening)
        terminal.until(r"Loss +\d")
        terminal.quiet(1.5, 60)
    for name, cycle in cycles.items():
        before = terminal.cpu()
        found = tui_ruler.keys(terminal, cycle, options.presses)
        cpu = (terminal.cpu() - before) / (options.presses + 3)
        print(f"{run}, {name}")
        print(f"  first byte           {tui_ruler.spread(found['first'])}")
        print(f"  settled              {tui_ruler.spread(found['settled'])}")
        print(f"  size                 {tui_ruler.spread(found['bytes'], 'B', 1)}; {cpu * 1000:.0f} ms of CPU a key")
        if found["silent"]:
            print(f"  unanswered           {len(found['silent'])} of {options.presses}")
        terminal.text()
    terminal.close()


if __name__ == "__main__":
    main()
