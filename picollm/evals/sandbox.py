"""Runs generated code against tests, where it can do no harm and cannot pretend to pass.

    run("def double(x):\\n    return 2 * x\\n", tests="def check(f):\\n    assert f(4) == 8\\n", entry_point="double")
    -> Outcome(passed=True, reason="", output="", seconds=0.05)

Two levels of walls (`sandbox_walls`), the first that this machine allows: namespaces, else Landlock. Each is tried by
running a program that attacks it; where neither holds, `available()` says why and `run` refuses. The tests are
trusted and run in a process of their own that the generated code cannot reach (`sandbox_child`).

One run costs the start of an interpreter, and several can run at the same time from threads.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from picollm.run.errors import UserError

LEVELS = ("namespaces", "landlock")
TIMEOUT = 5.0  # seconds of wall clock, start included
MEMORY = 512 * 2**20  # bytes of address space, of the program and of its tests each
OUTPUT = 64 * 2**10  # bytes of stdout and stderr together
FILES = 4 * 2**20  # bytes of one file, and of the writable folder
MAX_FILES = 64  # in the writable folder
PROBE_TIMEOUT = 60.0  # seconds; generous, since what is found here holds for the life of the process
END_PATIENCE = 10.0  # seconds for the keeper to end what it started, before it is ended itself
TICK = 0.05  # seconds between two looks at the writable folder, where the kernel does not bound it

_FLAGS = ("-s", "-S", "-P", "-u", "-X", "utf8", "-c")  # the standard library alone, nothing held back in a buffer
# The child alone: the packages it stands in are not run, which would cost as much as all the rest of the start.
_START = """
import sys, types
for name, folder in (("picollm", sys.argv[1] + "/picollm"), ("picollm.evals", sys.argv[1] + "/picollm/evals")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
del sys.argv[1]
from picollm.evals import sandbox_child
sandbox_child.main()
"""
_ROOT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a program did.

    passed   every test ran to its end and held
    reason   "" when it passed, else what went wrong, in one line
    output   what it wrote to stdout and stderr, up to the limit
    seconds  wall clock
    """

    passed: bool
    reason: str
    output: str
    seconds: float


class _Missing(Exception):
    """A wall that this machine does not let us build."""


def available() -> str:
    """ "" when code can be run here, else the reason why not. Tried once per process (about 0.1 s)."""
    return _established()[1]


def run(
    program: str,
    *,
    tests: str,
    entry_point: str,
    prelude: str = "",
    timeout: float = TIMEOUT,
    memory_bytes: int = MEMORY,
    output_bytes: int = OUTPUT,
    file_bytes: int = FILES,
    level: str = "",
) -> Outcome:
    """Whether the function `entry_point` of an untrusted program passes trusted tests.

    tests    source that defines `check(candidate)`, which calls the candidate and asserts (HumanEval's `test`)
    prelude  trusted source that the tests may use, run before them (HumanEval's `prompt`: its imports and helpers)
    level    "namespaces" or "landlock" instead of the one that `available` found

    The candidate is called across a process boundary: arguments and results are copies, and plain values (numbers,
    text, bytes, containers of them); any other object equals nothing. UserError where there is no sandbox.
    """
    level = level or _established()[0]
    if not level:
        raise UserError(f"generated code cannot be run here: {available()}")
    try:
        exam = {"tests": tests, "prelude": prelude, "entry_point": entry_point}
        job = {
            "program": program,
            "entry_point": entry_point,
            "level": level,
            "parent": os.getpid(),
            "memory_bytes": memory_bytes,
            "cpu_seconds": int(timeout) + 2,
            "file_bytes": file_bytes,
            "max_files": MAX_FILES,
        }
        return _run(job, exam, timeout, output_bytes)
    except _Missing as missing:
        raise UserError(f"the sandbox for generated code could not be built: {missing}") from missing


def _run(job: dict, exam: dict, timeout: float, output_bytes: int) -> Outcome:
    start = time.monotonic()
    folder = tempfile.mkdtemp(prefix="picollm-sandbox-")
    verdict_from, verdict_to = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(_clean, folder)
        verdict = stack.enter_context(os.fdopen(verdict_from, "rb", buffering=0))
        with tempfile.TemporaryFile() as settings, tempfile.TemporaryFile() as tests:
            _write(settings, job | {"folder": os.path.realpath(folder)})
            _write(tests, exam)
            keeper = subprocess.Popen(
                [
                    sys.executable,
                    *_FLAGS,
                    _START,
                    _ROOT,
                    str(tests.fileno()),
                    str(verdict_to),
                ],
                stdin=settings,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(tests.fileno(), verdict_to),
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                start_new_session=True,
            )
        os.close(verdict_to)
        assert keeper.stdout is not None
        stack.enter_context(keeper.stdout)
        stack.callback(_end, keeper)
        watched = folder if job["level"] == "landlock" else ""
        said, output, limit = _listen(verdict, keeper.stdout, start + timeout, output_bytes, watched, job["file_bytes"])
    seconds = time.monotonic() - start
    text = output[:output_bytes].decode(errors="replace")
    if limit:
        reason = limit if limit != "time" else f"no verdict within {timeout:g} s"
        return Outcome(passed=False, reason=reason, output=text, seconds=seconds)
    if not said.endswith(b"\n"):
        return Outcome(passed=False, reason="the tests ended without a verdict", output=text, seconds=seconds)
    outcome = json.loads(said)
    if "missing" in outcome:
        raise _Missing(outcome["missing"])
    return Outcome(passed=outcome["passed"], reason=outcome["reason"], output=text, seconds=seconds)


def _write(file: IO[bytes], message: dict) -> None:
    file.write(json.dumps(message).encode())
    file.seek(0)


def _listen(
    verdict: IO[bytes], stdout: IO[bytes], deadline: float, output_bytes: int, watched: str, file_bytes: int
) -> tuple[bytes, bytes, str]:
    """(what the judge said, what the program wrote, the limit that ended it or "")."""
    said, output = b"", b""
    with selectors.DefaultSelector() as ready:
        ready.register(verdict, selectors.EVENT_READ)
        ready.register(stdout, selectors.EVENT_READ)
        while verdict.fileno() in ready.get_map() or stdout.fileno() in ready.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return said, output, "time"
            for key, _ in ready.select(min(left, TICK) if watched else left):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    ready.unregister(key.fileobj)
                elif key.fd == verdict.fileno():
                    said += piece
                else:
                    output += piece
            if len(output) > output_bytes:
                return said, output, f"more than {output_bytes:,} bytes of output"
            if watched and _overflows(watched, file_bytes):
                return said, output, "too many or too large files"
    return said, output, ""


def _overflows(folder: str, file_bytes: int) -> bool:
    sizes = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(entry.stat(follow_symlinks=False).st_size)
            if len(sizes) > MAX_FILES:
                return True
    return sum(sizes) > file_bytes


def _end(keeper: subprocess.Popen[bytes]) -> None:
    """All three processes are gone when this returns: the keeper ends its children and waits for them, or is ended."""
    keeper.terminate()
    try:
        keeper.wait(END_PATIENCE)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(keeper.pid, signal.SIGKILL)
        keeper.wait()


def _clean(folder: str) -> None:
    """Remove the writable folder. It is flat: the walls let a program make files in it and nothing else."""
    with os.scandir(folder) as entries:
        for entry in entries:
            os.unlink(entry.path)
    os.rmdir(folder)


# Attacks each wall once; what gets through is named in the result.
_ATTACK = """
import os, socket

def attack(secret):
    through = []
    try:
        open(secret + ".new", "w")  # may go to a folder that only looks the same
    except OSError:
        pass
    for name, deed in {
        "environment": lambda: os.environ["PATH"],
        "files": lambda: open(secret).read(),
        "sockets": lambda: socket.socket(),
        "processes": lambda: os.fork() or os._exit(0),
        "signals": lambda: os.kill(os.getppid(), 0),
    }.items():
        try:
            deed()
        except (OSError, KeyError):
            continue
        through.append(name)
    return through
"""


@functools.cache
def _established() -> tuple[str, str]:
    """(the level of this machine or "", why there is none)."""
    if sys.platform != "linux":
        return "", "the sandbox needs Linux"
    reasons = []
    with tempfile.TemporaryDirectory(prefix="picollm-probe-") as folder:
        secret = Path(folder, "secret")
        secret.write_text("secret")
        tests = f"def check(f):\n    through = f({str(secret)!r})\n    assert not through, through\n"
        for level in LEVELS:
            try:
                outcome = run(_ATTACK, tests=tests, entry_point="attack", timeout=PROBE_TIMEOUT, level=level)
            except UserError as error:
                reasons.append(f"{level}: {error.__cause__}")
                continue
            if outcome.passed and os.listdir(folder) == ["secret"]:
                return level, ""
            reasons.append(f"{level}: {outcome.reason or 'a file was written outside'}")
    return "", "; ".join(reasons)
