"""The token view draws whatever a server says of its tokens, and loses none of their text."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from picollm.run.stream import Token
from tui.widgets.token_view import UNLIKELY, probability, shade, token_blocks

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
    text = drawn(token_blocks(seen, at))
    assert "\x1b" not in text and "\x07" not in text
    assert ("answer again" in text) == (not seen)


@given(numbers)
def test_a_probability_is_one(value: float) -> None:
    p = probability(value)
    assert 0.0 <= p <= 1.0
    assert bool(shade(p).underline) == (p < UNLIKELY), "unlikely tokens are marked without colour too"


def test_the_number_and_the_alternatives_of_the_token_under_the_cursor() -> None:
    seen = [Token("The", -0.01), Token(" cat", math.log(0.05), ((" dog", math.log(0.6)), (" cat", math.log(0.05))))]
    text = drawn(token_blocks(seen, 1))
    assert "The cat" in text and "token 2 of 2" in text
    assert text.index("60.0 %") < text.rindex("5.0 %"), "the likeliest comes first"
    assert text.count("“ cat”") == 2 and "1 of 2 tokens under 10 %" in " ".join(text.split())
