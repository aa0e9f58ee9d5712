"""Who may ask over TCP: tokens, host names, origins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from picollm.infer.engine import Engine
from picollm.run.errors import UserError
from picollm.serve.api import ModelHub, create_app
from picollm.serve.guard import LOOPBACK_NAMES
from picollm.serve.listen import is_loopback
from tests.infer.fakes import ByteTokenizer, tiny_model

PAGE = "https://chat.example"


@contextmanager
def asking(token: str | None = None, base_url: str = "http://localhost:8000", **more: Any) -> Iterator[TestClient]:
    hub = ModelHub()
    hub.add("sft", Engine(tiny_model(), ByteTokenizer(), live=False))
    with TestClient(create_app(hub, token, **more), base_url=base_url) as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:99", "[::1]:8000", "localhost."])
def test_names_of_this_machine(host: str) -> None:
    with asking(hosts=LOOPBACK_NAMES) as client:
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "",
                                  "[::2]:8000", "evil.example#localhost"])  # fmt: skip
def test_a_foreign_name_for_this_machine_gets_nothing(host: str) -> None:
    with asking(hosts=LOOPBACK_NAMES) as client:
        for path in ("/", "/v1/models", "/health", "/metrics", "/web/app.js"):
            answer = client.get(path, headers={"Host": host})
            assert answer.status_code == 421 and answer.json()["error"]["code"] == "wrong_host"


def test_other_pages_may_neither_ask_nor_read() -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with asking(hosts=LOOPBACK_NAMES, origins=[PAGE]) as client:
        for origin in ("https://evil.example", "null", "http://localhost:3000", "https://chat.example.evil.example"):
            for send in (client.get, client.options):
                answer = send("/v1/models", headers={"Origin": origin})
                assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
            answer = client.post("/v1/chat/completions", json=body, headers={"Origin": origin})
            assert answer.status_code == 403
        own = client.post("/v1/chat/completions", json=body, headers={"Origin": "http://localhost:8000"})
        assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


def test_a_named_origin_may() -> None:
    with asking("secret", origins=[PAGE]) as client:
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
        answer = client.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in answer.headers["access-control-allow-headers"]
        refused = client.get("/v1/models", headers={"Origin": PAGE})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == PAGE
        allowed = client.get("/v1/models", headers={"Origin": PAGE, "Authorization": "Bearer secret"})
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in allowed.headers["vary"]


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Bearer wrong", "bearer secret", "secret", "Basic secret",
                                   "Bearer secret ", "Bearer s\u00e9cret", "Bearer secretsecret"])  # fmt: skip
def test_wrong_tokens(given: str) -> None:
    with asking("secret") as client:
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            answer = client.get(path, headers={"Authorization": given.encode("latin-1")})
            if given.strip() == "Bearer secret":
                continue  # the client strips the space
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"


def test_what_is_open_holds_no_secret() -> None:
    with asking("secret") as client:
        for path in ("/", "/health", "/web/app.js", "/web/style.css", "/web/icon.svg"):
            answer = client.get(path)
            assert answer.status_code == 200 and "secret" not in answer.text.replace("secrets", "")
            assert answer.headers["x-content-type-options"] == "nosniff"
        policy = client.get("/").headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert client.get("/web/nothing.js").status_code == 404
        assert client.get("/web/../api.py").status_code in (401, 404)


def test_which_addresses_are_this_machine() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1") and is_loopback("127.8.8.8")
    assert not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("10.0.0.1")
    with pytest.raises(UserError, match="cannot listen"):
        is_loopback("no such host")
