"""Counting letters, with the calculator.

    user       How many 'r' are in 'strawberry'?
    assistant  <python> "strawberry".count("r") <output> 3 <text> There are 3.

Most phrasings put the word in double quotes, as the calculation does: its tokens are then the same in both places and
can be copied. (In 'strawberry' the splitter takes 's for a contraction, and the tokens differ.)

Words come from the corpus; split by word (the same hash as spelling). Most questions ask for a letter of the word, one
in six for any letter, so that 0 occurs. Right means: the last integer of the answer is the count.
"""

from __future__ import annotations

import string

from picollm.tasks.base import BaseTask, Example, Split, TaskSettings, ask, only, with_tool
from picollm.tasks.corpus import vocabulary
from picollm.tasks.scoring import last_number

PHRASINGS = (
    "How many '{letter}' are in '{word}'?",
    'How many "{letter}" are in "{word}"?',
    'How many {letter} are in the word "{word}"?',
    'How many times does {letter} occur in "{word}"?',
    'Count the letter {letter} in "{word}".',
    'Count the {letter} in "{word}".',
    "How often does the letter {letter} appear in {word}?",
    "How many {letter} are in {word}?",
)


class CountingSettings(TaskSettings, frozen=True, kw_only=True):
    """`questions`: how many are asked about each word in training; held-out words are asked about once."""

    questions: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.questions <= len(PHRASINGS):
            raise ValueError(f"questions must be 1 to {len(PHRASINGS)}")


class Counting(BaseTask):
    name = "counting"
    max_new_tokens = 40
    Settings = CountingSettings
    settings: CountingSettings

    def score(self, example: Example, answer_text: str) -> bool:
        return last_number(answer_text) == example.answer

    def _make(self, split: Split) -> list[Example]:
        per_word = self.settings.questions if split == "train" else 1
        examples = []
        for word in only(split, "word", vocabulary()):
            rng = self.random("question", word)
            for phrasing in rng.sample(PHRASINGS, per_word):
                letter = rng.choice(string.ascii_lowercase if rng.random() < 1 / 6 else sorted(set(word)))
                count = str(word.count(letter))
                verb = "is" if count == "1" else "are"
                answer = with_tool(f'"{word}".count("{letter}")', count, f"There {verb} {count}.")
                question = phrasing.format(letter=letter, word=word)
                examples.append(Example(messages=ask(question, answer), answer=count, key=word))
        return examples
