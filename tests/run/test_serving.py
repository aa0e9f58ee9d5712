"""The client against a small server of our own on a Unix socket, started as `stages.serve` would be."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from picollm.run import lease, serving
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tests.run.conftest import until

SERVER = """
import argparse, json, os, socketserver, sys, tempfile, time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from picollm.run import lease
from picollm.run.folder import write_atomic

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def address_string(self): return "unix"
    def answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200, {"data": [{"id": "base"}, {"id": "sft"}]})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] == "nope":
            return self.answer(404, {"error": {"message": "no model nope"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        chat = "messages" in body
        said = body["messages"][-1]["content"] if chat else body["prompt"]
        for piece in ["You ", "said ", said, f" {body['seed']} {body['temperature']} {body['top_k']}"]:
            choice = {"delta": {"content": piece}} if chat else {"text": piece}
            self.send(choices=[choice | {"finish_reason": None}])
            if said == "die": os._exit(3)
            if said == "fail": return self.send(error={"message": "out of ideas"})
        self.send(choices=[{"delta": {}, "finish_reason": "stop"} if chat else {"text": "", "finish_reason": "length"}])
        self.send(choices=[], usage={"completion_tokens": 17})
        self.wfile.write(b"data: [DONE]\\n\\n")
    def send(self, **chunk):
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\\n\\n: comment\\n")
        self.wfile.flush()

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    def get_request(self):
        request, _ = super().get_request()
        return request, ("unix", 0)

parser = argparse.ArgumentParser()
parser.add_argument("--run", type=Path)
folder = parser.parse_args().run / "jobs" / "serve"
if (folder / "broken").exists():
    print("loading"); print("error: no checkpoint to serve", file=sys.stderr); sys.exit(2)
lock = lease.Lock(folder / "lock")
if not lock.exclusive(patience=10.0): sys.exit(4)
with open(folder / "starts", "a") as file: file.write("x")
path = tempfile.mkdtemp() + "/s"
server = Server(path, Handler)
write_atomic(folder / "address.json", json.dumps({"uds": path, **lease.identify()._asdict()}))
server.serve_forever()
"""


@pytest.fixture
def served(run: Run) -> Run:
    (run.dir.parent.parent / "fakes" / "stages" / "serve.py").write_text(SERVER)
    serving.serve_folder(run).mkdir(parents=True)
    return run


def test_started_once_found_again_and_ended(served: Run) -> None:
    assert serving.serving(served) is None and not serving.stop_serving(served)
    first = serving.ensure_serving(served)
    assert serving.ensure_serving(served) == first == serving.serving(served)
    assert serving.Client(first).models() == ["base", "sft"]
    assert serving.stop_serving(served)
    until(lambda: serving.serving(served) is None)
    assert serving.ensure_serving(served) != first


def test_many_at_once_start_one(served: Run) -> None:
    threads = [threading.Thread(target=serving.ensure_serving, args=(served,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (serving.serve_folder(served) / "starts").read_text() == "x"


def test_chat_and_completion_stream(served: Run) -> None:
    client = serving.Client(serving.ensure_serving(served))
    *pieces, last = client.stream_chat("sft", [{"role": "user", "content": "hey"}], seed=5, temperature=0.0, top_k=9)
    assert "".join(piece.text for piece in pieces) == "You said hey 5 0.0 9" and len(pieces) == 4
    assert (last.text, last.finish_reason, last.tokens) == ("", "stop", 17)
    assert last.first_token_s is not None and last.tok_s is not None and pieces[0].first_token_s == last.first_token_s
    *pieces, last = client.stream_completion("base", "once")
    assert "".join(piece.text for piece in pieces).startswith("You said once") and last.finish_reason == "length"


async def test_the_app_streams_without_blocking(served: Run) -> None:
    client = serving.Client(serving.ensure_serving(served))
    deltas = [delta async for delta in client.astream_chat("sft", [{"role": "user", "content": "hey"}])]
    assert "".join(delta.text for delta in deltas).startswith("You said hey") and deltas[-1].finish_reason == "stop"
    deltas = [delta async for delta in client.astream_completion("base", "x")]
    assert deltas[-1].tokens == 17
    with pytest.raises(UserError, match=r"cut off|does not answer"):
        [delta async for delta in client.astream_chat("sft", [{"role": "user", "content": "die"}])]


def test_refusals_and_deaths_are_one_line(served: Run) -> None:
    client = serving.Client(serving.ensure_serving(served))
    with pytest.raises(UserError, match=r"inference process: no model nope \(HTTP 404\)"):
        list(client.stream_chat("nope", [{"role": "user", "content": "x"}]))
    with pytest.raises(UserError, match="the inference process: out of ideas"):
        list(client.stream_chat("sft", [{"role": "user", "content": "fail"}]))
    with pytest.raises(UserError, match=r"cut off|does not answer"):
        list(client.stream_chat("sft", [{"role": "user", "content": "die"}]))
    with pytest.raises(UserError, match="does not answer"):
        client.models()
    assert serving.ensure_serving(served) != client.address


def test_one_that_dies_at_once_says_why(served: Run) -> None:
    (serving.serve_folder(served) / "broken").write_text("")
    with pytest.raises(UserError, match="ended at once: no checkpoint to serve"):
        serving.ensure_serving(served, timeout_s=3600)


def test_a_server_that_is_no_server_of_ours(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(10_000)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with pytest.raises(UserError, match="something else than the OpenAI API"):
        serving.Client(serving.Address(uds=path)).models()
    thread.join(5)
    listener.close()


def test_an_old_address_with_a_reused_pid_is_never_signalled(served: Run) -> None:
    me = lease.identify()
    forged = me._replace(start_ticks=me.start_ticks - 5)
    folder = serving.serve_folder(served)
    lock = lease.Lock(folder / "lock")
    lock.exclusive()
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        import msgspec

        (folder / "address.json").write_bytes(msgspec.json.encode(serving.Address(uds="/x", **forged._asdict())))
        assert not serving.stop_serving(served)
        time.sleep(0.05)
        assert received == [] and os.getpid() == me.pid
    finally:
        signal.signal(signal.SIGTERM, before)
        lock.release()
