from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from picollm.run import config
from picollm.run.errors import UserError
from picollm.tasks import identity
from picollm.tasks.mixing import Mixed, mix
from picollm.train import chat_stage
from tests.infer.fakes import ByteTokenizer


def a_run(path: Path, sha256: str) -> SimpleNamespace:
    done = SimpleNamespace(artifacts={"rows": sha256})
    return SimpleNamespace(output=lambda stage, key: path, finished=lambda stage: done)


def test_identity_rows_that_were_signed_again_need_their_stage_again(tmp_path: Path) -> None:
    path = tmp_path / "identity.jsonl"
    first = identity.build(path)
    run = a_run(path, first.sha256)
    assert chat_stage.verified_identity(run) == path  # type: ignore[arg-type]
    path.write_text(path.read_text().replace("picollm", "somebody"))
    with pytest.raises(UserError, match="checksum"):
        chat_stage.verified_identity(run)  # type: ignore[arg-type]
    identity.sign(path)
    with pytest.raises(UserError, match=r"identity\.jsonl has changed since the identity stage; run it again"):
        chat_stage.verified_identity(run)  # type: ignore[arg-type]


def test_own_conversations_are_known_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("a")
    before = chat_stage.file_hash(file)
    assert chat_stage.file_hash(file) == before
    file.write_text("b")
    assert chat_stage.file_hash(file) != before
    with pytest.raises(UserError, match=r"absent\.jsonl cannot be read: No such file"):
        chat_stage.file_hash(tmp_path / "absent.jsonl")


def test_a_checkpoint_knows_the_published_rows_it_was_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in PICOLLM_HOME may be deleted, and the Hub may have newer rows then."""

    def content(sha256: str) -> dict[str, str]:
        trained: dict[str, Any] = {}
        ranks = SimpleNamespace(rank=0, world=1)
        session = SimpleNamespace(
            ranks=ranks, tokenizer=ByteTokenizer(), eval_rows=lambda rows: rows,
            train=lambda *how, **more: trained.update(more),
        )  # fmt: skip

        def mixed(table: Any, tok: Any, most: int, seed: int, **files: Any) -> Mixed:
            found = mix(table, tok, most, seed)
            found.sources = {"gsm8k": {"sha256": {"train.parquet": sha256}, "revision": "any"}}
            return found

        settings = config.load(sets=["sft.mixture={ arithmetic = 9 }", "sft.eval_items=0"], environ={})
        ctx = SimpleNamespace(name="sft", config=settings, rank0_first=lambda work: rows, phase=print, message=print)
        monkeypatch.setattr(chat_stage, "open_session", lambda ctx: session)
        monkeypatch.setattr(chat_stage, "mix", mixed)
        chat_stage.train_on_conversations(ctx, "midtrain", all_tokens=False)  # type: ignore[arg-type]
        return trained["content"]

    rows = Path("identity.jsonl")
    assert content("a") == content("a") != content("b")
