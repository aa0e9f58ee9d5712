"""The facts that tasks ask about, taken from the documentation on this machine.

    functions()   documented functions with a short first sentence, name and sentence both unique
    homes()       the modules in which a short name occurs
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
LEFT_OUT = frozenset({"tkinter", "distutils", "lib2to3", "test"})  # not on every machine, and few ask about them
PATH_MODULES = frozenset({"posixpath", "ntpath", "genericpath"})

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
    """Sorted by name. Of several functions with the same sentence the most familiar one stays: `str.split`, not
    `bytes.rsplit`; so no sentence can be on both sides of a split.
    """
    by_name: dict[str, Function] = {}
    by_sentence: dict[str, Function] = {}
    for function in sorted(filter(None, map(_function, _entries())), key=_strangeness):
        if function.name not in by_name and function.sentence.lower() not in by_sentence:
            by_name[function.name] = by_sentence[function.sentence.lower()] = function
    return tuple(by_name[name] for name in sorted(by_name))


@lru_cache(maxsize=1)
def homes() -> dict[str, frozenset[str]]:
    """For each short name the modules that have something public of that name, asked about or not."""
    found: dict[str, set[str]] = {}
    for entry in _entries():
        found.setdefault(entry.name.rsplit(".", 1)[-1], set()).add(_public_module(entry.module))
    return {short: frozenset(modules) for short, modules in found.items()}


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Words of 3 to 10 letters with a vowel, seen at least three times in prose, sorted."""
    from picollm.data.pydocs import documents

    counts: Counter[str] = Counter()
    for document in documents():
        counts.update(_WORD.findall(document.text))
    return tuple(sorted(word for word, n in counts.items() if n >= LEAST_SEEN and _VOWEL.search(word)))


def _entries() -> list[DocEntry]:
    from picollm.data.pydocs import docstrings

    return [entry for entry in docstrings() if entry.module.split(".", 1)[0] not in LEFT_OUT]


def _strangeness(function: Function) -> tuple[bool, int, str]:
    return function.module != "builtins", len(function.name), function.name


def _public_module(module: str) -> str:
    """`posixpath` and `genericpath` are known as `os.path`."""
    return "os.path" if module in PATH_MODULES else module


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
    module = _public_module(entry.module)
    inside = entry.name.removeprefix(f"{entry.module}.")
    name = inside if module == "builtins" else f"{module}.{inside}"
    return Function(name=name, module=module, short=short, sentence=sentence)
