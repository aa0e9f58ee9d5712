from __future__ import annotations

import json
from pathlib import Path

import pytest

from picollm.run.config import build
from picollm.run.errors import UserError
from picollm.tasks import identity, make, names_of
from picollm.tasks.mixing import mix, prepare
from picollm.text.chat import render
from tests.infer.fakes import ByteTokenizer

TOK = ByteTokenizer()
LONG = 2000


def lists(mixed) -> list[tuple[list[int], list[int]]]:
    return [(ids.tolist(), mask.tolist()) for ids, mask in mixed.conversations]


def mine(path: Path, rows: int = 3) -> str:
    path.write_text(
        "".join(json.dumps({"prompt": f"Question {i}?", "answer": f"Answer {i}."}) + "\n" for i in range(rows))
    )
    return str(path)


def test_as_many_of_each_task_as_asked_for() -> None:
    mixed = mix({"arithmetic": 30, "arithmetic:digits=1": 12}, TOK, LONG, 1)
    assert mixed.rows == {"arithmetic": 30, "arithmetic:digits=1": 12} and mixed.dropped == 0
    assert len(mixed.conversations) == 42
    assert sum(mixed.tokens.values()) == sum(len(ids) for ids, _ in mixed.conversations)
    assert mixed.conversations.lengths.tolist() == [len(ids) for ids, _ in mixed.conversations]
    whole = {tuple(render(e.messages, TOK)[0]): render(e.messages, TOK)[1] for e in make("arithmetic", seed=1).train()}
    known = [whole[tuple(ids)] == mask for ids, mask in lists(mixed) if tuple(ids) in whole]
    assert len(known) >= 30 and all(known)


def test_a_task_of_which_nothing_is_drawn_is_as_if_it_were_not_there() -> None:
    table = {"arithmetic": 20, "custom": 0, "gsm8k": 0}  # the one without a file, the other out of reach
    prepare(table, TOK, LONG, 1)
    assert lists(mix(table, TOK, LONG, 1)) == lists(mix({"arithmetic": 20}, TOK, LONG, 1))
    config = build({"sft.mixture": table, "rl.task": "spelling", "chat_eval.tasks": {"counting": 0, "arithmetic": 9}})
    assert names_of(config) == ["arithmetic", "spelling", "counting"]


def test_the_same_seed_gives_the_same_order_and_another_another() -> None:
    one, again, other = (lists(mix({"arithmetic": 40}, TOK, LONG, seed)) for seed in (1, 1, 2))
    assert one == again != other


def test_tasks_are_shuffled_together() -> None:
    mixed = mix({"arithmetic": 50, "arithmetic:digits=1": 50}, TOK, LONG, 1)
    first = {tuple(render(e.messages, TOK)[0]) for e in make("arithmetic:digits=1", seed=1).train()[:50]}
    places = [place for place, (ids, _) in enumerate(mixed.conversations) if tuple(ids.tolist()) in first]
    assert places[0] < 20 and places[-1] > 80


def test_a_count_above_what_there_is_repeats_in_whole_rounds() -> None:
    task = "arithmetic:rows=5"
    mixed = mix({task: 12}, TOK, LONG, 1)
    counts = sorted(lists(mixed).count(pair) for pair in lists(mixed))
    assert mixed.rows == {task: 12} and set(counts) <= {2, 3}


def test_all_of_the_persons_own_once(tmp_path: Path) -> None:
    mixed = mix({"arithmetic": 4}, TOK, LONG, 1, custom=mine(tmp_path / "mine.jsonl"))
    assert mixed.rows == {"custom": 3, "arithmetic": 4}
    alone = mix({}, TOK, LONG, 1, custom=mine(tmp_path / "mine.jsonl"))
    assert alone.rows == {"custom": 3}


def test_identity_comes_from_the_verified_rows(tmp_path: Path) -> None:
    path = tmp_path / "identity.jsonl"
    identity.build(path, "Somebody Else")
    mixed = mix({"identity": 300}, TOK, LONG, 1, identity=str(path))
    assert any(b"Somebody Else" in TOK.decode_bytes(ids.tolist()) for ids, _ in mixed.conversations)


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "Hi?", "answer": "Yes."}\n' + json.dumps({"prompt": "x" * 500, "answer": "No."}) + "\n")
    mixed = mix({}, TOK, 60, 1, custom=str(file))
    assert (len(mixed.conversations), mixed.dropped, mixed.rows) == (1, 1, {"custom": 1})
    with pytest.raises(UserError, match="no conversation to learn from"):
        mix({}, TOK, 5, 1, custom=str(file))


@pytest.mark.parametrize(
    ("table", "says"),
    [({"speling": 3}, "unknown task 'speling'"), ({}, "no conversation"), ({"arithmetic": 0}, "no con")],
)
def test_mistakes_are_named(table: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        mix(table, TOK, LONG, 1)
