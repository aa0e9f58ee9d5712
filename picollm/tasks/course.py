"""Short conversation: machine learning for beginners, and everyday questions.

    user       Why is the sky blue?
    assistant  Sunlight holds all colours. Air scatters blue light much more than red light, so blue reaches …

The material is `data/course.toml`, written by hand. The prompts the course shows side by side ("Explain tokenization
for a beginner.", "Why is the sky blue?", "Use one analogy to explain self-attention.", "Give me a two-step study plan
for learning transformers.") are trained on: they are demonstrations of what fine-tuning does, not tests. The held-out
examples are new phrasings of the same questions, so they test whether wording carries over, not new knowledge; this
is the one task that is split by phrasing. Right means: match or token overlap of at least 0.5 with the one answer.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib.resources import files
from typing import Any

from picollm.tasks.base import BaseTask, Example, Split, ask
from picollm.tasks.scoring import overlap_f1, says_the_same

COURSE_PROMPTS = (
    "Explain tokenization for a beginner.",
    "Why is the sky blue?",
    "Use one analogy to explain self-attention.",
    "Give me a two-step study plan for learning transformers.",
)


@lru_cache(maxsize=1)
def items() -> tuple[dict[str, Any], ...]:
    """The hand-written items: topic, prompts, answers, heldout."""
    text = (files("picollm.tasks") / "data" / "course.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["item"])


class Course(BaseTask):
    name = "course"
    max_new_tokens = 96

    def score(self, example: Example, answer_text: str) -> bool:
        return says_the_same(answer_text, example.answer)

    def reward(self, example: Example, answer_text: str) -> float:
        return overlap_f1(answer_text, example.answer)

    def _make(self, split: Split) -> list[Example]:
        return [
            Example(messages=ask(prompt, answer), answer=answer, key=prompt, topic=item["topic"])
            for item in items()
            for prompt in item["prompts" if split == "train" else "heldout"]
            for answer in item["answers"][: None if split == "train" else 1]
        ]
