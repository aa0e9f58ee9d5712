"""Spelling: the letters of a word, one by one.

    user       Spell the word 'harbor'.
    assistant  h-a-r-b-o-r

A model sees tokens, not letters, so it has to learn which letters hide in each token. Words come from the corpus;
split by word (the same hash as counting). Right means: the letters joined by hyphens, case and a final stop ignored.
"""

from __future__ import annotations

from picollm.tasks.base import BaseTask, Example, Split, ask, only
from picollm.tasks.corpus import vocabulary

PHRASINGS = (
    "Spell the word '{word}'.",
    "Spell {word}.",
    "How do you spell {word}?",
    "How is the word {word} spelled?",
    'Spell "{word}" letter by letter.',
    "Please spell {word} for me.",
    "What letters are in the word {word}, in order?",
)


class Spelling(BaseTask):
    name = "spelling"
    max_new_tokens = 32

    def score(self, example: Example, answer_text: str) -> bool:
        return answer_text.strip().rstrip(".").lower() == example.answer

    def _make(self, split: Split) -> list[Example]:
        examples = []
        for word in only(split, "word", vocabulary()):
            spelled = "-".join(word)
            phrasing = self.random("phrasing", word).choice(PHRASINGS)
            examples.append(Example(messages=ask(phrasing.format(word=word), spelled), answer=spelled, key=word))
        return examples
