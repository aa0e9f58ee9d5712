"""The Log tab: which lines match, every log of a run, keys, and other programs."""

from __future__ import annotations

import re
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.run.errors import UserError
from tests.tui.conftest import NARROW, WIDE, shown, until
from tui import bridge, log_sources, matches, outside, search
from tui.log_reader import LogReader, LogWindow
from tui.matches import ERROR, WARN, Matches
from tui.preferences import Preferences
from tui.search import Query, TooSlow
from tui.tail import LogFile, clean
from tui.widgets import tones

TRACEBACK = (
    "starting\nTraceback (most recent call last):\n  File x, line 3\n    raise E\nOSError: full\nstep 1\n"
    "[rank1]: Traceback (most recent call last):\n[rank1]:   File y\n[rank1]: KeyError: 3\nWarning: slow\nstep 2\n"
)


def log(folder: Path, data: bytes) -> LogFile:
    (folder / "log").write_bytes(data)
    file = LogFile(folder / "log")
    while file.grow():
        pass
    return file


def found(file: LogFile, *patterns: matches.Pattern) -> list[int]:
    wanted = Matches(file, list(patterns))
    while wanted.step():
        pass
    return list(wanted.lines)


def nearest(scan: Matches, line: int, direction: int) -> int | None:
    return next((hit for hit in scan.seek(line, direction) if hit is not None), None)


def test_levels_keep_tracebacks_whole(tmp_path: Path) -> None:
    file = log(tmp_path, TRACEBACK.encode())
    assert found(file, ERROR) == [1, 2, 3, 4, 6, 7, 8]
    assert found(file, WARN) == [1, 2, 3, 4, 6, 7, 8, 9]
    assert found(file, ERROR, re.compile("rank")) == [6, 7, 8]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("error: no space left", "error"), ("2025-01-01 x - ERROR - y", "error"), ("E1121 16:29 torch failed", "error"),
        ("RuntimeError: CUDA error", "error"), ("Killed", "error"), ("torch.OutOfMemoryError: CUDA", "error"),
        ("FutureWarning: old", "warn"), ("W1121 16:29 slow", "warn"), ("WARNING root: x", "warn"),
        ("error rate 3 %", ""), ("0 errors so far", ""), ("step 5 loss 2.1", ""), ("no warnings", ""),
    ],
)  # fmt: skip
def test_which_lines_are_of_a_level(tmp_path: Path, line: str, level: str) -> None:
    file = log(tmp_path, line.encode() + b"\n")
    assert found(file, ERROR) == ([0] if level == "error" else [])
    assert found(file, WARN) == ([0] if level else [])


strange = ["error: x", "E1234 y", "\x1b[1mred\x1b[0m", "a\rb", "ab ab", "", "\x1f", "a\tb", "\u202eab"]
lines = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(strange)), max_size=30)


@settings(max_examples=150, deadline=None)
@given(lines, st.sampled_from(["a", "b$", "^$", "[^a]b", "a\\s*b", "x*", "é|\\d", "(", "A"]), st.booleans(),
       st.integers(1, 60), st.integers(-1, 31))  # fmt: skip
def test_matches_are_those_of_each_line_by_itself(
    tmp_path_factory, words: list[str], typed: str, ended: bool, step: int, near: int
) -> None:
    data = "\n".join(word.replace("\n", " ") for word in words).encode(errors="replace") + (b"\n" if ended else b"")
    file = log(tmp_path_factory.mktemp("any"), data)
    pattern = Query(typed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matches, "STEP", step)
        wanted = [number for number in range(file.lines) if pattern.search(file.line(number))]
        assert found(file, pattern) == wanted
        scan = Matches(file, [pattern])
        assert nearest(scan, near, 1) == next((number for number in wanted if number > near), None)
        assert nearest(scan, near, -1) == next((number for number in reversed(wanted) if number < near), None)


@settings(max_examples=60, deadline=None)
@given(lines, st.integers(1, 60))
def test_levels_do_not_depend_on_portions(tmp_path_factory, words: list[str], step: int) -> None:
    data = "\n".join([*words, TRACEBACK, *words]).encode(errors="replace")
    file = log(tmp_path_factory.mktemp("any"), data)
    whole = found(file, WARN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matches, "STEP", step)
        assert found(file, WARN) == whole


def test_matches_follow_a_growing_file_and_a_cut_one(tmp_path: Path) -> None:
    file = log(tmp_path, b"x 1\ny\nx 2")
    scan = Matches(file, [re.compile("x")])
    while scan.step():
        pass
    assert list(scan.lines) == [0, 2]
    with open(file.path, "ab") as more:
        more.write(b" and more\nx 3\n")
    file.grow(), scan.step()
    assert list(scan.lines) == [0, 2, 3]
    file.path.write_bytes(b"x\n")
    file.grow(), scan.step()
    assert list(scan.lines) == [0]


