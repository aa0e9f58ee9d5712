"""MMLU: multiple choice on 57 subjects, from elementary mathematics to law.

    user       Which of these is a primary colour of light?
               A: yellow
               B: green
               C: brown
               D: black
               Answer with one letter.
    assistant  B

`cais/mmlu` (Hendrycks et al., arXiv 2009.03300), columns question, subject, choices (four), answer (0 to 3). Learnt
from: `auxiliary_train`, 99,842 questions of other tests, without a subject. Held out: `test`, 14,042 questions, or
`validation` or `dev` by the setting `heldout`; the subject is the topic.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from picollm.data.hub import Repo
from picollm.tasks.base import Example, Split
from picollm.tasks.hub_rows import HubSplit
from picollm.tasks.hub_task import HubTask, HubTaskSettings
from picollm.tasks.letters import multiple_choice, says_the_letter

REPO = Repo(repo="cais/mmlu", licence="MIT", about="MMLU (Hendrycks et al., arXiv 2009.03300)")
COLUMNS = ("question", "subject", "choices", "answer")
OPTIONS = 4


class MMLUSettings(HubTaskSettings, frozen=True, kw_only=True):
    """`heldout`: which published split is asked."""

    heldout: Literal["test", "validation", "dev"] = "test"


class MMLU(HubTask):
    name = "mmlu"
    kind: Literal["generative", "choice"] = "choice"
    baseline = 1 / OPTIONS
    max_new_tokens = 4
    published: ClassVar[dict[Split, HubSplit]] = {
        "train": HubSplit(REPO, "all/auxiliary_train-*.parquet", COLUMNS),
        "heldout": HubSplit(REPO, "all/test-*.parquet", COLUMNS),
    }
    Settings = MMLUSettings
    settings: MMLUSettings

    def splits(self) -> dict[Split, HubSplit]:
        asked = HubSplit(REPO, f"all/{self.settings.heldout}-*.parquet", COLUMNS)
        return {**self.published, "heldout": asked}

    def read(self, row: dict[str, Any], split: Split) -> Example:
        question, choices, answer = row["question"], row["choices"], row["answer"]
        if not isinstance(question, str) or not question.strip():
            raise ValueError("question is empty")
        if not isinstance(choices, list) or len(choices) != OPTIONS or not all(isinstance(c, str) for c in choices):
            raise ValueError("choices must be four texts")
        if not isinstance(answer, int) or not 0 <= answer < OPTIONS:
            raise ValueError(f"answer is {answer!r}; expected 0 to 3")
        return multiple_choice(question, choices, answer, key=question, topic=row["subject"] or "")

    def score(self, example: Example, answer_text: str) -> bool:
        return says_the_letter(example, answer_text)
