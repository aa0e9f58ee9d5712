"""A corpus small enough to read, in place of this machine's documentation."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from picollm.tasks import corpus

VERBS = ["Open", "Close", "Join", "Split", "Count", "Sort", "Merge", "Copy", "Move", "Print"]
NOUNS = [
    "window",
    "letter",
    "harbor",
    "river",
    "garden",
    "number",
    "basket",
    "string",
    "folder",
    "ticket",
    "mirror",
    "candle",
    "pillow",
    "button",
    "island",
]


def entry(name: str, module: str, sentence: str, kind: str = "function") -> SimpleNamespace:
    text = f"{sentence}\n\nMore about it."
    return SimpleNamespace(name=name, module=module, kind=kind, signature="()", text=text, first_sentence=sentence)


def fake_entries() -> list[SimpleNamespace]:
    found = []
    for i, verb in enumerate(VERBS):
        for j, noun in enumerate(NOUNS):
            module = f"mod{(i + j) % 6}"
            found.append(
                entry(
                    f"{module}.{verb.lower()}_{noun}",
                    module,
                    f"{verb} the {noun} and return what {i * 31 + j} others would need.",
                )
            )
    found += [
        entry("str.split", "builtins", "Return a list of the substrings in the string.", "method"),
        entry("mod0.twin.twice", "mod0", "Do the same thing as its twin."),
        entry("mod1.again", "mod1", "Do the same thing as its twin."),
        entry("mod1.twice", "mod1", "Do something that nobody else would."),
        entry("posixpath.glue", "posixpath", "Join pieces of a path with slashes."),
        entry("mod0._private", "mod0", "Nobody should ask about this one."),
        entry("mod0.Thing", "mod0", "A class and not a function at all.", "class"),
        entry("mod0.short", "mod0", "Too short."),
    ]
    return found


@pytest.fixture
def small_corpus(monkeypatch):
    module = ModuleType("picollm.data.pydocs")
    module.docstrings = fake_entries
    module.documents = fake_entries  # both have a text
    monkeypatch.setitem(sys.modules, "picollm.data.pydocs", module)
    cached = (corpus.functions, corpus.homes, corpus.vocabulary)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()