def test_what_is_no_regular_expression_is_plain_text() -> None:
    pattern = Query("foo(")
    assert pattern.search("a FOO( b") and "missing )" in pattern.doubt
    assert Query("Foo").search("foo") is None
    for words in ("(?au)x", "(?V0)(?V1)x"):  # flags that exclude each other
        assert Query(words).search(f"a {words}") and Query(words).doubt


def test_a_progress_bar_of_many_megabytes_shows_its_end(tmp_path: Path) -> None:
    data = b"".join(b"\r%6d of 999999" % number for number in range(50_000)) + b"\nnext\n"
    file = log(tmp_path, data)
    assert file.line(0) == " 49999 of 999999" and file.window(0, 2)[1] == "next"
    assert clean(b"  3%\r 99%\r\n") == " 99%"


def test_every_log_of_a_run(a_run) -> None:
    run = a_run("finished")
    folder = run.stage_dir("pretrain")
    (folder / "attempt-002.console.log").write_text("two\n")
    (folder / "attempt-002.node-1.console.log").write_text("elsewhere\n")
    (folder / "attempt-002.rank-3.json").write_text("{}")
    rank = folder / "attempt-002.ranks" / "none_abc" / "attempt_0" / "1"
    rank.mkdir(parents=True)
    (rank / "stderr.log").write_text("oops\n")
    (run.dir / "conductor" / "console.log").write_text("conducting\n")
    (run.dir / "jobs" / "serve").mkdir(parents=True)
    (run.dir / "jobs" / "serve" / "console.log").write_text("serving\n")
    titles = [source.title for source in log_sources.find(run.dir, "pretrain")]
    assert titles[:7] == [
        "Pretrain, attempt 2", "Pretrain, attempt 2, machine 1", "Pretrain, attempt 2, why rank 3 failed",
        "Pretrain, attempt 2, rank 1 errors", "Pretrain, attempt 1", "Conductor", "Job serve",
    ]  # fmt: skip
    assert "SFT, attempt 1" in titles


def test_programs_are_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAGER", f"'{sys.executable}' -S")
    assert outside.pager(tmp_path / "a b", 7) == [sys.executable, "-S", str(tmp_path / "a b")]
    (tmp_path / "vi").write_text("#!/bin/sh\n")
    (tmp_path / "vi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "vi")
    assert outside.editor(Path("/x"), 7) == ["vi", "+7", "/x"]
    monkeypatch.setenv("EDITOR", "no-such-editor")
    with pytest.raises(UserError, match="not installed"):
        outside.editor(Path("/x"), 7)


def test_a_slow_expression_is_tried_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PATIENCE_S", 0.1)
    slow = Query("(?:a|aa)+$")
    with pytest.raises(TooSlow):
        slow.search("a" * 60 + "!")
    file = log(tmp_path, b"!\n" * 50 + b"\n".join([b"a" * 20 + b"!"] * 5) + b"\n" + b"a" * 70 + b"\n")
    assert found(file, slow) == [55]
    assert found(file, Query(r"[\s\S]*?(?:a|aa)+$")) == [55]


def test_what_is_found_far_to_the_right_counts(tmp_path: Path) -> None:
    far = b"x" * 300_000
    file = log(tmp_path, b"one\n" + far + b" end of it\n\x1b[1mbold\x1b[0m\n" + far + b" end\rend of it\n")
    assert found(file, Query("end of it")) == [1, 3] and nearest(Matches(file, [Query("of it")]), 3, -1) == 1
    shown, whole = file.line(1), file.line(1, 1 << 20)
    assert shown == file.window(0, 2)[1] and shown.endswith("x … and 295,914 bytes more")
    assert whole.endswith("x end of it") and len(whole) == 300_010


async def test_an_expression_without_end_is_given_up_and_holds_nobody(a_run, an_app, monkeypatch) -> None:
    monkeypatch.setattr(search, "PATIENCE_S", 0.1)
    run = a_run("finished")
    run.console_file("sft", 1).write_text(("a" * 90 + "!\n") * 300 + "the last\n")
    app = an_app("finished", tab="log", stage="sft")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "the last" in shown(app))
        await pilot.press("slash", *"(?:a|aa)+$", "enter")
        await until(pilot, lambda: "search given up" in shown(app))
        await pilot.press("n")
        await until(pilot, lambda: "search given up" in shown(app))
        for _ in range(2):
            await pilot.press("ampersand")
            await until(pilot, lambda: "search given up" in shown(app) and "only /" not in shown(app))
        await pilot.press("slash", "ctrl+u", *"the l", "enter")
        await until(pilot, lambda: "match 1 of 1" in shown(app))


