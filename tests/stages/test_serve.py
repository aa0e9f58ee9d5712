"""The inference process on a run folder that holds one tiny model."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from picollm.run import serving
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.text.tokenizer import train_tokenizer
from stages import serve
from tests.serve.tiny_run import make

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120.0
"""For what takes a moment: a process that ends, an answer. Longer only where the machine stands still."""
get = functools.partial(httpx.get, timeout=WAIT_S)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.setenv("PICOLLM_RUNS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def made(runs: Path) -> Run:
    return make("tiny", "the boats came home over the grey water")


@pytest.fixture
def serves(made: Run) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `python -m stages.serve` on it; killed at the end if need be."""
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="p") as short:

        def start(*words: str) -> subprocess.Popen[bytes]:
            argv = [sys.executable, "-m", "stages.serve", "--run", str(made.dir), *words]
            env = os.environ | {"XDG_RUNTIME_DIR": short, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            started.append(process)
            assert process.stdout is not None
            assert any(line.startswith(b"listening on ") for line in process.stdout), "it ended before it listened"
            return process

        yield start
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_it_lists_answers_and_ends_on_a_signal(made: Run, serves: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = serves()
    address = serving.serving(made)
    assert address is not None and address.pid == process.pid
    client = serving.Client(address)
    assert client.models() == ["base"]
    pieces = list(client.stream_completion("base", "the boats", temperature=0.0, top_k=0, seed=1, max_tokens=4))
    assert pieces[-1].finish_reason in ("stop", "length")
    folder = serving.serve_folder(made)
    assert json.loads((folder / "address.json").read_text())["addresses"] == [address.uds]
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0
    assert serving.serving(made) is None and not Path(address.uds).exists()
    assert not (folder / "address.json").exists()


@pytest.mark.slow
def test_it_ends_when_nobody_asks(made: Run, serves: Callable[..., subprocess.Popen[bytes]]) -> None:
    assert serves("--idle", "0.5").wait(WAIT_S) == 0
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


# over TCP, in the foreground ------------------------------------------------------------------------------------------


class Foreground:
    """`picollm serve …` as a person starts it, and what it says."""

    def __init__(self, *words: str, **env: str) -> None:
        argv = [sys.executable, "-m", "picollm.cli", *words]
        self.process = subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": str(ROOT)} | env, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            if line.startswith("Ctrl-C"):
                break

    def after(self, words: str) -> str:
        """The rest of the first line that begins so."""
        return next(line for line in self.said if line.startswith(words)).removeprefix(words)

    def __enter__(self) -> Foreground:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_several_runs_under_one_server(made: Run) -> None:
    make("other", "rain fell on the quiet town all night")
    with Foreground("serve", "--run", "tiny", "--run", "other", "--port", "0") as server:
        address = server.after("the page is at ")
        listed = get(f"{address}v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["tiny/base", "other/base"]
        assert get(f"{address}v1/models/other/base").json()["picollm"]["run"] == "other"
        for model in ("tiny/base", "other/base"):
            body = {"model": model, "prompt": "the", "max_tokens": 3, "temperature": 0}
            answer = httpx.post(f"{address}v1/completions", json=body, timeout=WAIT_S).json()
            assert answer["usage"]["completion_tokens"]
        assert "<title>" in get(address).text
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(WAIT_S) == 0


@pytest.mark.slow
def test_all_but_loopback_asks_for_a_token(made: Run, tmp_path: Path) -> None:
    with Foreground("web", "--no-browser", "--run", "tiny", "--host", "0.0.0.0", "--port", "0") as server:
        address, token = server.after("the page is at "), server.after("token: ")
        assert get(f"{address}v1/models").status_code == 401 and get(address).status_code == 200
        assert get(f"{address}v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    (tmp_path / "token").write_text("a-token-of-our-own\n")
    (tmp_path / "token").chmod(0o600)
    with Foreground("serve", "--run", "tiny", "--port", "0", "--token-file", str(tmp_path / "token")) as server:
        address = server.after("the page is at ")
        assert not any("a-token" in line for line in server.said)
        assert get(f"{address}metrics").status_code == 401
        mine = {"Authorization": "Bearer a-token-of-our-own"}
        assert "picollm_requests_total" in get(f"{address}metrics", headers=mine).text


@pytest.mark.slow
def test_what_cannot_be_served_is_one_line_that_says_what_to_run(runs: Path) -> None:
    foreign = make("foreign", "boats and rain")
    train_tokenizer(["something else entirely"], 280).save(foreign.dir / "tokenizer")
    with Foreground("serve", "--run", "foreign", "--port", "0") as server:
        assert server.process.wait(WAIT_S) == 2
        [_, last] = server.said
    assert last.startswith("error: ") and "another tokenizer" in last
    assert "picollm run --run foreign --from pretrain" in last


def test_a_token_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    assert serve.choose_token(None, demanded=False) is None
    one, two = (serve.choose_token(None, demanded=True) for _ in range(2))
    assert one and two and one != two and len(one) >= 32
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "sixteen-or-more-characters")
    assert serve.choose_token(None, demanded=False) == "sixteen-or-more-characters"
    for bad in ("short", "", "with a space in the middle", "nön-ascii-characters-in-it"):
        monkeypatch.setenv(serve.TOKEN_VARIABLE, bad)
        with pytest.raises(UserError, match="16 or more"):
            serve.choose_token(None, demanded=False)
    file = tmp_path / "token"
    with pytest.raises(UserError, match="cannot read"):
        serve.choose_token(file, demanded=True)
    file.write_text("sixteen-or-more-again\n")
    file.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        serve.choose_token(file, demanded=True)
    file.chmod(0o600)
    assert serve.choose_token(file, demanded=True) == "sixteen-or-more-again"


@pytest.mark.parametrize("origin", ["*", "https://*.example", "chat.example", "https://a.example/", "null", "ftp://x"])
def test_only_exact_origins(origin: str) -> None:
    with pytest.raises(UserError, match="exact origin"):
        serve.check_origin(origin)
    assert serve.check_origin("http://localhost:3000") == "http://localhost:3000"


def test_a_browser_is_opened_only_where_the_person_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSH_CONNECTION", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert serve.can_open()
    monkeypatch.setenv("SSH_CONNECTION", "1 2 3 4")
    assert not serve.can_open()


def test_an_interrupt_while_it_starts_is_no_traceback(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "serve_publicly", interrupted)
    monkeypatch.setattr(sys, "argv", ["serve", "--run", str(made.dir), "--host", "127.0.0.1"])
    assert serve.main() == 130
