"""A terminal to measure a full-screen program in: a pseudo-terminal, a screen (pyte), and the time of every byte.

    python benchmarks/tui_ruler.py         measures a program whose figures are known, and says whether they came out

`Terminal(argv)` starts the program, answers what it asks a terminal, and keeps every read with its time. The screen is
brought up to date between measurements, never within one. Processor time and memory are of the program and all its
children. The other `tui_*.py` use it.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import math
import os
import pty
import re
import signal
import statistics
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyte

ROOT = Path(__file__).resolve().parents[1]
SETTLED_S = 0.08  # silence of that length ends the answer to a key

QUERIES: tuple[tuple[bytes, Callable[[re.Match[bytes]], bytes]], ...] = (
    (rb"\x1b\[0?c", lambda found: b"\x1b[?62;22c"),
    (rb"\x1b\[6n", lambda found: b"\x1b[1;1R"),
    (rb"\x1b\[\?(\d+)\$p", lambda found: b"\x1b[?%s;%d$y" % (found[1], 2 if found[1] == b"2026" else 0)),
    (rb"\x1b\[\?u", lambda found: b"\x1b[?0u"),
    (rb"\x1b\]1([01]);\?(?:\x07|\x1b\\)", lambda found: b"\x1b]1%s;rgb:1010/1010/1010\x07" % found[1]),
    (rb"\x1b\[>0?q", lambda found: b"\x1bP>|XTerm(390)\x1b\\"),
)
"""What programs ask a terminal, and what it says."""

_FOREIGN = re.compile(r"\x1b\[[<=>][0-9;:]*[ -/]*[@-~]|\x1b\[\?[0-9;]*(?:\$p|u)|\x1b[P\]^_].*?(?:\x07|\x1b\\)", re.S)
"""Sequences that pyte would print."""
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[P\]^_][^\x07\x1b]*\x1b?)?\Z")


class Terminal:
    """A program on a terminal of `size` (columns, rows). `reads` holds (monotonic time, bytes) of all it wrote."""

    def __init__(self, argv: list[str], size: tuple[int, int], environ: dict[str, str], folder: Path = ROOT) -> None:
        columns, rows = size
        self.reads: list[tuple[float, bytes]] = []
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self.screen)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest, self._fed, self._asked = "", 0, b""
        sys.setswitchinterval(0.0005)  # the reading thread gets its turn while pyte works
        self.begun = time.monotonic()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, columns * 10, rows * 20))
                os.chdir(folder)
                os.execve(argv[0], argv, environ)
            os._exit(127)
        self.process = psutil.Process(self.pid)
        self.code: int | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:
                return
            if not data:
                return
            self.reads.append((time.monotonic(), data))
            self._answer(data)

    def _answer(self, data: bytes) -> None:
        self._asked = (self._asked + data)[-4096:]
        for pattern, reply in QUERIES:
            for found in re.finditer(pattern, self._asked):
                with contextlib.suppress(OSError):
                    os.write(self.fd, reply(found))
            self._asked = re.sub(pattern, b"", self._asked)

    # what is on the screen ------------------------------------------------------------------------------------------

    def text(self, each: Callable[[float], None] | None = None) -> str:
        """The screen after everything read so far; `each(time)` is called after every read that it takes in."""
        while self._fed < len(self.reads):
            at, data = self.reads[self._fed]
            self._fed += 1
            text = self._rest + self._decoder.decode(data)
            cut = _UNFINISHED.search(text)
            self._rest = text[cut.start() :] if cut else ""
            self._stream.feed(_FOREIGN.sub("", text[: cut.start()] if cut else text))
            if each is not None:
                each(at)
        return "\n".join(line.rstrip() for line in self.screen.display)

    def forget(self) -> None:
        """Drop the reads that the screen has taken in, for a terminal that is watched for hours."""
        del self.reads[: self._fed]
        self._fed = 0

    def until(self, pattern: str, seconds: float = 60.0) -> float:
        """When the screen first showed `pattern` (a regular expression). Raises `TimeoutError` with the screen."""
        wanted, end, found = re.compile(pattern), time.monotonic() + seconds, 0.0

        def look(at: float) -> None:
            nonlocal found
            if not found and wanted.search("\n".join(self.screen.display)):
                found = at

        while not found:
            self.text(look)
            if time.monotonic() > end or (not found and not self.alive()):
                raise TimeoutError(f"{pattern!r} is not on the screen:\n{self.text()}")
            time.sleep(0.005)
        return found

    def quiet(self, gap: float, limit: float) -> bool:
        """Wait until nothing was written for `gap` seconds; False when that took longer than `limit`."""
        began = time.monotonic()
        while True:
            now, last = time.monotonic(), self.reads[-1][0] if self.reads else began
            if now - max(last, began) >= gap:
                return True
            if now - began >= limit:
                return False
            time.sleep(0.002)

    # what it does ---------------------------------------------------------------------------------------------------

    def press(self, keys: str) -> float:
        """Type; the time at which it was typed."""
        at = time.monotonic()
        os.write(self.fd, keys.encode())
        return at

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, columns * 10, rows * 20))
        self.screen.resize(rows, columns)

    def since(self, index: int) -> int:
        """Bytes written since the read with that number."""
        return sum(len(data) for _, data in self.reads[index:])

    def family(self) -> list[psutil.Process]:
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.Error:
            return []

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        total = 0.0
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:4])
        return total

    def memory(self) -> int:
        """Bytes resident."""
        total = 0
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def alive(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def close(self, number: int = signal.SIGTERM, patience: float = 5.0) -> float | None:
        """End the program; seconds it took, None when it had to be killed."""
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        while self.alive() and time.monotonic() - began < patience:
            time.sleep(0.005)
        took = None if self.alive() else time.monotonic() - began
        if took is None:
            os.kill(self.pid, signal.SIGKILL)
            while self.alive():
                time.sleep(0.005)
        time.sleep(0.05)
        os.close(self.fd)
        return took

    def left_on(self) -> list[str]:
        """Terminal modes that the program has switched on and not off again; `25 off` is a hidden cursor."""
        modes: dict[int, bool] = {}
        for found in re.finditer(rb"\x1b\[\?([0-9;]+)([hl])", b"".join(data for _, data in self.reads)):
            modes |= {int(mode): found[2] == b"h" for mode in found[1].split(b";") if mode}
        on = [str(mode) for mode, is_on in sorted(modes.items()) if is_on and mode not in (7, 25)]
        return on + (["25 off"] if modes.get(25) is False else [])


def keys(terminal: Terminal, cycle: str | list[str], presses: int) -> dict[str, list[float]]:
    """Press keys in turn, each when all is quiet: seconds to the first byte, seconds to the last, bytes of each."""
    found: dict[str, list[float]] = {"first": [], "settled": [], "bytes": [], "silent": []}
    for number in range(-3, presses):  # the first three warm up
        terminal.quiet(SETTLED_S, 2.0)
        time.sleep((number % 7) * 0.007)  # no lock-step with a ticking frame
        index = len(terminal.reads)
        pressed = terminal.press(cycle[number % len(cycle)])
        end = pressed + 1.0
        while len(terminal.reads) == index and time.monotonic() < end:
            time.sleep(0.0005)
        terminal.quiet(SETTLED_S, 1.0)
        reads = terminal.reads[index:]
        if number < 0:
            continue
        if not reads:
            found["silent"].append(pressed)
            continue
        last = reads[0][0]
        for at, _ in reads:
            if at - last > SETTLED_S:
                break
            last = at
        found["first"].append(reads[0][0] - pressed)
        found["settled"].append(last - pressed)
        found["bytes"].append(float(sum(len(data) for _, data in reads)))
    return found


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def spread(values: list[float], unit: str = "ms", scale: float = 1000.0) -> str:
    """`p50 12 ms, p95 20 ms, max 31 ms`."""
    if not values:
        return "no reading"
    parts = (statistics.median(values), percentile(values, 0.95), max(values))
    return ", ".join(
        f"{name} {part * scale:,.0f} {unit}" for name, part in zip(("p50", "p95", "max"), parts, strict=True)
    )


def environment(runs: Path, **more: str) -> dict[str, str]:
    """A plain terminal with all colours, whatever this script runs in."""
    left_out = {"LINES", "COLUMNS", "TERM_PROGRAM", "TERM_PROGRAM_VERSION", "TMUX", "STY", "NO_COLOR", "SSH_TTY", "CI"}
    left_out |= {"PYTHONDONTWRITEBYTECODE"}  # an installed program finds its modules compiled
    own = {name: value for name, value in os.environ.items() if name not in left_out}
    own |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": str(ROOT), "PICOLLM_RUNS": str(runs)}
    return own | {"PICOLLM_HOME": str(runs.parent / "home")} | more


def app(*arguments: str) -> list[str]:
    """The app's command line."""
    return [sys.executable, "-m", "tui.app", *arguments]


