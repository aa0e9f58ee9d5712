"""The corpus that needs no network: the documentation inside every Python (the `pydocs` source).

    documents()    pages like those of `help()`: a module with its functions, a class with its methods, and the
                   topics of the language reference, each text once
    docstrings()   the entries that make good questions, for the chat tasks
    provenance()   where it came from, for the manifest

It is about 2.5 MB of English and differs between Python versions, so nothing may rely on its exact content. Reading
takes a second or two and is done once per process.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import msgspec

from picollm.data.documents import PIECE_CHARACTERS, Document, pieces
from picollm.data.pydocs_read import DocEntry, first_sentence, from_c, from_sources, topics
from picollm.run.errors import UserError

__all__ = ["DocEntry", "Document", "docstrings", "documents", "provenance"]

LICENCE = "Python Software Foundation License Version 2 (documentation of CPython, read from this installation)"
MOSTLY_SEEN = 0.7  # a topic with this share of its text in longer topics is an excerpt of them
FEWEST_WORDS = 3  # "BitXor" documents nothing


def documents() -> list[Document]:
    """Every page once, none much longer than a few thousand characters. UserError when this Python carries none."""
    return list(_corpus().documents)


def docstrings() -> list[DocEntry]:
    """Entries with a public name and a clean first sentence of 20 to 160 characters; each text and name once."""
    return [entry for entry in _corpus().entries if entry.first_sentence]


def provenance() -> dict[str, Any]:
    """Python version, licence, counts, files that could not be read, and a checksum of all the text."""
    corpus = _corpus()
    digest = hashlib.sha256()
    for document in corpus.documents:
        digest.update(document.text.encode("utf-8", "replace") + b"\0")
    return {
        "source": "pydocs",
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "licence": LICENCE,
        "docstrings": len(corpus.entries),
        "topics": corpus.topics,
        "unreadable_files": len(corpus.broken),
        "sha256": digest.hexdigest(),
    }


class _Corpus(msgspec.Struct, frozen=True):
    documents: tuple[Document, ...]
    entries: tuple[DocEntry, ...]
    topics: int
    broken: tuple[str, ...]


@lru_cache(maxsize=1)
def _corpus() -> _Corpus:
    from_files, broken = from_sources()
    # the names people use come first, so that of two equal docstrings the public one stays
    entries = tuple(_once(sorted([*from_c(), *from_files], key=lambda entry: _is_private(entry.name))))
    texts = _distinct_topics(topics())
    pages = [*_pages(entries), *(Document(id=f"topic {name}", text=text) for name, text in texts.items())]
    if not pages:
        raise UserError("this Python carries no documentation; set data.source to a file or folder of text")
    return _Corpus(tuple(_short(pages)), entries, len(texts), tuple(broken))


def _once(entries: Iterable[DocEntry]) -> Iterator[DocEntry]:
    """Each name and each text once, with the first sentence filled in where it is fit for a question."""
    texts: set[str] = set()
    names: set[str] = set()
    for entry in entries:
        key = " ".join(entry.text.split())
        if key in texts or entry.name in names or len(key.split()) < FEWEST_WORDS:
            continue
        texts.add(key)
        names.add(entry.name)
        sentence = "" if _is_private(entry.name) else first_sentence(entry.text)
        yield msgspec.structs.replace(entry, first_sentence=sentence)


def _is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


def _pages(entries: Iterable[DocEntry]) -> Iterator[Document]:
    """Entries of one module or one class together, in the order they were found."""
    groups: dict[str, list[DocEntry]] = {}
    for entry in entries:
        rest = entry.name.removeprefix(f"{entry.module}.").split(".")
        in_class = entry.kind == "class" or len(rest) > 1
        prefix = "" if entry.module == "builtins" else f"{entry.module}."
        groups.setdefault(f"{prefix}{rest[0]}" if in_class else entry.module, []).append(entry)
    for name in sorted(groups):
        page = ""
        for entry in groups[name]:
            kind = f"{entry.kind} " if entry.kind in ("module", "class") else ""
            part = f"{kind}{entry.name}{entry.signature}\n\n{entry.text.rstrip()}\n"
            if page and len(page) + len(part) > PIECE_CHARACTERS:
                yield Document(id=name, text=page)
                page = ""
            page += ("\n" if page else "") + part
        yield Document(id=name, text=page)


def _distinct_topics(found: dict[str, str]) -> dict[str, str]:
    """Topics without those that are excerpts of longer ones (the reference's sections overlap)."""
    seen: set[str] = set()
    kept = {}
    for name, text in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        paragraphs = [" ".join(p.split()) for p in text.split("\n\n") if p.strip()]
        known = sum(len(p) for p in paragraphs if p in seen)
        seen.update(paragraphs)
        if text.strip() and known < MOSTLY_SEEN * sum(map(len, paragraphs)):
            kept[name] = text.strip() + "\n"
    return dict(sorted(kept.items()))


def _short(pages: Iterable[Document]) -> Iterator[Document]:
    for page in pages:
        if len(page.text) <= 2 * PIECE_CHARACTERS:
            yield page
            continue
        for number, part in enumerate(pieces(page.text), 1):
            if part.strip():
                yield Document(id=f"{page.id}#{number}", text=part.strip("\n") + "\n")
