"""The official Python client, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from picollm.infer.engine import Engine
from picollm.serve.api import Limits, ModelHub
from tests.infer.fakes import ByteTokenizer, scripted_engine, tiny_model
from tests.serve.running import PATIENCE_S, Brake, Running

openai = pytest.importorskip("openai")

TOK = ByteTokenizer()
S = TOK.special
CALL = [*b"It is ", S("<|python_start|>"), *b"6*7", S("<|python_end|>"), *b"????", *"42 ☃.".encode()]
HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    hub = ModelHub()
    hub.add("script", scripted_engine(CALL, prompt_tokens=6), stage="sft")
    hub.add("held", scripted_engine(CALL, prompt_tokens=6))
    hub.add("demo/base", lambda: Engine(tiny_model(1), TOK, live=False), stage="pretrain")
    running = Running(hub, tmp_path_factory.mktemp("s"), limits=Limits(answers=3, waiting=1))
    yield running
    running.end()


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.tcp}/v1", api_key="secret", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


def test_chat(client: Any) -> None:
    answer = client.chat.completions.create(model="script", messages=HI, temperature=0)
    assert answer.choices[0].message.content == "It is 42 ☃." and answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop" and answer.object == "chat.completion"
    assert answer.usage.prompt_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    cut = client.chat.completions.create(model="script", messages=HI, temperature=0, max_completion_tokens=4)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("It i", "length")
    stop = client.chat.completions.create(model="script", messages=HI, temperature=0, stop=["42"])
    assert (stop.choices[0].message.content, stop.choices[0].finish_reason) == ("It is ", "stop")


def test_parts_and_roles(client: Any) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "hi", "name": "me"},
    ]
    assert client.chat.completions.create(model="script", messages=messages).usage.prompt_tokens > 20


def test_chat_stream_with_usage(client: Any) -> None:
    stream = client.chat.completions.create(model="script", messages=HI, temperature=0, stream=True,
                                            stream_options={"include_usage": True})  # fmt: skip
    *pieces, last = list(stream)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "It is 42 ☃."
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage.completion_tokens > 10 and all(p.usage is None for p in pieces)


def test_the_stream_helper_folds_pieces(client: Any) -> None:
    with client.chat.completions.stream(model="script", messages=HI, temperature=0, n=2, logprobs=True) as stream:
        for _ in stream:
            continue
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["It is 42 ☃."] * 2
    assert bytes(b for entry in final.choices[1].logprobs.content for b in entry.bytes).decode() == "It is 42 ☃."


def test_choices_and_seeds(client: Any) -> None:
    def texts(**how: Any) -> list[str]:
        done = client.completions.create(model="demo/base", prompt="The", max_tokens=12, temperature=1.0, **how)
        return [choice.text for choice in done.choices]

    three = texts(n=3, seed=5)
    assert len(set(three)) > 1 and texts(seed=5) == three[:1] and texts(n=3, seed=5) == three
    assert texts(seed=6) != three[:1]


def test_completions_and_logprobs(client: Any) -> None:
    done = client.completions.create(model="demo/base", prompt=["a", "bc"], max_tokens=6, temperature=0, logprobs=2)
    assert [choice.index for choice in done.choices] == [0, 1] and done.usage.prompt_tokens == 5
    for choice in done.choices:
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == len(choice.logprobs.text_offset)
        assert all(value <= 0 for value in choice.logprobs.token_logprobs)
    pieces = list(client.completions.create(model="demo/base", prompt="a", max_tokens=6, temperature=0, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == done.choices[0].text


def test_chat_logprobs(client: Any) -> None:
    done = client.chat.completions.create(model="script", messages=HI, temperature=0, logprobs=True, top_logprobs=4)
    content = done.choices[0].logprobs.content
    assert bytes(b for entry in content for b in entry.bytes).decode() == "It is 42 ☃."
    assert all(len(entry.top_logprobs) <= 4 and entry.top_logprobs[0].logprob == entry.logprob for entry in content)


def test_extra_fields_of_ours(client: Any) -> None:
    done = client.chat.completions.create(
        model="script", messages=HI, extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0}
    )
    assert done.choices[0].message.content == "It is 42 ☃." and done.model_extra["picollm"]["seed"] >= 0


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["script", "held", "demo/base"]
    assert client.models.retrieve("demo/base").owned_by == "picollm"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gone")


def test_errors_are_the_exceptions_of_the_client(client: Any, server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="script", messages=HI, temperature=9)
    assert bad.value.param == "temperature" and bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="script", messages=HI, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert tools.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="script", messages=[{"role": "user", "content": "z" * 500}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as gone:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert gone.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="script", input="x")
    wrong = openai.OpenAI(base_url=f"{server.tcp}/v1", api_key="wrong", max_retries=0, timeout=PATIENCE_S)
    with pytest.raises(openai.AuthenticationError) as denied:
        wrong.models.list()
    assert denied.value.code == "invalid_api_key"


async def test_the_async_client_and_a_full_queue(server: Running) -> None:
    brake = Brake(server.hub.engine("held"))
    async with openai.AsyncOpenAI(base_url=f"{server.tcp}/v1", api_key="secret", max_retries=0) as client:

        async def ask() -> str:
            done = await client.chat.completions.create(model="held", messages=HI, temperature=0, n=3)
            return done.choices[0].message.content

        asked = [asyncio.ensure_future(ask()) for _ in range(8)]
        try:  # one is at work and one waits; nobody ends before all others were turned away
            async with asyncio.timeout(PATIENCE_S):
                while sum(one.done() for one in asked) < 6:
                    await asyncio.sleep(0.02)
        finally:
            brake.release()
        found = await asyncio.gather(*asked, return_exceptions=True)
    refused = [one for one in found if isinstance(one, openai.RateLimitError)]
    assert len(refused) == 6 and all(one == "It is 42 ☃." for one in found if one not in refused)
    assert refused[0].response.headers["retry-after"]


async def test_with_its_retries_nobody_is_turned_away(server: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.tcp}/v1", api_key="secret", max_retries=30) as client:
        asked = [client.chat.completions.create(model="script", messages=HI, temperature=0) for _ in range(6)]
        done = await asyncio.gather(*asked)
    assert all(one.choices[0].message.content == "It is 42 ☃." for one in done)
