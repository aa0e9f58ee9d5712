"""The inference process on a run folder that holds one tiny model."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from picollm.model.gpt import GPT
from picollm.run import config, serving
from picollm.run import events as ev
from picollm.run.folder import Run
from picollm.run.scaling import shape_for
from picollm.text.tokenizer import train_tokenizer
from picollm.train import checkpoint
from stages import serve

ROOT = Path(__file__).resolve().parents[2]


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.05)
    return value


def finished(run: Run, stage: str, paths: dict[str, str], artifacts: dict[str, str]) -> None:
    ev.append(run.events_file(stage, 1), ev.Finished(seconds=1.0, paths=paths, artifacts=artifacts))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose tokenizer and pretraining are done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PICOLLM_RUNS", str(tmp_path_factory.mktemp("runs")))
        run = Run.create("tiny", config.load(environ={}))
    tok = train_tokenizer(["the boats came home over the grey water"], 280)
    tok.save(run.dir / "tokenizer")
    model = GPT(shape_for(2, tok.vocab_size, 32, dim=32, head_dim=16))
    model.init_weights(1)
    meta = {"fingerprint": "f", "tokenizer": tok.hash}
    info = checkpoint.save(run.dir / "base_checkpoints", 1, model, None, meta)
    for stage in ("tokenizer", "pretrain"):
        run.stage_dir(stage).mkdir(parents=True)
    finished(run, "tokenizer", {"tokenizer": "tokenizer"}, {"tokenizer": tok.hash})
    finished(run, "pretrain", {"checkpoint": str(info.path.relative_to(run.dir))}, {"checkpoint": info.hash})
    return run


@pytest.fixture
def serves(made: Run) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `python -m stages.serve` on it; killed at the end if need be."""
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="p") as short:

        def start(*words: str) -> subprocess.Popen[bytes]:
            argv = [sys.executable, "-m", "stages.serve", "--run", str(made.dir), *words]
            env = os.environ | {"XDG_RUNTIME_DIR": short, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            started.append(process)
            until(lambda: serving.serving(made) or process.poll() is not None)
            assert process.poll() is None, "it ended before it listened"
            return process

        yield start
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_it_lists_answers_and_ends_on_a_signal(made: Run, serves: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = serves("--host", "127.0.0.1")
    address = serving.serving(made)
    assert address is not None and address.pid == process.pid
    client = serving.Client(address)
    assert client.models() == ["base"]
    pieces = list(client.stream_completion("base", "the boats", temperature=0.0, top_k=0, seed=1, max_tokens=4))
    assert pieces[-1].finish_reason in ("stop", "length")
    folder = serving.serve_folder(made)
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    [_, tcp] = json.loads((folder / "address.json").read_text())["addresses"]
    assert httpx.get(f"{tcp}/v1/models").status_code == 401
    token = (folder / "token").read_text().strip()
    assert httpx.get(f"{tcp}/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert serving.serving(made) is None and not Path(address.uds).exists()
    assert not (folder / "address.json").exists()


@pytest.mark.slow
def test_it_ends_when_nobody_asks(made: Run, serves: Callable[..., subprocess.Popen[bytes]]) -> None:
    assert serves("--idle", "0.5").wait(20) == 0
    assert serving.serving(made) is None


def test_a_run_without_a_model_is_the_persons_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", "--run", str(tmp_path)])
    assert serve.main() == 2
    assert "is not a run folder" in capfd.readouterr().err


def test_the_socket_is_in_a_folder_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "runs" / "r")
    ours = Path(tempfile.gettempdir()) / f"picollm-{os.getuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert serve.socket_path(run).parent == tmp_path / "picollm"
    for elsewhere in (str(tmp_path / "missing"), "", "/dev/null"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", elsewhere)
        assert serve.socket_path(run).parent == ours
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert serve.socket_path(run).parent != tmp_path / "picollm"


def test_the_token_file_was_never_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    real = os.replace

    def replace(draft: str, path: Path) -> None:
        modes.append(stat.S_IMODE(os.stat(draft).st_mode))
        real(draft, path)

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "token").write_text("old")
    serve.write_token(tmp_path / "token", "secret")
    assert modes == [0o600] and (tmp_path / "token").read_text() == "secret\n"
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
