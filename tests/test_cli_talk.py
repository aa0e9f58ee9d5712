"""A conversation on the command line, with a fake inference process."""

# ruff: noqa: F811  pytest passes fixtures by the names that were imported

from __future__ import annotations

import sys
from typing import Any

from picollm import cli
from picollm.run import serving
from picollm.run.folder import Run
from tests.run.conftest import run, runs  # noqa: F401  fixtures
from tests.run.test_serving import SERVER


def test_a_conversation_outlives_the_inference_process_and_a_mistake(run: Run, capsys: Any, monkeypatch: Any) -> None:
    (run.dir.parent.parent / "fakes" / "stages" / "serve.py").write_text(SERVER)
    (run.dir / "base_checkpoints").mkdir()
    lines = iter(["one", "fail", "two"])

    def typed(_: str) -> str:
        for line in lines:
            if line == "two":
                assert serving.stop_serving(run)  # as when nobody has asked for ten minutes
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert cli.invoke(["chat"]) == 0
    out, err = capsys.readouterr()
    assert "You said one 1 0.7 50" in out and "You said two 1 0.7 50" in out
    assert err == "error: the inference process: out of ideas\n"
    serving.stop_serving(run)
