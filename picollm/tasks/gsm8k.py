"""GSM8K: word problems of grade school mathematics, worked out in steps with the calculator.

The published answer marks its calculations, `12 eggs in 4 nests make <<12/4=3>>3 eggs each.\n#### 3`; each mark becomes
a call of the calculator, which the model writes and the engine answers:

    user       12 eggs lie in 4 nests. How many are in each?
    assistant  12 eggs in 4 nests make <python> 12/4 <output> 3 <text> 3 eggs each.
               #### 3

`openai/gsm8k`, part `main` (Cobbe et al., arXiv 2110.14168), columns question and answer: 7,473 to learn from, 1,319
held out. A mark that our calculator refuses, or works out otherwise, is left out: training must not show an output
that the model will never be given. Right means: the number after the last `####` is the published one.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from picollm.data.hub import Repo
from picollm.infer.tools import calculate
from picollm.tasks.base import Example, Split, ask
from picollm.tasks.hub_rows import HubSplit
from picollm.tasks.hub_task import HubTask
from picollm.tasks.scoring import marked_number
from picollm.text.chat import Part

REPO = Repo(repo="openai/gsm8k", licence="MIT", about="Grade School Math 8K (Cobbe et al., arXiv 2110.14168)")
COLUMNS = ("question", "answer")
_MARK = re.compile(r"<<([^<>=]*)=([^<>]*)>>")


class GSM8K(HubTask):
    name = "gsm8k"
    max_new_tokens = 256
    published: ClassVar[dict[Split, HubSplit]] = {
        "train": HubSplit(REPO, "main/train-*.parquet", COLUMNS),
        "heldout": HubSplit(REPO, "main/test-*.parquet", COLUMNS),
    }

    def read(self, row: dict[str, Any], split: Split) -> Example:
        question, answer = row["question"], row["answer"]
        if not isinstance(question, str) or not question.strip():
            raise ValueError("question is empty")
        number = marked_number(answer) if isinstance(answer, str) else None
        if number is None:
            raise ValueError("answer has no number after ####")
        return Example(messages=ask(question, parts_of(answer)), answer=number, key=question)

    def score(self, example: Example, answer_text: str) -> bool:
        return marked_number(answer_text) == example.answer


def parts_of(answer: str) -> list[Part]:
    """The answer as text, calculations and their results; see the module."""
    parts: list[Part] = []
    text, at = "", 0
    for mark in _MARK.finditer(answer):
        text, at = text + answer[at : mark.start()], mark.end()
        output = calculate(mark[1])
        if output is None or not _same(output, mark[2]):
            continue
        if text:
            parts.append({"type": "text", "text": text})
        parts += [{"type": "python", "text": mark[1].strip()}, {"type": "output", "text": output}]
        text = ""
    return [*parts, {"type": "text", "text": text + answer[at:]}]


def _same(output: str, published: str) -> bool:
    """The published result, up to its rounding to a few decimals."""
    try:
        one, two = float(output), float(published.replace(",", "").replace("$", ""))
    except ValueError:
        return False
    return abs(one - two) <= 0.005 * max(1.0, abs(two))
