from __future__ import annotations

import re

import pytest

from picollm.infer.tools import calculate
from picollm.tasks import make

LEVELS = ["arithmetic", "arithmetic:digits=1,operations=1", "arithmetic:digits=4,operations=4,exact=true"]


@pytest.mark.parametrize("level", LEVELS)
def test_the_calculator_agrees_with_every_reference(level):
    for example in make(level, rows=300).train():
        python, output, text = example.messages[-1]["content"]
        assert calculate(python["text"]) == output["text"] == example.answer
        assert text["text"] == f"#### {example.answer}"


@pytest.mark.parametrize("level", LEVELS)
def test_the_question_holds_the_numbers_of_the_sum_in_order(level):
    for example in make(level, rows=300).train():
        code = example.messages[-1]["content"][0]["text"]
        assert re.findall(r"\d+", example.question) == re.findall(r"\d+", code)


@pytest.mark.parametrize("level", LEVELS)
def test_no_tuple_of_numbers_is_on_both_sides_in_any_order(level):
    task = make(level)

    def tuples(examples):
        return {tuple(sorted(re.findall(r"\d+", e.question))) for e in examples}

    train, heldout = tuples(task.train()), tuples(task.heldout())
    assert train and heldout and not train & heldout


def test_difficulty_is_what_was_asked_for():
    for example in make("arithmetic:digits=3,operations=2,exact=true", rows=200).train():
        numbers = re.findall(r"\d+", example.question)
        assert len(numbers) == 3
        assert all(len(n) == 3 for n in numbers[1:]) and len(numbers[0]) in (1, 3)  # a factor has one digit
    assert all(len(re.findall(r"\d+", e.question)) == 2 for e in make("arithmetic:operations=1", rows=200).train())


def test_nothing_is_given_away_that_is_not_there():
    for example in make("arithmetic:operations=4", rows=500).train():
        code = example.messages[-1]["content"][0]["text"]
        for end in [m.end() for m in re.finditer(r"\d+", code)]:
            assert int(calculate(code[:end])) >= 0


def test_only_the_marked_number_counts():
    task = make("arithmetic")
    example = task.heldout()[0]
    assert not task.score(example, f"The answer is {example.answer}.")
    assert not task.score(example, f"#### {int(example.answer) + 1}")
    assert task.score(example, f"So it is\n#### {example.answer}")
