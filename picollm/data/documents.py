"""A document, how a long one is cut, and which ones are set aside for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import msgspec

from picollm.run.errors import UserError

FEW_DOCUMENTS = 50  # below this, long documents are cut so that there is something to set aside
PIECE_CHARACTERS = 4000
MOST_PIECES = 16  # what a very small text is cut into
TOKENIZER_CHARACTERS = 200_000_000  # read to learn the merges: memory grows with the distinct words in them


class Document(msgspec.Struct, frozen=True):
    """`id`: where it came from, for people ("notes/a.md", "rows.jsonl:7"); `text`: its content."""

    id: str
    text: str


def pieces(text: str, limit: int = PIECE_CHARACTERS) -> list[str]:
    """`text` cut into pieces of at most `limit` characters; joined they are the text again.

    Cuts fall at the last blank line in the second half of a piece, else at a line's end, a sentence's, a word's.
    """
    found = []
    start = 0
    while len(text) - start > limit:
        earliest, latest = start + (limit + 1) // 2, start + limit
        for mark in ("\n\n", "\n", ". ", " "):
            at = text.rfind(mark, earliest - len(mark), latest)
            if at >= 0 and at + len(mark) > start:
                cut = at + len(mark)
                break
        else:
            cut = latest
        found.append(text[start:cut])
        start = cut
    if start < len(text):
        found.append(text[start:])
    return found


def first_characters(texts: Iterable[str], most: int) -> Iterator[str]:
    """`texts` as far as `most` characters go; the last one is cut."""
    for text in texts:
        yield text[:most]
        most -= len(text)
        if most <= 0:
            return


def split(documents: Iterable[Document], val_share: float) -> tuple[list[Document], list[Document]]:
    """(train, val): a document is for validation when the hash of its text falls into the first `val_share`.

    So the choice is the same on every machine and for every order, and a document keeps its side when others are
    added. A corpus of few documents is cut into pieces first. Both sides get at least one document: where the draw
    leaves validation without any, or with more than half of the text, it is the shortest document.

    Raises UserError when there is too little text for both.
    """
    whole = list(documents)
    if len(whole) < FEW_DOCUMENTS:
        whole = _cut(whole)
    if len(whole) < 2:
        raise UserError("too little text to train on and to validate with; give at least a few paragraphs")
    chosen = {i for i, document in enumerate(whole) if draw(document.text) < val_share}
    in_val = sum(len(whole[i].text) for i in chosen)
    if not chosen or 2 * in_val > sum(len(document.text) for document in whole):
        chosen = {min(range(len(whole)), key=lambda i: (len(whole[i].text), draw(whole[i].text)))}
    train = [document for i, document in enumerate(whole) if i not in chosen]
    val = [document for i, document in enumerate(whole) if i in chosen]
    return train, val


def _cut(documents: list[Document]) -> list[Document]:
    size = sum(len(document.text) for document in documents)
    limit = min(PIECE_CHARACTERS, max(200, size // MOST_PIECES))
    if len(documents) == 1 and size <= limit:
        documents = [Document(id=documents[0].id, text=documents[0].text.strip())]
        limit = max(1, len(documents[0].text) * 3 // 4)
    found = []
    for document in documents:
        parts = [part for part in pieces(document.text, limit) if part.strip()]
        ids = [document.id] if len(parts) == 1 else [f"{document.id}#{n}" for n in range(1, len(parts) + 1)]
        found += [Document(id=name, text=part) for name, part in zip(ids, parts, strict=True)]
    return found


def draw(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
