"""Other programs in our terminal: `$PAGER` and `$EDITOR`, with the app out of the way until they end."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from picollm.run.errors import UserError

if TYPE_CHECKING:
    from textual.app import App

TAKE_A_LINE = ("vi", "vim", "nvim", "view", "nano", "emacs", "micro", "joe", "less", "kak", "ne", "mcedit")
"""Programs that go to a line when `+LINE` stands before the file."""


def pager(file: Path, line: int) -> list[str]:
    """The command that shows `file`, at `line` if it can; `$PAGER`, else less or more. Raises `UserError`."""
    return _command("PAGER", os.environ.get("PAGER", ""), ("less", "more"), file, line)


def editor(file: Path, line: int) -> list[str]:
    """The same with `$VISUAL`, `$EDITOR`, or the first of nano and vi."""
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    return _command("EDITOR", named, ("nano", "vim", "vi"), file, line)


def _command(variable: str, named: str, usual: tuple[str, ...], file: Path, line: int) -> list[str]:
    try:
        words = shlex.split(named)
    except ValueError as error:
        raise UserError(f"${variable} is '{named}': {error}") from None
    words = words or [program for program in usual if shutil.which(program)][:1]
    if not words:
        raise UserError(f"none of {', '.join(usual)} is installed; set ${variable}")
    if shutil.which(words[0]) is None:
        raise UserError(f"${variable} is '{words[0]}', which is not installed")
    at = [f"+{line}"] if Path(words[0]).name in TAKE_A_LINE and line > 0 else []
    return [*words, *at, str(file)]


def run(app: App[None], command: list[str]) -> None:
    """Give the terminal to `command` until it ends. Raises `UserError` where that cannot be done."""
    from textual.app import SuspendNotSupported

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    child: subprocess.Popen[bytes] | None = None

    def asked(number: int, frame: FrameType | None) -> None:
        """Whoever ends the app ends what it lent its terminal to, first. ^C belongs to the other program."""
        handler = before[signal.Signals(number)]
        if number != signal.SIGINT:
            if child is not None:
                child.terminate()
            if callable(handler):
                handler(number, frame)

    try:
        with app.suspend():
            for number in before:  # handlers, unlike ignored signals, are not inherited
                signal.signal(number, asked)
            child = subprocess.Popen(command)
            code = child.wait()
    except SuspendNotSupported:
        raise UserError(f"this terminal cannot be lent to {command[0]}") from None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    app.refresh()
    if code:
        raise UserError(f"{command[0]} ended with exit code {code}")
