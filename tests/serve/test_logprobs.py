"""Log-probabilities in both of OpenAI's shapes, streamed or not, without a trace of tools or marks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from picollm.infer.engine import Engine
from picollm.serve.api import ModelHub, create_app
from tests.infer.fakes import ByteTokenizer, scripted_engine, tiny_model

TOK = ByteTokenizer()
S = TOK.special
CALL = [*b"It is ", S("<|python_start|>"), *b"6*7", S("<|python_end|>"), *b"????", *"42 ☃.".encode()]
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    hub = ModelHub()
    hub.add("script", scripted_engine(CALL, prompt_tokens=6))
    hub.add("base", Engine(tiny_model(1), TOK, live=False))
    with TestClient(create_app(hub, None)) as client:
        yield client


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def stream(client: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", f"/v1/{path}", json={**body, "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
    return [choice for line in lines for choice in json.loads(line[6:])["choices"]]


def test_chat_shows_the_tokens_of_its_text_only(client: TestClient) -> None:
    how = {"model": "script", "messages": HI, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    choice = post(client, "chat/completions", **how)
    content = choice["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == "It is 42 ☃."
    assert choice["message"]["content"] == "It is 42 ☃." and "<|" not in json.dumps(content)
    assert [entry["token"] for entry in content][:2] == ["I", "t"] and content[-2]["token"] == "bytes:\\x83"
    assert all(set(entry) == {"token", "logprob", "bytes", "top_logprobs"} for entry in content)
    assert all(entry["top_logprobs"][0]["token"] == entry["token"] for entry in content)
    pieces = stream(client, "chat/completions", **how)
    joined = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
    assert joined == content
    for piece in pieces:  # the tokens of a piece are those of its text
        if piece["logprobs"]:
            data = bytes(byte for entry in piece["logprobs"]["content"] for byte in entry["bytes"])
            assert data.decode() == piece["delta"]["content"]


def test_what_a_stop_text_hides_is_not_in_them(client: TestClient) -> None:
    choice = post(client, "chat/completions", model="script", messages=HI, temperature=0, logprobs=True, stop=" 42")
    assert choice["message"]["content"] == "It is"
    text = "".join(entry["token"] for entry in choice["logprobs"]["content"])
    assert text == choice["message"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in choice["logprobs"]["content"])


def test_plain_completions_have_parallel_lists(client: TestClient) -> None:
    how = {"model": "base", "prompt": "ab☃", "temperature": 0, "max_tokens": 12, "logprobs": 2}
    choice = post(client, "completions", **how)
    found = choice["logprobs"]
    sizes = {len(found[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    assert len(sizes) == 1 and sizes.pop() > 0
    assert found["text_offset"][0] == 3 and found["text_offset"] == sorted(found["text_offset"])
    assert all(logprob <= 0 for logprob in found["token_logprobs"])
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert top[token] == logprob and logprob == max(top.values()) and len(top) <= 3
    pieces = [piece["logprobs"] for piece in stream(client, "completions", **how) if piece["logprobs"]]
    for key in found:
        assert [value for piece in pieces for value in piece[key]] == found[key]
    only = post(client, "completions", **{**how, "logprobs": 0})["logprobs"]
    assert only["tokens"] == found["tokens"] and all(len(top) == 1 for top in only["top_logprobs"])


def test_places_count_characters_that_are_spread_over_tokens() -> None:
    hub = ModelHub()
    hub.add("base", scripted_engine(list("☃a☃b".encode()), prompt_tokens=4))
    with TestClient(create_app(hub, None)) as client:
        how = {"model": "base", "prompt": "xyz", "temperature": 0, "logprobs": 0}
        choice = post(client, "completions", **how)
        assert choice["text"] == "☃a☃b" and choice["logprobs"]["text_offset"] == [3, 3, 3, 4, 5, 5, 5, 6]
        pieces = [piece["logprobs"] for piece in stream(client, "completions", **how) if piece["logprobs"]]
        assert [place for piece in pieces for place in piece["text_offset"]] == choice["logprobs"]["text_offset"]


def test_none_unless_asked_for(client: TestClient) -> None:
    assert post(client, "chat/completions", model="script", messages=HI)["logprobs"] is None
    assert post(client, "completions", model="base", prompt="x")["logprobs"] is None
