"""The app's client against a server of somebody else: bare, slow, and failing in its own words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from picollm.run.endpoint import Endpoint, at, from_environment
from picollm.run.errors import UserError
from picollm.run.serving import Client, Delta
from tests.endpoint import HOSTILE, WORDS, ForeignEndpoint


@pytest.fixture(scope="module")
def server() -> Iterator[ForeignEndpoint]:
    with ForeignEndpoint(key="k") as serving:
        yield serving


def ask(server: ForeignEndpoint, model: str, key: str = "k") -> tuple[str, Delta]:
    """The words, and the last piece."""

    async def listen() -> list[Delta]:
        stream = Client(Endpoint(server.url, key)).astream_chat(model, [{"role": "user", "content": "x"}], logprobs=5)
        return [delta async for delta in stream]

    pieces = asyncio.run(listen())
    return "".join(piece.text for piece in pieces).strip(), pieces[-1]


@pytest.mark.parametrize("model", ["plain", "bare", "nulls", "whole", "as json", "thinks", "strict"])
def test_every_way_of_answering_is_understood(server: ForeignEndpoint, model: str) -> None:
    words, last = ask(server, model)
    assert (words, last.finish_reason, last.tokens) == (WORDS, "stop", 9)


def test_what_a_strict_server_refuses_is_left_out(server: ForeignEndpoint) -> None:
    ask(server, "strict")
    sent: dict[str, Any] = server.requests[-1]
    assert sent["max_completion_tokens"] == 96 and sent["temperature"] == 0.7
    assert not {"max_tokens", "stream_options", "logprobs", "top_logprobs", "top_k", "seed"} & set(sent)


def test_long_and_hostile_answers_come_whole(server: ForeignEndpoint) -> None:
    assert ask(server, "hostile")[0] == HOSTILE.strip()
    assert len(ask(server, "huge")[0]) > 2_000_000


@pytest.mark.parametrize(
    ("model", "key", "words"),
    [
        ("dies", "k", "the answer was cut off: 127.0.0.1:PORT is gone; ask again"),
        ("hangs up", "k", "the answer was cut off: 127.0.0.1:PORT is gone"),
        ("fails", "k", "127.0.0.1:PORT: the GPU [2J fell over"),
        ("busy", "k", "127.0.0.1:PORT: Rate limit reached; ask again in 7 s (HTTP 429)"),
        ("html", "k", "127.0.0.1:PORT: 502 Bad Gateway (HTTP 502)"),
        ("plain 400", "k", "127.0.0.1:PORT: extra fields [2J not permitted (HTTP 400)"),
        ("moved", "k", "has moved to https://elsewhere.example/v1/chat/completions; set OPENAI_BASE_URL (HTTP 308)"),
        ("nobody", "k", "127.0.0.1:PORT: The model `nobody` does not exist (HTTP 404)"),
        ("plain", "wrong", "Incorrect API key provided.; is OPENAI_API_KEY right? (HTTP 401)"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_with_its_name(server: ForeignEndpoint, model: str, key: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        ask(server, model, key)
    assert words.replace("PORT", str(server.server_port)) in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-ß", "sk-\x1b"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY holds") as refused:
        from_environment({"OPENAI_BASE_URL": "https://models.example/v1", "OPENAI_API_KEY": key})
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["models.example", "http://exa mple/v1", "http://x/v1\x1b[2J", "http://x:99999/v1", "http://[::1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="OPENAI_BASE_URL is no address"):
        from_environment({"OPENAI_BASE_URL": url})


def test_the_key_goes_to_the_address_it_is_for() -> None:
    known = {"OPENAI_BASE_URL": "https://models.example/v1", "OPENAI_API_KEY": "secret"}
    assert at("https://models.example/v1/", known).key == "secret"
    assert at("https://other.example/v1", known).key == ""
    with pytest.raises(UserError, match="no address"):
        at("https://user:pw@other.example/v1", known)
