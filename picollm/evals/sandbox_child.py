"""Inside the sandbox: one process runs the tests, another the generated code, and only plain values pass between.

    keeper ── builds the walls, forks both, waits
      ├─ judge     runs the tests, which are trusted; `candidate(...)` asks over a pipe; says passed or why not
      └─ solution  runs the generated code; answers with values: numbers, text, lists, ...

The generated code never meets the tests: it sees neither their text nor their namespace nor the pipe of the verdict,
so it cannot patch what they use, end them early, answer with an object that equals everything, or write the verdict.
What it returns is rebuilt from plain text, and an unknown kind of object equals nothing.

The keeper is started by `picollm.evals.sandbox` with the settings and the generated code on its standard input, and
the numbers of two open files as arguments: the tests, which only the judge reads, and the pipe of the verdict.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
import types
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView

from picollm.evals import sandbox_walls as walls

TYPE_CHECKING = False  # the name that type checkers know; `typing` itself costs a tenth of the start
if TYPE_CHECKING:
    from typing import IO, Any, NoReturn

MAX_LINE = 1 << 24  # bytes of one call or answer
MAX_REASON = 300  # characters


def main() -> NoReturn:
    """The keeper. Ends with status 0 once the judge has ended; without the walls the verdict says what is missing."""
    tests, verdict = int(sys.argv[1]), int(sys.argv[2])
    os.environ.clear()
    job = json.load(sys.stdin.buffer)
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        walls.enclose(job["level"], job["folder"], job["file_bytes"], job["max_files"])
        walls.die_with_parent()
        if os.getppid() != job["parent"]:
            os._exit(1)
        asks_from, asks_to = os.pipe()
        answers_from, answers_to = os.pipe()
        # The judge comes first: in a pid namespace it is process 1, and the kernel ends the other with it.
        judge = _fork(lambda: _judge(job, tests, asks_to, answers_from, verdict), asks_from, answers_to)
        solution = _fork(lambda: _answer(job, asks_from, answers_to), asks_to, answers_from, tests, verdict)
    except OSError as error:
        _say(verdict, {"missing": error.strerror or str(error)})
        os._exit(1)

    running = {judge, solution}

    def end(*_: object) -> None:
        for child in running:
            os.kill(child, signal.SIGKILL)

    for handle in (asks_from, asks_to, answers_from, answers_to, tests, verdict):
        os.close(handle)
    signal.signal(signal.SIGTERM, end)
    while running:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        running.discard(ended.si_pid)  # before its number is free for another process
        os.waitpid(ended.si_pid, 0)
        if ended.si_pid == judge:
            end()
    os._exit(0)


def _fork(work: Callable[[], None], *not_its_own: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        walls.die_with_parent()
        for handle in not_its_own:
            os.close(handle)
        work()
    finally:
        os._exit(0)


def _say(handle: int, message: dict[str, Any]) -> None:
    line = json.dumps(message).encode() + b"\n"
    while line:
        line = line[os.write(handle, line) :]


# ------------------------------------------------------------------------------------------------------------- judge


class _NoAnswer(BaseException):
    """The solution ended, or answered what is no answer; no `except Exception` in a test can take it for one."""


def _judge(job: dict[str, Any], tests: int, asks: int, answers: int, verdict: int) -> None:
    with os.fdopen(tests, "rb") as file:
        exam = json.load(file)
    walls.lock(job["memory_bytes"], job["cpu_seconds"], job["file_bytes"])
    replies = os.fdopen(answers, "rb")
    candidate = _Candidate(asks, replies)
    try:
        candidate.receive()  # the solution is loaded
        namespace: dict[str, Any] = {"__name__": "tests"}
        exec(compile(exam["prelude"], "<prelude>", "exec"), namespace)
        namespace[exam["entry_point"]] = candidate
        exec(compile(exam["tests"], "<tests>", "exec"), namespace)
        namespace["check"](candidate)
        outcome = {"passed": not candidate.broken, "reason": candidate.broken}
    except BaseException as error:
        outcome = {"passed": False, "reason": candidate.broken or _reason(error, exam["tests"])}
    _say(verdict, outcome)


class _Candidate:
    """Stands for the function under test in the tests: a call is a line to the solution and a line back."""

    def __init__(self, asks: int, replies: IO[bytes]) -> None:
        self.asks, self.replies = asks, replies
        self.broken = ""  # why there are no more answers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            _say(self.asks, {"args": encode(list(args)), "kwargs": encode(kwargs)})
        except BrokenPipeError:
            self._fail("the program ended before the tests did")
        return self.receive()

    def receive(self) -> Any:
        line = self.replies.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            self._fail("the program gave too long an answer" if line else "the program ended before the tests did")
        try:
            reply = json.loads(line)
            if "error" not in reply:
                return decode(reply["value"])
            name, text = map(str, reply["error"])
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError):
            self._fail("the program gave an answer that cannot be read")
        raise _error(name, text)

    def _fail(self, why: str) -> NoReturn:
        self.broken = why
        raise _NoAnswer(why)


def _error(name: str, text: str) -> Exception:
    """The exception that the solution raised, as the built-in one of that name, else as a RuntimeError."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # some want more than a text
            return RuntimeError(f"{name}: {text}")
    return RuntimeError(f"{name}: {text}")


