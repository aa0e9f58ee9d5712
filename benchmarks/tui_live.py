"""What the app costs on a terminal: first frame, bytes a second while a run is live, processor time, latency of a key.

    python benchmarks/tui_live.py [--seconds 20] [--rate 20] [--columns 120] [--rows 40] [--tab 2]

A run folder is made in a temporary place; a thread here appends training steps to it at `--rate` a second and holds the
stage's lock, so that the app sees a living run. The app runs on a pseudo-terminal that this script reads. CPU is of the
app's process alone, as a share of one core.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import random
import select
import signal
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


class Terminal:
    """The app on a pseudo-terminal; `pump` reads what it writes and counts."""

    def __init__(self, columns: int, rows: int, environ: dict[str, str]) -> None:
        self.begun = time.monotonic()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.chdir(ROOT)
            os.execve(sys.executable, [sys.executable, "-m", "tui.app", "--run", "live"], environ)
        self.process = psutil.Process(self.pid)

    def pump(self, seconds: float, until: bytes = b"", quiet: float = 0.0) -> tuple[int, float, bytes]:
        """Read for `seconds`, or until some bytes came, or until `quiet` seconds of silence after the first byte.

        Returns bytes read, monotonic time of the last byte, and what was read.
        """
        end, data, last = time.monotonic() + seconds, b"", 0.0
        while (now := time.monotonic()) < end:
            if quiet and last and now - last > quiet:
                break
            if select.select([self.fd], [], [], 0.01)[0]:
                try:
                    data += os.read(self.fd, 1 << 16)
                except OSError:  # the app has left
                    break
                last = time.monotonic()
                if until and until in data:
                    break
        return len(data), last, data

    def cpu(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def close(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        self.pump(1.0)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


def feed(script: object, rate: float, stopping: threading.Event) -> None:
    """Append steps to the running stage, as a training loop would."""
    import msgspec

    from picollm.run import events as ev

    file = script.run.events_file(script.stage, 1)  # type: ignore[attr-defined]
    draw, step, seq = random.Random(1), 161, 100_000
    with open(file, "ab", buffering=0) as out:
        while not stopping.wait(1 / rate):
            step, seq = step + 1, seq + 2
            values: dict[str, float | None] = {
                "loss": 2.4 + draw.gauss(0, 0.1), "tok_s": 41e3 + draw.gauss(0, 900), "lr": 0.02,
                "grad_norm": 1 + draw.random() / 3,
            }  # fmt: skip
            metrics = ev.Metrics(step=step, values=values, seq=seq, time=time.time())
            progress = ev.Progress(step=step, steps=100_000, seq=seq + 1, time=time.time())
            out.write(msgspec.json.encode(metrics) + b"\n" + msgspec.json.encode(progress) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measured window")
    parser.add_argument("--rate", type=float, default=20.0, help="training steps a second")
    parser.add_argument("--columns", type=int, default=120)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--starts", type=int, default=5, help="starts to take the first frame from")
    parser.add_argument("--tab", default="2", help="the tab to measure, as its key")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    environ = os.environ | {"PICOLLM_RUNS": str(folder), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    os.environ["PICOLLM_RUNS"] = str(folder)
    from tests.fixtures import make_runs

    run = make_runs.make(folder, "running", name="live")
    script = make_runs.Script(run, "pretrain", 1, time.time())
    lock = make_runs.hold(run, "pretrain")

    firsts, costs = [], []
    for _ in range(options.starts):
        terminal = Terminal(options.columns, options.rows, environ)
        _, last, data = terminal.pump(20, until=b"Preflight")
        assert b"Preflight" in data, "no frame within 20 s"
        firsts.append(last - terminal.begun)
        costs.append(terminal.cpu())
        terminal.pump(1.0)
        terminal.close()
    print(f"{options.columns}x{options.rows}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"first frame            {min(firsts):.2f} s best, {statistics.median(firsts):.2f} s median of {len(firsts)}")
    print(f"CPU until then         {statistics.median(costs):.2f} s")

    terminal = Terminal(options.columns, options.rows, environ)
    terminal.pump(20, until=b"Preflight")
    terminal.pump(2)
    os.write(terminal.fd, options.tab.encode())
    terminal.pump(3)
    for label, rate in (("no new data", 0.0), (f"live, {options.rate:g} steps/s", options.rate)):
        stopping = threading.Event()
        thread = threading.Thread(target=feed, args=(script, rate or 1, stopping), daemon=True)
        if rate:
            thread.start()
            terminal.pump(3)
        before, began = terminal.cpu(), time.monotonic()
        count, _, _ = terminal.pump(options.seconds)
        spent = time.monotonic() - began
        share = (terminal.cpu() - before) / spent
        print(f"tab {options.tab}, {label:<18} {count / spent:8,.0f} B/s   {share:6.1%} of a core")
        stopping.set()
    delays, sizes = [], []
    for key in b"jkjkjkjkjkjk":
        terminal.pump(0.4)
        pressed = time.monotonic()
        os.write(terminal.fd, bytes([key]))
        count, last, _ = terminal.pump(1.0, quiet=0.08)
        if count:
            delays.append(last - pressed)
            sizes.append(count)
    print(f"a key, settled         {statistics.median(delays) * 1000:.0f} ms median, {statistics.median(sizes):,.0f} B")
    print(f"memory                 {terminal.process.memory_info().rss / 2**20:.0f} MiB")
    terminal.close()
    lock.release()


if __name__ == "__main__":
    main()
