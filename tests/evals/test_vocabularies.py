"""Published vocabularies are used where they lie, and never fetched."""

from __future__ import annotations

import base64
import hashlib
import socket
from pathlib import Path

import pytest
import tiktoken

from picollm.evals import vocabularies
from picollm.evals.vocabularies import VOCABULARIES, Vocabulary, cached


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **how: object) -> None:
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))


def place(folder: Path, url: str, content: bytes) -> Path:
    file = folder / hashlib.sha1(url.encode()).hexdigest()
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", VOCABULARIES)
def test_what_is_not_there_or_damaged_is_said_and_not_fetched(name: str, tmp_path: Path) -> None:
    assert cached(name) == (None, f"not cached in {tmp_path}")
    file = place(tmp_path, VOCABULARIES[name].url, b"half a file")
    assert cached(name) == (None, f"its file in {tmp_path} is damaged") and file.read_bytes() == b"half a file"


def test_a_cache_that_is_off_and_the_default_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert cached("GPT-2") == (None, "not cached (tiktoken's cache is off)")
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", "/elsewhere")
    assert vocabularies.cache_folder() == Path("/elsewhere")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR")
    monkeypatch.setattr(vocabularies.tempfile, "gettempdir", lambda: "/t")
    assert vocabularies.cache_folder() == Path("/t/data-gym-cache")


def test_urls_and_checksums_are_those_of_tiktoken() -> None:
    from tiktoken_ext import openai_public

    source = Path(openai_public.__file__).read_text()
    for vocabulary in VOCABULARIES.values():
        assert vocabulary.url in source and vocabulary.sha256 in source


def test_a_cached_vocabulary_counts_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pieces = [bytes([n]) for n in range(256)] + [b"ab"]
    content = b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))
    url, sha256 = "https://nowhere.invalid/tiny.tiktoken", hashlib.sha256(content).hexdigest()

    def tiny() -> dict:
        ranks = tiktoken.load.load_tiktoken_bpe(url, expected_hash=sha256)
        return {"name": "tiny", "pat_str": r"\S+|\s+", "mergeable_ranks": ranks, "special_tokens": {}}

    tiktoken.list_encoding_names()  # fills the registry
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "tiny", tiny)
    monkeypatch.setitem(VOCABULARIES, "tiny", Vocabulary("tiny", url, sha256))
    place(tmp_path, url, content)
    encoding, state = cached("tiny")
    assert encoding is not None and encoding.encode_ordinary("abc") == [256, ord("c")]
    assert state == "257 ids, tiktoken's tiny"