def _reason(error: BaseException, tests: str) -> str:
    """What went wrong, with the line of the tests where it did."""
    line, step = "", error.__traceback__
    while step:
        if step.tb_frame.f_code.co_filename == "<tests>":
            line = tests.splitlines()[step.tb_lineno - 1].strip()
        step = step.tb_next
    return ": ".join(filter(None, [type(error).__name__, str(error), line]))[:MAX_REASON]


# ---------------------------------------------------------------------------------------------------------- solution


def _answer(job: dict[str, Any], asks: int, answers: int) -> None:
    calls = os.fdopen(asks, "rb")
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    walls.lock(job["memory_bytes"], job["cpu_seconds"], job["file_bytes"])
    function = None

    def load() -> None:
        nonlocal function
        exec(compile(job["program"], "<program>", "exec"), module.__dict__)
        function = getattr(module, job["entry_point"])

    _say(answers, _tried(load))
    for call in calls if callable(function) else ():
        asked = json.loads(call)
        args, kwargs = decode(asked["args"]), decode(asked["kwargs"])
        _say(answers, _tried(lambda args=args, kwargs=kwargs: function(*args, **kwargs)))  # type: ignore[misc]


def _tried(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": encode(work())}
    except BaseException as error:  # SystemExit is an answer like any other, and never the right one
        return {"error": [type(error).__name__, str(error)[:MAX_REASON]]}


# ------------------------------------------------------------------------------------------------------------ values


def encode(value: Any) -> Any:
    """A value as JSON that keeps Python's types: text, None and truth as they are, the rest as [kind, content].

    Subclasses become the built-in type they equal; iterators become the items they give. What is none of these is
    ["object", name of its type]. Infinite, deep or huge values end in the limits on memory and on a line.
    """
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return ["int", hex(int.__index__(value))]
        case float():
            return ["float", float.hex(value)]
        case complex():
            return ["complex", [float.hex(value.real), float.hex(value.imag)]]
        case bytes() | bytearray():
            return ["bytes" if isinstance(value, bytes) else "bytearray", bytes(value).hex()]
        case dict():
            return ["dict", [[encode(key), encode(value[key])] for key in value]]
        case range():
            return ["range", [encode(number) for number in (value.start, value.stop, value.step)]]
        case list() | tuple() | set() | frozenset():
            kinds = (list, tuple, set, frozenset)
            name = next(kind.__name__ for kind in kinds if isinstance(value, kind))
            return [name, [encode(item) for item in value]]
    if isinstance(value, (Iterator, KeysView, ValuesView, ItemsView)):
        return ["iterator", [*map(encode, value)]]
    return ["object", type(value).__name__]


class Unknown:
    """An object that could not be passed on; it equals nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.name}>"


_BUILD: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda numbers: range(*map(decode, numbers)),
    "dict": lambda items: {decode(key): decode(item) for key, item in items},
    "list": lambda items: list(map(decode, items)),
    "tuple": lambda items: tuple(map(decode, items)),
    "set": lambda items: set(map(decode, items)),
    "frozenset": lambda items: frozenset(map(decode, items)),
    "iterator": lambda items: iter(list(map(decode, items))),
    "object": lambda name: Unknown(str(name)),
}


def decode(coded: Any) -> Any:
    """The value that `encode` was given. ValueError, TypeError or LookupError for anything `encode` does not write."""
    if coded is None or isinstance(coded, (bool, str)):
        return coded
    if not isinstance(coded, list):
        raise ValueError("no coded value")
    kind, content = coded
    return _BUILD[kind](content)
