"""What a task is: examples to train on, examples held out, and a rule that says whether an answer is right.

    one fact (a word, a function, a tuple of numbers) ──hash──> train or held out, never both
    one example = a conversation ending in the reference answer + what the rule compares with

A task is made from settings, and the same settings give the same examples in the same order on every machine that
has the same corpus. Random numbers come from (seed, task, what for), never from history.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeVar, overload, runtime_checkable

import msgspec

from picollm.run.errors import UserError
from picollm.text.chat import Message, Part, text_of

HELDOUT_SHARE = 0.1
Split = Literal["train", "heldout"]
T = TypeVar("T")


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation whose last message is the reference answer of the assistant.

    answer   what `Task.score` compares with (the final number, the word spelt, the reference sentence)
    choices  the options of a multiple choice question in the order of their letters, else None
    letter   the letter of the right option, else None
    key      the fact the split was decided on
    topic    finer grouping within the task (a theme, a kind of question); may be empty
    """

    messages: list[Message]
    answer: str
    choices: list[str] | None = None
    letter: str | None = None
    key: str = ""
    topic: str = ""

    @property
    def prompt(self) -> list[Message]:
        """The conversation up to and including the user's last turn: what the model is given."""
        return self.messages[:-1]

    @property
    def question(self) -> str:
        """The user's last turn as plain text."""
        return text_of(self.messages[-2]["content"])


@runtime_checkable
class Task(Protocol):
    """Anything the mixture, the evaluations and RL can use.

    kind            "generative": the answer is sampled and scored; "choice": the letters' logits are compared
    baseline        accuracy of blind guessing, 0 to 1
    max_new_tokens  room a generated answer needs, with some to spare
    judged          whether there are right answers at all; `unavailable` says whether they can be told here
    """

    name: str
    kind: Literal["generative", "choice"]
    baseline: float
    max_new_tokens: int
    judged: bool

    def train(self) -> Sequence[Example]: ...
    def heldout(self) -> Sequence[Example]: ...
    def score(self, example: Example, answer_text: str) -> bool: ...
    def reward(self, example: Example, answer_text: str) -> float: ...
    def expected(self, example: Example) -> str: ...
    def unavailable(self) -> str: ...
    def fetch(
        self, mirrors: str = "", say: Callable[[str], None] = ..., look: Callable[[int, int], None] = ...
    ) -> dict[str, Any]: ...
    def problems(self, look: Callable[[int, int], None] = ...) -> list[str]: ...
    def fingerprint(self) -> str: ...


class TaskSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings every task has; a task adds its own in a subclass.

    seed          phrasings, order and generated numbers come from it; the split does not
    rows          most training examples to make (0: the task's own number)
    heldout_rows  most held-out examples to make (0: the task's own number)
    """

    seed: int = 0
    rows: int = 0
    heldout_rows: int = 0

    def __post_init__(self) -> None:
        if self.rows < 0 or self.heldout_rows < 0:
            raise ValueError("rows and heldout_rows must be 0 or more")


class BaseTask:
    """Settings, seeding and cutting to size, shared by the tasks. A subclass fills in `_make(split)` and `score`."""

    name: str
    kind: Literal["generative", "choice"] = "generative"
    baseline: float = 0.0
    max_new_tokens: int = 48
    judged: bool = True
    Settings: ClassVar[type[TaskSettings]] = TaskSettings

    def __init__(self, settings: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Settings as a mapping, as keywords, or both (keywords win). UserError for an unknown key or a bad value."""
        given = {**(settings or {}), **more}
        given = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in given.items()}
        try:
            self.settings = msgspec.convert(given, self.Settings, strict=False)
        except msgspec.ValidationError as error:
            known = ", ".join(self.Settings.__struct_fields__)
            raise UserError(f"task '{self.name}': {error}; its settings are {known}") from error

    def train(self) -> Sequence[Example]:
        """Examples to learn from, shuffled by the seed."""
        return self._cut(self._make("train"), self.settings.rows, "train")

    def heldout(self) -> Sequence[Example]:
        """Examples about facts that no training example of this task mentions, shuffled by the seed."""
        return self._cut(self._make("heldout"), self.settings.heldout_rows, "heldout")

    def score(self, example: Example, answer_text: str) -> bool:
        raise NotImplementedError

    def reward(self, example: Example, answer_text: str) -> float:
        """What RL maximises, 0 to 1; right or wrong unless the task knows better."""
        return float(self.score(example, answer_text))

    def expected(self, example: Example) -> str:
        """A right answer, to be shown beside a wrong one."""
        return example.letter or example.answer

    def unavailable(self) -> str:
        """Why answers cannot be judged, here or at all; empty when they can."""
        return ""

    def fetch(
        self,
        mirrors: str = "",
        say: Callable[[str], None] = lambda text: None,
        look: Callable[[int, int], None] = lambda got, everything: None,
    ) -> dict[str, Any]:
        """Download what the task is made from, if anything; returns where that is from: source, licence, sha256."""
        return {}

    def problems(self, look: Callable[[int, int], None] = lambda done, rows: None) -> list[str]:
        """Rows that cannot be used, each line naming a few; UserError when none can."""
        return []

    def fingerprint(self) -> str:
        """Names what the training examples are made from, where they may be kept rendered; empty: they may not."""
        return ""

    def random(self, *purpose: object) -> random.Random:
        """A generator of its own for each purpose, so that adding one draw never moves another."""
        return random.Random("|".join(map(str, (self.settings.seed, self.name, *purpose))))

    def _make(self, split: Split) -> list[Example]:
        raise NotImplementedError

    def _cut(self, examples: list[Example], rows: int, split: Split) -> list[Example]:
        self.random("order", split).shuffle(examples)
        return examples[:rows] if rows else examples


class Made(Sequence[Example]):
    """`n` examples made when they are asked for, the i-th from i alone: as many as one likes, at no memory."""

    def __init__(self, n: int, make: Callable[[int], Example]) -> None:
        self._n, self._make = n, make

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        places = range(self._n)[place]
        return [self._make(i) for i in places] if isinstance(places, range) else self._make(places)


def split_of(domain: str, key: Hashable, share: float = HELDOUT_SHARE) -> Split:
    """The side a fact falls on, from a hash of the fact alone: the same for every seed, phrasing and machine.

    Tasks that ask about the same kind of fact use the same `domain` ("word", "function"), so what one task holds out
    no other task trains on.
    """
    digest = hashlib.sha256(f"{domain}\x00{key}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") < share * 2**64 else "train"


def only(split: Split, domain: str, facts: Sequence[T]) -> list[T]:
    """The facts that fall on one side, in their order."""
    return [fact for fact in facts if split_of(domain, fact) == split]


def ask(question: str, answer: str | list[Part]) -> list[Message]:
    """A conversation of one exchange."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def with_tool(code: str, output: str, text: str) -> list[Part]:
    """An answer that writes a calculation, is given its result, and says it."""
    return [
        {"type": "python", "text": code},
        {"type": "output", "text": output},
        {"type": "text", "text": text},
    ]
