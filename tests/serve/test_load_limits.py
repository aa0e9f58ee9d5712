"""Too much: what is refused, with which status, and that nobody else notices."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from picollm.infer.engine import Engine
from picollm.run.errors import UserError
from picollm.serve.api import Limits, ModelHub
from picollm.serve.hub import ModelHub as Hub
from picollm.serve.hub import Unavailable
from tests.infer.fakes import ByteTokenizer, scripted_engine, tiny_model
from tests.run.conftest import until
from tests.serve.running import PATIENCE_S, Brake, Running

HI = [{"role": "user", "content": "hi"}]
Make = Callable[..., tuple[Running, Brake]]


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Starts servers of the model "slow", which makes as many steps as `allowed` and then waits for its brake."""
    started: list[tuple[Running, Brake]] = []

    def make(allowed: int = 1_000_000, pause_s: float = 0.0, **limits: Any) -> tuple[Running, Brake]:
        slow = scripted_engine(list(b"abcdefghij" * 10), prompt_tokens=6)
        real = slow.model.hidden

        def hidden(*args):  # type: ignore[no-untyped-def]
            time.sleep(pause_s)
            return real(*args)

        slow.model.hidden = hidden  # type: ignore[method-assign]
        hub = ModelHub()
        hub.add("slow", slow)
        hub.add("tiny", Engine(tiny_model(), ByteTokenizer(), live=False))
        brake = Brake(slow, allowed)
        started.append((Running(hub, tmp_path_factory.mktemp("s"), limits=Limits(**limits)), brake))
        return started[-1]

    yield make
    for running, brake in started:
        brake.release()
        running.end()


def ask(server: Running, **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/chat/completions", json={"model": "slow", "messages": HI, "temperature": 0, **body})


def later(server: Running, answers: list[httpx.Response], **body: Any) -> threading.Thread:
    """Ask, and put the answer with the others when it comes."""
    thread = threading.Thread(target=lambda: answers.append(ask(server, **body)))
    thread.start()
    return thread


def test_a_full_queue_answers_429(start: Make) -> None:
    server, brake = start(allowed=0, answers=1, waiting=1)
    gate, answers = server.app.state.gate, list[httpx.Response]()
    threads = [later(server, answers, max_tokens=100)]
    until(lambda: gate.active == 1)
    threads.append(later(server, answers, max_tokens=3))
    until(lambda: gate.waiting == 1)
    refused(ask(server, max_tokens=3), 429)
    brake.release()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [answer.status_code for answer in answers] == [200, 200]
    counted(server, 200, 429)


def test_a_long_wait_answers_503(start: Make) -> None:
    server, brake = start(allowed=0, answers=1, wait_s=0.3)
    answers: list[httpx.Response] = []
    first = later(server, answers, max_tokens=100)
    until(lambda: server.app.state.gate.active == 1)
    refused(ask(server, max_tokens=3), 503)
    brake.release()
    first.join(PATIENCE_S)
    assert answers[0].status_code == 200
    assert ask(server, max_tokens=3).json()["choices"][0]["message"]["content"] == "abc"
    counted(server, 200, 503)


def refused(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status
    assert int(answer.headers["retry-after"]) >= 1 and answer.json()["error"]["message"]


def counted(server: Running, *statuses: int) -> None:
    with server.client() as client:
        text = client.get("/metrics").text
    for status in statuses:
        assert f'picollm_requests_total{{path="/v1/chat/completions",status="{status}"}}' in text


def test_an_answer_that_takes_too_long_ends(start: Make) -> None:
    server, brake = start(allowed=1, answer_s=0.5)
    answer = ask(server, max_tokens=100)
    assert answer.status_code == 503 and "longer than 0.5 s" in answer.json()["error"]["message"]
    body = {"model": "slow", "messages": HI, "max_tokens": 100, "stream": True}
    for patience in (0.5, 2.0, 8.0, 32.0):  # until the machine is quick enough to begin in time
        server.app.state.limits = Limits(answer_s=patience)
        brake.allow(8)
        with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert stream.status_code in (200, 503)
        if '"content":"a' in "".join(lines):
            break
    assert stream.status_code == 200 and f"longer than {patience:g} s" in lines[-1]
    server.app.state.limits = Limits()
    brake.release()
    assert ask(server, max_tokens=3).status_code == 200
    until(lambda: not server.hub.worker.busy and server.app.state.gate.active == 0)


def test_a_request_that_does_not_arrive_is_given_up(start: Make) -> None:
    server, _ = start(body_s=0.3)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(server.uds))
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert sock.recv(1000).startswith(b"HTTP/1.1 408")
    server.app.state.limits = Limits()
    assert ask(server, max_tokens=2).status_code == 200


def test_a_client_that_leaves_the_queue_frees_its_place(start: Make) -> None:
    server, brake = start(allowed=0, answers=1, waiting=1)
    gate, answers = server.app.state.gate, list[httpx.Response]()
    first = later(server, answers, max_tokens=60)
    until(lambda: gate.active == 1)
    body = json.dumps({"model": "slow", "messages": HI}).encode()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.uds))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        until(lambda: gate.waiting == 1)
    until(lambda: gate.waiting == 0)
    assert gate.active == 1
    brake.release()
    first.join(PATIENCE_S)
    assert answers[0].status_code == 200
    assert ask(server, max_tokens=2).status_code == 200
    until(lambda: gate.active == 0)


