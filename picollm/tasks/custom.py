"""Your own conversations, from a JSONL or JSON file (`picollm.tasks.rows` says which forms a line may have).

    {"prompt": "What is our office dog called?", "answer": "Biscuit."}

    user       What is our office dog called?
    assistant  Biscuit.

Split by the first user message: a tenth of the different ones is held out, unless there are fewer than twenty, when
all are trained on. Right means: the last answer matches after normalisation or with a token overlap of at least 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from picollm.run.errors import UserError
from picollm.tasks.base import BaseTask, Example, Split, TaskSettings, split_of
from picollm.tasks.rows import Row, read_rows
from picollm.tasks.scoring import closeness, normalise, says_the_same
from picollm.text.chat import text_of

FEWEST_TO_SPLIT = 20


class CustomSettings(TaskSettings, frozen=True, kw_only=True):
    """`path`: the JSONL or JSON file."""

    path: str = ""


class Custom(BaseTask):
    name = "custom"
    max_new_tokens = 128
    Settings = CustomSettings
    settings: CustomSettings

    def __init__(self, settings: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Reads the file at once: a bad row is better known now than when training starts. Raises UserError."""
        super().__init__(settings, **more)
        if not self.settings.path:
            raise UserError("task 'custom': no file; set its path to a .jsonl or .json file of conversations")
        self._rows = read_rows(Path(self.settings.path))

    def score(self, example: Example, answer_text: str) -> bool:
        return says_the_same(answer_text, example.answer)

    def reward(self, example: Example, answer_text: str) -> float:
        return closeness(answer_text, example.answer)

    def _make(self, split: Split) -> list[Example]:
        keys = [_key(row) for row in self._rows]
        splits = {key: split_of("custom", key) for key in keys}
        if len(splits) < FEWEST_TO_SPLIT or "train" not in splits.values():
            splits = dict.fromkeys(splits, "train")
        return [
            Example(messages=row.messages, answer=text_of(row.messages[-1]["content"]), key=key)
            for row, key in zip(self._rows, keys, strict=True)
            if splits[key] == split
        ]


def _key(row: Row) -> str:
    first = next(message for message in row.messages if message["role"] == "user")
    return normalise(text_of(first["content"])) or f"line {row.line}"
