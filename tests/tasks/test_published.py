"""Tasks from a Hub on the loopback: rendered, scored, counted, pinned, offline, and with every fault."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from picollm.data import hub as data_hub
from picollm.evals import sandbox
from picollm.infer.tools import calculate
from picollm.run.errors import StopRequested, UserError
from picollm.tasks import Task, conversations, make
from picollm.tasks.gsm8k import parts_of
from picollm.tasks.mixing import mix, prepare
from picollm.text.chat import text_of
from picollm.text.tokenizer import train_tokenizer
from tests import published
from tests.hub import LoopbackHub, parquet
from tests.infer.fakes import ByteTokenizer

TOK = ByteTokenizer()
PUBLISHED = ["smoltalk", "mmlu", "arc_easy", "arc_challenge", "gsm8k", "humaneval"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub with all data sets; this process's huggingface_hub is sent there, with a cache and a home of its own."""
    sleep = time.sleep
    with LoopbackHub() as found:
        for name, value in {"ENDPOINT": found.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "cache"),
                            "HF_HUB_DISABLE_XET": True, "HUGGINGFACE_CO_URL_TEMPLATE":
                            found.url + "/{repo_id}/resolve/{revision}/{filename}",
                            "HF_HUB_DOWNLOAD_TIMEOUT": 60, "HF_HUB_ETAG_TIMEOUT": 60}.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(data_hub, "BACKOFF_S", 0.01)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: sleep(min(seconds, 0.02)))
        published.publish(found)
        yield found


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_task_keeps_its_promises(hub: LoopbackHub, name: str) -> None:
    task = make(name, seed=3)
    assert isinstance(task, Task) and not hub.requests, "making a task asks nobody"
    train, heldout = task.train(), task.heldout()
    assert (len(train) > 0) == (name != "humaneval") and len(heldout) > 0
    assert list(train) == list(make(name, seed=3).train()) and list(heldout) == list(make(name, seed=3).heldout())
    assert len(train) < 2 or [e.question for e in train] != [e.question for e in make(name, seed=4).train()]
    assert not {e.question for e in train} & {e.question for e in heldout}
    assert train[:5] == [train[i] for i in range(min(5, len(train)))]
    for example in [*train, *heldout]:
        assert example.messages[-1]["role"] == "assistant" and example.prompt[-1]["role"] == "user"
        if name in ("smoltalk", "humaneval"):
            continue
        shown = text_of(example.messages[-1]["content"])
        assert task.score(example, shown) and task.reward(example, shown) == 1.0 and not task.score(example, "")
    assert task.problems() == []


def test_smoltalk_is_learnt_from_and_not_asked(hub: LoopbackHub) -> None:
    task = make("smoltalk")
    assert task.unavailable() and len(task.train()) == 40
    roles = [[m["role"] for m in example.messages] for example in task.train()]
    assert ["system", "user", "assistant"] in roles and max(map(len, roles)) >= 6
    assert len(make("smoltalk:files=1").train()) == 20
    with pytest.raises(UserError, match="no right answers"):
        task.score(task.train()[0], "hello")


def test_multiple_choice_has_its_letters_and_subjects(hub: LoopbackHub) -> None:
    example = next(e for e in make("mmlu").heldout() if "follows 7?" in e.question)
    assert example.letter == "B" and example.choices == ["10", "8", "9", "12"] and example.topic == "marketing"
    assert example.question.endswith("A: 10\nB: 8\nC: 9\nD: 12\nAnswer with one letter.")
    assert "validation" in make("mmlu:heldout=validation").heldout()[0].question
    for example in make("arc_easy").train():
        assert example.letter == "B" and example.messages[-1]["content"] == "B"
        assert len(example.choices or []) in (3, 4) and "\n1: " not in example.question
    numbered = next(e for e in make("arc_challenge").train() if "box 2 hold" in e.question)
    assert "\nA: 4 stones\nB: 6 leaves" in numbered.question
    task = make("arc_easy")
    three = next(e for e in task.train() if len(e.choices or []) == 3)
    assert task.score(three, "B.") and not task.score(three, "D") and not task.score(three, "A or B")


def test_marks_of_gsm8k_become_calculator_calls(hub: LoopbackHub) -> None:
    example = next(e for e in make("gsm8k").train() if "Cleo" in e.question)
    kinds = [part["type"] for part in example.messages[-1]["content"]]  # type: ignore[index]
    assert kinds == ["text", "python", "output", "text", "python", "output", "text"]
    for code, output in zip(example.messages[-1]["content"][1::3], example.messages[-1]["content"][2::3], strict=True):  # type: ignore[index]
        assert calculate(code["text"]) == output["text"]  # type: ignore[index]
    assert example.messages[-1]["content"][-1]["text"].endswith(f"#### {example.answer}")  # type: ignore[index]
    assert parts_of("a <<10/4=2.5>>2.5 b") == [
        {"type": "text", "text": "a "}, {"type": "python", "text": "10/4"}, {"type": "output", "text": "2.5"},
        {"type": "text", "text": "2.5 b"},
    ]  # fmt: skip
    # what our calculator would not say is never shown as its output
    for mark in ("<<2**9=512>>", "<<x+1=3>>", "<<1+1=3>>", "<<5%2=1>>"):
        assert parts_of(f"so {mark}it") == [{"type": "text", "text": "so it"}]


