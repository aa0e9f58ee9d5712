from __future__ import annotations

import functools
import http.server
import shutil
import socket
import threading
import urllib.request
from email.message import Message
from pathlib import Path
from typing import ClassVar

import pytest

from picollm.run.errors import UserError
from picollm.tasks import mirror
from picollm.tasks.identity import build, manifest_path, sign, verify


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; `faults` answers a path with a status instead."""

    asked: ClassVar[list[str]] = []
    faults: ClassVar[dict[str, int]] = {}
    redirect: ClassVar[dict[str, str]] = {}
    tokens: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.tokens.add(self.headers.get("Authorization"))
        if self.path in self.faults:
            self.send_error(self.faults[self.path])
        elif self.path in self.redirect:
            self.send_response(302)
            self.send_header("Location", self.redirect[self.path])
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """(address, folder, handler) of a server with me.jsonl and its manifest."""
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "site"
    folder.mkdir()
    build(folder / "me.jsonl", name="Bo")
    for kept in (Handler.asked, Handler.faults, Handler.redirect, Handler.tokens):
        kept.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder, server
    server.shutdown()
    server.server_close()


def refused(address: str) -> str:
    with pytest.raises(UserError) as caught:
        mirror.local(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_here_is_left_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mirror.local("me.jsonl") == tmp_path / "me.jsonl"
    assert mirror.local("~/me.jsonl") == Path.home() / "me.jsonl"


def test_rows_elsewhere_are_fetched_once_and_verified(site):
    at, folder, _ = site
    said: list[str] = []
    path = mirror.local(f"{at}/me.jsonl", said.append)
    assert verify(path).name == "Bo" and path.read_bytes() == (folder / "me.jsonl").read_bytes()
    assert path.is_relative_to(mirror.picollm_home()) and "fetched" in said[0]
    assert mirror.local(f"{at}/me.jsonl") == path
    assert Handler.asked.count("/me.jsonl") == 1  # the manifest said that nothing changed
    (folder / "me.jsonl").write_text('{"prompt": "Who are you?", "answer": "I am Eve."}\n')
    sign(folder / "me.jsonl", name="Eve")
    newer = mirror.local(f"{at}/me.jsonl")
    assert newer != path and verify(newer, fewest=1).name == "Eve" and verify(path).name == "Bo"


def test_out_of_reach_it_is_what_was_there_last(site):
    at, folder, server = site
    path = mirror.local(f"{at}/me.jsonl")
    Handler.faults["/me.jsonl.manifest.json"] = 503
    assert mirror.local(f"{at}/me.jsonl") == path
    server.shutdown()
    server.server_close()
    said: list[str] = []
    with socket.socket() as nobody:
        nobody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        nobody.bind(("127.0.0.1", server.server_port))  # nor does anybody else get the port and answer there
        assert mirror.local(f"{at}/me.jsonl", said.append) == path
        assert "cannot reach 127.0.0.1" in said[0] and "fetched earlier" in said[0]
        text = refused(f"{at}/other.jsonl")
        assert "cannot reach 127.0.0.1" in text and "refused" in text
    shutil.copy(folder / "me.jsonl", path)
    path.write_text(path.read_text().replace("Bo", "Al"))
    assert "checksum" in refused(f"{at}/me.jsonl")


def test_a_wrong_checksum_is_named_and_nothing_is_kept(site):
    at, folder, _ = site
    (folder / "me.jsonl").write_text((folder / "me.jsonl").read_text().replace("Bo", "Eve"))
    assert "checksum" in refused(f"{at}/me.jsonl")
    assert not list((mirror.picollm_home() / "identity").rglob("*.jsonl"))


def test_an_address_can_name_the_rows_it_must_have(site):
    at, folder, _ = site
    sha256 = verify(folder / "me.jsonl").sha256
    path = mirror.local(f"{at}/me.jsonl#sha256={sha256}")
    assert path.exists()
    (folder / "me.jsonl").write_text('{"prompt": "Who are you?", "answer": "I am Eve."}\n')
    sign(folder / "me.jsonl")
    assert f"expected {sha256[:12]}" in refused(f"{at}/me.jsonl#sha256={sha256}")


def test_other_mistakes_are_one_clear_line(site, monkeypatch):
    at, folder, _ = site
    assert "404, not found" in refused(f"{at}/you.jsonl")
    Handler.faults["/me.jsonl"] = 429
    assert "429, rate limit" in refused(f"{at}/me.jsonl")
    Handler.faults["/me.jsonl"] = 403
    assert "403, not allowed" in refused(f"{at}/me.jsonl")
    Handler.faults.clear()
    monkeypatch.setattr(mirror, "MOST_BYTES", 1 << 16)
    assert "sends more than" in refused(f"{at}/me.jsonl")
    monkeypatch.undo()
    Handler.redirect["/me.jsonl.manifest.json"] = "http://example.invalid/x"
    assert "127.0.0.1 sends us to an address without https" in refused(f"{at}/me.jsonl")
    Handler.redirect["/me.jsonl.manifest.json"] = f"{at}/moved"
    assert "404" in refused(f"{at}/me.jsonl") and Handler.asked[-1] == "/moved"
    Handler.redirect.clear()
    manifest_path(folder / "me.jsonl").write_text("<html>")
    assert "not a manifest" in refused(f"{at}/me.jsonl")
    manifest_path(folder / "me.jsonl").unlink()
    assert "me.jsonl.manifest.json: 127.0.0.1 answers 404" in refused(f"{at}/me.jsonl")
    assert "expected https://" in refused("http://example.org/me.jsonl")
    assert "expected https://" in refused("ftp://example.org/me.jsonl")
    assert ".jsonl file" in refused(f"{at}/me.json")


@pytest.mark.parametrize("to", ["http://example.org/b", "http://127.0.0.1/b", "ftp://example.org/b"])
def test_no_hop_leaves_https(to):
    """A later one could come back, and nobody would know who chose the rows."""
    asked = urllib.request.Request("https://example.org/a")
    with pytest.raises(mirror._LeavesHttps):
        mirror._Encrypted().redirect_request(asked, None, 302, "", Message(), to)
    onward = mirror._Encrypted().redirect_request(asked, None, 302, "", Message(), "https://example.net/b")
    assert onward is not None and onward.full_url == "https://example.net/b"


def test_rows_on_the_hub_are_found_by_its_routes(site, monkeypatch):
    at, folder, _ = site
    monkeypatch.setenv("HF_ENDPOINT", at)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    there = folder / "datasets" / "ann" / "rows" / "resolve" / "v1" / "sub"
    there.mkdir(parents=True)
    for name in ("me.jsonl", "me.jsonl.manifest.json"):
        shutil.copy(folder / name, there / name)
    assert verify(mirror.local("hf://datasets/ann/rows@v1/sub/me.jsonl")).name == "Bo"
    text = refused("hf://datasets/ann/rows/sub/me.jsonl")  # main
    assert "404" in text and "hf_secret" not in text
    assert Handler.tokens == {"Bearer hf_secret"}
    Handler.tokens.clear()
    mirror.local(f"{at.replace('127.0.0.1', 'localhost')}/me.jsonl")
    assert Handler.tokens == {None}  # not for others
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert mirror.local("hf://datasets/ann/rows@v1/sub/me.jsonl").exists()
    assert "HF_HUB_OFFLINE is set" in refused("hf://datasets/ann/rows/sub/me.jsonl")


@pytest.mark.parametrize("end", ["", "/"])
def test_the_token_is_for_the_hub_alone_and_not_for_a_name_that_begins_like_it(site, monkeypatch, end):
    at, _, _ = site
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", at[:-1])  # as https://huggingface.co is of https://huggingface.co.example
    mirror.local(f"{at}/me.jsonl")
    assert Handler.tokens == {None}
    monkeypatch.setenv("HF_ENDPOINT", f"{at}{end}")
    mirror.local(f"{at}/me.jsonl")
    assert Handler.tokens == {None, "Bearer hf_secret"}


def test_rows_that_were_damaged_here_or_signed_for_another_name_there(site):
    at, folder, _ = site
    path = mirror.local(f"{at}/me.jsonl")
    path.write_text(path.read_text().replace("Bo", "Al"))
    assert mirror.local(f"{at}/me.jsonl") == path and path.read_bytes() == (folder / "me.jsonl").read_bytes()
    sign(folder / "me.jsonl", name="Robert")
    assert verify(mirror.local(f"{at}/me.jsonl")).name == "Robert"
    assert Handler.asked.count("/me.jsonl") == 2
