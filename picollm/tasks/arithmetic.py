"""Arithmetic: sums and word problems, worked out by the calculator.

    user       Mia has 12 apples. Mia buys 7 more. How many apples does Mia have now?
    assistant  <python> 12+7 <output> 19 <text> #### 19

Difficulty is a setting, because RL learns only where a model is sometimes right:

    digits      numbers have 1 to `digits` digits (with `exact`, all have just as many)
    operations  1 to `operations` of + - * (with `exact`, just as many)

The split is by the numbers: the sorted tuple of them decides, so 12+7, 7+12 and 12*7 are on the same side, whatever
story they are dressed in. Right means: the integer after the last `####` is the result (GSM8K's rule).
"""

from __future__ import annotations

import random

from picollm.tasks.base import BaseTask, Example, Split, TaskSettings, ask, split_of, with_tool
from picollm.tasks.scoring import marked_number

NAMES = ("Mia", "Sam", "Lena", "Omar", "Ivy", "Noah", "Rosa", "Ken", "Tara", "Finn", "Zoe", "Max")
THINGS = ("apples", "books", "coins", "stamps", "shells", "cards", "stones", "pens", "cups", "nuts", "keys", "eggs")
BOXES = ("boxes", "bags", "trays", "drawers", "baskets", "jars")

SUMS = ("What is {sum}?", "Calculate {sum}.", "Work out {sum}.", "How much is {sum}?", "{sum} = ?", "Compute {sum}.")
STARTS = (
    "{name} has {n} {things}.",
    "There are {n} {things} on the table of {name}.",
    "{name} starts with {n} {things}.",
)
TIMES_STARTS = ("{name} has {m} {boxes} with {n} {things} each.", "{name} fills {m} {boxes}, each with {n} {things}.")
MORE = (
    "{name} buys {n} more.",
    "{name} finds {n} more.",
    "A friend brings {n} more.",
    "{name} gets {n} more as a gift.",
)
LESS = ("{name} gives away {n}.", "{name} loses {n}.", "{name} sells {n}.", "Then {n} are taken away.")
ENDS = (
    "How many {things} are there now?",
    "How many {things} does {name} have now?",
    "How many {things} are left in the end?",
)


class ArithmeticSettings(TaskSettings, frozen=True, kw_only=True):
    """`words`: share of word problems; the rest are bare sums. See the module for the others."""

    digits: int = 2
    operations: int = 2
    exact: bool = False
    words: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1 <= self.digits <= 9 and 1 <= self.operations <= 6 and 0 <= self.words <= 1):
            raise ValueError("expected digits 1 to 9, operations 1 to 6 and words 0 to 1")


class Problem:
    """The numbers, the signs between them and the exact result; `*` only stands first, so no brackets are needed."""

    def __init__(self, numbers: list[int], signs: list[str]) -> None:
        self.numbers, self.signs = numbers, signs

    @property
    def code(self) -> str:
        """What the calculator is given, e.g. `3*12+7`."""
        return "".join(str(n) + sign for n, sign in zip(self.numbers, [*self.signs, ""], strict=True))

    @property
    def totals(self) -> list[int]:
        """What is there after each step; the last is the result."""
        totals = [self.numbers[0]]
        for sign, n in zip(self.signs, self.numbers[1:], strict=True):
            totals.append(totals[-1] * n if sign == "*" else totals[-1] + n if sign == "+" else totals[-1] - n)
        return totals

    @property
    def key(self) -> str:
        """The tuple the split hashes: the numbers without their order."""
        return ",".join(map(str, sorted(self.numbers)))


class Arithmetic(BaseTask):
    name = "arithmetic"
    max_new_tokens = 48
    Settings = ArithmeticSettings
    settings: ArithmeticSettings

    TRAIN_ROWS = 4000
    HELDOUT_ROWS = 400

    def score(self, example: Example, answer_text: str) -> bool:
        return marked_number(answer_text) == example.answer

    def _make(self, split: Split) -> list[Example]:
        wanted = (
            (self.settings.rows or self.TRAIN_ROWS)
            if split == "train"
            else (self.settings.heldout_rows or self.HELDOUT_ROWS)
        )
        rng = self.random(split)
        seen: dict[str, Example] = {}
        for _ in range(40 * wanted):  # easy settings have few distinct questions: stop rather than search for ever
            if len(seen) == wanted:
                break
            problem = self._problem(rng)
            if min(problem.totals) < 0 or split_of("numbers", problem.key) != split:
                continue  # nobody gives away apples they do not have
            topic = "story" if rng.random() < self.settings.words else "sum"
            question = self._story(problem, rng) if topic == "story" else self._sum(problem, rng)
            result = str(problem.totals[-1])
            messages = ask(question, with_tool(problem.code, result, f"#### {result}"))
            seen.setdefault(question, Example(messages=messages, answer=result, key=problem.key, topic=topic))
        return list(seen.values())

    def _problem(self, rng: random.Random) -> Problem:
        most = self.settings.operations
        count = most if self.settings.exact else rng.randint(1, most)
        signs = [rng.choice("+-*"), *(rng.choice("+-") for _ in range(count - 1))]
        numbers = [self._number(rng) for _ in range(count + 1)]
        if signs[0] == "*":  # a factor of one digit: "3 boxes with 27 each"
            numbers[0] = rng.randint(2, 9)
        elif signs == ["-"]:  # fewer problems are thrown away for a negative result
            numbers.sort(reverse=True)
        return Problem(numbers, signs)

    def _number(self, rng: random.Random) -> int:
        digits = self.settings.digits if self.settings.exact else rng.randint(1, self.settings.digits)
        return rng.randint(max(2, 10 ** (digits - 1)), 10**digits - 1)

    def _sum(self, problem: Problem, rng: random.Random) -> str:
        spaced = problem.code
        for sign in "+-*":
            spaced = spaced.replace(sign, f" {sign} ")
        return rng.choice(SUMS).format(sum=spaced)

    def _story(self, problem: Problem, rng: random.Random) -> str:
        name, things = rng.choice(NAMES), rng.choice(THINGS)
        numbers, signs = problem.numbers, problem.signs
        if signs[0] == "*":
            sentences = [
                rng.choice(TIMES_STARTS).format(
                    name=name, things=things, boxes=rng.choice(BOXES), m=numbers[0], n=numbers[1]
                )
            ]
            rest = list(zip(signs[1:], numbers[2:], strict=True))
        else:
            sentences = [rng.choice(STARTS).format(name=name, things=things, n=numbers[0])]
            rest = list(zip(signs, numbers[1:], strict=True))
        for sign, n in rest:
            sentences.append(rng.choice(MORE if sign == "+" else LESS).format(name=name, n=n))
        sentences.append(rng.choice(ENDS).format(name=name, things=things))
        return " ".join(sentences)
