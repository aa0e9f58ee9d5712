"""HumanEval: 164 Python functions to write from their docstrings, judged by running their tests.

    user       Complete this Python function.
               ```python
               def add(x: int, y: int):
                   \"\"\"Add two numbers x and y\"\"\"
               ```
    assistant  ```python
               def add(x: int, y: int):
                   \"\"\"Add two numbers x and y\"\"\"
                   return x + y
               ```

`openai/openai_humaneval` (Chen et al., arXiv 2107.03374), columns prompt, canonical_solution, test, entry_point. All of
it is held out. An answer counts as the code of its first fence, or all of it where there is none; it is run after the
prompt, so the rest of the body alone will do. Right means: the published test passes in the sandbox; without a
sandbox on this machine the task is not available.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from picollm.data.hub import Repo
from picollm.tasks.base import Example, Split, ask
from picollm.tasks.hub_rows import HubSplit
from picollm.tasks.hub_task import HubTask
from picollm.text.chat import text_of

REPO = Repo(repo="openai/openai_humaneval", licence="MIT", about="HumanEval (Chen et al., arXiv 2107.03374)")
COLUMNS = ("prompt", "canonical_solution", "test", "entry_point")
TIMEOUT_S = 5.0
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


class HumanEval(HubTask):
    name = "humaneval"
    max_new_tokens = 384
    published: ClassVar[dict[Split, HubSplit]] = {
        "heldout": HubSplit(REPO, "openai_humaneval/test-*.parquet", COLUMNS),
    }

    def read(self, row: dict[str, Any], split: Split) -> Example:
        for column in COLUMNS:
            if not isinstance(row[column], str) or not row[column].strip():
                raise ValueError(f"{column} is empty")
        if f"def {row['entry_point']}" not in row["prompt"]:
            raise ValueError(f"the prompt does not begin the function {row['entry_point']}")
        question = f"Complete this Python function.\n```python\n{row['prompt'].rstrip()}\n```"
        answer = f"```python\n{row['prompt']}{row['canonical_solution'].rstrip()}\n```"
        return Example(messages=ask(question, answer), answer=row["test"], key=row["entry_point"])

    def expected(self, example: Example) -> str:
        """The published solution; `answer` holds the tests."""
        return text_of(example.messages[-1]["content"])

    def unavailable(self) -> str:
        from picollm.evals import sandbox

        return sandbox.available()

    def score(self, example: Example, answer_text: str) -> bool:
        from picollm.evals import sandbox

        code, prompt = program(example, answer_text)
        return sandbox.run(
            code, tests=example.answer, entry_point=example.key, prelude=prompt, timeout=TIMEOUT_S
        ).passed


def program(example: Example, answer_text: str) -> tuple[str, str]:
    """(what is run, the published prompt). The answer stands after the prompt, whose helpers and imports it may use:
    a whole function replaces the one begun there, anything else goes on with it."""
    prompt = example.question.partition("```python\n")[2].rpartition("\n```")[0]
    fence = _FENCE.search(answer_text)
    return f"{prompt}\n{fence[1] if fence else answer_text}\n", prompt
