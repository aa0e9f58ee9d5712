"""Text and token shards on disk, shared between runs and addressed by their content.

    $PICOLLM_HOME/text/<hash>/     train.jsonl val.jsonl manifest.json               written by `write_text`
    $PICOLLM_HOME/shards/<hash>/   train-00000.bin train-00000.docs.npy … val-… manifest.json      by `encode`

A `.bin` is tokens back to back, little-endian uint16 or uint32 (by vocabulary size), each document led by <|bos|>;
its `.docs.npy` is int64 (documents + 1,): where each document begins, and the end. Validation documents are chosen
by their hash (`documents.split`), so the validation shard is the same for the same text, whoever made it and when.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from picollm.data.documents import Document
from picollm.data.publish import problem_with, publish, publish_named, read_manifest, verify
from picollm.data.split import split_into
from picollm.run.errors import UserError
from picollm.text.tokenizer import Tokenizer

TEXT_FORMAT = 1
SHARD_FORMAT = 1
SHARD_TOKENS = 1 << 27  # 256 MB of uint16
RANGE_BYTES = 1 << 27  # a larger text is encoded in several processes, about so much each
LOOK_EVERY = 256  # documents between two signs of life
BATCH_CHARACTERS = 1 << 22  # encoded at a time, by all threads together


class TextSet:
    """Documents on disk, split into training and validation. `hash` names the content; `manifest` has the counts:
    documents, train_documents, val_documents, bytes, train_bytes, val_bytes, files, provenance."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.hash: str = manifest["hash"]

    @classmethod
    def open(cls, folder: Path | str) -> TextSet:
        """UserError when the folder is missing, torn or of another format."""
        return cls(Path(folder), open_manifest(Path(folder), "text", TEXT_FORMAT, "dataset"))

    def documents(self, part: str) -> Iterator[Document]:
        """Documents of "train" or "val", in order, read as a stream."""
        decoder = msgspec.json.Decoder(Document)
        with open(self.folder / f"{part}.jsonl", "rb") as lines:
            for line in lines:
                yield decoder.decode(line)

    def train_texts(self) -> Iterator[str]:
        return (document.text for document in self.documents("train"))

    def val_texts(self) -> Iterator[str]:
        return (document.text for document in self.documents("val"))


def write_text(
    documents: Iterable[Document],
    home: Path,
    provenance: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
    val_share: float = 0.04,
) -> TextSet:
    """Split `documents` and write them under `home`/text as they come; the same documents and share give the same
    folder. Memory does not grow with the text, but for some bytes a document.

    `val_share`: of the documents, between 0 and 0.5. `provenance` is kept in the manifest (licence, version, counts)
    and is no part of the hash; a function is asked at the end. UserError when there is too little text to split, or
    the disk is full.
    """

    def fill(into: Path) -> tuple[str, dict[str, Any]]:
        train, val = split_into(into, (_clean(document) for document in documents), val_share)
        digest = hashlib.sha256(f"text {TEXT_FORMAT}".encode())
        for part in (train, val):
            digest.update(part.digests)
            digest.update(b"|")
        name = digest.hexdigest()[:32]
        return name, {
            "kind": "text",
            "format": TEXT_FORMAT,
            "hash": name,
            "documents": train.documents + val.documents,
            "train_documents": train.documents,
            "val_documents": val.documents,
            "bytes": train.bytes + val.bytes,
            "train_bytes": train.bytes,
            "val_bytes": val.bytes,
            "val_share": val_share,
            "provenance": (provenance() if callable(provenance) else provenance) or {},
        }

    return TextSet.open(publish_named(Path(home) / "text", fill))


