"""The person's own text: a file or a folder of .txt .md .jsonl .parquet, made into documents.

    .txt .md     one document each, UTF-8 (a byte-order mark is honoured); a very large file becomes several
    .jsonl       one document a line: column `text` or `content`, or `messages` (role, content)
    .parquet     one document a row, the same columns

What is wrong with the text, and what cannot be read, is counted and named; only when nothing is left is it an error.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from picollm.data.documents import Document, pieces
from picollm.run.errors import UserError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
LOOK_EVERY = 1000  # documents between two signs of life
LARGE_FILE = 1 << 24  # bytes of one text that are held at once; a larger file becomes several documents
MOST_NAMED = 20  # problems listed one by one; the counts hold all of them


class Counts(msgspec.Struct):
    """What was found. `problems`: one line each for the person, at most MOST_NAMED and a last one saying how many more.

    files: read. ignored: with another suffix, or no file (a link to nothing or to a folder, a pipe, a socket).
    unreadable: files and folders. documents, bytes: kept. empty, duplicates: left out. encoding_errors:
    documents with bytes that are not UTF-8 (kept, U+FFFD in their place). bad_lines: not JSON, torn, or without a text.
    """

    files: int = 0
    ignored: int = 0
    unreadable: int = 0
    documents: int = 0
    bytes: int = 0
    empty: int = 0
    duplicates: int = 0
    encoding_errors: int = 0
    bad_lines: int = 0
    problems: list[str] = msgspec.field(default_factory=list)
    unnamed: int = 0

    def name(self, problem: str) -> None:
        if len(self.problems) < MOST_NAMED:
            self.problems.append(problem)
            return
        self.unnamed += 1
        self.problems[MOST_NAMED:] = [f"and {self.unnamed} more problems of this kind"]

    def as_dict(self) -> dict[str, int]:
        """The counts alone, for a manifest."""
        names = ("files", "ignored", "unreadable", "documents", "bytes", "empty", "duplicates", "encoding_errors")
        return {name: getattr(self, name) for name in (*names, "bad_lines")}


class Unreadable(Exception):
    """A file of a known suffix that is not what its name says; the text goes into the counts' problems."""


def read_source(
    path: Path | str, counts: Counts, on_progress: Callable[[int, int], None] = lambda done, files: None
) -> Iterator[Document]:
    """Documents of the file or folder `path`, in order of file name, as they are read; `counts` is filled on the way.

    Folders are read through and through, hidden files and folders left out. Of what was read, only a 64-bit hash a
    document is kept, to know a duplicate. `on_progress` is called with (files done, files) before each file and every
    `LOOK_EVERY` documents, and may raise to leave. Raises UserError at once when `path` is missing, and at the end when
    there was nothing.
    """
    root = Path(path).expanduser()
    found = list(files(root, counts))

    def stream() -> Iterator[Document]:
        seen: set[int] = set()
        for number, file in enumerate(found):
            name = _name(file, root)
            on_progress(number, len(found))
            try:
                for read, document in enumerate(_read(file, name, counts), 1):
                    if read % LOOK_EVERY == 0:
                        on_progress(number, len(found))
                    if _counted(document, counts, seen):
                        yield document
            except (OSError, Unreadable) as error:
                counts.unreadable += 1
                counts.name(f"{name}: cannot be read ({_reason(error)}); left out")
            else:
                counts.files += 1
        if not counts.documents:
            first = f" ({counts.problems[0]})" if counts.problems else ""
            raise UserError(
                f"no text in {root}: {counts.files} files read, {counts.empty} empty documents, {counts.bad_lines} bad "
                f"lines{first}; give a file or folder of {' '.join(SUFFIXES)}"
            )

    return stream()


def _counted(document: Document, counts: Counts, seen: set[int]) -> bool:
    """Whether the document is kept: not empty, and not met before (by 64 bits of a hash of its text)."""
    text = document.text.strip()
    if not text:
        counts.empty += 1
        return False
    digest = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    if digest in seen:
        counts.duplicates += 1
        return False
    seen.add(digest)
    counts.documents += 1
    counts.bytes += len(document.text.encode("utf-8", "surrogatepass"))
    return True


