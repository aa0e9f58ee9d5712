"""Any body at all: an answer or a 4xx with OpenAI's error shape, never a 5xx, never a hang."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from picollm.infer.engine import Engine
from picollm.serve.api import ModelHub, create_app
from tests.infer.fakes import ByteTokenizer, tiny_model

pytestmark = pytest.mark.timeout(900)  # hundreds of requests

PATHS = ("/v1/chat/completions", "/v1/completions")
LONGEST = 3  # tokens of an answer; fuzzing is about requests


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    hub = ModelHub()
    hub.add("sft", Engine(tiny_model(seq_len=32), ByteTokenizer(), live=False))
    with TestClient(create_app(hub, None)) as client:
        yield client


texts = st.text(st.characters(codec=None), max_size=12) | st.just("sft") | st.text("ab\n\x00☃😀", max_size=60)
numbers = st.integers(-3, 40) | st.integers() | st.floats() | st.sampled_from([10**30, -(10**400), 1e308, 2**63])
anything = st.recursive(st.none() | st.booleans() | numbers | texts,
                        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
                        max_leaves=12)  # fmt: skip
parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=3)
turns = st.lists(texts | parts, max_size=4)  # of user and assistant in turn
sound = {
    "temperature": st.floats(0, 5), "top_p": st.floats(0, 1), "top_k": st.integers(0, 10**6), "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.01, 10), "n": st.integers(1, 3), "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": texts.filter(bool) | st.lists(texts.filter(bool), max_size=3), "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}), "user": texts,
}  # fmt: skip
only = {
    PATHS[0]: {"logprobs": st.just(True), "top_logprobs": st.integers(0, 20)},
    PATHS[1]: {"logprobs": st.integers(0, 5)},
}
names = [*sound, "logprobs", "top_logprobs", "messages", "prompt", "model", "max_tokens", "tools", "response_format",
         "best_of", "modalities", "echo", "logit_bias", "stream_options"]  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A sound request, and half of the time one with a field or two that hold anything."""
    body = {"max_tokens": draw(st.integers(1, LONGEST)), "model": "sft"}
    body |= draw(st.fixed_dictionaries({}, optional=sound | only[path]))
    if path == PATHS[0]:
        said = ["hi", *draw(turns), "x"]
        said = said if len(said) % 2 else said[:-1]
        body["messages"] = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(said)]
    else:
        body["prompt"] = draw(texts | st.lists(texts, min_size=1, max_size=4))
    if draw(st.booleans()):
        body |= draw(st.dictionaries(st.sampled_from(names), anything, min_size=1, max_size=2))
    return body


def check(client: TestClient, path: str, content: bytes) -> int:
    """The status, of an answer that is as it should be."""
    answer = client.post(path, content=content)
    if answer.status_code == 200:
        assert answer.headers["content-type"].startswith(("application/json", "text/event-stream"))
        assert '"error"' not in answer.text
        return 200
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text, content)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return answer.status_code


@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_look_right(client: TestClient, path: str) -> None:
    statuses: set[int] = set()

    @settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
    @given(body=bodies(path))
    def each(body: dict[str, Any]) -> None:
        statuses.add(check(client, path, json.dumps(body).encode()))  # NaN is written too, as Python does

    each()
    assert {200, 400} <= statuses  # the requests went all the way, and some did not


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200) | anything.map(lambda value: json.dumps(value).encode()))
def test_bodies_that_are_anything(client: TestClient, path: str, body: bytes) -> None:
    check(client, path, body)


HARD = [
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b'{"prompt": "\\udfff", "max_tokens": 1}',
    b'{"prompt": "a", "max_tokens": 1, "seed": ' + b"9" * 4000 + b"}", b'{"prompt": "a", "temperature": 1e999}',
    b'{"prompt": "a", "temperature": ' + b"9" * 400 + b"}", b'{"prompt": "a", "max_tokens": 1, "temperature": 1e-300}',
    b'{"prompt": "a", "max_tokens": 2, "temperature": 1e-9, "top_k": 0, "top_p": 1e-300}',
    b'{"prompt": "", "max_tokens": 1}', b'{"prompt": [], "max_tokens": 1}', b'{"prompt": "<|bos|>", "max_tokens": 1}',
    b'{"prompt": ' + b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"prompt": "a", "prompt": "b", "n": null}',
    b'{"messages": ' + b"[" + b'{"role": "user", "content": "x"},' * 1000 + b'{"role": "user", "content": "y"}]}',
    b'{"messages": [{"role": "user", "content": "' + b"x" * 900_000 + b'"}]}',
    b'{"prompt": "' + b" " * 900_000 + b'", "max_tokens": 1}', b"\xef\xbb\xbf{}", b"", b"\x00", b"null", b'""', b"1e5",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HARD)))
def test_bodies_thought_of(client: TestClient, number: int) -> None:
    for path in PATHS:
        check(client, path, HARD[number])
