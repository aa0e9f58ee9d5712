"""The token view draws whatever a server says of its tokens, and loses none of their text."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from picollm.run.stream import Token
from tui.widgets.token_view import UNLIKELY, page_of, probability, shade, token_blocks

numbers = st.floats(allow_nan=True, allow_infinity=True)
tokens = st.builds(
    Token, st.text(), numbers, st.lists(st.tuples(st.text(), numbers), max_size=5).map(tuple)
)  # fmt: skip


def drawn(blocks: list) -> str:
    console = Console(width=40, color_system=None)
    with console.capture() as got:
        for block in blocks:
            console.print(block)
    return got.get()


@given(st.lists(tokens, max_size=12), st.integers(-3, 20))
def test_any_tokens_at_any_cursor(seen: list[Token], at: int) -> None:
    text = drawn(token_blocks(seen, at, 40, 20))
    assert "\x1b" not in text and "\x07" not in text
    assert ("answer again" in text) == (not seen)


@given(numbers)
def test_a_probability_is_one(value: float) -> None:
    p = probability(value)
    assert 0.0 <= p <= 1.0
    assert bool(shade(p).underline) == (p < UNLIKELY), "unlikely tokens are marked without colour too"


def test_the_number_and_the_alternatives_of_the_token_under_the_cursor() -> None:
    seen = [Token("The", -0.01), Token(" cat", math.log(0.05), ((" dog", math.log(0.6)), (" cat", math.log(0.05))))]
    text = drawn(token_blocks(seen, 1, 40, 20))
    assert "The cat" in text and "token 2 of 2" in text
    assert text.index("60.0 %") < text.rindex("5.0 %"), "the likeliest comes first"
    assert text.count("“ cat”") == 2 and "1 of 2 tokens under 10 %" in " ".join(text.split())


@given(st.lists(st.text(max_size=12), min_size=1, max_size=60), st.integers(1, 30), st.integers(1, 8))
def test_pages_hold_every_token_once_and_the_one_under_the_cursor(words: list[str], width: int, height: int) -> None:
    seen = [Token(word, -1.0) for word in words]
    pages = [page_of(seen, at, width, height) for at in range(len(seen))]
    assert all(first <= at < past for at, (first, past) in enumerate(pages))
    ends = sorted(set(pages))
    assert ends[0][0] == 0 and ends[-1][1] == len(seen)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))


def test_of_a_long_answer_the_page_of_the_cursor_is_drawn() -> None:
    seen = [Token(f"word{number} ", -1.0) for number in range(500)]
    text = drawn(token_blocks(seen, 250, 40, 24))
    assert "word250 " in text and "word10 " not in text and "token 251 of 500" in text and " of 500\n" in text
    assert text.count("\n") < 24
