"""Token shards of a Hub text: one for every file, made in processes of their own as the files arrive.

    $PICOLLM_HOME/shards/<hash>/        tokens-00000.bin tokens-00000.docs.npy excerpt.txt manifest.json   one file
    $PICOLLM_HOME/shards/<set hash>/    manifest.json: which shards are for training and which for validation
    $PICOLLM_HOME/tokenizers/<key>/     the tokenizer of a text: with it shards are found again without the text

A shard is named by the checksum of its file and by the tokenizer, so it is known before it is made, is made once for
all runs and sweeps, and a killed encoding goes on at the shards it was at. The set is written first and grows.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from picollm.data.documents import TOKENIZER_CHARACTERS, first_characters
from picollm.data.hub import HubFile, Store
from picollm.data.hub_text import HubText, documents
from picollm.data.publish import problem_with, publish, read_manifest, verify
from picollm.data.shards import ShardSet, Tokens, dtype_for, open_manifest, open_tokens, write_part
from picollm.data.workers import Workers
from picollm.run.errors import UserError
from picollm.text.tokenizer import Tokenizer, train_tokenizer

KIND = "hub shards"
FORMAT = 1
EXCERPT_CHARACTERS = 100_000
LOOK_S = 0.2


class HubShards(ShardSet):
    """A `ShardSet` whose training shards come one after the other; a `loader.Growing`."""

    @classmethod
    def open(cls, folder: Path | str) -> HubShards:
        """UserError when the folder is missing, torn or of another format; shards may be missing all the same."""
        return cls(Path(folder), open_manifest(Path(folder), KIND, FORMAT, "tokenizer"))

    @property
    def blocks(self) -> int:
        return len(self.manifest["train"])

    def block_name(self, number: int) -> str:
        return str(self.manifest["train"][number]["file"])

    def block(self, number: int) -> Tokens | None:
        return self._shard(self.manifest["train"][number]["shard"])

    @cached_property
    def train(self) -> Tokens:
        """All training tokens, once all are there. UserError before."""
        found = [self.block(number) for number in range(self.blocks)]
        return _joined([self._whole(tokens, self.block_name(n)) for n, tokens in enumerate(found)])

    @cached_property
    def val(self) -> Tokens:
        return _joined([self._whole(self._shard(part["shard"]), part["file"]) for part in self.manifest["val"]])

    def excerpt(self) -> str:
        """The first characters of the validation text."""
        folder = self.folder.parent / self.manifest["val"][0]["shard"]
        return (folder / "excerpt.txt").read_text(encoding="utf-8")

    def counts(self) -> dict[str, int]:
        """train_tokens, val_tokens, train_documents, … of the shards that are there."""
        found: dict[str, int] = {}
        for part in ("train", "val"):
            here = [self.folder.parent / row["shard"] for row in self.manifest[part]]
            manifests = [read_manifest(folder) for folder in here if problem_with(folder) is None]
            for what in ("tokens", "documents", "bytes"):
                found[f"{part}_{what}"] = sum(manifest[what] for manifest in manifests)
        return found

    def verify(self) -> None:
        """Read every shard and compare checksums; UserError names the file that differs."""
        for part in ("train", "val"):
            for row in self.manifest[part]:
                verify(self.folder.parent / row["shard"])

    def _shard(self, name: str) -> Tokens | None:
        folder = self.folder.parent / name
        return None if problem_with(folder) else open_tokens(folder, read_manifest(folder), "tokens")

    def _whole(self, tokens: Tokens | None, file: str) -> Tokens:
        if tokens is None:
            raise UserError(f"the shard of {file} is missing; run the tokenizer stage again")
        return tokens


def _joined(parts: list[Tokens]) -> Tokens:
    return Tokens(
        [array for part in parts for array in part.arrays], [bound for part in parts for bound in part.bounds]
    )


def shard_of(file: HubFile, column: str, tokenizer_hash: str) -> str:
    """The name of a file's shard."""
    return hashlib.sha256(f"hub shard {FORMAT} {file.sha256} {column} {tokenizer_hash}".encode()).hexdigest()[:32]


def missing(text: HubText, tokenizer_hash: str, home: Path) -> list[HubFile]:
    """The files whose shard is not there, in the order in which they are wanted."""
    return [file for file in text.files if not _made(file, text, tokenizer_hash, home)]


def _made(file: HubFile, text: HubText, tokenizer_hash: str, home: Path) -> bool:
    return problem_with(home / "shards" / shard_of(file, text.column, tokenizer_hash)) is None


def write_shard_set(text: HubText, tok: Tokenizer, home: Path) -> HubShards:
    """Name the shards of `text` under `home`/shards, whether they are there or not."""
    name = hashlib.sha256(f"{KIND} {FORMAT} {text.hash} {tok.hash}".encode()).hexdigest()[:32]
    folder = home / "shards" / name
    manifest: dict[str, Any] = {
        "kind": KIND,
        "format": FORMAT,
        "hash": name,
        "text": text.hash,
        "tokenizer": tok.hash,
        "vocab_size": tok.vocab_size,
        "bos_id": tok.bos_id,
        "dtype": dtype_for(tok).str,
        "provenance": text.manifest["provenance"],
    }
    for part, files in (("train", text.train), ("val", text.val)):
        manifest[part] = [{"file": file.name, "shard": shard_of(file, text.column, tok.hash)} for file in files]
    if problem_with(folder):
        publish(folder, lambda _: manifest)
    return HubShards.open(folder)


