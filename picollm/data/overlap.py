"""How much of the evaluation items the training text holds already: n-grams of words, as the field measures it.

An item overlaps when the text has any of its n-grams, words in lower case without punctuation; n is the 5th
percentile of the items' lengths, at least 8 and at most 13 (Brown et al. 2020, arXiv 2005.14165, appendix C). It is a
near duplicate when the text has at least 70 % of its n-grams (Chowdhery et al. 2022, arXiv 2204.02311, section 8).
Items of fewer than n words cannot be told from coincidence: they are counted and not judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from picollm.data.shards import Tokens
from picollm.text.tokenizer import Tokenizer

SHORTEST, LONGEST = 8, 13  # words of an n-gram
NEAR = 0.7
SAMPLE_TOKENS = 5_000_000  # of the training text: about 20 MB, some seconds
AT_A_TIME = 1 << 18  # words

_WORD = re.compile(r"\w+")


class Overlap(msgspec.Struct, kw_only=True):
    """Of one task: `items` judged, `short` ones not judged, n, and how many overlap or are near duplicates."""

    items: int
    short: int
    n: int
    overlapping: int
    near: int


class _Grams:
    """The n-grams of one task's items: `hashes` sorted and distinct, `of_item` their places, `seen` in the text."""

    def __init__(self, items: Sequence[list[int]], keys: np.ndarray) -> None:
        lengths = sorted(len(words) for words in items)
        fifth = lengths[len(lengths) // 20] if lengths else SHORTEST
        self.n = min(LONGEST, max(SHORTEST, fifth))
        long_enough = [words for words in items if len(words) >= self.n]
        self.short = len(items) - len(long_enough)
        hashed = [_hashes(keys[words], self.n) for words in long_enough]
        self.hashes = np.unique(np.concatenate(hashed)) if hashed else np.empty(0, dtype=np.uint64)
        self.of_item = [np.searchsorted(self.hashes, grams) for grams in hashed]
        self.seen = np.zeros(len(self.hashes), dtype=bool)

    def look(self, words: np.ndarray, keys: np.ndarray) -> None:
        """Mark what occurs in `words`, ids of which 0 is in no item."""
        if len(words) < self.n or not len(self.hashes):
            return
        known = np.convolve(words != 0, np.ones(self.n, dtype=np.int64), mode="valid") == self.n
        grams = _hashes(keys[words], self.n)[known]
        at = np.searchsorted(self.hashes, grams).clip(max=len(self.hashes) - 1)
        self.seen[at[self.hashes[at] == grams]] = True

    def result(self) -> Overlap:
        shares = [float(self.seen[places].mean()) for places in self.of_item]
        return Overlap(
            items=len(shares),
            short=self.short,
            n=self.n,
            overlapping=sum(share > 0 for share in shares),
            near=sum(share >= NEAR for share in shares),
        )


def measure(items: Mapping[str, Sequence[str]], texts: Iterable[str]) -> dict[str, Overlap]:
    """By task, how much of its items (their whole text) occurs in `texts`, which are read once as a stream.

    Memory: that of the items' words. Words are compared by 64-bit hashes of n-grams, so a coincidence is one in 10^10.
    """
    ids: dict[str, int] = {}
    numbered = {
        task: [[ids.setdefault(word, len(ids) + 1) for word in words_of(text)] for text in found]
        for task, found in items.items()
    }
    keys = np.random.default_rng(0).integers(0, 2**64, size=len(ids) + 1, dtype=np.uint64)
    grams = {task: _Grams(found, keys) for task, found in numbered.items()}
    for words in _portions(texts, ids):
        for found in grams.values():
            found.look(words, keys)
    return {task: found.result() for task, found in grams.items()}


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def sample(
    tokens: Tokens, tok: Tokenizer, most: int = SAMPLE_TOKENS, look: Callable[[], None] = lambda: None
) -> tuple[Iterator[str], float]:
    """(texts of documents spread evenly over the shards, about `most` tokens of them; the share of all tokens)."""
    stride = -(-len(tokens) // most) if len(tokens) else 1
    starts, ends = tokens.starts[:-1][::stride], tokens.starts[1:][::stride]
    share = float((ends - starts).sum() / max(1, len(tokens)))

    def texts() -> Iterator[str]:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            look()
            yield tok.decode(tokens.take(np.arange(start + 1, end)).tolist())

    return texts(), share


def _portions(texts: Iterable[str], ids: Mapping[str, int]) -> Iterator[np.ndarray]:
    """Word ids of many texts at a time, 0 for words of no item and between texts."""
    gathered: list[int] = []
    for text in texts:
        gathered += [ids.get(word, 0) for word in words_of(text)]
        gathered.append(0)
        if len(gathered) >= AT_A_TIME:
            yield np.array(gathered)
            gathered = []
    yield np.array(gathered, dtype=np.int64)


def _hashes(keys: np.ndarray, n: int) -> np.ndarray:
    """uint64 (words - n + 1,): a polynomial in an odd base, modulo 2^64, over every n keys that follow one another."""
    base = np.uint64(0x9E3779B97F4A7C15)
    found = np.zeros(len(keys) - n + 1, dtype=np.uint64)
    for at in range(n):
        found = found * base + keys[at : len(keys) - n + 1 + at]
    return found
