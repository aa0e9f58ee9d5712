from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.run.measures import ended_properly, measure, repetition


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 0, 0),
        ("Hello!", 0, 0),
        ("The sky is blue because air scatters blue light more than red light.", 0, 0),
        ("the cat sat. " * 10, 0.85, 1),
        ("ha" * 40, 0.9, 1),
        ("a fresh start, then the same words again and the same words again", 0.1, 0.4),
    ],
)
def test_repetition(text, low, high):
    assert low <= repetition(text) <= high


@given(st.text())
def test_repetition_is_a_share_and_a_refrain_has_much_of_it(text):
    assert 0 <= repetition(text) <= 1
    if len(text.split()) > 4:
        assert repetition(" ".join([text] * 5)) >= 0.7


@pytest.mark.parametrize(
    ("text", "reason", "ended"),
    [
        ("It is blue.", None, True),
        ('He said "no!"', None, True),
        ("It is (really.)", None, True),
        ("It is", None, False),
        ("", None, False),
        ("  ", "stop", False),
        ("h-a-r-b-o-r", "stop", True),
        ("It is blue.", "length", False),
        ("It is blue.", "cancel", False),
    ],
)
def test_ended_properly(text, reason, ended):
    assert ended_properly(text, reason) is ended


def test_all_measures_at_once():
    found = measure("Air scatters blue light.", "stop")
    assert (found.words, found.characters, found.repetition, found.ended) == (4, 24, 0.0, True)


def test_the_app_can_load_them_without_torch():
    code = "import sys, picollm.run.measures; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
