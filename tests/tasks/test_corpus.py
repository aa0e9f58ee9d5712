"""The facts on this machine: there are enough of them, and the chat format can carry them."""

from __future__ import annotations

import pytest

from picollm.data.pydocs import documents
from picollm.tasks import make
from picollm.tasks.corpus import functions, vocabulary
from picollm.tasks.docs_choice import LETTERS
from picollm.text.chat import render
from picollm.text.tokenizer import train_tokenizer

CONTEXT = 256  # of the pocket model


@pytest.fixture(scope="module")
def tok():
    return train_tokenizer((d.text for d in documents()[:200]), 2048)


def test_this_python_documents_enough():
    assert len(functions()) > 1000 and len(vocabulary()) > 1000
    assert all(name in {f.name for f in functions()} for name in ("str.split", "heapq.heappush"))


@pytest.mark.parametrize("name", ["docs_qa", "docs_choice", "spelling", "counting", "arithmetic", "identity", "course"])
def test_there_is_enough_to_learn_from_and_to_ask(name):
    task = make(name)
    assert len(task.train()) >= 200 and len(task.heldout()) >= 50


@pytest.mark.parametrize("name", ["docs_qa", "docs_choice", "spelling", "counting", "arithmetic", "identity", "course"])
def test_examples_fit_a_small_context_with_room_to_spare(name, tok):
    task = make(name, rows=150)
    lengths = sorted(len(render(e.messages, tok)[0]) for e in task.train())
    assert lengths[int(0.95 * len(lengths))] <= CONTEXT


def test_a_letter_is_one_token_and_the_same_one_in_the_options(tok):
    for example in make("docs_choice", rows=50).train():
        ids = tok.encode(example.question)
        for letter in LETTERS:
            assert len(tok.encode(letter)) == 1
        assert all(tok.encode(letter)[0] in ids for letter in LETTERS)
        lines = [tok.encode(f"\n{letter}:") for letter in LETTERS]
        assert all(tok.encode(letter)[0] in line for letter, line in zip(LETTERS, lines, strict=True))


def test_the_tokens_of_a_quoted_word_are_the_same_in_the_calculation(tok):
    same = 0
    for word in vocabulary()[::40]:
        asked = tok.encode(f'How many r are in the word "{word}"?')
        called = tok.encode(f'"{word}".count("r")')[1:]
        width = len(tok.encode(word))
        same += any(asked[i : i + width] == called[:width] for i in range(len(asked)))
    assert same >= 0.9 * len(vocabulary()[::40])