@pytest.mark.skipif(bool(sandbox.available()), reason="no sandbox on this machine")
def test_humaneval_runs_what_was_answered(hub: LoopbackHub) -> None:
    task = make("humaneval")
    assert task.unavailable() == "" and len(task.train()) == 0 and len(task.heldout()) == 12
    example = next(e for e in task.heldout() if e.key == "add_3")
    assert task.score(example, text_of(example.messages[-1]["content"]))
    assert task.expected(example) == text_of(example.messages[-1]["content"]) != example.answer
    assert task.score(example, "    return sum(numbers) + 3\n"), "the rest of the body alone"
    assert task.score(example, "Sure!\n```python\ndef add_3(numbers):\n    return sum(numbers) + 3\n```\nDone.")
    assert not task.score(example, "```python\ndef add_3(numbers):\n    return sum(numbers) + 4\n```")
    assert not task.score(example, "I cannot.") and not task.score(example, "")


def test_bad_rows_are_counted_and_named_by_file_and_row(hub: LoopbackHub) -> None:
    rows: list[dict[str, Any]] = list(published.gsm8k(20))
    for place, bad in ((2, None), (7, "I do not know."), (9, ""), (12, "no mark 4")):
        rows[place] = rows[place] | {"answer": bad}
    published.publish(hub, gsm8k=rows)
    task = make("gsm8k")
    assert len(task.train()) == 16
    (line,) = task.problems()
    assert line.startswith("gsm8k: 4 of 20 rows cannot be used: main/train-00000-of-00001.parquet row 3: answer has no")
    assert "row 8:" in line and "row 10:" in line and "row 13" not in line and line.endswith("…")
    mixed = mix({"gsm8k": 16}, TOK, 2000, 1)
    assert mixed.problems == [line] and mixed.rows == {"gsm8k": 16}


def test_no_usable_row_is_never_silent(hub: LoopbackHub) -> None:
    published.publish(hub, mmlu=[{"question": "Why?", "subject": "", "choices": ["a", "b"], "answer": 0}] * 3)
    with pytest.raises(UserError, match=r"all/auxiliary_train\S*: none of the 3 rows can be used .*row 1: choices"):
        make("mmlu").train()
    with pytest.raises(UserError, match="held out, for evaluation only"):
        mix({"humaneval": 3}, TOK, 2000, 1)


@pytest.mark.parametrize("rows", [[], None])
def test_an_empty_or_changed_file_is_named(hub: LoopbackHub, rows: list[Any] | None) -> None:
    if rows is None:
        data = parquet(["1+1"], column="problem")
        hub.add("openai/gsm8k", {"main/train-00000-of-00001.parquet": data})
        says = "main/train-00000-of-00001.parquet has no column question, answer"
    else:
        published.publish(hub, gsm8k=rows)
        says = "main/train-00000-of-00001.parquet: none of the 0 rows can be used"
    with pytest.raises(UserError, match=says) as caught:
        make("gsm8k").train()
    assert "\n" not in str(caught.value)


