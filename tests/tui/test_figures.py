"""Numbers as a person reads them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tui.figures import bar, clock, metric, size, sparkline


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_figures_take_any_number(value: float) -> None:
    for words in (clock(value), metric(value), size(value), bar(value, 10), sparkline([value, 1.0], 8)):
        assert isinstance(words, str)
    assert len(bar(value, 10)) == 10
    assert len(metric(value)) <= 10


def test_clock_reads_well() -> None:
    assert [clock(s) for s in (None, 7, 723, 3723, 183_600)] == ["–", "0:07", "12:03", "1:02:03", "2d 03:00"]
