from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.tasks.scoring import last_number, marked_number, normalise, overlap_f1, says_the_same


def test_normalising_drops_case_punctuation_and_extra_blanks():
    assert normalise("Return  the Item, `x`.") == "return the item x"


def test_overlap_counts_words_with_multiplicity():
    assert overlap_f1("a b", "a b") == 1.0
    assert overlap_f1("a a a", "a") == pytest.approx(0.5)
    assert overlap_f1("a b c d", "a b") == pytest.approx(2 / 3)
    assert overlap_f1("x", "a") == 0.0


@given(st.text(), st.text())
def test_overlap_is_a_symmetric_share(one, two):
    assert 0 <= overlap_f1(one, two) <= 1
    assert overlap_f1(one, two) == overlap_f1(two, one)


def test_half_an_overlap_is_enough():
    assert says_the_same("return a list", "Return a list of the words.")
    assert not says_the_same("return one", "Return a list of the words.")
    assert not says_the_same("", "Return a list.")


@pytest.mark.parametrize(
    ("text", "last", "marked"),
    [
        ("#### 19", "19", "19"),
        ("12+7 is 19", "19", None),
        ("#### 1,900 coins", "1900", "1900"),
        ("#### -4", "-4", "-4"),
        ("#### 3\n#### 4", "4", "4"),
        ("#### $1,200", "1200", "1200"),
        ("#### 12.", "12", "12"),
        ("nothing", None, None),
        ("####", None, None),
    ],
)
def test_numbers(text, last, marked):
    assert last_number(text) == last
    assert marked_number(text) == marked


def test_a_fraction_after_the_mark_counts():
    assert marked_number("#### 5.0") == "5" and marked_number("#### 5.50") == "5.5" and marked_number("#### 50") == "50"
