"""Rendered conversations in little memory: one array of tokens for each task, and which of them come in what order.

Memory: 2 bytes a token with a vocabulary of up to 32,768, else 4, and 24 bytes a conversation; SmolTalk (460,000
conversations, about 0.35 billion tokens) takes 0.7 GB. A task that is large and can say what it is made from
(`Task.fingerprint`) is rendered once, published rows by several processes, into a folder that all runs and ranks map
into memory:

    $PICOLLM_HOME/conversations/<hash>/   tokens.bin, index.npy, manifest.json

What nobody has used for `UNUSED_DAYS` goes when something new is rendered; it would be made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from picollm.data.publish import MANIFEST, problem_with, publish, read_manifest
from picollm.data.workers import Workers
from picollm.run.folder import picollm_home
from picollm.tasks.base import Example, Task
from picollm.tasks.hub_task import Examples
from picollm.text.chat import render
from picollm.text.tokenizer import Tokenizer

FORMAT = 1
LARGE = 20_000  # examples from which on what was rendered is kept
UNUSED_DAYS = 30.0
PER_PROCESS = 10_000
MOST_PROCESSES = 8  # each holds a decoded row group or two
NEWS_S = 0.2
WHOLE, CUT, DROPPED = 0, 1, 2

Arrays = tuple[np.ndarray, np.ndarray]
Look = Callable[[int, int], None]


class Portion:
    """The conversations of one task by place: `tokens` holds 2·id + mask, `index` (n, 3) start, length and fate.

    fate: whole, cut after the last answer that fits, or dropped because not even the first exchange does (length 0).
    """

    def __init__(self, tokens: np.ndarray, index: np.ndarray) -> None:
        self.tokens, self.index = tokens, index

    def __getitem__(self, place: int) -> Arrays:
        start, length, _ = self.index[place]
        held = self.tokens[start : start + length]
        return held >> 1, (held & 1).astype(np.uint8)


class Conversations(Sequence[Arrays]):
    """(ids, mask) arrays of unsigned integers, drawn from portions: item i is place `places[i]` of `owners[i]`."""

    def __init__(self, portions: Sequence[Portion], owners: np.ndarray, places: np.ndarray) -> None:
        self._portions, self._owners, self._places = portions, owners, places
        self.lengths = np.zeros(len(owners), dtype=np.int64)
        for number, portion in enumerate(portions):
            mine = owners == number
            self.lengths[mine] = portion.index[places[mine], 1]

    def __len__(self) -> int:
        return len(self._owners)

    @overload
    def __getitem__(self, item: int) -> Arrays: ...
    @overload
    def __getitem__(self, item: slice) -> list[Arrays]: ...
    def __getitem__(self, item: int | slice) -> Arrays | list[Arrays]:
        if isinstance(item, slice):
            return [self[i] for i in range(len(self))[item]]
        return self._portions[self._owners[item]][int(self._places[item])]


def portion(
    spec: str, given: Mapping[str, Any], task: Task, count: int, tok: Tokenizer, max_tokens: int,
    look: Look = lambda done, rows: None,
) -> Portion:  # fmt: skip
    """The task's first `count` training examples, rendered; `make(spec, given)` gives the task again elsewhere.

    `look`: (conversations done, all of them), may raise to leave.
    """
    examples = task.train()
    count = min(count, len(examples))
    if not is_kept(task, count):
        return _pack(count, _rendered(examples, range(count), tok, max_tokens, lambda done: look(done, count)), tok)
    key = f"conversations {FORMAT} {task.fingerprint()} {count} {max_tokens} {tok.hash}"
    folder = picollm_home() / "conversations" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if problem_with(folder):
        _drop_unused(folder.parent)
        publish(folder, lambda into: _fill(into, spec, given, examples, count, tok, max_tokens, look))
    with contextlib.suppress(OSError):  # of another user: theirs to keep
        os.utime(folder / MANIFEST)  # used
    manifest = read_manifest(folder)
    tokens = np.memmap(folder / "tokens.bin", np.dtype(manifest["dtype"]), "r") if manifest["tokens"] else _no_tokens()
    return Portion(tokens, np.load(folder / "index.npy"))


def is_kept(task: Task, count: int) -> bool:
    """Whether that many of its examples are rendered into a folder that all runs and ranks share."""
    return count >= LARGE and bool(task.fingerprint()) and len(task.train()) >= LARGE


def _drop_unused(home: Path) -> None:
    """Who still has one mapped into memory keeps it."""
    for manifest in home.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if time.time() - manifest.stat().st_mtime > UNUSED_DAYS * 24 * 3600:
                shutil.rmtree(manifest.parent, ignore_errors=True)


def _fill(
    into: Path, spec: str, given: Mapping[str, Any], examples: Sequence[Example], count: int, tok: Tokenizer,
    max_tokens: int, look: Look,
) -> dict[str, Any]:  # fmt: skip
    """Render the places, published rows in processes that each take a share of the files; then one file of all."""
    most = max(1, min(tok.threads, MOST_PROCESSES, -(-count // PER_PROCESS))) if isinstance(examples, Examples) else 1
    places = _in_file_order(examples, range(count))
    bounds = [count * i // most for i in range(most + 1)]
    parts = into / "parts"
    tok.save(parts)
    workers = Workers(render_part, most)
    left = set(range(most))
    try:
        for part in range(most):
            np.save(parts / f"{part}.places.npy", np.array(places[bounds[part] : bounds[part + 1]], dtype=np.int64))
            if most > 1:
                workers.start(part, parts, part, spec, dict(given), max_tokens)
        while left and most > 1:
            left -= set(workers.finished(NEWS_S))  # type: ignore[arg-type]
            look(round(count * (most - len(left) + workers.under_way) / most), count)
        if most == 1:
            _render_part(look, parts, 0, examples, tok, max_tokens)
    finally:
        workers.stop()
    index = np.zeros((count, 3), dtype=np.int64)
    total = 0
    with open(into / "tokens.bin", "wb") as out:
        for part in range(most):
            mine, where = np.load(parts / f"{part}.index.npy"), np.load(parts / f"{part}.places.npy")
            mine[:, 0] += total
            index[where] = mine
            total += int(mine[:, 1].sum())
            with open(parts / f"{part}.tokens", "rb") as file:
                shutil.copyfileobj(file, out)
    np.save(into / "index.npy", index)
    shutil.rmtree(parts)
    return {
        "kind": "conversations",
        "format": FORMAT,
        "task": spec,
        "tokenizer": tok.hash,
        "dtype": _dtype(tok).str,
        "conversations": count,
        "tokens": total,
    }


def render_part(look: Look, parts: Path, part: int, spec: str, given: Mapping[str, Any], max_tokens: int) -> None:
    """One process's share of `_fill`."""
    from picollm.tasks import make

    _render_part(look, parts, part, make(spec, given).train(), Tokenizer.load(parts), max_tokens)


