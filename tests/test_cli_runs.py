"""`picollm runs`: the list, and runs renamed, copied, archived, restored, deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from picollm import cli
from picollm.run import config as settings
from picollm.run.folder import Run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    Run.create("a", settings.load("smoke", environ={}))
    return tmp_path / "runs"


def call(*argv: str, capsys: Any) -> tuple[int, str, str]:
    code = cli.invoke(["runs", *argv])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_one_run_through_its_life(runs: Path, capsys: Any) -> None:
    assert call("note", "a", "the first try", capsys=capsys)[0] == 0
    assert call("note", "a", capsys=capsys)[1] == "the first try\n"
    assert call("copy", "a", "b", "--set", "run.seed=5", capsys=capsys)[0] == 0
    assert Run.open("b").wishes().run.seed == 5 and Run.open("b").wishes().run.profile == "smoke"
    assert call("rename", "b", "c", capsys=capsys)[0] == 0
    code, out, _ = call("archive", "c", capsys=capsys)
    assert code == 0 and str(runs / ".archive" / "c") in out
    assert "c " not in call(capsys=capsys)[1] and "c (archived)" in call("--archived", capsys=capsys)[1]
    found = json.loads(call("--archived", "--json", capsys=capsys)[1])
    assert {(one["name"], one["archived"], one["note"]) for one in found} == {
        ("a", False, "the first try"),
        ("c", True, ""),
    }
    assert call("restore", "c", capsys=capsys)[0] == 0
    code, out, _ = call("delete", "c", "--yes", capsys=capsys)
    assert code == 0 and "config.toml" in out and "freed" in out and not (runs / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rename", "nobody", "x"), "no run 'nobody'"),
        (("rename", "a", "two words"), "run name 'two words'"),
        (("copy", "a", "b", "--set", "sft.lr=fast"), "sft.lr"),
        (("copy", "a", "b", "--from", "sft"), "make it first"),
        (("copy", "a", "b", "--from", "nothing"), "unknown stage"),
        (("restore", "a"), "no run 'a' in the archive (it is empty)"),
        (("delete", "a"), "--yes deletes"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], words: str, runs: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    code, _, err = call(*arguments, capsys=capsys)
    assert code == 2 and words in err and err.count("\n") == 1
    assert [run.name for run in Run.all()] == ["a"]


def test_deleting_asks_for_the_name(runs: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "b")
    code, out, _ = call("delete", "a", capsys=capsys)
    assert code == 3 and "nothing deleted" in out and (runs / "a").exists()
    monkeypatch.setattr("builtins.input", lambda question: "a")
    assert call("delete", "a", capsys=capsys)[0] == 0 and not (runs / "a").exists()
