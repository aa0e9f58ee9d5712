"""The tokenizer's table beside those of published vocabularies."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from stages import tokenizer_eval
from tests.infer.fakes import ByteTokenizer


class Letters:
    """A vocabulary in which a token is two bytes."""

    def encode_ordinary(self, text: str) -> list[int]:
        return list(range(-(-len(text.encode()) // 2)))


def test_published_vocabularies_stand_beside_ours_where_they_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_eval, "Tokenizer", SimpleNamespace(load=lambda path: ByteTokenizer()))
    monkeypatch.setattr(tokenizer_eval, "validation_text", lambda ctx: "Some text, and more of it.")
    states = {"GPT-2": (Letters(), "two bytes each"), "GPT-4": (None, "not cached in /x")}
    monkeypatch.setattr(tokenizer_eval, "cached", states.__getitem__)
    ctx = Mock()
    outcome = tokenizer_eval.work(ctx)
    summary = outcome.summary
    assert summary["others"] == {"GPT-2": "two bytes each", "GPT-4": "not cached in /x"}
    for cell in summary["texts"].values():
        assert cell["bytes_per_token"] == 1 and cell["GPT-2"] == pytest.approx(2, rel=0.05) and "GPT-4" not in cell
    assert ctx.eval.call_args_list[0].args[2].keys() == {"bytes_per_token", "GPT-2"}
    assert tokenizer_eval.work(ctx).artifacts == outcome.artifacts
    monkeypatch.setattr(tokenizer_eval, "validation_text", lambda ctx: "Some other text.")
    assert tokenizer_eval.work(ctx).artifacts != outcome.artifacts, "by it the report knows that it is old"
