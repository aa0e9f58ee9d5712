"""ARC: multiple choice on school science, an easy and a challenging part.

    user       Which property of air can a barometer measure?
               A: speed
               B: pressure
               C: humidity
               D: temperature
               Answer with one letter.
    assistant  B

`allenai/ai2_arc` (Clark et al., arXiv 1803.05457), columns id, question, choices {text, label}, answerKey. Options are
labelled A to E, in some rows 1 to 5; they are written A to E. Learnt from: `train` (2,251 easy, 1,119 challenging).
Held out: `test` (2,376 and 1,172), or `validation` by the setting `heldout`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from picollm.data.hub import Repo
from picollm.tasks.base import Example, Split
from picollm.tasks.hub_rows import HubSplit
from picollm.tasks.hub_task import HubTask, HubTaskSettings
from picollm.tasks.letters import multiple_choice, says_the_letter

REPO = Repo(
    repo="allenai/ai2_arc", licence="CC BY-SA 4.0", about="AI2 Reasoning Challenge (Clark et al., arXiv 1803.05457)"
)
COLUMNS = ("question", "choices", "answerKey")


class ARCSettings(HubTaskSettings, frozen=True, kw_only=True):
    """`heldout`: which published split is asked."""

    heldout: Literal["test", "validation"] = "test"


class _ARC(HubTask):
    kind: Literal["generative", "choice"] = "choice"
    baseline = 0.25  # nearly all have four options
    max_new_tokens = 4
    part: ClassVar[str]
    Settings = ARCSettings
    settings: ARCSettings

    def splits(self) -> dict[Split, HubSplit]:
        return {
            "train": HubSplit(REPO, f"{self.part}/train-*.parquet", COLUMNS),
            "heldout": HubSplit(REPO, f"{self.part}/{self.settings.heldout}-*.parquet", COLUMNS),
        }

    def read(self, row: dict[str, Any], split: Split) -> Example:
        question, choices, right = row["question"], row["choices"], row["answerKey"]
        texts, labels = (choices.get("text"), choices.get("label")) if isinstance(choices, dict) else (None, None)
        if not isinstance(question, str) or not question.strip():
            raise ValueError("question is empty")
        if not texts or not labels or len(texts) != len(labels) or not all(isinstance(t, str) for t in texts):
            raise ValueError("choices must have as many texts as labels")
        if len(set(labels)) != len(labels) or labels.count(right) != 1:
            raise ValueError(f"answerKey {right!r} is not one of the labels {', '.join(map(str, labels))}")
        return multiple_choice(question, texts, labels.index(right), key=question)

    def score(self, example: Example, answer_text: str) -> bool:
        return says_the_letter(example, answer_text)


class ARCEasy(_ARC):
    name = "arc_easy"
    part = "ARC-Easy"


class ARCChallenge(_ARC):
    name = "arc_challenge"
    part = "ARC-Challenge"
