"""The facts that tasks ask about, taken from the documentation on this machine.

    functions()   documented functions with a short first sentence, name and sentence both unique
    vocabulary()  ordinary lower-case words of the text

Both depend on the Python version, so nothing golden may be built on them. The base model has read the same text:
"held out" here means that no *question* about the function or word was trained on.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from picollm.data.pydocs import DocEntry

SHORTEST, LONGEST = 15, 120  # characters of a first sentence worth asking for
FEWEST_WORDS = 3
LEAST_SEEN = 3  # a word must occur this often to be ordinary

_WORD = re.compile(r"(?<![\w.'`-])[a-z]{3,10}(?![\w'`-])(?!\.\w)")
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]*")
_VOWEL = re.compile(r"[aeiouy]")


class Function(msgspec.Struct, frozen=True):
    """name `str.split` or `heapq.heappush`; module `builtins` or `heapq`; short `split`; sentence ends with a stop."""

    name: str
    module: str
    short: str
    sentence: str


@lru_cache(maxsize=1)
def functions() -> tuple[Function, ...]:
    """Sorted by name. Sentences that several functions share are dropped: they do not tell which one is meant."""
    from picollm.data.pydocs import docstrings

    found = [function for entry in docstrings() if (function := _function(entry)) is not None]
    names = Counter(function.name for function in found)
    sentences = Counter(function.sentence.lower() for function in found)
    return tuple(sorted(
        (f for f in found if names[f.name] == 1 and sentences[f.sentence.lower()] == 1), key=lambda f: f.name
    ))


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Words of 3 to 10 letters with a vowel, seen at least three times in prose, sorted."""
    from picollm.data.pydocs import documents

    counts: Counter[str] = Counter()
    for document in documents():
        counts.update(_WORD.findall(document.text))
    return tuple(sorted(word for word, n in counts.items() if n >= LEAST_SEEN and _VOWEL.search(word)))


def _function(entry: DocEntry) -> Function | None:
    """A function worth asking about, or None: private, a class, or without a usable first sentence."""
    short = entry.name.rsplit(".", 1)[-1]
    sentence = " ".join(entry.first_sentence.split())
    if "function" not in entry.kind and "method" not in entry.kind:
        return None
    if short.startswith("_") or "._" in entry.name or not _PLAIN_NAME.fullmatch(entry.name):
        return None
    if not SHORTEST <= len(sentence) <= LONGEST or len(sentence.split()) < FEWEST_WORDS or not sentence[0].isalpha():
        return None
    if not sentence.endswith((".", "!", "?")):
        sentence += "."
    inside = entry.module == "builtins" or entry.name.startswith(entry.module + ".")
    name = entry.name if inside else f"{entry.module}.{entry.name}"
    return Function(name=name.removeprefix("builtins."), module=entry.module, short=short, sentence=sentence)
