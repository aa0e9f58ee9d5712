"""docs_qa and docs_choice, and the facts behind them."""

from __future__ import annotations

from collections import Counter

from picollm.tasks import make
from picollm.tasks.corpus import functions, vocabulary
from picollm.tasks.docs_choice import LETTERS


def test_facts_are_unique_and_worth_asking(small_corpus):
    names = [f.name for f in functions()]
    assert "str.split" in names and len(set(names)) == len(names)
    assert "mod1.again" in names and "os.path.glue" in names
    assert not {"mod0.twin.twice", "posixpath.glue", "mod0._private", "mod0.Thing", "mod0.short"} & set(names)
    assert all(f.sentence.endswith(".") for f in functions())


def test_words_come_from_the_corpus(small_corpus):
    assert {"harbor", "river"} <= set(vocabulary())
    assert all(3 <= len(word) <= 10 and word.isalpha() and word.islower() for word in vocabulary())


def test_both_tasks_hold_out_the_same_functions(small_corpus):
    heldout = {e.key for e in make("docs_qa").heldout()}
    assert heldout >= {e.key for e in make("docs_choice").heldout()}
    assert not heldout & {e.key for e in make("docs_choice").train()}


def test_a_held_out_sentence_is_not_even_a_wrong_option_in_training(small_corpus):
    hidden = {e.answer for e in make("docs_qa").heldout()}
    assert not any(hidden & set(e.choices) for e in make("docs_choice").train())


def test_there_are_four_different_options_and_one_is_right(small_corpus):
    sentences = {f.name: f.sentence for f in functions()}
    modules = {f.name: f.module for f in functions()}
    for example in make("docs_choice").train():
        assert len(example.choices) == len(set(example.choices)) == len(LETTERS)
        right = (modules if example.topic == "module" else sentences)[example.key]
        assert example.choices[LETTERS.index(example.letter)] == right
        assert all(f"\n{letter}: {c}\n" in example.question for letter, c in zip(LETTERS, example.choices, strict=True))
        assert example.messages[-1]["content"] == example.letter


def test_a_name_with_two_homes_is_not_asked_for_its_module(small_corpus):
    asked = {e.key for e in make("docs_choice").train() + make("docs_choice").heldout() if e.topic == "module"}
    assert "mod1.again" in asked and "mod1.twice" not in asked


def test_no_letter_is_favoured(small_corpus):
    counts = Counter(e.letter for e in make("docs_choice").train())
    total = sum(counts.values())
    assert all(0.15 < counts[letter] / total < 0.35 for letter in LETTERS)


def test_a_letter_inside_a_word_is_no_answer(small_corpus):
    task = make("docs_choice")
    example = next(e for e in task.train() if e.letter == "A")
    assert task.score(example, "A") and task.score(example, "A: mod1") and task.score(example, "The answer is A.")
    assert not task.score(example, "Apple") and not task.score(example, "B or A")