class Tokens:
    """The token documents of one split, across its shard files: arrays of tokens with arrays of document bounds.

    `starts` is int64 (documents + 1,), where each document begins in the concatenation of all shards, and the end.
    """

    def __init__(self, arrays: list[np.ndarray], bounds: list[np.ndarray]) -> None:
        self.arrays, self.bounds = arrays, bounds
        self._bases = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int64)
        parts = [bound[:-1] + base for bound, base in zip(bounds, self._bases, strict=False)]
        self.starts: np.ndarray = np.concatenate([*parts, self._bases[-1:]]).astype(np.int64)

    def __len__(self) -> int:
        """Tokens, counting each document's <|bos|>."""
        return int(self._bases[-1])

    @property
    def documents(self) -> int:
        return len(self.starts) - 1

    def take(self, positions: np.ndarray) -> np.ndarray:
        """int64 tokens at `positions` (any shape, 0 … len-1)."""
        if len(self.arrays) == 1:
            return self.arrays[0][positions].astype(np.int64)
        found = np.empty(positions.shape, dtype=np.int64)
        shard = np.searchsorted(self._bases, positions, side="right") - 1
        for index in np.unique(shard):
            here = shard == index
            found[here] = self.arrays[index][positions[here] - self._bases[index]]
        return found


class ShardSet:
    """Encoded text. `manifest`: train_tokens, val_tokens, train_documents, val_documents, train_bytes, val_bytes,
    vocab_size, bos_id, dtype, tokenizer (hash), text (hash), files, provenance."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.hash: str = manifest["hash"]
        self.tokenizer_hash: str = manifest["tokenizer"]
        self.bos_id: int = manifest["bos_id"]

    @classmethod
    def open(cls, folder: Path | str) -> ShardSet:
        """UserError when the folder is missing, torn or of another format. Shards of a Hub text may still grow."""
        if cls is ShardSet and problem_with(Path(folder)) is None:
            from picollm.data.hub_shards import KIND, HubShards

            if read_manifest(Path(folder)).get("kind") == KIND:
                return HubShards.open(folder)
        return cls(Path(folder), open_manifest(Path(folder), "shards", SHARD_FORMAT, "tokenizer"))

    @cached_property
    def train(self) -> Tokens:
        return self._tokens("train")

    @cached_property
    def val(self) -> Tokens:
        return self._tokens("val")

    def verify(self) -> None:
        """Read everything and compare checksums; UserError names the file that differs."""
        verify(self.folder)

    def _tokens(self, part: str) -> Tokens:
        return open_tokens(self.folder, self.manifest, part)


def open_tokens(folder: Path, manifest: dict[str, Any], part: str) -> Tokens:
    """The shard files of one part, memory-mapped. An empty file cannot be mapped and is an empty array."""
    names = sorted(name for name in manifest["files"] if name.startswith(part) and name.endswith(".bin"))
    dtype = np.dtype(manifest["dtype"])
    arrays = [
        np.memmap(folder / name, dtype=dtype, mode="r") if manifest["files"][name]["bytes"] else np.empty(0, dtype)
        for name in names
    ]
    return Tokens(list(arrays), [np.load(folder / f"{name[:-4]}.docs.npy") for name in names])


def encode(
    text: TextSet,
    tok: Tokenizer,
    home: Path,
    *,
    shard_tokens: int = SHARD_TOKENS,
    on_progress: Callable[[int, int], None] = lambda done, documents: None,
) -> ShardSet:
    """Encode `text` with `tok` into shards under `home`/shards; done already, the folder is just opened.

    `on_progress` is called with (documents done, documents) now and then, and may raise to leave nothing behind.
    UserError when `text` does not match its checksums or the disk is too small.
    """
    identity = f"shards {SHARD_FORMAT} {text.hash} {tok.hash} {shard_tokens}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    folder = Path(home) / "shards" / name
    if not problem_with(folder):
        return ShardSet.open(folder)
    verify(text.folder)
    dtype = dtype_for(tok)

    def fill(into: Path) -> dict[str, Any]:
        needed = text.manifest["bytes"] * dtype.itemsize  # at worst one token a byte
        free = shutil.disk_usage(into).free
        if needed > free:
            raise UserError(
                f"{into.parent} has {free:,} bytes free, the shards may need {needed:,}; "
                "free space there, or set PICOLLM_HOME"
            )
        done = 0

        def texts(part: str) -> Iterator[str]:
            nonlocal done
            for document in text.documents(part):
                if done % LOOK_EVERY == 0:
                    on_progress(done, text.manifest["documents"])
                done += 1
                yield document.text

        if text.manifest["bytes"] > RANGE_BYTES and tok.threads > 1:
            from picollm.data.ranges import encode_ranges

            counts = encode_ranges(into, text, tok, shard_tokens, RANGE_BYTES, on_progress)
        else:
            counts = {part: write_part(into, part, texts(part), tok, dtype, shard_tokens) for part in ("train", "val")}
        return {
            "kind": "shards",
            "format": SHARD_FORMAT,
            "hash": name,
            "text": text.hash,
            "tokenizer": tok.hash,
            "vocab_size": tok.vocab_size,
            "bos_id": tok.bos_id,
            "dtype": dtype.str,
            "train_tokens": counts["train"],
            "val_tokens": counts["val"],
            **{key: text.manifest[key] for key in ("train_documents", "val_documents", "train_bytes", "val_bytes")},
            "provenance": text.manifest["provenance"],
        }

    publish(folder, fill)
    return ShardSet.open(folder)


def dtype_for(tok: Tokenizer) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if tok.vocab_size <= 1 << 16 else "<u4")


def write_part(
    folder: Path,
    part: str,
    texts: Iterator[str],
    tok: Tokenizer,
    dtype: np.dtype,
    shard_tokens: int,
    threads: int = 0,
) -> int:
    """Shards of one split, a new one at the first document past `shard_tokens`; returns the tokens written."""
    total = number = 0
    bounds = [0]
    file = open(folder / f"{part}-00000.bin", "wb")  # noqa: SIM115 - rolls over inside the loop
    try:
        for ids in _encoded(texts, tok, threads or tok.threads):
            if bounds[-1] >= shard_tokens:
                file.close()
                np.save(folder / f"{part}-{number:05d}.docs.npy", np.array(bounds, dtype=np.int64))
                total, number, bounds = total + bounds[-1], number + 1, [0]
                file = open(folder / f"{part}-{number:05d}.bin", "wb")  # noqa: SIM115
            file.write(np.array([tok.bos_id], dtype=dtype).tobytes() + ids.astype(dtype).tobytes())
            bounds.append(bounds[-1] + 1 + len(ids))
    finally:
        file.close()
    np.save(folder / f"{part}-{number:05d}.docs.npy", np.array(bounds, dtype=np.int64))
    return total + bounds[-1]


def _encoded(texts: Iterator[str], tok: Tokenizer, threads: int) -> Iterator[np.ndarray]:
    """Ids of each text in order, encoded on several threads, a bounded amount at a time."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for batch in _batches(texts):
            yield from pool.map(tok.encode_array, batch)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _clean(document: Document) -> Document:
    """Lone surrogates, which no UTF-8 file can hold, become question marks."""
    try:
        document.text.encode()
    except UnicodeEncodeError:
        return Document(id=document.id, text=document.text.encode("utf-8", "replace").decode())
    return document


def open_manifest(folder: Path, kind: str, version: int, stage: str) -> dict[str, Any]:
    """The manifest of a folder that `stage` made. UserError when it is missing, torn, or of another kind or format."""
    if not folder.is_dir():
        raise UserError(f"no {kind} in {folder}; run the {stage} stage")
    if problem := problem_with(folder):
        raise UserError(f"{folder} is damaged: {problem}; delete it and run the {stage} stage again")
    manifest = read_manifest(folder)
    if (manifest.get("kind"), manifest.get("format")) != (kind, version):
        raise UserError(f"{folder} does not hold {kind} of format {version}; run the {stage} stage again")
    return manifest