def _render_part(
    look: Look, parts: Path, part: int, examples: Sequence[Example], tok: Tokenizer, max_tokens: int
) -> None:
    """Reads `<part>.places.npy`, leaves `<part>.tokens` and `<part>.index.npy`."""
    places = np.load(parts / f"{part}.places.npy")
    index, at = np.zeros((len(places), 3), dtype=np.int64), 0
    rendered = _rendered(examples, places.tolist(), tok, max_tokens, lambda done: look(done, len(places)))
    with open(parts / f"{part}.tokens", "wb") as out:
        for row, (_, tokens, fate) in enumerate(rendered):  # the places are in the order of the files already
            out.write(tokens.tobytes())
            index[row] = at, len(tokens), fate
            at += len(tokens)
    np.save(parts / f"{part}.index.npy", index)


def _rendered(
    examples: Sequence[Example], places: Sequence[int], tok: Tokenizer, max_tokens: int, look: Callable[[int], None]
) -> Iterator[tuple[int, np.ndarray, int]]:
    """(place, 2·id + mask, fate) of each, in the order of the files."""
    end, dtype = tok.special("<|assistant_end|>"), _dtype(tok)
    for done, place in enumerate(_in_file_order(examples, places)):
        if done % 256 == 0:
            look(done)
        messages = examples[place].messages
        ids, mask = render(messages, tok, max_tokens)
        answers = sum(message["role"] == "assistant" for message in messages)
        fate = DROPPED if not any(mask) else WHOLE if ids.count(end) == answers else CUT
        if fate == DROPPED:
            ids, mask = [], []
        yield place, np.array(ids, dtype=dtype) * 2 + np.array(mask, dtype=dtype), fate


def _pack(count: int, rendered: Iterable[tuple[int, np.ndarray, int]], tok: Tokenizer) -> Portion:
    index, at, held = np.zeros((count, 3), dtype=np.int64), 0, []
    for place, tokens, fate in rendered:
        held.append(tokens)
        index[place] = at, len(tokens), fate
        at += len(tokens)
    return Portion(np.concatenate(held) if held else _no_tokens(), index)


def _in_file_order(examples: Sequence[Example], places: Sequence[int]) -> Sequence[int]:
    return examples.in_file_order(places) if isinstance(examples, Examples) else places


def _dtype(tok: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tok.vocab_size <= 1 << 15 else "<u4")


def _no_tokens() -> np.ndarray:
    return np.empty(0, dtype="<u2")
