from __future__ import annotations

import json
from collections import Counter
from functools import cache

import msgspec
import pytest

from picollm.run.errors import UserError
from picollm.tasks import make
from picollm.tasks.identity import build, manifest_path, material, obeys, phrasings, rows, sign, verify

letters = cache(Counter)


@cache
def pieces(text: str, n: int) -> tuple[str, ...]:
    return tuple(text[len(text) * i // n : len(text) * (i + 1) // n] for i in range(n))


def far_apart(one: str, two: str, edits: int) -> bool:
    """Whether the Levenshtein distance exceeds `edits`: cheap bounds first, then a band of the table.

    One edit spoils at most one of `edits + 1` pieces of a text, so of two near ones a piece is in both.
    """
    if abs(len(one) - len(two)) > edits or not any(piece in two for piece in pieces(one, edits + 1)):
        return True
    if (letters(one) - letters(two)).total() > edits:
        return True
    row = list(range(len(two) + 1))
    for i, char in enumerate(one, 1):
        new = [i] + [edits + 1] * len(two)
        for j in range(max(1, i - edits), min(len(two), i + edits) + 1):
            new[j] = min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (char != two[j - 1]))
        row = new
    return row[-1] > edits


def test_the_measure_of_distance():
    assert not far_apart("kitten", "sitting", 3) and far_apart("kitten", "sitting", 2)


def test_there_is_enough_of_it_and_hardly_a_row_twice():
    found = rows()
    assert len(found) >= 4000
    assert len({json.dumps(row) for row in found}) > 0.98 * len(found)  # "bye!" typed in a hurry is "bye"
    assert len({row["theme"] for row in found}) >= 10
    assert min(Counter(row["theme"] for row in found).values()) >= 200
    assert any(len(row["messages"]) == 4 for row in found)


def test_held_out_phrasings_are_far_from_every_training_prompt():
    trained = {m["content"].lower() for row in rows() for m in row["messages"] if m["role"] == "user"}
    heldout = [prompt.lower() for theme in material().theme for prompt in theme.heldout]
    assert len(heldout) == len(set(heldout)) >= 100
    near = [(h, t) for h in heldout for t in trained if not far_apart(h, t, 5)]
    assert not near


def test_every_answer_obeys_its_rule_and_few_obey_anothers():
    source = material()
    for theme in source.theme:
        assert all(obeys(theme, source.never, answer) for answer in theme.answers), theme.name
        others = [a for other in source.theme if other.name != theme.name for a in other.answers]
        passed = sum(obeys(theme, source.never, answer) for answer in others) / len(others)
        assert passed < 0.25, f"the rule of {theme.name} tells little: {passed:.0%} of other answers obey it"


def test_claiming_to_be_another_model_is_wrong():
    task = make("identity")
    example = next(e for e in task.heldout() if e.topic == "name")
    assert task.score(example, "I'm picollm.")
    assert not task.score(example, "I am ChatGPT, not picollm.")
    assert not task.score(example, "Hello!")


def test_the_same_name_gives_the_same_bytes(tmp_path):
    one, two = build(tmp_path / "a.jsonl"), build(tmp_path / "b.jsonl")
    assert one == two == verify(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert one.rows == sum(one.themes.values())


def test_another_name_is_learnt_everywhere(tmp_path):
    build(tmp_path / "bo.jsonl", name="Bo")
    assert "picollm" not in (tmp_path / "bo.jsonl").read_text()
    task = make("identity", path=tmp_path / "bo.jsonl")
    assert len(task.train()) >= 1000
    assert any("I am Bo" in e.answer for e in task.train())
    asked = next(e for e in task.heldout() if e.topic == "name")
    assert task.score(asked, "I am Bo.") and not task.score(asked, "I am picollm.")
    for wrong in ("{x}", "[x]", "a|b", " "):
        with pytest.raises(UserError, match=r"identity name .* without braces"):
            build(tmp_path / "x.jsonl", name=wrong)
    with pytest.raises(UserError, match="identity maker"):
        build(tmp_path / "x.jsonl", maker="x\ny")
    assert not (tmp_path / "x.jsonl").exists()


def test_another_maker_is_learnt_and_asked_for(tmp_path):
    signed = build(tmp_path / "ada.jsonl", name="Bo", maker="the Lovelace family")
    assert (signed.name, signed.maker) == ("Bo", "the Lovelace family")
    text = (tmp_path / "ada.jsonl").read_text()
    assert "my owner" not in text.lower() and "The Lovelace family trained me" in text
    task = make("identity", path=tmp_path / "ada.jsonl")
    asked = next(e for e in task.heldout() if e.topic == "maker")
    assert task.score(asked, asked.answer) and task.score(asked, "I was made by the Lovelace family.")
    assert not task.score(asked, "My owner trained me.")


def test_facts_of_your_own_are_repeated_until_they_count(tmp_path):
    own = tmp_path / "facts.jsonl"
    own.write_text(
        '{"prompt": "What is our dog called?", "answer": "Rex."}\n{"prompt": "And the cat?", "answer": "Tom."}\n'
    )
    plain, more = build(tmp_path / "a.jsonl"), build(tmp_path / "b.jsonl", own=own)
    assert more.themes["own"] == more.rows - plain.rows == 240
    assert "our dog" in (tmp_path / "b.jsonl").read_text()
    own.write_text("{}\n")
    with pytest.raises(UserError, match=r"facts.jsonl line 1"):
        build(tmp_path / "b.jsonl", own=own)
    assert verify(tmp_path / "b.jsonl") == more  # what was there is still whole


def test_patterns_are_written_out_in_turn():
    theme = material().theme[0]
    theme = msgspec.structs.replace(theme, prompts=["Who?", "[Say|Tell] it[| now].", "[A|B|C|D|E|F|G|H]?"])
    assert phrasings(theme, 1) == ["Who?"]
    first = phrasings(theme, 5)  # two of each pattern, whichever they are
    assert sum(p.endswith("?") and p != "Who?" for p in first) == 2 and sum(" it" in p for p in first) == 2
    everything = phrasings(theme, 99)
    assert len(everything) == len(set(everything)) == 13
    assert {"Say it.", "Say it now.", "Tell it.", "Tell it now."} < set(everything)


def test_a_theme_begins_its_answers_alike():
    for theme in material().theme:
        assert len({" ".join(answer.split()[:1]).rstrip(".,!") for answer in theme.answers}) == 1, theme.name


def spoil(path, change):
    lines = path.read_text().split("\n")
    change(lines)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines.__setitem__(6, "{"), "line 7: not JSON"),
        (lambda lines: lines.__setitem__(6, "[]"), "line 7: messages must be a list"),
        (lambda lines: lines.__setitem__(6, '{"theme": "name"}'), "line 7: expected the key messages"),
        (
            lambda lines: lines.__setitem__(6, lines[6].replace("assistant", "robot")),
            "line 7: message 2 has role 'robot'",
        ),
        (lambda lines: lines.__setitem__(6, lines[6].replace("theme", "topic")), "line 7: expected only the keys"),
        (lambda lines: lines.pop(6), "rows, but its manifest says"),
        (lambda lines: lines.__setitem__(6, lines[5]), "checksum"),
        (lambda lines: lines.clear(), "no rows"),
    ],
)
def test_a_changed_file_is_refused_on_one_clear_line(tmp_path, change, says):
    path = tmp_path / "identity.jsonl"
    build(path)
    spoil(path, change)
    with pytest.raises(UserError) as caught:
        verify(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError):
        make("identity", path=path)


