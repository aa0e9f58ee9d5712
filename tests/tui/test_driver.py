"""What is sent draws the same picture with fewer bytes."""

from __future__ import annotations

import pyte
from hypothesis import given, settings
from hypothesis import strategies as st

from tui.driver import Pen

COLOURS = st.one_of(
    st.sampled_from(["31", "97", "39", "44", "103", "49", "38;5;200", "48;5;17"]),
    st.tuples(st.sampled_from(["38", "48"]), *[st.integers(0, 255)] * 3).map(
        lambda found: f"{found[0]};2;{found[1]};{found[2]};{found[3]}"
    ),
)
ATTRIBUTES = st.sampled_from(["1", "3", "4", "7", "9", "22", "23", "24", "27", "29", "0", ""])
PIECES = st.one_of(
    st.lists(st.one_of(COLOURS, ATTRIBUTES), min_size=1, max_size=4).map(lambda codes: f"\x1b[{';'.join(codes)}m"),
    st.just("\x1b[0m"),
    st.text(st.sampled_from("ab █."), max_size=8),
    st.text(st.sampled_from("ab █漢é"), max_size=8),
    st.tuples(st.integers(1, 4), st.integers(1, 12)).map(lambda at: f"\x1b[{at[0]};{at[1]}H"),
    st.sampled_from(["\x1b[K", "\x1b[?25l", "\x1b[?2026h", "\x1b[?2026l", "\r\n", "\x1b[2J", "\x07"]),
)
WRITES = st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=8)
COLUMNS, LINES = 240, 30


def terminal(writes: list[str]) -> pyte.Screen:
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.Stream(screen)
    for write in writes:
        stream.feed(write)
    return screen


def picture(writes: list[str]) -> list[list[object]]:
    screen = terminal(writes)
    return [[screen.buffer[y][x] for x in range(COLUMNS)] for y in range(LINES)]


@settings(max_examples=60, deadline=None)
@given(WRITES)
def test_the_picture_is_the_same(writes: list[str]) -> None:
    pen = Pen()
    pen.width = COLUMNS
    lean = [pen.lean(write) for write in writes]
    assert picture(lean) == picture(["\x1b[0m", *writes])


@given(st.lists(st.text(st.sampled_from("ab █漢."), max_size=12), max_size=6))
def test_sent_again_it_is_nothing(lines: list[str]) -> None:
    pen = Pen()
    pen.width = COLUMNS
    frame = "\x1b[?2026h" + "".join(f"\x1b[{y};1H\x1b[1;31m{line}\x1b[0m" for y, line in enumerate(lines, 1))
    pen.lean(frame + "\x1b[1;1H\x1b[?2026l")
    assert pen.lean(frame + "\x1b[1;1H\x1b[?2026l") == ""


def test_what_changed_is_sent_alone() -> None:
    pen = Pen()
    pen.width = 80
    style = "\x1b[38;2;215;218;224;48;2;21;24;30m"
    pen.lean(f"\x1b[3;1H{style}step 20,018 of 100,000, loss 2.3\x1b[0m")
    assert pen.lean(f"\x1b[3;1H{style}step 20,019 of 100,000, loss 2.4\x1b[0m") == "\x1b[3;11H9\x1b[20C4"
    assert pen.lean("\x1b[3;6H\x1b[38;2;1;2;3;48;2;21;24;30m2\x1b[0m") == "\x1b[3;6H\x1b[38;2;1;2;3m2"
    assert pen.lean(f"\x1b[?2026h\x1b[3;1H{style}step\x1b[1;1H\x1b[0m\x1b[?2026l") == ""
    pen.forget()
    assert pen.lean(f"\x1b[3;1H{style}step") == "\x1b[3;1H\x1b[0;38;2;215;218;224;48;2;21;24;30mstep"


def test_other_sequences_find_the_terminal_as_they_expect_it() -> None:
    pen = Pen()
    assert pen.lean("\x1b[1;1H\x1b[1mx\x1b[0m\x1b[?1049l") == "\x1b[1;1H\x1b[0;1mx\x1b[1;2H\x1b[0m\x1b[?1049l"
    assert pen.lean("\x1b]52;c;AAAA\x07") == "\x1b]52;c;AAAA\x07"


def test_the_cursor_stays_where_the_person_types() -> None:
    pen = Pen()
    pen.width = 80
    pen.lean("\x1b[5;3Hword\x1b[5;7H")
    assert pen.lean("\x1b[1;1Hnew\x1b[5;7H").endswith("\x1b[5;7H")
