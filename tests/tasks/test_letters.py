"""spelling and counting, small and large."""

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


def test_spelling_bee_counts_by_two_ways_that_agree(small_corpus):
    task = make("spelling_bee", rows=200)
    for example in task.train():
        opening, python, output, end = example.messages[-1]["content"]
        word, letter = example.key, python["text"].partition('.count("')[2][0]
        assert f"is spelled {'-'.join(word)}." in opening["text"]
        steps = opening["text"].partition(": ")[2].partition(".\n")[0].split(", ")
        assert "".join(step[0] for step in steps) == word and steps[-1].split("=")[1] == example.answer
        assert calculate(python["text"]) == output["text"] == example.answer == str(word.count(letter))
        assert end["text"] == f"\n#### {example.answer}"
        assert not task.score(example, f"There are {example.answer}."), "the mark is missing"


def test_as_many_spellings_as_one_likes(small_corpus):
    task = make("simple_spelling")
    train, heldout = task.train(), task.heldout()
    assert len(train) == 200_000 and len(heldout) == 2000
    some = [train[i] for i in range(0, 200_000, 500)]
    assert len({e.key for e in some}) > 200, "made-up words, since the corpus has few"
    assert all(3 <= len(e.key) <= 14 and e.answer == "-".join(e.key) for e in some)
    real = make("simple_spelling:coined=0,rows=50").train()
    assert {e.key for e in real} <= {e.key for e in make("spelling").train()}
    assert train[-1] == train[199_999] and train[3:5] == [train[3], train[4]]
    assert task.fingerprint() == make("simple_spelling").fingerprint() != make("simple_spelling:seed=1").fingerprint()
