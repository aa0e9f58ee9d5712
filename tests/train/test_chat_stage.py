from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from picollm.run.errors import UserError
from picollm.tasks import identity
from picollm.train import chat_stage


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