async def test_dragging_selects_lines_and_a_match_far_right_is_shown(a_run, an_app, monkeypatch) -> None:
    run = a_run("finished")
    lines = [f"line {number} " + "word " * 60 + f"end{number}" for number in range(100)]
    run.console_file("sft", 1).write_text("\n".join(lines) + "\n")
    app = an_app("finished", tab="log", stage="sft")
    copied: list[str] = []
    monkeypatch.setattr(app, "copy", lambda text, what: copied.append(text))
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "line 99 word" in shown(app))
        bottom = app.query_one("#log-lines").size.height - 1
        await pilot.mouse_down("#log-lines", offset=(5, bottom - 4))
        await pilot.hover("#log-lines", offset=(9, bottom - 2))
        await pilot.mouse_up("#log-lines", offset=(9, bottom - 2))
        await until(pilot, lambda: "3 lines selected, c copies" in shown(app))
        await pilot.press("c")
        await until(pilot, lambda: copied == ["\n".join(lines[95:98]) + "\n"])
        await pilot.click("#log-lines", offset=(5, bottom))
        await pilot.press("slash", *"end42", "enter")
        await until(pilot, lambda: "word end42" in shown(app) and "held at line 43" in shown(app))


async def test_search_filter_and_stay(a_run, an_app) -> None:
    run = a_run("finished")
    text = "\n".join(f"line {number}" + (" error: bad" if number % 100 == 50 else "") for number in range(1000))
    run.console_file("sft", 1).write_text(text + "\n")
    app = an_app("finished", tab="log", stage="sft")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "line 999" in shown(app) and "1,000 lines" in shown(app))
        await pilot.press("slash", *"bad$", "enter")
        await until(pilot, lambda: "match 10 of 10" in shown(app) and "line 950 error" in shown(app))
        await pilot.press("n", "n")
        await until(pilot, lambda: "match 8 of 10" in shown(app))
        await pilot.press("N")
        await until(pilot, lambda: "match 9 of 10" in shown(app) and "held at line 851" in shown(app))
        await pilot.press("slash", "ctrl+u", *r"line 99\d$", "enter")  # there is none above
        await until(pilot, lambda: "match 1 of 10" in shown(app) and "held at line 991" in shown(app))
        await pilot.press("slash", "ctrl+u", *"bad$", "enter")
        await until(pilot, lambda: "match 10 of 10" in shown(app))
        await pilot.press("n")
        await until(pilot, lambda: "match 9 of 10" in shown(app) and "held at line 851" in shown(app))
        await pilot.press("ampersand")
        await until(pilot, lambda: "line 50 error" in shown(app) and "line 849" not in shown(app))
        await pilot.press("ampersand")
        await until(pilot, lambda: "line 849" in shown(app) and "held at line 851" in shown(app))
        await pilot.press("slash", *["backspace"] * 4, "enter", "v", "v")
        await until(pilot, lambda: "errors only  10 lines" in shown(app))


async def test_lines_have_the_colours_of_the_theme(a_run, an_app) -> None:
    a_run("finished").console_file("sft", 1).write_text("step 1\nWarning: slow\nerror: full\n")
    app = an_app("finished", tab="log", stage="sft")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "error: full" in shown(app))
        for theme in ("light", "dark"):
            app.dress(Preferences(theme=theme, toured=True))
            moods = {"step 1": "plain", "Warning: slow": "warn", "error: full": "bad"}
            wanted = {words: tones.tone(mood).color for words, mood in moods.items()}

            def drawn() -> dict[str, object]:
                return {segment.text.strip(): segment.style.color for strip in app.main.panes["log"].lines._shown
                        for segment in strip if segment.text.strip()}  # fmt: skip

            await until(pilot, lambda drawn=drawn, wanted=wanted: drawn() == wanted)


async def test_mark_select_and_copy(a_run, an_app, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run("finished")
    app = an_app("finished", tab="log", stage="sft")
    copied: list[tuple[str, str]] = []
    monkeypatch.setattr(app, "copy", lambda text, what: copied.append((text, what)))
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "sft: line 120" in shown(app))
        await pilot.press("J", "c")
        await until(pilot, lambda: bool(copied))
        assert copied.pop() == ("warning: this is a fixture", "1 line")
        await pilot.press("space", "K", "K", "c")
        await until(pilot, lambda: bool(copied))
        assert copied[0][1] == "3 lines" and copied[0][0].endswith("warning: this is a fixture\n")


