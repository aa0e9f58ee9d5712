"""`picollm report`, as a person types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from picollm import cli
from picollm.run import failures
from picollm.run.folder import Run
from tests.fixtures.make_runs import make

ROW = {"index": 3, "topic": "carry", "prompt": "What is\n2 plus 2?", "expected": "4", "got": "\x1b[31m#### 5"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make(tmp_path, "finished", "r")
    shutil.rmtree(run.dir / "eval" / "failures")
    failures.write(run, "sft", "arithmetic:digits=3", [ROW | {"index": n} for n in range(3, 28)])
    failures.write(run, "sft", "spelling", [])
    return run


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.invoke(["report", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_report_of_now_is_printed_and_nothing_is_written(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run.dir / "report" / "report.md").read_bytes()
    code, out, _ = ask(capsys)
    assert code == 0 and out.startswith("# r\n") and "## Time and cost, planned and spent" in out
    assert (run.dir / "report" / "report.md").read_bytes() == before


def test_the_page_goes_where_it_is_told(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = ask(capsys, "--run", "r", "--html")
    assert code == 0 and out.strip() == str(run.dir / "report" / "report.html")
    assert Path(out.strip()).read_text().startswith("<!doctype html>")
    code, _, _ = ask(capsys, "--html", "--out", str(tmp_path / "deep" / "page.html"))
    assert code == 0 and (tmp_path / "deep" / "page.html").stat().st_size > 10_000
    code, _, err = ask(capsys, "--html", "--out", "/proc/no/page.html")
    assert code == 2 and err.startswith("error: cannot write /proc/no/page.html") and err.count("\n") == 1


def test_wrong_answers_are_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "--failures", "sft/arith", "--limit", "2")
    assert code == 0 and out.startswith(
        "sft/arithmetic:digits=3: 25 wrong answers kept, the first 2\n\nitem 3  carry\n"
    )
    assert (
        "  asked What is\n        2 plus 2?\n  right 4\n  said  \ufffd[31m#### 5\n" in out and out.count("item ") == 2
    )
    code, out, _ = ask(capsys, "--failures", "sft/arithmetic:digits=3", "--limit", "0", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 25 and rows[0] == ROW
    code, _, err = ask(capsys, "--failures", "sft", "--json")
    assert code == 2 and "--failures sft/arithmetic:digits=3" in err
    code, out, _ = ask(capsys, "--failures", "sft")
    assert code == 0 and [line.split() for line in out.splitlines()[1:]] == [
        ["sft/arithmetic:digits=3", "25"],
        ["sft/spelling", "0"],
    ]


@pytest.mark.parametrize("wanted", ["rl", "sft/nothing", "sft/", "nobody/spelling", ""])
def test_what_is_not_there_is_one_line(run: Run, capsys: pytest.CaptureFixture[str], wanted: str) -> None:
    code, _, err = ask(capsys, "--failures", wanted)
    assert code == 2 and "there are: sft/arithmetic:digits=3, sft/spelling" in err and err.count("\n") == 1


def test_two_wishes_at_once_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ask(capsys, "--failures", "sft", "--html")
    assert code == 2 and "leave out" in err
