"""A large text of one's own into token shards, in several processes: each takes whole lines of the text's files.

Within one process threads encode beside each other, since tiktoken lets go of Python's lock; about a third of the work
(reading JSON, copying ids) does not, so from three cores on processes pay, where there is enough to share out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from picollm.data.documents import Document
from picollm.data.shards import TextSet, dtype_for, write_part
from picollm.data.workers import Workers
from picollm.text.tokenizer import Tokenizer

LOOK_S = 0.2


def encode_ranges(
    into: Path,
    text: TextSet,
    tok: Tokenizer,
    shard_tokens: int,
    range_bytes: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, int]:
    """Shard files of both parts of `text` into `into`, about `range_bytes` of text each; returns tokens by part.

    Documents keep their order over the files, which are read in the order of their names. `on_progress` is told
    (documents done, documents), near enough, and may raise to leave.
    """
    jobs = [
        (f"{part}-{number:05d}", text.folder / f"{part}.jsonl", start, end)
        for part in ("train", "val")
        for number, (start, end) in enumerate(line_ranges(text.folder / f"{part}.jsonl", range_bytes))
    ]
    most = min(tok.threads, len(jobs))
    everything, documents = len(jobs), text.manifest["documents"]
    tokenizer = into / "tokenizer"
    tok.save(tokenizer)
    workers = Workers(encode_range, most)
    done = 0
    try:
        while jobs or workers.busy:
            while jobs and workers.free:
                prefix, file, start, end = jobs.pop(0)
                workers.start(prefix, file, start, end, tokenizer, into, prefix, shard_tokens, -(-tok.threads // most))
            done += len(workers.finished(LOOK_S))
            on_progress(int(documents * (done + workers.under_way) / everything), documents)
    finally:
        workers.stop()
        shutil.rmtree(tokenizer)
    return {part: sum(int(np.load(path)[-1]) for path in into.glob(f"{part}-*.docs.npy")) for part in ("train", "val")}


def encode_range(
    look: Callable[[int, int], None],
    file: Path,
    start: int,
    end: int,
    tokenizer_folder: Path,
    into: Path,
    prefix: str,
    shard_tokens: int,
    threads: int,
) -> None:
    """The lines of `file` from byte `start` to `end` into shard files `prefix`-…; `look` is told (bytes, bytes)."""
    tok = Tokenizer.load(tokenizer_folder)
    decoder = msgspec.json.Decoder(Document)

    def texts() -> Iterator[str]:
        at = start
        with open(file, "rb") as lines:
            lines.seek(start)
            while at < end:
                line = lines.readline()
                at += len(line)
                look(at - start, end - start)
                yield decoder.decode(line).text

    write_part(into, prefix, texts(), tok, dtype_for(tok), shard_tokens, threads)


def line_ranges(file: Path, size: int) -> list[tuple[int, int]]:
    """Byte ranges of whole lines, each the least that has at least `size` bytes; an empty file is one empty range."""
    whole = file.stat().st_size
    bounds = [0]
    with open(file, "rb") as lines:
        while bounds[-1] + size < whole:
            lines.seek(bounds[-1] + size - 1)
            lines.readline()
            bounds.append(lines.tell())
    if bounds[-1] < whole or len(bounds) == 1:
        bounds.append(whole)
    return list(pairwise(bounds))