async def test_wrapping_shows_the_whole_end(a_run, an_app) -> None:
    run = a_run("finished")
    run.console_file("sft", 1).write_text(
        "".join(f"{number} " + "word " * 60 + f"end{number}\n" for number in range(50))
    )
    app = an_app("finished", tab="log", stage="sft")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "49 word" in shown(app) and "end49" not in shown(app))
        await pilot.press("w")
        await until(pilot, lambda: "end49" in shown(app) and "following" in shown(app))
        await pilot.press("pageup", "pageup")
        await until(pilot, lambda: "end49" not in shown(app) and "held" in shown(app))
        await pilot.press("w", "l")
        await until(pilot, lambda: "word word" in shown(app) and "end" not in shown(app))


async def test_other_logs_by_key_and_the_selected_stages_again(a_run, an_app) -> None:
    run = a_run("finished")
    (run.dir / "conductor" / "console.log").write_text("conducting\n")
    app = an_app("finished", tab="log", stage="sft")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "SFT, attempt 1" in shown(app))
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "Conductor" in shown(app) and "conducting" in shown(app))
        await pilot.press("k")
        await until(pilot, lambda: "Midtrain, attempt 1" in shown(app))


async def test_a_pager_that_cannot_be_had_is_a_sentence(a_run, an_app, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run("finished")
    monkeypatch.setenv("PAGER", "no-such-pager")
    app = an_app("finished", tab="log", stage="sft")
    said: list[str] = []
    monkeypatch.setattr(app, "complain", said.append)
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "warning: this is a fixture" in shown(app))
        await pilot.press("p")
        await until(pilot, lambda: bool(said))
        assert "no-such-pager" in said[0]


def test_a_million_lines_are_searched(tmp_path: Path) -> None:
    file = log(tmp_path, b"some words of a log line\n" * 999_999 + b"error: the last\n")
    begun = time.process_time()
    assert found(file, ERROR) == [999_999] == found(file, re.compile("last"))
    assert nearest(Matches(file, [re.compile("last")]), 1_000_000, -1) == 999_999
    assert time.process_time() - begun < 60


async def test_keys_that_come_before_the_log_does(a_run, an_app, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of logs opens when there is one, and every n goes one match further, however long each takes to find."""
    run = a_run("finished")
    run.console_file("sft", 1).write_text("".join(f"line {number}\n" for number in range(1000)))
    ready, look = threading.Event(), LogReader.look
    monkeypatch.setattr(LogReader, "look", lambda self: ready.wait(60) and look(self))
    app = an_app("finished", tab="log", stage="sft")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "log" in app.main.panes and app.main.view.known)
        await pilot.press("m")
        assert not app._notifications and "Enter opens" not in shown(app)
        ready.set()
        await until(pilot, lambda: "Enter opens" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: "line 999" in shown(app) and "1,000 lines" in shown(app))
        await pilot.press("slash", *r"9\d$", "enter")
        await until(pilot, lambda: "match 100 of 100" in shown(app))
        ready.clear()
        await pilot.press("n", "n", "n", "N", "n")
        ready.set()
        await until(pilot, lambda: "match 97 of 100" in shown(app))


async def test_no_other_log_is_shown_before_it_is_known_which_stage_is_looked_at(a_run, an_app, monkeypatch) -> None:
    a_run("finished")
    ready, look = threading.Event(), bridge.Reader.look
    monkeypatch.setattr(bridge.Reader, "look", lambda self: ready.wait(60) and look(self))
    app = an_app("finished", tab="log", stage="sft")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "log" in app.main.panes and app.main.panes["log"].is_mounted)
        await pilot.pause(0.5)
        assert "this is a fixture" not in shown(app)
        ready.set()
        await until(pilot, lambda: "sft: line 120" in shown(app))


async def test_lines_that_were_asked_for_before_a_jump_come_too_late(a_run, an_app) -> None:
    run = a_run("finished")
    run.console_file("sft", 1).write_text("".join(f"line {number}\n" for number in range(1000)))
    app = an_app("finished", tab="log", stage="sft")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "line 999" in shown(app) and "1,000 lines" in shown(app))
        pane = app.main.panes["log"]
        late = LogWindow(str(run.console_file("sft", 1)), 800, pane.lines.lines, 1000, 1000)
        await pilot.press("slash", *"line 500$", "enter")
        await until(pilot, lambda: "match 1 of 1" in shown(app) and "line 500" in shown(app))
        pane.post_message(late)
        await pilot.pause()
        assert "line 500" in shown(app) and pane.lines.text_of(pane.lines.cursor) == (500, "line 500")
