"""Spelling: the letters of a word, one by one.

    user       Spell the word "harbor".
    assistant  h-a-r-b-o-r

A model sees tokens, not letters, so it has to learn which letters hide in each token. Most phrasings quote the word
with double quotes: each word then has one split into tokens instead of three, so each token is met more often. (After
equal training a small model spelled 49 % of unseen words instead of 30 %.)

Words come from the corpus; split by word (the same hash as counting). Right means: the letters joined by hyphens, case
and a final stop ignored.
"""

from __future__ import annotations

from picollm.tasks.base import BaseTask, Example, Split, TaskSettings, ask, only
from picollm.tasks.corpus import vocabulary

PHRASINGS = (
    'Spell the word "{word}".',
    'Spell "{word}".',
    'How do you spell "{word}"?',
    'How is the word "{word}" spelled?',
    'Spell "{word}" letter by letter.',
    'Please spell "{word}" for me.',
    "Spell the word '{word}'.",
)


class SpellingSettings(TaskSettings, frozen=True, kw_only=True):
    """`questions`: how many are asked about each word in training; held-out words are asked about once."""

    questions: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.questions <= len(PHRASINGS):
            raise ValueError(f"questions must be 1 to {len(PHRASINGS)}")


class Spelling(BaseTask):
    name = "spelling"
    max_new_tokens = 32
    Settings = SpellingSettings
    settings: SpellingSettings

    def score(self, example: Example, answer_text: str) -> bool:
        return answer_text.strip().rstrip(".").lower() == example.answer

    def _make(self, split: Split) -> list[Example]:
        per_word = self.settings.questions if split == "train" else 1
        examples = []
        for word in only(split, "word", vocabulary()):
            spelled = "-".join(word)
            for phrasing in self.random("phrasing", word).sample(PHRASINGS, per_word):
                examples.append(Example(messages=ask(phrasing.format(word=word), spelled), answer=spelled, key=word))
        return examples