def files(root: Path, counts: Counts) -> Iterator[Path]:
    """The files under `root` that `read_source` reads, in its order; all others are counted.

    Only plain files: reading a pipe would wait for ever, and a link to a folder may lead back up. Raises UserError when
    `root` is missing or a file of another kind.
    """
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise UserError(f"{root} is not one of {' '.join(SUFFIXES)}; convert it or choose another file")
        yield root
        return
    if not root.is_dir():
        found = "is neither a file nor a folder" if os.path.lexists(root) else "does not exist"
        raise UserError(f"{root} {found}; set data.source to a file or folder of {' '.join(SUFFIXES)}")

    def unreadable(error: OSError) -> None:
        counts.unreadable += 1
        counts.name(f"{_name(Path(error.filename), root)}: cannot be read ({_reason(error)}); left out")

    for folder, children, names in os.walk(root, onerror=unreadable):
        children[:] = sorted(child for child in children if not child.startswith("."))
        for child in children:
            if os.path.islink(os.path.join(folder, child)):
                counts.ignored += 1
                counts.name(f"{_name(Path(folder, child), root)}: a link to a folder, which is not followed")
        for name in sorted(name for name in names if not name.startswith(".")):
            file = Path(folder, name)
            if file.suffix.lower() not in SUFFIXES:
                counts.ignored += 1
            elif not os.path.isfile(file):
                counts.ignored += 1
                what = "a link to nothing" if file.is_symlink() else "not a plain file"
                counts.name(f"{_name(file, root)}: {what}; left out")
            else:
                yield file


def _name(file: Path, root: Path) -> str:
    """As documents and problems are called; bytes of a file name that are not UTF-8 become U+FFFD."""
    name = file.name if file == root else file.relative_to(root).as_posix()
    return os.fsencode(name).decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _read(file: Path, name: str, counts: Counts) -> Iterator[Document]:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(file, name, counts)
    elif suffix == ".jsonl":
        yield from _jsonl(file, name, counts)
    elif file.stat().st_size > LARGE_FILE:
        yield from _blocks(file, name, counts)
    else:
        yield Document(id=name, text=_decoded(file.read_bytes(), name, counts))


def _blocks(file: Path, name: str, counts: Counts) -> Iterator[Document]:
    """A file too large to be held, in documents of at most LARGE_FILE / 4 characters, cut where `pieces` cuts."""
    limit, number, text = LARGE_FILE // 4, 0, ""
    with open(file, "rb") as source:
        encoding = _encoding(source.read(4))
        source.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        data = b"-"
        while data:
            data = source.read(limit)
            before = decoder.getstate()
            try:
                text += decoder.decode(data, final=not data)
            except UnicodeDecodeError:
                counts.encoding_errors += 1
                expected = encoding.removesuffix("-sig").upper()
                counts.name(f"{name}: not all of it is {expected}; save the file as UTF-8")
                decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
                decoder.setstate(before)
                text += decoder.decode(data, final=not data)
            *whole, text = pieces(text.replace("\r\n", "\n"), limit) or [""]
            for piece in whole:
                number += 1
                yield Document(id=f"{name}#{number}", text=piece)
        yield Document(id=f"{name}#{number + 1}", text=text)


def _encoding(head: bytes) -> str:
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _decoded(data: bytes, where: str, counts: Counts) -> str:
    encoding = _encoding(data[:4])
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        counts.encoding_errors += 1
        expected = encoding.removesuffix("-sig").upper()
        counts.name(f"{where}: byte {error.start} is not {expected}; save the file as UTF-8")
        text = data.decode(encoding, errors="replace")
    return text.replace("\r\n", "\n")


def _jsonl(file: Path, name: str, counts: Counts) -> Iterator[Document]:
    decoder = msgspec.json.Decoder()
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{name}:{number}"
            try:
                row = decoder.decode(_decoded(line, where, counts))
            except (msgspec.DecodeError, RecursionError) as error:
                counts.bad_lines += 1
                torn = "cut off" if not line.endswith(b"\n") else "not JSON"
                counts.name(f"{where}: {torn} ({error}); left out")
                continue
            yield from _row(row, where, counts)


def _parquet(file: Path, name: str, counts: Counts) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            columns = [column for column in ("text", "content", "messages") if column in table.schema_arrow.names]
            if not columns:
                found = ", ".join(table.schema_arrow.names)
                raise Unreadable(f"no column text, content or messages, found: {found}; rename one")
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns[:1]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield from _row({columns[0]: value}, f"{name}:{number}", counts)
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:120]
        raise Unreadable(f"{reason}; it is not a whole parquet file, fetch it again") from None


def _row(row: Any, where: str, counts: Counts) -> Iterator[Document]:
    text = _text_of(row)
    if text is None:
        counts.bad_lines += 1
        counts.name(f"{where}: no text, content or messages; left out")
    else:
        yield Document(id=where, text=text)


def _text_of(row: Any) -> str | None:
    if not isinstance(row, dict):
        return None
    for column in ("text", "content"):
        if isinstance(row.get(column), str):
            return row[column]
    messages = row.get("messages")
    if not isinstance(messages, list):
        return None
    turns = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return None
        turns.append(f"{str(message.get('role', '')).capitalize()}: {message['content']}")
    return "\n\n".join(turns)
