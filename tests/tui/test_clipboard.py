"""Copying: which route, and what is said about it."""

from __future__ import annotations

import os
import stat

import pytest

from tui import clipboard


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(clipboard, "WAIT_S", 60.0)
    return tmp_path / "home"


def a_command(folder, name: str, script: str, monkeypatch) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_osc52_is_named_and_the_file_is_there_too(home) -> None:
    sent: list[str] = []
    said = clipboard.copy("words\n", "2 lines", sent.append, {"TERM": "xterm-256color"})
    assert sent == ["words\n"]
    assert said == f"2 lines: sent to the terminal's clipboard (OSC 52), and saved to {home / 'copied.txt'}"
    assert (home / "copied.txt").read_text() == "words\n"
    assert stat.S_IMODE((home / "copied.txt").stat().st_mode) == 0o600


def test_a_tool_is_used_where_the_person_sits(tmp_path, monkeypatch) -> None:
    a_command(tmp_path / "bin", "wl-copy", f"cat > {tmp_path}/taken", monkeypatch)
    sent: list[str] = []
    said = clipboard.copy("words", "1 line", sent.append, {"WAYLAND_DISPLAY": "wayland-0"})
    assert said == "1 line: copied to the clipboard (wl-copy)" and sent == []
    assert (tmp_path / "taken").read_text() == "words"


def test_over_ssh_no_tool_is_asked(tmp_path, monkeypatch) -> None:
    a_command(tmp_path / "bin", "wl-copy", "exit 0", monkeypatch)
    environ = {"WAYLAND_DISPLAY": "wayland-0", "SSH_CONNECTION": "1 2 3 4", "TERM": "xterm"}
    assert "OSC 52" in clipboard.copy("words", "1 line", lambda words: None, environ)


def test_a_tool_that_fails_is_passed_over(tmp_path, monkeypatch) -> None:
    a_command(tmp_path / "bin", "wl-copy", "exit 3", monkeypatch)
    assert "OSC 52" in clipboard.copy("words", "1 line", lambda words: None, {"WAYLAND_DISPLAY": "wayland-0"})


@pytest.mark.parametrize(("option", "sent"), [("external", 0), ("off", 0), ("on", 1)])
def test_in_tmux_its_option_decides(option: str, sent: int, tmp_path, monkeypatch, home) -> None:
    a_command(tmp_path / "bin", "tmux", f"echo {option}", monkeypatch)
    found: list[str] = []
    said = clipboard.copy("words", "1 line", found.append, {"TMUX": "/tmp/tmux-0/default,1,0", "TERM": "screen"})
    assert len(found) == sent
    assert sent or said == (f"1 line: saved to {home / 'copied.txt'}; "
                            f"tmux drops copies here (set-clipboard is {option}, not on)")  # fmt: skip


def test_what_is_too_long_goes_to_the_file(home) -> None:
    sent: list[str] = []
    assert "too long for the terminal" in clipboard.copy("x" * 100_000, "all", sent.append, {"TERM": "xterm"})
    assert sent == [] and len((home / "copied.txt").read_text()) == 100_000