def test_clients_that_leave_at_any_moment_leave_nothing_behind(start: Make) -> None:
    server, _ = start(pause_s=0.005, answers=2, waiting=100)
    for k in range(40):
        body = json.dumps({"model": "slow", "messages": HI, "max_tokens": 50, "stream": bool(k % 2), "n": 1 + k % 3})
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(server.uds))
            sock.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            )
            sock.sendall(body.encode()[: None if k % 5 else 9])
            time.sleep(0.003 * (k % 4))
    gate = server.app.state.gate
    until(lambda: (gate.active, gate.waiting, server.hub.worker.busy) == (0, 0, 0))
    assert ask(server, max_tokens=3).json()["choices"][0]["message"]["content"] == "abc"


def test_one_bad_request_harms_no_other(start: Make) -> None:
    server, _ = start(pause_s=0.005)
    broken = Engine(tiny_model(), ByteTokenizer(), live=False)

    def explode(*args: Any) -> Any:
        raise RuntimeError("out of memory, say")

    broken.model.hidden = explode  # type: ignore[method-assign]
    server.hub.add("broken", broken)
    good: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: good.append(ask(server, max_tokens=40).json()["choices"][0]["message"]["content"])
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert [ask(server, model="broken").status_code for _ in range(5)] == [500] * 5
    assert ask(server, model="gone").status_code == 404 and ask(server, n=0).status_code == 400
    for thread in threads:
        thread.join(PATIENCE_S)
    assert good == [("abcdefghij" * 4)] * 4


def test_metrics_count_tokens_loads_and_times(start: Make) -> None:
    server, _ = start()
    server.hub.add("lazy", lambda: Engine(tiny_model(), ByteTokenizer(), live=False))
    for _ in range(2):
        assert ask(server, n=2, max_tokens=5).status_code == 200
    ask(server, model="lazy", max_tokens=4)
    with server.client() as client:
        client.get("/v1/made/up")
        text = client.get("/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert figures['picollm_completion_tokens_total{model="slow"}'] == "20"
    assert figures['picollm_prompt_tokens_total{model="slow"}'] == "12"  # of a prompt once, not once an answer
    assert figures['picollm_first_token_seconds_count{model="slow"}'] == "4"
    assert figures['picollm_token_seconds_count{model="slow"}'] == "16"
    assert figures['picollm_token_seconds_bucket{model="slow",le="+Inf"}'] == "16"
    assert float(figures['picollm_token_seconds_sum{model="slow"}']) > 0
    assert figures['picollm_model_loads_total{model="lazy"}'] == "1"
    assert figures['picollm_model_loaded{model="lazy"}'] == "1" and figures["picollm_active_answers"] == "0"
    assert figures['picollm_requests_total{path="other",status="404"}'] == "1"


def test_only_so_many_models_stay_in_memory() -> None:
    hub = Hub(keep=2)
    for name in "abc":
        hub.add(name, lambda: Engine(tiny_model(), ByteTokenizer(), live=False))
    for name in "abac":
        hub.engine(name)
    assert [name for name in hub.names if hub.info(name)["loaded"]] == ["a", "c"] and hub.loads["b"] == 1

    def missing() -> Engine:
        raise UserError("no checkpoint")

    hub.add("d", missing)
    with pytest.raises(Unavailable, match="'d' cannot be loaded: no checkpoint"):
        hub.engine("d")