def known_tokenizer(text: HubText, vocab_size: int, home: Path) -> Tokenizer | None:
    """The tokenizer that was learnt from this text before, by any run."""
    folder = _tokenizer_folder(text, vocab_size, home)
    return None if problem_with(folder) else Tokenizer.load(folder)


def learn_tokenizer(
    text: HubText, vocab_size: int, home: Path, get: Callable[[HubFile], Path], look: Callable[[int, int], None]
) -> Tokenizer:
    """Learn from the first TOKENIZER_CHARACTERS of the first training file, so that no other need be here; `get` gives
    a file, waiting for it.

    `look` is told (millions of characters read, at most so many) and may raise to leave. Kept under `home`.
    """

    def texts() -> Iterator[str]:
        read = 0
        file = documents(get(text.train[0]), text.column)
        for number, document in enumerate(first_characters(file, TOKENIZER_CHARACTERS)):
            if number % 1000 == 0:
                look(read // 1_000_000, max(1, TOKENIZER_CHARACTERS // 1_000_000))
            yield document
            read += len(document)

    tok = train_tokenizer(texts(), vocab_size)

    def fill(into: Path) -> dict[str, Any]:
        tok.save(into)
        return {"kind": "tokenizer", "hash": tok.hash, "text": text.hash, "provenance": text.manifest["provenance"]}

    publish(_tokenizer_folder(text, vocab_size, home), fill)
    return tok


def _tokenizer_folder(text: HubText, vocab_size: int, home: Path) -> Path:
    key = f"hub tokenizer {FORMAT} {vocab_size} {TOKENIZER_CHARACTERS} {text.column} {text.train[0].sha256}"
    return home / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:32]


def encode_files(
    text: HubText,
    tok: Tokenizer,
    tokenizer_folder: Path,
    home: Path,
    store: Store,
    wait_for: Callable[[HubFile], None],
    look: Callable[[float, int], None],
) -> Iterator[HubFile]:
    """Encode the files of `text` that have no shard yet, in processes, in order as far as they are here.

    Yields each file when its shard is there. `wait_for` is called again and again with the next file while it is not
    here, and `look` with (files done, files); both may raise to leave, and then what is half done is dropped.
    UserError when an encoding fails or is killed.
    """
    todo = missing(text, tok.hash, home)
    done = len(text.files) - len(todo)
    cores = tok.threads
    most = min(cores, max(1, len(todo)))
    workers = Workers(encode_file, most)
    by_name = {file.name: file for file in todo}
    try:
        while todo or workers.busy:
            while todo and workers.free:
                if _made(todo[0], text, tok.hash, home):  # another run made it meanwhile, and may have dropped the file
                    done += 1
                    yield todo.pop(0)
                    continue
                path = store.local(todo[0])
                if path is None:
                    if not workers.busy:
                        wait_for(todo[0])
                    break
                file = todo.pop(0)
                workers.start(file.name, path, file, text.column, tokenizer_folder, home, -(-cores // most))
            for name in workers.finished(LOOK_S):
                done += 1
                yield by_name[str(name)]
            look(done + workers.under_way, len(text.files))
    finally:
        workers.stop()


def encode_file(
    look: Callable[[int, int], None],
    path: Path,
    file: HubFile,
    column: str,
    tokenizer_folder: Path,
    home: Path,
    threads: int,
) -> None:
    """One parquet file into one token shard under `home`/shards; `look` is told (rows read, rows)."""
    tok = Tokenizer.load(tokenizer_folder)
    name = shard_of(file, column, tok.hash)

    def fill(into: Path) -> dict[str, Any]:
        counts = {"documents": 0, "bytes": 0}
        excerpt: list[str] = []

        def texts() -> Iterator[str]:
            room = EXCERPT_CHARACTERS
            for document in documents(path, column, look):
                counts["documents"] += 1
                counts["bytes"] += len(document.encode())
                if room > 0:
                    excerpt.append(document[:room])
                    room -= len(document)
                yield document

        dtype = dtype_for(tok)
        tokens = write_part(into, "tokens", texts(), tok, dtype, sys.maxsize, threads)
        (into / "excerpt.txt").write_text("\n".join(excerpt), encoding="utf-8")
        return {
            "kind": "hub shard",
            "format": FORMAT,
            "hash": name,
            "file": file.name,
            "file_sha256": file.sha256,
            "tokenizer": tok.hash,
            "vocab_size": tok.vocab_size,
            "dtype": dtype.str,
            "tokens": tokens,
            **counts,
        }

    publish(home / "shards" / name, fill)
