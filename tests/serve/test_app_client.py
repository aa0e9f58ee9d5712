"""The app's client against the real server: tokens with their probabilities, tool calls, endpoints with a key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from picollm.infer.engine import Engine
from picollm.run import serving
from picollm.run.endpoint import Endpoint
from picollm.run.errors import UserError
from picollm.run.stream import ToolCall
from picollm.serve.api import ModelHub
from picollm.serve.runs import RunModels
from tests.infer.fakes import ByteTokenizer, scripted_engine, tiny_model
from tests.serve.running import Running
from tests.serve.test_api import CALL, HI, HI_TOKENS
from tests.serve.tiny_run import add_model, make

HOW: dict[str, Any] = {"seed": 3, "temperature": 1.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    hub = ModelHub()
    hub.add("base", Engine(tiny_model(1), ByteTokenizer(), live=False))
    hub.add("script", scripted_engine(CALL, prompt_tokens=HI_TOKENS))
    running = Running(hub, tmp_path_factory.mktemp("s"))
    yield running
    running.end()


@pytest.fixture
def client(running: Running) -> serving.Client:
    return serving.Client(serving.Address(uds=str(running.uds)))


def test_tool_calls_are_told_to_who_asks(client: serving.Client) -> None:
    *pieces, last = client.stream_chat("script", HI, show_tools=True, **HOW | {"max_tokens": 60, "temperature": 0.0})
    assert [call for piece in pieces for call in piece.calls] == [ToolCall("6*7", "42")]
    text = "".join(piece.text for piece in pieces)
    assert "6*7" not in text and text.startswith("It is ")
    assert last.prompt_tokens == HI_TOKENS and last.tokens > 8
    assert not any(piece.calls for piece in client.stream_chat("script", HI, **HOW))


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_come_with_their_probability_and_what_else_was_likely(client: serving.Client, chat: bool) -> None:
    ask: Any = client.stream_chat if chat else client.stream_completion
    plain = "".join(piece.text for piece in ask("base", HI if chat else "hi", **HOW))
    pieces = list(ask("base", HI if chat else "hi", logprobs=3, **HOW))
    seen = [token for piece in pieces for token in piece.seen]
    assert "".join(piece.text for piece in pieces) == plain and seen
    for token in seen:
        assert token.logprob <= 0 and 2 <= len(token.top) <= 4
        assert [value for _, value in token.top] == sorted((value for _, value in token.top), reverse=True)


def test_an_endpoint_wants_its_key_and_is_asked_in_the_standards_words(running: Running) -> None:
    async def ask(key: str) -> str:
        client = serving.Client(Endpoint(f"{running.tcp}/v1", key))
        assert client.models() == ["base", "script"]
        return "".join([piece.text async for piece in client.astream_chat("script", HI, top_k=7, show_tools=True)])

    assert asyncio.run(ask("secret")).startswith("It is ")
    with pytest.raises(UserError, match="HTTP 401") as refused:
        asyncio.run(ask("wrong-key"))
    assert "wrong-key" not in str(refused.value) and "secret" not in repr(Endpoint("http://x/v1", "secret"))


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 does not answer"):
        serving.Client(Endpoint("http://127.0.0.1:9/v1")).models()


def test_checkpoints_on_the_way_can_be_asked_and_go_when_they_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    run = make("one", "the boats came home")
    add_model(run, "pretrain", seed=3)  # at step 3: the first, at step 1, is now one on the way
    models = RunModels([run], checkpoints=True, say=lambda _: None)
    assert models.hub.names == ["base@1", "base"]
    assert models.hub.info("base@1")["checkpoint"] == "step-000001"
    assert models.hub.engine("base@1").context == models.hub.engine("base").context
    (run.dir / "base_checkpoints" / "step-000001").rename(run.dir / "gone")
    models.look()
    assert models.hub.names == ["base"]
