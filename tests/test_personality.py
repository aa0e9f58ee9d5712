"""The worked example of docs/personality.md: its rows are sound and its settings are those of the program."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from picollm.run import config
from picollm.tasks import make
from picollm.tasks.rows import read_rows
from picollm.text.chat import text_of

ROOT = Path(__file__).resolve().parents[1]
PIRATE = ROOT / "docs" / "pirate.jsonl"
PAGE = (ROOT / "docs" / "personality.md").read_text(encoding="utf-8")


def test_the_rows_are_many_and_different() -> None:
    rows = read_rows(PIRATE)
    asked = [text_of(row.messages[0]["content"]) for row in rows]
    answers = [text_of(row.messages[1]["content"]) for row in rows]
    assert len(rows) >= 120 and len({text.lower() for text in asked}) == len(set(answers)) == len(rows)
    marks = re.compile(r"\b(arr|aye|ahoy|matey|ye|yer|nay|hearties|yo ho|me|be)\b", re.I)
    assert [answer for answer in answers if not marks.search(answer)] == []


def test_the_settings_of_the_page_make_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    [written] = re.findall(r"^    (\[sft\]\n    mixture = .*)\n", PAGE, re.M)
    file = tmp_path / "pirate.toml"
    file.write_text(written.replace("\n    ", "\n"))
    settings = config.load("pocket", file, environ={})
    assert settings.sft.mixture == tomllib.loads(file.read_text())["sft"]["mixture"]
    assert not any(name.startswith("identity") for name in settings.sft.mixture)  # two answers to "Who are you?"
    [pirate] = [make(name) for name in settings.sft.mixture if name.startswith("custom")]
    assert len(pirate.train()) > 100 and len(pirate.heldout()) > 5
    assert all(pirate.score(example, example.answer) for example in pirate.heldout())
