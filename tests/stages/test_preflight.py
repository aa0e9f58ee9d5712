from __future__ import annotations

from pathlib import Path

import pytest

from picollm.run.errors import UserError
from stages import preflight


def test_only_what_will_be_read_counts_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    (tmp_path / "b.md").write_bytes(b"x" * 20)
    (tmp_path / "film.mp4").write_bytes(b"x" * 4000)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "notes.txt").write_bytes(b"x" * 4000)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert preflight._source_bytes(str(tmp_path)) == 120
    assert preflight._source_bytes(str(tmp_path / "a.txt")) == 100
    with pytest.raises(UserError, match="does not exist"):
        preflight._source_bytes(str(tmp_path / "missing"))
