"""The report read back: what the writer wrote comes out again, whatever the texts in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.run import report_blocks as written
from tui import report_text as read

lines = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Zs"]) | st.just(" ")).map(
    lambda text: " ".join(text.split())
)
some = lines.filter(bool)
tables = st.integers(1, 4).flatmap(
    lambda n: st.builds(
        lambda head, rows: written.Table(head, rows),
        st.lists(some, min_size=n, max_size=n),
        st.lists(st.lists(lines, min_size=n, max_size=n), max_size=4),
    )
)


@given(st.lists(st.builds(written.Heading, some, st.integers(1, 3)) | st.builds(written.Text, some) | tables
                | st.builds(written.Said, some, some), max_size=6))  # fmt: skip
def test_what_was_written_is_read_again(blocks: list[written.Block]) -> None:
    found = read.parse(written.markdown(blocks))
    expected: list[read.Block] = []
    for block in blocks:
        match block:
            case written.Heading():
                expected.append(read.Heading(block.text, block.level))
            case written.Text():
                expected.append(read.Words(((block.text, False),)))
            case written.Table():
                expected.append(read.Table(tuple(block.head), tuple(tuple(row) for row in block.rows)))
            case written.Said():
                expected += [read.Words(((block.who, True),)), read.Quote(block.text)]
    assert found == expected


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    for section in read.sections(text):
        assert section.title is not None
        for block in section.blocks:
            if isinstance(block, read.Table):
                assert all(len(row) == len(block.head) for row in block.rows)
                for column in range(len(block.head)):
                    assert sorted(block.by(column, True).rows) == sorted(block.rows)


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1,000", 1000.0), ("20.0 % (14–28, n=120)", 20.0), ("3 min 33 s", 213.0), ("1 h 2 min", 3720.0), ("96 s", 96.0),
     ("1.5 GiB", 1.5 * 2**30), ("2.0M", 2e6), ("–", None), ("none", None), ("-1.5", -1.5), ("$4.20", 4.2),
     ("38 ms", 0.038), ("5 stages", 5.0)],
)  # fmt: skip
def test_numbers_in_cells(cell: str, value: float | None) -> None:
    assert read.number(cell) == (pytest.approx(value) if value is not None else None)


def test_tables_sort_by_size_not_by_letter() -> None:
    table = read.Table(("task", "right"), (("a", "9 %"), ("b", "–"), ("c", "12 %"), ("d", "none")))
    assert [row[0] for row in table.by(1, down=False).rows] == ["a", "c", "d", "b"]
    assert [row[0] for row in table.by(1, down=True).rows] == ["c", "a", "d", "b"]
    assert table.numeric(1) and not table.numeric(0)


def test_what_stands_before_the_first_heading_is_shown_with_it() -> None:
    first, second = read.sections("# r\n\nMade in 3 min.\n\n## A\n\nwords\n\n## B\n")
    assert (first.title, len(first.blocks), second.title, second.blocks) == ("A", 3, "B", [])
    assert [section.title for section in read.sections("only words\n")] == ["Overview"] and read.sections("") == []
