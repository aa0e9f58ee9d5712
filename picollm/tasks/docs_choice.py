"""Multiple choice about the documentation: four options, answered with one letter.

    user       Which module has `heappush`?
               A: bisect
               B: heapq
               C: json
               D: queue
               Answer with one letter.
    assistant  B

Two kinds of question (`topic`): "module" (where does a name live) and "description" (which sentence belongs to a
function). Split by function, with the same hash as docs_qa; wrong options come from the same side of the split, so a
held-out sentence is not even seen as a wrong answer in training. Evaluated by comparing the logits of the four
letters; each stands alone at the start of its line, so that it is the same token there and in the answer.
"""

from __future__ import annotations

import random
from typing import Literal

from picollm.tasks.base import BaseTask, Example, Split, only
from picollm.tasks.corpus import Function, functions, homes
from picollm.tasks.letters import multiple_choice, says_the_letter

LETTERS = "ABCD"
LONGEST_OPTION = 90  # characters; four descriptions must fit a short context
MODULE_QUESTIONS = ("Which module has `{short}`?", "Where do I find `{short}`?", "`{short}` belongs to which module?")
DESCRIPTION_QUESTIONS = (
    "What does `{name}` do?",
    "Which description fits `{name}`?",
    "Choose what `{name}` does.",
)


class DocsChoice(BaseTask):
    name = "docs_choice"
    kind: Literal["generative", "choice"] = "choice"
    baseline = 1 / len(LETTERS)
    max_new_tokens = 4

    def score(self, example: Example, answer_text: str) -> bool:
        return says_the_letter(example, answer_text)

    def _make(self, split: Split) -> list[Example]:
        named = {function.name: function for function in functions()}
        mine = [named[name] for name in only(split, "function", list(named))]
        modules = sorted({function.module for function in mine if function.module != "builtins"})
        short_enough = [function for function in mine if len(function.sentence) <= LONGEST_OPTION]
        examples = []
        for function in mine:
            rng = self.random(split, function.name)
            if len(homes()[function.short]) == 1 and function.module != "builtins" and len(modules) >= len(LETTERS):
                examples.append(self._where(function, modules, rng))
            if len(function.sentence) <= LONGEST_OPTION and len(short_enough) >= len(LETTERS):
                examples.append(self._which(function, short_enough, rng))
        return examples

    def _where(self, function: Function, modules: list[str], rng: random.Random) -> Example:
        wrong = _draw(modules, function.module, rng)
        question = rng.choice(MODULE_QUESTIONS).format(short=function.short)
        return _multiple_choice(question, function.module, wrong, rng, function.name, "module")

    def _which(self, function: Function, others: list[Function], rng: random.Random) -> Example:
        wrong = [other.sentence for other in _draw(others, function, rng)]
        question = rng.choice(DESCRIPTION_QUESTIONS).format(name=function.name)
        return _multiple_choice(question, function.sentence, wrong, rng, function.name, "description")


def _draw(pool: list, right: object, rng: random.Random) -> list:
    """As many different wrong options as are needed, in random order."""
    return [item for item in rng.sample(pool, len(LETTERS)) if item != right][: len(LETTERS) - 1]


def _multiple_choice(question: str, right: str, wrong: list[str], rng: random.Random, key: str, topic: str) -> Example:
    place = rng.randrange(len(LETTERS))
    return multiple_choice(question, [*wrong[:place], right, *wrong[place:]], place, key=key, topic=topic)
