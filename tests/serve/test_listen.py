"""A real server on a real socket: permissions, interleaving, hanging up, stopping."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from picollm.infer.engine import Engine
from picollm.run.errors import UserError
from picollm.run.serving import Address, Client
from picollm.serve.api import ModelHub, create_app, serve
from picollm.serve.listen import _bind_tcp, bind_unix
from tests.infer.fakes import ByteTokenizer, scripted_engine, tiny_model
from tests.run.conftest import until
from tests.serve.running import PATIENCE_S, Brake, Running

TOK = ByteTokenizer()
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def slow() -> Engine:
    return scripted_engine(list(b"abcdefghij" * 10), prompt_tokens=6)


@pytest.fixture
def brake(slow: Engine) -> Iterator[Brake]:
    """Of the model "slow"."""
    found = Brake(slow)
    yield found
    found.release()


@pytest.fixture
def server(slow: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    hub = ModelHub()
    hub.add("slow", slow)
    hub.add("tiny", lambda: Engine(tiny_model(), TOK, live=False))
    running = Running(hub, tmp_path_factory.mktemp("s"))
    yield running
    running.end()
    assert not running.uds.exists()


def test_socket_is_private_and_needs_no_token(server: Running) -> None:
    assert stat.S_IMODE(os.stat(server.uds).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(server.uds.parent).st_mode) == 0o700
    with server.client() as client:
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["slow", "tiny"]
    [_, tcp] = server.addresses
    assert httpx.get(f"{tcp}/v1/models").status_code == 401
    assert httpx.get(f"{tcp}/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_two_streams_interleave(server: Running, brake: Brake) -> None:
    got: list[int] = []

    def ask(k: int) -> None:
        body = {"model": "slow", "messages": HI, "temperature": 0, "max_tokens": 20, "stream": True}
        with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            got.extend(k for line in answer.iter_lines() for _ in content(line))

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: server.hub.worker.busy == 2, what="both are asked")
    with server.client() as client:  # the event loop is free while models work
        assert client.get("/health").status_code == 200
    brake.allow(12)  # two prompts and ten tokens: fewer than one answer has
    until(lambda: min(got.count(0), got.count(1)) >= 5, what="neither waits for the end of the other")
    assert all(thread.is_alive() for thread in threads)
    brake.release()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert got.count(0) == got.count(1) == 20


def content(line: str) -> str:
    """What this line of a stream adds to the answer."""
    if not line.startswith("data: {"):
        return ""
    return json.loads(line[6:])["choices"][0]["delta"].get("content", "")


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_stops_generation(server: Running, brake: Brake, stream: bool) -> None:
    body = json.dumps({"model": "slow", "messages": HI, "temperature": 0, "max_tokens": 100, "stream": stream}).encode()
    brake.allow(5)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(server.uds))
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
        until(lambda: brake.made == 5)
        assert server.hub.worker.busy == 1
        if stream:
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: server.app.state.gate.active == 0, what="it is noticed")
    brake.release()
    until(lambda: server.hub.worker.busy == 0)
    assert brake.made < 10, "the whole answer is 100 tokens"


def test_a_stop_ends_open_streams(server: Running, brake: Brake) -> None:
    body = {"model": "slow", "messages": HI, "temperature": 0, "max_tokens": 100, "stream": True}
    brake.allow(5)
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        server.stop.set()
        with pytest.raises(httpx.HTTPError):
            "".join(answer.iter_lines())
    until(lambda: not server.thread.is_alive())


def test_addresses_that_cannot_be_used(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("b")
    with pytest.raises(UserError, match="bytes"):
        bind_unix(folder / ("x" * 110) / "s.sock")
    (folder / "open").mkdir(mode=0o755)
    with pytest.raises(UserError, match="chmod 700"):
        bind_unix(folder / "open" / "s.sock")
    path = folder / "p" / "s.sock"
    first = bind_unix(path)
    with pytest.raises(UserError, match="already listens"):
        bind_unix(path)
    first.close()
    bind_unix(path).close()  # what a dead process left is replaced
    app = create_app(ModelHub(), None)
    with pytest.raises(UserError, match="token"):
        serve(app, host="127.0.0.1")
    with pytest.raises(UserError, match="nowhere"):
        serve(app)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen"):
        serve(create_app(ModelHub(), "t"), host="127.0.0.1", port=taken.getsockname()[1])


def test_our_own_client_understands_it(server: Running) -> None:
    client = Client(Address(uds=str(server.uds)))
    assert client.models() == ["slow", "tiny"]
    *pieces, last = client.stream_chat("slow", HI, temperature=0, max_tokens=12)
    assert "".join(piece.text for piece in pieces) == "abcdefghijab"
    assert (last.finish_reason, last.tokens) == ("length", 12) and last.tok_s
    *pieces, last = client.stream_completion("tiny", "x", max_tokens=5)
    assert last.finish_reason in ("length", "stop")
    with pytest.raises(UserError, match="does not exist"):
        list(client.stream_chat("gone", HI))


def test_texts_with_ends_of_lines_that_are_none(tmp_path: Path) -> None:
    said = "a\u2028b\x85c\u2029d\x0be\x1cf"  # what splits text into lines, httpx among them, would break there
    hub = ModelHub()
    hub.add("odd", scripted_engine(list(said.encode()), prompt_tokens=6))
    running = Running(hub, tmp_path)
    try:
        client = Client(Address(uds=str(running.uds)))
        *pieces, last = client.stream_chat("odd", HI, temperature=0, max_tokens=40)
        assert "".join(piece.text for piece in pieces) == said and last.finish_reason == "stop"
    finally:
        running.end()


def test_a_short_piece_does_not_wait_for_the_client() -> None:
    with _bind_tcp("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
