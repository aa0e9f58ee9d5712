"""What the model is taught to do, and how it is tested: one registry, one file per task.

    TASKS["spelling"]({"seed": 1}).train()      examples to learn from
    make("arithmetic:digits=3,operations=2")    a task from one line of text, as settings files write it

To add a task: a file with a `BaseTask`, and one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from picollm.run.errors import UserError
from picollm.run.schema import Config
from picollm.tasks.arc import ARCChallenge, ARCEasy
from picollm.tasks.arithmetic import Arithmetic
from picollm.tasks.base import Example, Task
from picollm.tasks.counting import Counting
from picollm.tasks.course import Course
from picollm.tasks.custom import Custom
from picollm.tasks.docs_choice import DocsChoice
from picollm.tasks.docs_qa import DocsQA
from picollm.tasks.gsm8k import GSM8K
from picollm.tasks.humaneval import HumanEval
from picollm.tasks.identity import Identity
from picollm.tasks.mmlu import MMLU
from picollm.tasks.smoltalk import SmolTalk
from picollm.tasks.spelling import Spelling
from picollm.tasks.spelling_bee import SimpleSpelling, SpellingBee

__all__ = ["TASKS", "Example", "Task", "make", "names_of"]

TASKS: dict[str, Callable[..., Task]] = {
    "docs_qa": DocsQA,
    "docs_choice": DocsChoice,
    "spelling": Spelling,
    "counting": Counting,
    "arithmetic": Arithmetic,
    "identity": Identity,
    "course": Course,
    "custom": Custom,
    "simple_spelling": SimpleSpelling,
    "spelling_bee": SpellingBee,
    "smoltalk": SmolTalk,
    "mmlu": MMLU,
    "arc_easy": ARCEasy,
    "arc_challenge": ARCChallenge,
    "gsm8k": GSM8K,
    "humaneval": HumanEval,
}


def names_of(config: Config) -> list[str]:
    """All tasks that a run practises or is asked, each once, without those of which a mixture draws nothing."""
    mixtures = (config.midtrain.mixture, config.sft.mixture)
    drawn = [name for mixture in mixtures for name, count in mixture.items() if count]
    return list(dict.fromkeys([*drawn, config.rl.task, *config.chat_eval.tasks]))


def make(spec: str, settings: Mapping[str, Any] | None = None, /, **more: Any) -> Task:
    """A task from `name` or `name:key=value,key=value`; settings written in the text win.

    UserError for an unknown task, a setting without a value, or one the task does not have.
    """
    name, _, written = spec.partition(":")
    if name not in TASKS:
        raise UserError(f"unknown task '{name}': expected one of {', '.join(TASKS)}")
    given: dict[str, Any] = {**(settings or {}), **more}
    for pair in filter(None, written.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"task '{spec}': expected key=value after the colon, found '{pair}'")
        given[key.strip()] = value.strip()
    return TASKS[name](given)
