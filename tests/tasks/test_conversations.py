"""Large mixtures: kept in a folder, the same as made at once. (Published rows, in processes: test_published.py.)"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from picollm.run.errors import StopRequested
from picollm.tasks import conversations, make
from picollm.tasks.mixing import Mixed, mix, prepare
from picollm.text.tokenizer import Tokenizer, train_tokenizer

TABLE = {"simple_spelling:rows=90": 200, "spelling_bee": 60, "arithmetic": 20}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return train_tokenizer(["Spell the word harbor, please. How many r are in it? The calculator agrees. "] * 3, 300)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_corpus: None) -> Path:
    """As if 50 examples were many."""
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path))
    monkeypatch.setattr(conversations, "LARGE", 50)
    return tmp_path / "conversations"


def lists(mixed: Mixed) -> list[tuple[list[int], list[int]]]:
    return [(ids.tolist(), mask.tolist()) for ids, mask in mixed.conversations]


def test_kept_is_the_same_as_made(tok: Tokenizer, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[int, int]] = []
    prepare(TABLE, tok, 120, 7, look=lambda done, rows: looked.append((done, rows)))
    folders = sorted(large.iterdir())
    assert len(folders) == 2 and {p.name for p in folders[0].iterdir()} == {"tokens.bin", "index.npy", "manifest.json"}
    assert looked and all(done <= rows for done, rows in looked)
    times = [path.stat().st_mtime_ns for path in folders]
    kept = mix(TABLE, tok, 120, 7)
    assert sorted(large.iterdir()) == folders and [path.stat().st_mtime_ns for path in folders] == times
    assert any(isinstance(p.tokens, np.memmap) for p in kept.conversations._portions)
    monkeypatch.setattr(conversations, "LARGE", 1000)
    made = mix(TABLE, tok, 120, 7)
    assert lists(kept) == lists(made)
    assert (kept.rows, kept.tokens, kept.cut, kept.dropped) == (made.rows, made.tokens, made.cut, made.dropped)
    assert 0 < made.dropped < 60 and made.rows["simple_spelling:rows=90"] == 200


def test_what_nobody_used_for_long_goes_when_something_new_is_rendered(tok: Tokenizer, large: Path) -> None:
    prepare({"spelling_bee": 60, "simple_spelling": 60}, tok, 120, 7)
    used, unused = (next(f for f in large.iterdir() if name in (f / "manifest.json").read_text())
                    for name in ("spelling_bee", "simple_spelling"))  # fmt: skip
    long_ago = time.time() - 31 * 24 * 3600
    for folder in (used, unused):
        os.utime(folder / "manifest.json", (long_ago, long_ago))
    mapped = mix({"simple_spelling": 60}, tok, 120, 7)
    os.utime(unused / "manifest.json", (long_ago, long_ago))
    mix({"spelling_bee": 60}, tok, 120, 7)
    assert used.exists() and unused.exists(), "nothing new was rendered"
    prepare({"spelling_bee": 70}, tok, 120, 7)
    assert used.exists() and not unused.exists() and len(list(large.iterdir())) == 2
    assert len(lists(mapped)) == 60
    assert lists(mix({"simple_spelling": 60}, tok, 120, 7)) == lists(mapped), "made again"


@pytest.mark.parametrize("change", ["tokenizer", "length", "seed", "settings", "count"])
def test_what_is_made_of_something_else_is_kept_elsewhere(tok: Tokenizer, large: Path, change: str) -> None:
    prepare({"spelling_bee": 60}, tok, 120, 7)
    other = train_tokenizer(["Something else entirely."] * 3, 290) if change == "tokenizer" else tok
    name = "spelling_bee:coined=0.4" if change == "settings" else "spelling_bee"
    prepare({name: 61 if change == "count" else 60}, other, 121 if change == "length" else 120,
            8 if change == "seed" else 7)  # fmt: skip
    assert len(list(large.iterdir())) == 2


def test_a_stop_leaves_nothing_half_done(tok: Tokenizer, large: Path) -> None:
    def stop(done: int, rows: int) -> None:
        raise StopRequested()

    with pytest.raises(StopRequested):
        prepare({"spelling_bee": 60}, tok, 120, 7, look=stop)
    assert list(large.iterdir()) == []


def test_a_torn_folder_is_made_again(tok: Tokenizer, large: Path) -> None:
    wanted = lists(mix({"spelling_bee": 60}, tok, 120, 7))
    (folder,) = large.iterdir()
    os.truncate(folder / "tokens.bin", 10)
    assert lists(mix({"spelling_bee": 60}, tok, 120, 7)) == wanted


def test_memory_of_a_large_mixture_is_that_of_its_tokens(tok: Tokenizer, small_corpus: None) -> None:
    mixed = mix({"spelling_bee": 500}, tok, 400, 7)
    tokens = sum(mixed.tokens.values())
    (portion,) = mixed.conversations._portions
    assert portion.tokens.nbytes == 2 * tokens and mixed.conversations._places.nbytes == 4 * 500
    assert make("spelling_bee").train()[79_999].key