KNOWN = r"""
import os, select, time, tty
tty.setraw(0)
os.write(1, b"\x1b[?2026$p")
while b"$y" not in os.read(0, 100): pass
os.write(1, b"\x1b[?1049h\x1b[?25l\x1b[2J\x1b[HREADY")
due = time.monotonic() + 0.5
while True:
    if select.select([0], [], [], max(0, due - time.monotonic()))[0]:
        if os.read(0, 10) == b"q": break
        time.sleep(0.02); os.write(1, b"\x1b[3;1Hfirst"); time.sleep(0.03); os.write(1, b"\x1b[3;7Hlast")
    else:
        due += 0.5; os.write(1, b"\x1b[5;1H%-94d" % due)
os.write(1, b"\x1b[?25h\x1b[?1049l")
"""


def main() -> None:
    """Measures a program that writes 100 bytes twice a second, answers keys after 20 ms and again 30 ms later."""
    terminal = Terminal([sys.executable, "-c", KNOWN], (100, 24), environment(Path("/nowhere/runs")))
    terminal.until("READY", 10)
    index, began = len(terminal.reads), time.monotonic()
    time.sleep(4)
    rate = terminal.since(index) / (time.monotonic() - began)
    found = keys(terminal, "x", 20)
    terminal.press("q")
    terminal.quiet(0.3, 2)
    first, settled = statistics.median(found["first"]) * 1000, statistics.median(found["settled"]) * 1000
    rows = (
        ("bytes a second", rate, 150, 250),
        ("first byte, ms", first, 19, 30),
        ("settled, ms", settled, 49, 65),
        ("modes left on", len(terminal.left_on()), 0, 0),
    )
    wrong = 0
    for name, value, low, high in rows:
        wrong += not low <= value <= high
        print(f"{name:<18}{value:8.1f}   {'ok' if low <= value <= high else f'expected {low} to {high}'}")
    terminal.close()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
