"""Which rank failed of what: each leaves its word in a file of its own, and one line for the person is made of them.

A rank that fails takes the others with it, and what those say, a lost connection or a collective that nobody answered,
explains nothing: such a word is an echo, and counts only when there is no other.
"""

from __future__ import annotations

import contextlib
import platform
import re
import time
from collections.abc import Iterable

import msgspec

from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run, write_atomic
from picollm.run.structs import complete

WORDS_PATIENCE_S = 5.0
"""So long a word may take to arrive: from a rank that is just failing, or over a shared file system."""
MOST_QUOTED = 160
ECHO = re.compile(
    r"gloo|nccl|c10d|TCPStore|process ?group|connection (reset|refused|closed)|pair closure|broken pipe", re.IGNORECASE
)
SILENCE = re.compile(r"tim(ed|e) ?out", re.IGNORECASE)


@complete
class Word(msgspec.Struct, kw_only=True):
    """Why one rank failed; `code` as in `events.Failed`, `time` in unix seconds on its machine's clock."""

    rank: int
    world: int
    error: str
    code: int = 1
    echo: bool = False
    host: str = msgspec.field(default_factory=platform.node)
    time: float = msgspec.field(default_factory=time.time)


def is_echo(error: BaseException) -> bool:
    """Whether a rank only lost the others: torch's `Dist*Error`, or what gloo and nccl say in plain `RuntimeError`s."""
    return type(error).__name__.startswith("Dist") or (
        isinstance(error, RuntimeError) and bool(ECHO.search(str(error)))
    )


def leave(run: Run, name: str, attempt: int, word: Word) -> None:
    """Leave a rank's word, once: the first one counts. Where the folder cannot be written it stays on stderr alone."""
    file = run.stage_dir(name) / f"attempt-{attempt:03d}.rank-{word.rank}.json"
    with contextlib.suppress(UserError):
        if not file.exists():
            write_atomic(file, msgspec.json.encode(word))


def words(run: Run, name: str, attempt: int) -> list[Word]:
    """What the ranks of an attempt left, by rank."""
    found = []
    for path in run.stage_dir(name).glob(f"attempt-{attempt:03d}.rank-*.json"):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Word))
    return sorted(found, key=lambda word: word.rank)


def gather(run: Run, name: str, attempt: int, world: int) -> list[Word]:
    """The words of an attempt that failed, as soon as one of them explains something, or no more can be expected."""
    end = time.monotonic() + WORDS_PATIENCE_S
    while True:
        found = words(run, name, attempt)
        if any(not word.echo for word in found) or len(found) == world or time.monotonic() >= end:
            return found
        time.sleep(0.1)


def verdict(found: list[Word], hosts: Iterable[str], timeout: float) -> ev.Failed:
    """One `Failed` of all words. `hosts`: the machine of every rank, in order; `timeout`: minutes, `launch.timeout`."""
    hosts = list(hosts)
    causes = sorted((word for word in found if not word.echo), key=lambda word: word.time)
    if causes:
        first = causes[0]
        everywhere = len(causes) > 1 and all(word.error == first.error for word in causes)
        return ev.Failed(error=first.error if everywhere else f"{_who(first)}: {first.error}", code=first.code)
    spoke = {word.rank for word in found}
    silent = [f"rank {rank} on {host}" for rank, host in enumerate(hosts) if rank not in spoke]
    if not found:
        return ev.Failed(error=f"none of the {len(hosts)} ranks left a word")
    first = found[0]
    if any(SILENCE.search(word.error) for word in found):
        text = f"{_who(first)} had no answer from the others for {_minutes(timeout)} (launch.timeout)"
        why = "the link between them is cut, a machine is gone, or a rank hangs"
    else:
        # Quoted, since what a library of collectives says of a wrong setup looks just like a lost connection.
        text = f"{_who(first)} lost its connection to the others ({' '.join(first.error.split())[:MOST_QUOTED]})"
        why = "a machine or the link to it is gone"
    if silent:
        text += f", and {', '.join(silent[:3])}{', …' if len(silent) > 3 else ''} left no word"
    return ev.Failed(error=f"{text}: {why}; resume when it is back")


def _who(word: Word) -> str:
    return f"rank {word.rank} of {word.world} on {word.host}"


def _minutes(minutes: float) -> str:
    return f"{minutes:g} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
