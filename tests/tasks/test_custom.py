from __future__ import annotations

import json

import pytest

from picollm.run.errors import UserError
from picollm.tasks import make
from picollm.tasks.course import COURSE_PROMPTS, items


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_all_three_forms_of_a_row(tmp_path):
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "python", "text": "1+1"},
                {"type": "output", "text": "2"},
                {"type": "text", "text": "2"},
            ],
        },
    ]
    path = write(tmp_path / "mine.jsonl", [{"messages": chat}, {"prompt": "Dog?", "answer": "Biscuit."}, "", chat])
    task = make("custom", path=path)
    assert sorted(e.answer for e in task.train()) == ["2", "2", "Biscuit."]
    assert task.heldout() == []  # too few to hold any out
    example = next(e for e in task.train() if e.answer == "Biscuit.")
    assert task.score(example, "biscuit") and task.reward(example, "biscuit") == 1.0


def test_a_tenth_of_many_is_held_out_by_prompt(tmp_path):
    rows = [{"prompt": f"Question {i}?", "answer": f"Answer {i} {j}."} for i in range(200) for j in range(2)]
    task = make("custom", {"path": str(write(tmp_path / "mine.jsonl", rows))})
    train, heldout = task.train(), task.heldout()
    assert len(train) + len(heldout) == 400 and 10 <= len(heldout) <= 80
    assert not {e.question for e in train} & {e.question for e in heldout}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{oops", "not JSON"),
        ("3", "expected an object"),
        pytest.param("[" * 100_000, "brackets in brackets", id="deep"),
        pytest.param('{"prompt": ' + "7" * 5000 + "}", "5000 digits", id="digits"),
        ({"question": "Hi"}, "found 'question'"),
        ({"prompt": "Hi", "answer": ""}, "message 2 (assistant) is empty"),
        ({"prompt": "Hi", "answer": 3}, "content must be text"),
        ({"messages": []}, "not empty"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "must end with the assistant"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "expected 'user'"),
        ({"messages": [{"role": "user"}]}, "needs a role and a content"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "python", "text": "1"}]},
                    {"role": "assistant", "content": "x"},
                ]
            },
            "a type out of text",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, says):
    path = write(tmp_path / "mine.jsonl", [{"prompt": "a", "answer": "b"}, row])
    with pytest.raises(UserError) as caught:
        make("custom", path=path)
    assert f"{path} line 2" in str(caught.value) and says in str(caught.value) and "\n" not in str(caught.value)


def test_several_bad_rows_are_counted(tmp_path):
    path = write(tmp_path / "mine.jsonl", ["{"] * 9)
    with pytest.raises(UserError, match=r"line 1: .*9 bad rows; also lines 2, 3, 4, 5, 6, …"):
        make("custom", path=path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_is_a_list_of_rows(tmp_path, indent):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"prompt": "Dog?", "answer": "Biscuit."}, {"messages": chat}, chat], indent=indent))
    assert sorted(e.answer for e in make("custom", path=path).train()) == ["Biscuit.", "Hello!", "Hello!"]
    path.write_text(json.dumps(chat, indent=indent))
    assert [e.answer for e in make("custom", path=path).train()] == ["Hello!"]
    path.write_text(json.dumps({"prompt": "Dog?", "answer": "Biscuit."}, indent=indent))
    assert [e.answer for e in make("custom", path=path).train()] == ["Biscuit."]


def test_a_json_file_may_have_a_value_a_line(tmp_path):
    path = write(tmp_path / "mine.json", [{"prompt": f"{i}?", "answer": f"{i}."} for i in range(3)])
    assert len(make("custom", path=path).train()) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"prompt": "a", "answer": "b"}, {"prompt": "c"}]', "mine.json row 2: expected the key"),
        ('[\n  {"prompt": "a",\n   "answer": }\n]', "mine.json line 3: not JSON (Expecting value"),
        pytest.param("[" * 100_000, "mine.json: not JSON that can be read", id="deep"),
        pytest.param('[{"prompt": ' + "7" * 5000 + "}]", "mine.json: not JSON that can be read", id="digits"),
        ("[]", "no rows"),
        ("", "no rows"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', "mine.json line 2: expected the key"),
    ],
)
def test_a_bad_json_file_is_named(tmp_path, text, says):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        make("custom", path=path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_no_rows_is_never_silent(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        make("custom", path=tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="no rows"):
        make("custom", path=write(tmp_path / "empty.jsonl", ["", ""]))
    with pytest.raises(UserError, match="no file"):
        make("custom")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "x"}')
    with pytest.raises(UserError, match="not UTF-8"):
        make("custom", path=tmp_path / "latin.jsonl")


def test_the_course_material_is_whole():
    trained = [prompt for item in items() for prompt in item["prompts"]]
    assert set(COURSE_PROMPTS) <= set(trained)
    assert len(items()) >= 34 and len(set(trained)) == len(trained)
    assert all(len(item["prompts"]) >= 3 and item["answers"] and item["heldout"] for item in items())
    assert all(len(answer.split()) <= 45 for item in items() for answer in item["answers"])
