"""Questions about the documentation: what a Python function does.

    user       What does `str.split` do?
    assistant  Return a list of the substrings in the string, using sep as the separator string.

The answer is the first sentence of the function's docstring. Split by function. Right means: equal after
normalisation, or a token overlap F1 of at least 0.5 (`picollm.tasks.scoring`); the reward is the F1 itself.
"""

from __future__ import annotations

from picollm.tasks.base import BaseTask, Example, Split, TaskSettings, ask, only
from picollm.tasks.corpus import Function, functions
from picollm.tasks.scoring import closeness, says_the_same

PHRASINGS = (
    "What does `{name}` do?",
    "What does {name} do?",
    "Explain `{name}`.",
    "What is `{name}` for?",
    "Tell me what {name} does.",
    "Describe `{name}` in one sentence.",
    "What happens when I call `{name}`?",
    "In Python, what does `{name}` do?",
)
FAMILIAR = frozenset(
    {
        "builtins",
        "math",
        "os",
        "os.path",
        "random",
        "re",
        "json",
        "itertools",
        "functools",
        "collections",
        "datetime",
        "time",
        "pathlib",
        "statistics",
        "string",
        "heapq",
        "bisect",
        "shutil",
        "csv",
        "operator",
        "textwrap",
    }
)


class DocsQASettings(TaskSettings, frozen=True, kw_only=True):
    """`phrasings`: questions per function; functions of familiar modules get twice as many."""

    phrasings: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.phrasings <= len(PHRASINGS) // 2:
            raise ValueError(f"phrasings must be 1 to {len(PHRASINGS) // 2}")


class DocsQA(BaseTask):
    name = "docs_qa"
    max_new_tokens = 64
    Settings = DocsQASettings
    settings: DocsQASettings

    def score(self, example: Example, answer_text: str) -> bool:
        return says_the_same(answer_text, example.answer)

    def reward(self, example: Example, answer_text: str) -> float:
        return closeness(answer_text, example.answer)

    def _make(self, split: Split) -> list[Example]:
        named = {function.name: function for function in functions()}
        examples = []
        for name in only(split, "function", list(named)):
            examples += self._about(named[name], split)
        return examples

    def _about(self, function: Function, split: Split) -> list[Example]:
        count = 1 if split == "heldout" else self.settings.phrasings * (2 if function.module in FAMILIAR else 1)
        phrasings = self.random("phrasing", function.name).sample(PHRASINGS, count)
        return [
            Example(
                messages=ask(phrasing.format(name=function.name), function.sentence),
                answer=function.sentence,
                key=function.name,
                topic="familiar" if function.module in FAMILIAR else "other",
            )
            for phrasing in phrasings
        ]
