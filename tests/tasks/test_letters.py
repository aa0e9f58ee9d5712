"""spelling and counting."""

from __future__ import annotations

from picollm.infer.tools import calculate
from picollm.tasks import make


def test_a_word_is_spelled_with_hyphens(small_corpus):
    examples = {e.key: e for e in make("spelling").train() + make("spelling").heldout()}
    assert examples["harbor"].answer == "h-a-r-b-o-r"
    task = make("spelling")
    assert task.score(examples["harbor"], " H-a-r-b-o-r. ")
    assert not task.score(examples["harbor"], "harbor")
    assert not task.score(examples["harbor"], "h-a-r-b-o-r-r")


def test_the_calculator_agrees_with_every_count(small_corpus):
    for example in make("counting").train():
        python, output, text = example.messages[-1]["content"]
        assert calculate(python["text"]) == output["text"] == example.answer
        assert text["text"] in (f"There are {example.answer}.", "There is 1.")


def test_a_count_is_right_only_if_it_comes_last(small_corpus):
    task = make("counting")
    example = next(e for e in task.train() if e.answer == "1")
    assert task.score(example, "There is 1.") and task.score(example, "1")
    assert not task.score(example, "There is 1 or 2.") and not task.score(example, "one")


def test_a_word_held_out_in_one_task_is_not_trained_on_in_the_other(small_corpus):
    hidden = {e.key for e in make("spelling").heldout()}
    assert hidden == {e.key for e in make("counting").heldout()}
    assert not hidden & {e.key for e in make("counting").train()}
