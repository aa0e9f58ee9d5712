"""Copying, by the first route that can work here, and a sentence that names it.

Over SSH a clipboard tool would fill the clipboard of the wrong machine, so the terminal is asked (OSC 52). tmux drops
that unless `set-clipboard` is on; then, and where the terminal is known not to understand it, the text goes to a file.
No terminal says whether it took an OSC 52, so what was sent is in the file as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from picollm.run.errors import UserError
from picollm.run.folder import picollm_home

OSC52_LIMIT = 72_000  # bytes of text; terminals cut or drop longer sequences
WAIT_S = 2.0


def file() -> Path:
    return picollm_home() / "copied.txt"


def tool(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> list[str] | None:
    """The command that fills the clipboard of the machine the person sits at; None where there is none."""
    if environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"):
        return None
    if platform == "darwin" and shutil.which("pbcopy"):
        return ["pbcopy"]
    if environ.get("WAYLAND_DISPLAY") and shutil.which("wl-copy"):
        return ["wl-copy"]
    if environ.get("DISPLAY"):
        if shutil.which("xclip"):
            return ["xclip", "-selection", "clipboard"]
        if shutil.which("xsel"):
            return ["xsel", "--clipboard", "--input"]
    return None


def blocked(environ: Mapping[str, str] = os.environ) -> str:
    """Why OSC 52 would not arrive; empty where it should."""
    if environ.get("TMUX"):
        try:
            done = subprocess.run(["tmux", "show-options", "-gv", "set-clipboard"], capture_output=True, text=True,
                                  timeout=WAIT_S, check=True)  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return "tmux does not say whether it passes copies on"
        word = done.stdout.strip()
        return "" if word == "on" else f"tmux drops copies here (set-clipboard is {word}, not on)"
    if environ.get("STY"):
        return "GNU screen drops copies"
    if environ.get("TERM", "") in ("linux", "dumb", "vt100", "vt220"):
        return "this terminal has no clipboard"
    return ""


def copy(text: str, what: str, osc52: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> str:
    """Copy `text`; the sentence to show. Blocks for a moment at most: call it in a thread. Raises `UserError`."""
    command = tool(environ)
    if command is not None:
        try:
            # Output goes nowhere: xclip stays behind as the owner of the clipboard, and would hold a pipe open.
            subprocess.run(command, input=text.encode(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           timeout=WAIT_S, check=True)  # fmt: skip
            return f"{what}: copied to the clipboard ({command[0]})"
        except (OSError, subprocess.SubprocessError):
            command = None
    saved = _save(text)
    why = blocked(environ) or ("too long for the terminal" if len(text.encode()) > OSC52_LIMIT else "")
    if why:
        return f"{what}: saved to {saved}; {why}"
    osc52(text)
    return f"{what}: sent to the terminal's clipboard (OSC 52), and saved to {saved}"


def _save(text: str) -> Path:
    path = file()
    part = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as writer:
            writer.write(text)
        part.replace(path)
    except OSError as error:
        raise UserError(f"copying: {path} cannot be written: {error.strerror}") from None
    return path
