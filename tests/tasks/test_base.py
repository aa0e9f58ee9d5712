"""Splits, settings and the registry: what every task promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.run.errors import UserError
from picollm.tasks import Task, make
from picollm.tasks.base import only, split_of

GENERATED = ["docs_qa", "docs_choice", "spelling", "counting", "arithmetic", "identity", "course",
             "simple_spelling:rows=300,heldout_rows=40", "spelling_bee:rows=300,heldout_rows=40"]  # fmt: skip


@given(st.text())
def test_the_split_of_a_fact_never_changes(fact):
    assert split_of("word", fact) == split_of("word", fact)


def test_a_tenth_is_held_out():
    facts = [f"fact {i}" for i in range(5000)]
    assert 0.08 < len(only("heldout", "word", facts)) / len(facts) < 0.12
    assert sorted(only("heldout", "word", facts) + only("train", "word", facts)) == sorted(facts)


@pytest.mark.parametrize("name", GENERATED)
def test_every_task_keeps_its_promises(name, small_corpus):
    task = make(name, seed=3)
    assert isinstance(task, Task)
    train, heldout = task.train(), task.heldout()
    assert train and heldout
    assert [*train] == [*make(name, seed=3).train()]
    assert [*heldout] == [*make(name, seed=3).heldout()]
    assert not {e.key for e in train} & {e.key for e in heldout}, "a fact is on both sides"
    assert not {e.question for e in train} & {e.question for e in heldout}
    for example in [*train, *heldout]:
        assert example.messages[-1]["role"] == "assistant"
        assert example.prompt[-1]["role"] == "user"
        reference = example.messages[-1]["content"]
        shown = reference if isinstance(reference, str) else reference[-1]["text"]
        assert task.score(example, shown), (example.question, shown)
        assert task.reward(example, shown) == 1.0
        assert not task.score(example, "")


@pytest.mark.parametrize("name", GENERATED)
def test_another_seed_gives_another_order_and_the_same_split(name, small_corpus):
    one, two = make(name, seed=1), make(name, seed=2)
    assert [e.question for e in one.train()] != [e.question for e in two.train()]
    assert not {e.key for e in one.train()} & {e.key for e in two.heldout()}


def test_rows_limit_the_number_of_examples(small_corpus):
    task = make("spelling", rows=5, heldout_rows=1)
    assert (len(task.train()), len(task.heldout())) == (5, 1)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("speling", "unknown task 'speling': expected one of docs_qa"),
        ("arithmetic:digit=3", "its settings are"),
        ("arithmetic:digits=0", "digits 1 to 9"),
        ("arithmetic:digits=many", "digits"),
        ("arithmetic:digits", "expected key=value"),
        ("spelling:rows=-1", "0 or more"),
        ("docs_qa:phrasings=99", "phrasings must be"),
    ],
)
def test_mistakes_in_settings_are_explained_on_one_line(spec, says):
    with pytest.raises(UserError) as caught:
        make(spec)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_can_be_written_in_the_name():
    task = make("arithmetic:digits=3,operations=1,exact=true", seed=4)
    assert (task.settings.digits, task.settings.operations, task.settings.exact, task.settings.seed) == (3, 1, True, 4)
