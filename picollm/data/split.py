"""Documents into two files, training and validation, as they come: one pass, and nothing of the text is held.

The rule is that of `documents.split`: a document's side is drawn from a hash of its text. Only a corpus of few
documents is held, for it may have to be cut; and where the draw leaves validation empty or with more than half of the
text, the files are gone through once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import msgspec

from picollm.data.documents import FEW_DOCUMENTS, Document, draw, split


class Part:
    """One side while it is written. `digests`: the sha256 of every document's text, one after the other; `bytes`: of
    text; `characters` likewise."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.documents = self.bytes = self.characters = 0
        self.digests = bytearray()

    def add(self, document: Document) -> None:
        data = document.text.encode()
        self._file.write(msgspec.json.encode(document) + b"\n")
        self.documents += 1
        self.bytes += len(data)
        self.characters += len(document.text)
        self.digests += hashlib.sha256(data).digest()


def split_into(folder: Path, documents: Iterable[Document], val_share: float) -> tuple[Part, Part]:
    """Write `folder`/train.jsonl and val.jsonl; returns what is in them. UserError when there is too little text."""
    stream = iter(documents)
    head = list(islice(stream, FEW_DOCUMENTS))
    if len(head) < FEW_DOCUMENTS:
        train, val = split(head, val_share)
        return _write(folder, chain(((False, d) for d in train), ((True, d) for d in val)))
    sides = bytearray()
    shortest: tuple[int, float, int] | None = None

    def drawn() -> Iterator[tuple[bool, Document]]:
        nonlocal shortest
        for number, document in enumerate(chain(head, stream)):
            luck = draw(document.text)
            shortest = min(shortest or (len(document.text), luck, number), (len(document.text), luck, number))
            sides.append(luck < val_share)
            yield luck < val_share, document

    found = _write(folder, drawn())
    if shortest is not None and (
        not found[1].documents or 2 * found[1].characters > found[0].characters + found[1].characters
    ):
        return _only(folder, sides, shortest[2])
    return found


def _write(folder: Path, drawn: Iterable[tuple[bool, Document]]) -> tuple[Part, Part]:
    with open(folder / "train.jsonl", "wb") as train, open(folder / "val.jsonl", "wb") as val:
        parts = Part(train), Part(val)
        for for_val, document in drawn:
            parts[for_val].add(document)
        return parts


def _only(folder: Path, sides: bytearray, chosen: int) -> tuple[Part, Part]:
    """The same documents in their order with `chosen` alone for validation."""
    decoder = msgspec.json.Decoder(Document)
    old = [(folder / name).rename(folder / f"{name}.drawn") for name in ("train.jsonl", "val.jsonl")]
    with open(old[0], "rb") as train, open(old[1], "rb") as val:
        lines = (next(val if side else train) for side in sides)
        parts = _write(folder, ((number == chosen, decoder.decode(line)) for number, line in enumerate(lines)))
    for path in old:
        path.unlink()
    return parts
