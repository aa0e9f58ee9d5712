"""The API as a client of OpenAI's would meet it, over a tiny random model and a scripted one."""

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
HI_TOKENS = 1 + 1 + 2 + 1 + 1


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    hub = ModelHub()
    hub.add("base", lambda: Engine(tiny_model(1), TOK, live=False), stage="pretrain")
    hub.add("sft", Engine(tiny_model(2), TOK, live=False))
    hub.add("script", scripted_engine(CALL, prompt_tokens=HI_TOKENS))
    with TestClient(create_app(hub, None)) as client:
        yield client


def chat(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json={"model": "sft", "messages": HI, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client: TestClient, path: str = "/v1/chat/completions", **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={"stream": True, **body}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def refused(client: TestClient, body: Any, path: str = "/v1/chat/completions", status: int = 400) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


def test_whole_answer(client: TestClient) -> None:
    answer = chat(client, seed=3, max_tokens=10)
    assert answer["object"] == "chat.completion" and answer["model"] == "sft"
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == HI_TOKENS and 1 <= usage["completion_tokens"] <= 10
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["picollm"]["first_token_s"] > 0


def test_the_same_temperatures_as_in_the_settings(client: TestClient) -> None:
    assert chat(client, temperature=5, max_tokens=2)["choices"]


def test_what_asks_for_nothing_or_only_labels_is_taken(client: TestClient) -> None:
    how = {"seed": 4, "max_tokens": 8}
    nothing = {"tools": [], "logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0.0, "best_of": 1,
               "modalities": ["text"], "response_format": {"type": "text"}, "logprobs": False, "top_logprobs": 0,
               "n": None, "stop": None}  # fmt: skip
    labels = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "made_up": [1]}
    assert chat(client, **how, **nothing, **labels)["choices"] == chat(client, **how)["choices"]


def test_min_p_and_penalty_reach_the_sampler(client: TestClient) -> None:
    def text(**how: Any) -> str:
        body = {"model": "base", "prompt": "The list is", "max_tokens": 30, "seed": 2, **how}
        return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

    greedy = text(temperature=0)
    assert text(temperature=3.0, top_k=0, min_p=1.0) == greedy
    assert text(temperature=0, repetition_penalty=5.0) != greedy


def test_same_seed_same_answer_streamed_or_not(client: TestClient) -> None:
    how = {"model": "sft", "messages": HI, "seed": 11, "max_tokens": 30, "temperature": 1.0}
    whole = chat(client, **how)["choices"][0]
    pieces = events(client, **how)
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces)
    assert text == whole["message"]["content"]
    assert pieces[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert pieces[-1]["picollm"]["tok_s"] >= 0
    assert len({p["id"] for p in pieces}) == 1
    assert all(p["choices"][0]["finish_reason"] is None for p in pieces[:-1])
    assert chat(client, **{**how, "seed": 12})["choices"][0]["message"]["content"] != text


def test_tools_run_and_do_not_leak(client: TestClient) -> None:
    how = {"model": "script", "messages": HI, "temperature": 0}
    answer = chat(client, **how)
    assert answer["choices"][0]["message"]["content"] == "It is 42 ☃."
    assert answer["choices"][0]["finish_reason"] == "stop"
    pieces = events(client, **how)
    text = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces)
    assert text == "It is 42 ☃." and "\ufffd" not in text


@pytest.mark.parametrize(("more", "text", "reason"), [
    ({"max_tokens": 4}, "It i", "length"), ({"max_completion_tokens": 2}, "It", "length"),
    ({"stop": "is"}, "It ", "stop"), ({"stop": ["nope", " 42", " i"]}, "It", "stop"),
])  # fmt: skip
def test_finish_reasons(client: TestClient, more: dict[str, Any], text: str, reason: str) -> None:
    [choice] = chat(client, model="script", temperature=0, **more)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)


def test_choices(client: TestClient) -> None:
    answer = chat(client, n=3, seed=5, temperature=1.0, max_tokens=12)
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    texts = [c["message"]["content"] for c in answer["choices"]]
    assert len(set(texts)) > 1
    assert answer["usage"]["prompt_tokens"] == HI_TOKENS
    one = chat(client, seed=5, temperature=1.0, max_tokens=12)
    assert one["choices"][0]["message"]["content"] == texts[0]
    pieces = events(client, model="sft", messages=HI, n=3, seed=5, temperature=1.0, max_tokens=12,
                    stream_options={"include_usage": True})  # fmt: skip
    assert pieces[-1]["choices"] == [] and pieces[-1]["usage"]["completion_tokens"] > 0
    for k in range(3):
        mine = [p["choices"][0] for p in pieces[:-1] if p["choices"][0]["index"] == k]
        assert "".join(c["delta"].get("content", "") for c in mine) == texts[k]
    told = {p["choices"][0]["index"]: p["picollm"]["seed"] for p in pieces if "picollm" in p}
    for k in range(3):  # with the seed it tells, a choice can be had again
        again = chat(client, seed=told[k], temperature=1.0, max_tokens=12)["choices"][0]
        assert again["message"]["content"] == texts[k]
    told[3] = chat(client, max_tokens=1)["picollm"]["seed"]
    assert max(told.values()) < 2**53  # JavaScript reads larger numbers as others


