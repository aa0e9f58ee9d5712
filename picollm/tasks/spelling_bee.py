"""Spelling at the size of a large model's mixture: as many questions as one likes, and counting by two ways.

simple_spelling (200,000 rows)

    user       Spell the word "harbor".
    assistant  h-a-r-b-o-r

spelling_bee (80,000 rows): spell it, count along the letters, then ask the calculator

    user       How many 'r' are in the word "harbor"?
    assistant  harbor is spelled h-a-r-b-o-r.
               Counting r: h=0, a=0, r=1, b=1, o=1, r=2.
               The calculator agrees: <python> "harbor".count("r") <output> 2 <text>
               #### 2

Words come from the corpus (3 to 10 letters), and, since it has only some thousands, a share `coined` is put together
from the beginning of one and the end of another: spelling is about the letters in a token, whatever the word means.
Split by word, with the same hash as spelling and counting. Examples are made when asked for, the i-th from i alone.
Right means: for simple_spelling the letters joined by hyphens; for spelling_bee the number after the last `####`.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Sequence
from functools import cached_property

import msgspec

from picollm.tasks import counting, spelling
from picollm.tasks.base import BaseTask, Example, Made, Split, TaskSettings, ask, split_of
from picollm.tasks.corpus import vocabulary
from picollm.tasks.scoring import marked_number
from picollm.text.chat import Part

VERSION = 1
SHORTEST, LONGEST = 3, 14


class WordSettings(TaskSettings, frozen=True, kw_only=True):
    """`coined`: share of made-up words."""

    coined: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.coined <= 1:
            raise ValueError("coined must be 0 to 1")


class _WordTask(BaseTask):
    Settings = WordSettings
    settings: WordSettings
    ROWS: int
    HELDOUT_ROWS = 2000

    def train(self) -> Sequence[Example]:
        return self._made("train", self.settings.rows or self.ROWS)

    def heldout(self) -> Sequence[Example]:
        return self._made("heldout", self.settings.heldout_rows or self.HELDOUT_ROWS)

    def fingerprint(self) -> str:
        words = hashlib.sha256(" ".join(vocabulary()).encode()).hexdigest()
        parts = (self.name, str(VERSION), msgspec.json.encode(self.settings).decode(), words)
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def about(self, word: str, rng: random.Random) -> Example:
        """One question about a word."""
        raise NotImplementedError

    def _made(self, split: Split, n: int) -> Made:
        if not self._words:
            return Made(0, lambda i: self._example(split, i))
        return Made(n, lambda i: self._example(split, i))

    def _example(self, split: Split, number: int) -> Example:
        rng = self.random(split, number)
        while split_of("word", word := self._word(rng)) != split:
            pass
        return self.about(word, rng)

    def _word(self, rng: random.Random) -> str:
        words = self._words
        if rng.random() >= self.settings.coined:
            return rng.choice(words)
        head, tail = rng.choice(words), rng.choice(words)
        word = head[: rng.randint(2, len(head))] + tail[-rng.randint(1, len(tail) - 1) :]
        return word[:LONGEST]

    @cached_property
    def _words(self) -> tuple[str, ...]:
        return vocabulary()


class SimpleSpelling(_WordTask):
    name = "simple_spelling"
    max_new_tokens = 48
    ROWS = 200_000

    def score(self, example: Example, answer_text: str) -> bool:
        return answer_text.strip().rstrip(".").lower() == example.answer

    def about(self, word: str, rng: random.Random) -> Example:
        spelled = "-".join(word)
        question = rng.choice(spelling.PHRASINGS).format(word=word)
        return Example(messages=ask(question, spelled), answer=spelled, key=word)


class SpellingBee(_WordTask):
    name = "spelling_bee"
    max_new_tokens = 192
    ROWS = 80_000

    def score(self, example: Example, answer_text: str) -> bool:
        return marked_number(answer_text) == example.answer

    def about(self, word: str, rng: random.Random) -> Example:
        letter = rng.choice(string.ascii_lowercase if rng.random() < 1 / 6 else sorted(set(word)))
        count = str(word.count(letter))
        steps = ", ".join(f"{one}={word[: i + 1].count(letter)}" for i, one in enumerate(word))
        opening = f"{word} is spelled {'-'.join(word)}.\nCounting {letter}: {steps}.\nThe calculator agrees: "
        parts: list[Part] = [
            {"type": "text", "text": opening},
            {"type": "python", "text": f'"{word}".count("{letter}")'},
            {"type": "output", "text": count},
            {"type": "text", "text": f"\n#### {count}"},
        ]
        question = rng.choice(counting.PHRASINGS).format(letter=letter, word=word)
        return Example(messages=ask(question, parts), answer=count, key=word)