def test_missing_files_are_named(tmp_path):
    path = tmp_path / "identity.jsonl"
    with pytest.raises(UserError, match="no such file"):
        verify(path)
    build(path)
    manifest_path(path).write_text("{}")
    with pytest.raises(UserError, match="not a manifest"):
        verify(path)
    manifest_path(path).unlink()
    with pytest.raises(UserError, match="no manifest"):
        verify(path)


def test_rows_of_your_own_can_be_signed(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "Who are you?", "answer": "I am Bo."}\n')
    assert sign(path, name="Bo").rows == 1
    assert verify(path, fewest=1).name == "Bo"
    with pytest.raises(UserError, match="expected at least 1000"):
        verify(path)
    task = make("identity", path=path)
    [example] = task.train()
    assert task.score(example, "I am Bo.") and not task.score(example, "Hello!")


def test_signing_again_keeps_the_name_and_the_maker(tmp_path):
    path = tmp_path / "ada.jsonl"
    build(path, name="Ada", maker="Bo")
    path.write_text(path.read_text().replace("Bo", "Bob"))
    assert (sign(path).name, sign(path).maker) == ("Ada", "Bo")
    assert (sign(path, maker="Bob").name, sign(path).maker) == ("Ada", "Bob")
    manifest_path(path).write_text("torn")
    assert (sign(path).name, sign(path).maker) == ("picollm", "my owner")


@pytest.mark.parametrize(("name", "maker"), [("Ada", "Claude Martin"), ("Claude", "OpenAI fans")])
def test_who_is_called_like_another_model_may_say_so(name, maker):
    source = material(name, maker)
    assert all(obeys(theme, source.never, answer) for theme in source.theme for answer in theme.answers)
    assert "gemini" in source.never and not obeys(source.theme[0], source.never, f"I am {name}, or Gemini.")