def test_the_commit_is_pinned_and_the_files_kept(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make("gsm8k").fetch()
    first = make("gsm8k").train()[0]
    assert found["source"].endswith("datasets/openai/gsm8k") and found["licence"] == "MIT"
    assert found["licence on its card"] == "mit" and len(found["revision"]) == 40
    assert [len(value) for value in found["sha256"].values()] == [64, 64]
    asked = len(hub.requests)
    published.publish(hub, gsm8k=published.gsm8k(10, "newer"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert make("gsm8k").train()[0] == first and make("gsm8k").fetch() == found and len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    newest = hub.repos["datasets", "openai/gsm8k"].commit
    assert "newer" in make(f"gsm8k:revision={newest}").train()[0].question
    assert make("gsm8k").train()[0] == first


def test_other_splits_come_from_the_pinned_commit(hub: LoopbackHub) -> None:
    before = make("mmlu").fetch()["revision"]
    make("mmlu:heldout=validation").fetch()
    assert make("mmlu:heldout=validation").fetch()["revision"] == before


@pytest.mark.parametrize(
    ("kind", "says"),
    [("429", "429 too many requests"), ("500", "500 from the server"), ("missing", "404 not found"),
     ("wrong", "its content does not match its checksum")],
)  # fmt: skip
def test_a_download_that_fails_says_why(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, kind: str, says: str
) -> None:
    monkeypatch.setattr(data_hub, "ATTEMPTS", 1)
    hub.fault("main/train-00000-of-00001.parquet", kind, times=None, method="")
    with pytest.raises(UserError, match=says) as caught:
        make("gsm8k").train()
    assert "main/train-00000-of-00001.parquet of openai/gsm8k" in str(caught.value)


def test_a_cut_or_limited_download_goes_on(hub: LoopbackHub) -> None:
    hub.fault("main/train-00000-of-00001.parquet", "cut")
    hub.fault("main/train-00000-of-00001.parquet", "500")
    said: list[str] = []
    make("gsm8k").fetch(say=said.append)
    assert len(make("gsm8k").train()) == 40
    assert any("main/train-00000-of-00001.parquet" in line and "checked" in line for line in said)


def test_a_mirror_is_remembered(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    make("arc_easy").fetch(mirrors=hub.url)
    for path in (Path(constants.HF_HUB_CACHE)).rglob("*.parquet"):
        path.unlink()
    assert len(make("arc_easy").train()) == 40


def test_a_part_that_is_missing_is_missed(hub: LoopbackHub) -> None:
    del hub.repos["datasets", "HuggingFaceTB/smol-smoltalk"].files["data/train-00001-of-00002.parquet"]
    with pytest.raises(UserError, match="1 of the 2 files"):
        make("smoltalk").train()


def test_two_tasks_of_one_repository(hub: LoopbackHub) -> None:
    easy, hard = make("arc_easy").train(), make("arc_challenge").train()
    assert all("ARC-Easy" in e.question for e in easy) and all("ARC-Challenge" in e.question for e in hard)


def test_rows_are_found_across_files_and_groups(hub: LoopbackHub) -> None:
    train = make("smoltalk").train()
    places = dict(train.visit(range(40)))  # type: ignore[attr-defined]
    assert [places[i] for i in range(40)] == [train[i] for i in range(40)]
    firsts = {text_of(e.messages[-1]["content"]).split()[1] for e in train}
    assert firsts == {str(i) for i in range(40)}


def test_provenance_of_a_mixture(hub: LoopbackHub) -> None:
    mixed = mix({"smoltalk": 100, "mmlu": 30, "gsm8k": 80}, TOK, 2000, 1)
    assert mixed.rows == {"smoltalk": 100, "mmlu": 30, "gsm8k": 80} and mixed.dropped == mixed.cut == 0
    assert set(mixed.sources) == {"smoltalk", "mmlu", "gsm8k"}
    assert json.dumps(mixed.sources)
    again = mix({"smoltalk": 100, "mmlu": 30, "gsm8k": 80}, TOK, 2000, 1)
    assert all((a == c).all() and (b == d).all() for (a, b), (c, d) in zip(
        mixed.conversations, again.conversations, strict=True))  # fmt: skip


def test_large_ones_are_rendered_by_processes_once(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok = train_tokenizer([row["messages"][-1]["content"] for row in published.smoltalk(40)], 300)
    table = {"smoltalk": 70, "gsm8k": 30}
    made = mix(table, tok, 120, 1)
    for name, value in {"LARGE": 40, "PER_PROCESS": 20}.items():
        monkeypatch.setattr(conversations, name, value)
    looked: list[tuple[int, int]] = []
    kept = mix(table, tok, 120, 1, look=lambda done, rows: looked.append((done, rows)))
    (folder,) = (tmp_path / "home" / "conversations").iterdir()
    assert json.loads((folder / "manifest.json").read_text())["conversations"] == 40
    assert looked[-1][1] == 100 and max(done for done, _ in looked) <= 100
    assert (kept.rows, kept.tokens, kept.cut, kept.dropped) == (made.rows, made.tokens, made.cut, made.dropped)
    assert made.cut > 0
    for (ids, mask), (same_ids, same_mask) in zip(made.conversations, kept.conversations, strict=True):
        assert ids.tolist() == same_ids.tolist() and mask.tolist() == same_mask.tolist()


def test_long_conversations_are_cut_at_a_turn(hub: LoopbackHub) -> None:
    mixed = mix({"smoltalk": 40}, TOK, 150, 1)
    end = TOK.special("<|assistant_end|>")
    assert 0 < mixed.cut < 40 and mixed.rows["smoltalk"] + mixed.dropped == 40
    assert all(len(ids) <= 150 and ids[-1] == end for ids, _ in mixed.conversations)
    assert mix({"smoltalk": 40}, TOK, 20_000, 1).cut == 0


@pytest.mark.parametrize("choices", [None, ["4 stones"], {"text": ["4 stones"]}, {"text": None, "label": None}])
def test_options_of_another_form_are_a_bad_row(choices: Any) -> None:
    with pytest.raises(ValueError, match="as many texts as labels"):
        make("arc_easy").read({"question": "What?", "choices": choices, "answerKey": "A"}, "train")  # type: ignore[attr-defined]


def test_what_is_made_ready_comes_from_the_mirrors_and_is_told(hub: LoopbackHub, monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    looked: list[tuple[int, int]] = []

    def look(done: int, everything: int) -> None:
        looked.append((done, everything))
        if everything > 1000:  # bytes, not rows
            raise StopRequested()

    with pytest.raises(StopRequested):
        prepare({"gsm8k": 5}, TOK, 2000, 1, mirrors=hub.url, look=look)
    prepare({"gsm8k": 5}, TOK, 2000, 1, mirrors=hub.url)
    assert looked and mix({"gsm8k": 5}, TOK, 2000, 1).rows == {"gsm8k": 5}
