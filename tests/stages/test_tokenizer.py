"""The tokenizer stage on one's own text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from unittest.mock import Mock

import pytest

from picollm.data.documents import Document
from picollm.data.shards import write_text
from picollm.run.errors import StopRequested
from stages import tokenizer


def test_the_merges_are_learnt_from_the_first_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_text([Document(id=str(n), text=f"document {n} of many") for n in range(90)], tmp_path)
    read: list[str] = []

    def train(texts: Iterable[str], vocab_size: int) -> None:
        read.extend(texts)
        raise StopRequested()

    monkeypatch.setattr(tokenizer, "train_tokenizer", train)
    monkeypatch.setattr(tokenizer, "TOKENIZER_CHARACTERS", 500)
    with pytest.raises(StopRequested):
        tokenizer._of_text(Mock(), text)
    assert "".join(read) == "".join(text.train_texts())[:500]