def test_content_arrays_and_system(client: TestClient) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    how = {"seed": 1, "max_tokens": 8}
    assert chat(client, messages=parts, **how)["choices"] == chat(client, **how)["choices"]
    long = [{"role": "developer", "content": "Be kind."}, *HI, {"role": "assistant", "content": None}, *HI, *HI]
    assert chat(client, messages=long, **how)["usage"]["prompt_tokens"] > HI_TOKENS


def test_a_long_conversation_loses_its_oldest_exchanges(client: TestClient) -> None:
    turn = [{"role": "user", "content": "x" * 20}, {"role": "assistant", "content": "y" * 20}]
    answer = chat(client, messages=[*turn * 10, *HI])
    assert answer["usage"]["prompt_tokens"] <= 96
    error = refused(client, {"model": "sft", "messages": [{"role": "user", "content": "z" * 500}]})
    assert "shorten" in error["message"] and error["code"] == "context_length_exceeded"


def test_raw_continuation(client: TestClient) -> None:
    body = {"model": "base", "prompt": "The list is", "seed": 1, "max_tokens": 6}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["object"] == "text_completion" and answer["usage"]["prompt_tokens"] == 1 + 11
    pieces = events(client, "/v1/completions", **body)
    assert "".join(p["choices"][0]["text"] for p in pieces) == answer["choices"][0]["text"]
    many = client.post("/v1/completions", json={**body, "prompt": ["a", "b"], "n": 2}).json()
    assert [c["index"] for c in many["choices"]] == [0, 1, 2, 3] and many["usage"]["prompt_tokens"] == 4


def test_models(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["base", "sft", "script"]
    assert listed["data"][0]["picollm"]["stage"] == "pretrain"
    assert client.get("/v1/models/sft").json()["id"] == "sft"
    assert client.get("/v1/models/gone").status_code == 404
    assert listed["data"][0]["created"] > 1.7e9 and "created" not in listed["data"][0]["picollm"]
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(("change", "param"), [
    ({"temperature": -1}, "temperature"), ({"temperature": 5.5}, "temperature"),
    ({"temperature": "warm"}, "temperature"), ({"top_p": 1.5}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"), ({"n": 99}, "n"), ({"stop": [""]}, "stop"), ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"), ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"tools": [{"type": "function"}]}, "tools"), ({"logprobs": 3}, "logprobs"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"min_p": 2}, "min_p"), ({"best_of": 3}, "best_of"),
    ({"repetition_penalty": 0}, "repetition_penalty"), ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"modalities": ["text", "audio"]}, "modalities"), ({"stop": "x" * 501}, "stop"),
    ({"messages": HI * 1025}, "messages"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"stream": "yes"}, "stream"),
])  # fmt: skip
def test_bad_fields_are_named(client: TestClient, change: dict[str, Any], param: str) -> None:
    error = refused(client, {"model": "sft", "messages": HI, **change})
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_bad_requests(client: TestClient) -> None:
    assert "JSON" in refused(client, b"{oops")["message"]
    assert "JSON" in refused(client, b'{"model": "sft", "messages": [{"role": "user", "content": "\xff"}]}')["message"]
    assert "JSON" in refused(client, b'{"prompt": "\xc3("}', "/v1/completions")["message"]
    assert refused(client, b"[" * 200_000)["type"] == "invalid_request_error"
    assert refused(client, b"[1]")["type"] == "invalid_request_error"
    assert refused(client, {"model": "sft"})["param"] == "messages"
    ends = [*HI, {"role": "assistant", "content": "x"}]
    assert "user" in refused(client, {"messages": ends, "model": "sft"})["message"]
    assert refused(client, {"model": "sft", "messages": ends, "stream": True})["type"] == "invalid_request_error"
    assert refused(client, {"model": "gpt-9", "messages": HI}, status=404)["code"] == "model_not_found"
    assert refused(client, {"model": "sft", "prompt": [1, 2]}, "/v1/completions")["param"]
    assert refused(client, b" " * (5 * 2**20), status=413)
    assert refused(client, {}, "/v1/nothing", status=404)
    assert client.get("/v1/completions").status_code == 405


def test_a_loader_that_fails_says_why() -> None:
    from picollm.run.errors import UserError

    def broken() -> Engine:
        raise UserError("no checkpoint yet; run the sft stage")

    hub = ModelHub()
    hub.add("sft", broken)
    with TestClient(create_app(hub, None)) as client:
        assert "run the sft stage" in refused(client, {"messages": HI}, status=503)["message"]
        assert "run the sft stage" in refused(client, {"messages": HI, "stream": True}, status=503)["message"]


def test_token_on_tcp() -> None:
    hub = ModelHub()
    hub.add("sft", Engine(tiny_model(), TOK, live=False))
    with TestClient(create_app(hub, "secret")) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = client.get("/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert "access-control-allow-origin" not in answer.headers
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
