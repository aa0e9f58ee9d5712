"""Two toy tasks and an engine that reads its answers from a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from picollm.infer.rows import Completion
from picollm.tasks.base import BaseTask, Example, ask
from tests.infer.fakes import ByteTokenizer


class Capitals(BaseTask):
    """ "say 3" -> "3"; odd numbers are one topic, even ones another."""

    name = "capitals"

    def score(self, example: Example, answer_text: str) -> bool:
        return answer_text == example.answer

    def _make(self, split):
        return [
            Example(messages=ask(f"say {i}", str(i)), answer=str(i), key=str(i), topic=("even", "odd")[i % 2])
            for i in range(20)
        ]


class Letters(BaseTask):
    """Which letter? No way to know."""

    name, kind, baseline = "letters", "choice", 0.5

    def score(self, example: Example, answer_text: str) -> bool:
        return answer_text == example.letter

    def _make(self, split):
        return [
            Example(
                messages=ask(f"which {'x' * i}?\nA: one\nB: two", "AB"[i % 2]),
                answer="AB"[i % 2],
                letter="AB"[i % 2],
                choices=["one", "two"],
                key=str(i),
            )
            for i in range(20)
        ]


class TableEngine:
    """Answers each prompt by a function of its text; an answer of None is cut off by the limit."""

    live, context, max_rows = False, 128, 64

    def __init__(self, answer: Callable[[str], str | None]) -> None:
        self.tok, self.answer = ByteTokenizer(), answer
        self.batches: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], sampling, **how) -> list[Completion]:
        self.batches.append(len(prompts))
        found = []
        for prompt in prompts:
            text = self.answer(self.tok.decode(list(prompt), skip_specials=True))
            found.append(
                Completion(
                    ids=list((text or "").encode()),
                    forced=[],
                    text=text or "",
                    prompt_tokens=len(prompt),
                    cut_tokens=0,
                    finish_reason="length" if text is None else "stop",
                    first_token_s=0.0,
                    tok_s=0.0,
                    logprobs=None,
                )
            )
        return found
