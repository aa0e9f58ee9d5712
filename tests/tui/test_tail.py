"""Console logs of any size and content."""

from __future__ import annotations

import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tui.tail import LogFile, clean


def _all(file: LogFile) -> LogFile:
    while file.grow():
        pass
    return file


def test_lines_and_an_unfinished_last_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthr")
    file = _all(LogFile(path))
    assert file.lines == 3 and file.window(0, 9) == ["one", "two", "thr"]
    with open(path, "ab") as more:
        more.write(b"ee\nfour\n")
    _all(file)
    assert file.window(1, 9) == ["two", "three", "four"]


def test_a_file_that_shrinks_or_vanishes_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\n" * 50)
    file = _all(LogFile(path))
    path.write_bytes(b"b\n")
    _all(file)
    assert file.window(0, 9) == ["b"]
    path.unlink()
    _all(file)
    assert file.lines == 0 and file.window(0, 5) == []


def test_clean_drops_escapes_and_keeps_a_progress_bars_last_state() -> None:
    assert clean(b"\x1b[31mred\x1b[0m\tx\x07") == "red x"
    assert clean(b" 10%\r 50%\r100% done\n") == "100% done"
    assert clean(b"\xff\xfe bytes") == "�� bytes"


def test_a_million_lines_open_fast(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"some words of a log line\n" * 1_000_000)
    begun = time.process_time()
    file = _all(LogFile(path))
    assert file.lines == 1_000_000 and file.window(999_990, 40)[-1] == "some words of a log line"
    assert time.process_time() - begun < 20


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 50), st.integers(0, 50))
def test_any_bytes_any_window(tmp_path_factory, data: bytes, first: int, count: int) -> None:
    path = tmp_path_factory.mktemp("any") / "log"
    path.write_bytes(data)
    file = _all(LogFile(path))
    wanted = data.split(b"\n")
    wanted = wanted[:-1] if wanted[-1] == b"" else wanted
    assert file.window(first, count) == [clean(line) for line in wanted[first : first + count]]
    assert all("\x1b" not in line and "\n" not in line for line in file.window(0, 10_000))
