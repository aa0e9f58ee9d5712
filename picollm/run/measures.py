"""Plain measures of a generated text, shown under every answer. No torch: the app shows them too.

They describe, they do not grade: a good answer can be short, and a refrain repeats.
"""

from __future__ import annotations

import re

import msgspec

WORD_GRAM = 3
CHAR_GRAM = 4
MOST_CHARS = 20_000  # a longer text is judged by its beginning
LEAST_CHARS = 24  # shorter unbroken text is not judged for repetition


_WORD = re.compile(r"\w+|[^\w\s]")
_END = re.compile(r"[.!?…。！？][\"'`)\]}*_”’]*$")


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """words and characters are counts; repetition is a share, 0 to 1; ended says whether the text ended properly."""

    words: int
    characters: int
    repetition: float
    ended: bool


def measure(text: str, finish_reason: str | None = None) -> Measures:
    """All measures of one text; `finish_reason` as the engine gives it, None when unknown."""
    return Measures(
        words=len(text.split()),
        characters=len(text),
        repetition=repetition(text),
        ended=ended_properly(text, finish_reason),
    )


def repetition(text: str, n: int = WORD_GRAM) -> float:
    """Share of the text's n-grams that occurred before: 1 - distinct / all, 0 for a text without any repeated n-gram.

    Of a very long text, of its first 20,000 characters. The n-grams are of n words and punctuation marks, case ignored.
    A text of too few words for that, such as "hahahahaha…", is judged by its 4-grams of characters once it is 24
    characters long.
    """
    text = text[:MOST_CHARS]
    units: list[str] | str = _WORD.findall(text.lower())
    if len(units) <= n:
        units, n = "".join(text.lower().split()), CHAR_GRAM
        if len(units) < LEAST_CHARS:
            return 0.0
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


def ended_properly(text: str, finish_reason: str | None = None) -> bool:
    """Whether the text is a whole answer.

    With a finish reason: the model said something and ended its turn itself ("stop"), rather than being cut off by
    the token limit ("length") or the reader ("cancel"). Without one: the text ends like a sentence, closing quotes
    and brackets allowed.
    """
    text = text.rstrip()
    if not text:
        return False
    if finish_reason is not None:
        return finish_reason == "stop"
    return _END.search(text) is not None
