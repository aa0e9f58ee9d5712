"""Downloads through the real huggingface_hub from a Hub on the loopback, with everything that goes wrong there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from picollm.data import hub as hub_module
from picollm.data.hub import SOURCES, HubFile, Listing, Source, Store, endpoints, explain, listing, plain
from picollm.data.hub_text import HubText, documents, downloads, open_text, wanted, write_hub_text
from picollm.run.errors import StopRequested, UserError
from tests.hub import LoopbackHub, parquet

SOURCE = SOURCES["climbmix"]
SECRET = "hf_averysecrettoken"


def texts(number: int) -> list[str]:
    return [f"File {number}, text {n}: the boats came home over the grey water." for n in range(40)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Four files; this process's huggingface_hub is sent there, online, with a cache of its own, and sleeps little."""
    sleep = time.sleep
    with LoopbackHub() as found:
        found.add(
            SOURCE.repo, {SOURCE.name(n): parquet(texts(n)) for n in (0, 1, 2, 6542)}, card={"license": "cc-by-nc-4.0"}
        )
        for name, value in {"ENDPOINT": found.url, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "cache"),
                            "HF_HUB_DISABLE_XET": True, "HUGGINGFACE_CO_URL_TEMPLATE":
                            found.url + "/{repo_id}/resolve/{revision}/{filename}",
                            "HF_HUB_DOWNLOAD_TIMEOUT": 60, "HF_HUB_ETAG_TIMEOUT": 60}.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        monkeypatch.setattr(hub_module, "BACKOFF_S", 0.01)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: sleep(min(seconds, 0.02)))
        yield found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def seen(home: Path, shards: int = 3, **more: object) -> HubText:
    return write_hub_text(SOURCE, listing(SOURCE, wanted(SOURCE, shards), home, **more), shards, home)  # type: ignore[arg-type]


def fetch_all(store: Store, text: HubText) -> tuple[list[str], list[str]]:
    """(names in the order they came, what was said)."""
    said: list[str] = []
    return [file.name for file in downloads(store, text.files, lambda got: None, said.append)], said


def store_of(text: HubText, home: Path, **more: object) -> Store:
    return Store(text.repo, text.revision, home, **more)  # type: ignore[arg-type]


def test_a_text_has_its_name_before_anything_is_downloaded(hub: LoopbackHub, home: Path) -> None:
    text = seen(home)
    assert not any(request.path.endswith(".parquet") for request in hub.requests)
    assert [file.name for file in text.train] == [SOURCE.name(n) for n in range(3)]
    assert [file.name for file in text.val] == ["shard_06542.parquet"]
    assert text.hash == seen(home).hash != seen(home, 2).hash
    assert isinstance(open_text(text.folder), HubText)
    provenance = text.manifest["provenance"]
    assert "not for commercial use" in provenance["licence"] and provenance["licence on its card"] == "cc-by-nc-4.0"
    assert provenance["revision"] == hub.repos["datasets", SOURCE.repo].commit
    hub.add(SOURCE.repo, {"README.md": b"another commit, the same text"})
    assert seen(home).hash == text.hash
    hub.add(SOURCE.repo, {SOURCE.name(1): parquet(["other text"])})
    assert seen(home).hash != text.hash


def test_everything_comes_whole_once(hub: LoopbackHub, home: Path) -> None:
    text = seen(home)
    store = store_of(text, home)
    names, _ = fetch_all(store, text)
    assert sorted(names) == sorted(file.name for file in text.files)
    for file, number in zip(text.files, (6542, 0, 1, 2), strict=True):
        path = store.local(file)
        assert path is not None and list(documents(path, "text")) == texts(number)
    before = len(hub.requests)
    fetch_all(store, text)
    assert len(hub.requests) == before


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["429", "503", "500", "hang", "cut", "wrong"])
def test_a_fault_that_passes_is_no_failure(hub: LoopbackHub, home: Path, kind: str, method: str) -> None:
    text = seen(home)
    hub.fault(SOURCE.name(1), kind, times=2, method=method, retry_after=7)
    store = store_of(text, home)
    _, said = fetch_all(store, text)
    assert all(store.local(file) for file in text.files)
    if kind == "429":
        assert any("429" in line for line in said) and any("Waiting 8.0s" in line for line in said)


def test_a_cut_download_goes_on_where_it_was(hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    text = seen(home)
    hub.fault(SOURCE.name(0), "cut", times=1)
    fetch_all(store_of(text, home), text)
    assert any(request.range.startswith("bytes=") for request in hub.requests if request.path.endswith(SOURCE.name(0)))


def test_silence_ends_with_the_timeout(hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 3.0)
    text = seen(home)
    hub.fault(SOURCE.name(0), "slow", times=1, seconds=3600.0)
    store = store_of(text, home)
    fetch_all(store, text)
    assert hub.asked(SOURCE.name(0)) == 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "404 not found"),
        ("429", "429 too many requests, retry after 1 s"),
        ("503", "503 from the server"),
        ("401", "not allowed; set HF_TOKEN"),
        ("wrong", "does not match its checksum"),
    ],
)
@pytest.mark.parametrize("method", ["GET", ""])
def test_a_file_that_cannot_be_had_is_an_error_that_says_why(
    hub: LoopbackHub, home: Path, kind: str, reason: str, method: str
) -> None:
    text = seen(home, 2)
    hub.fault(SOURCE.name(1), kind, times=None, method=method, retry_after=1)
    store = store_of(text, home)
    with pytest.raises(UserError, match=r"shard_00001\.parquet") as failed:
        fetch_all(store, text)
    said = str(failed.value)
    assert reason in said and "\n" not in said and SECRET not in said
    assert kind == "missing" or "not found" not in said
    assert store.local(text.train[1]) is None


def test_the_next_mirror_is_asked_and_never_told_the_token(hub: LoopbackHub, home: Path) -> None:
    with LoopbackHub() as mirror:
        mirror.add(SOURCE.repo, dict(hub.repos["datasets", SOURCE.repo].files))
        for number in (0, 1, 2, 6542):
            hub.fault(SOURCE.name(number), "missing", times=None, method="")
        both = f"{hub.url}/, {mirror.url}"
        assert endpoints(both) == [hub.url, mirror.url] and endpoints("") == [hub.url]
        text = seen(home, mirrors=both)
        fetch_all(store_of(text, home, mirrors=both), text)
        assert mirror.asked(SOURCE.name(0)) == 1
        assert {request.token for request in mirror.requests} == {""}
        assert SECRET in {request.token for request in hub.requests}


def test_offline_with_everything_here_needs_nobody(
    hub: LoopbackHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = seen(home)
    fetch_all(store_of(text, home), text)
    before = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for place in (home, tmp_path / "another home"):  # with the listing of before; with the Hub's own cache alone
        again = seen(place)
        assert again.hash == text.hash
        fetch_all(store_of(again, place), again)
    assert len(hub.requests) == before
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        seen(tmp_path / "a third")
    far = seen(home)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and the file is not in the cache"):
        fetch_all(store_of(far, tmp_path / "a fourth"), far)


def test_the_last_listing_serves_while_the_hub_is_away(hub: LoopbackHub, home: Path) -> None:
    text = seen(home)
    hub.fault("info", "503", times=None)
    said: list[str] = []
    assert seen(home, say=said.append, wait=lambda seconds: None).hash == text.hash
    assert "going by what was seen of it" in said[-1]
    with pytest.raises(UserError, match="503 from the server"):
        seen(home / "elsewhere", wait=lambda seconds: None)
    fetch_all(store_of(text, home), text)
    assert seen(home / "elsewhere", say=said.append, wait=lambda seconds: None).hash == text.hash
    assert said[-1].endswith("; going by what the cache holds")


def test_a_limited_listing_waits_as_long_as_it_is_told(hub: LoopbackHub, home: Path) -> None:
    hub.fault("info", "429", times=1, retry_after=11)
    waits: list[float] = []
    seen(home, wait=waits.append)
    assert waits == [11.0]


def test_a_limited_download_waits_as_long_as_it_is_told(hub: LoopbackHub, home: Path) -> None:
    text = seen(home)
    hub.fault(SOURCE.name(0), "429", times=None, retry_after=11)
    waits: list[float] = []
    with pytest.raises(UserError, match="429 too many requests"):
        store_of(text, home).fetch(text.train[0], wait=waits.append)
    assert waits == [11.0] * 3


def test_the_password_of_a_mirror_is_not_printed(hub: LoopbackHub, home: Path) -> None:
    with pytest.raises(UserError, match=r"cannot list .*127\.0\.0\.1:9") as failed:
        seen(home, mirrors="http://me:secret@127.0.0.1:9", wait=lambda seconds: None)
    assert "secret" not in str(failed.value)
    assert plain("GET http://me:secret@mirror/x failed") == "GET http://mirror/x failed"


def test_text_that_is_not_kept_leaves_the_hubs_cache_alone(hub: LoopbackHub, home: Path) -> None:
    text = seen(home)
    shared, own = store_of(text, home), store_of(text, home, keep=False)
    shared.fetch(text.train[0])
    fetch_all(own, text)
    assert hub.asked(SOURCE.name(0)) == 1
    assert [own.evict(file) for file in text.train] == [False, True, True]
    assert shared.local(text.train[0]) is not None and own.local(text.train[1]) is None
    blobs = {path.name for path in (home / "hub" / "cache").glob("*/blobs/*")}
    assert blobs == {text.val[0].sha256}


def test_a_file_that_was_touched_is_not_trusted(hub: LoopbackHub, home: Path) -> None:
    text = seen(home, 1)
    store = store_of(text, home)
    path = store.fetch(text.train[0])
    path.resolve().write_bytes(b"x" * text.train[0].bytes)
    assert store.local(text.train[0]) is None
    assert list(documents(store.fetch(text.train[0]), "text")) == texts(0)


def test_a_stop_leaves_at_once(hub: LoopbackHub, home: Path) -> None:
    text = seen(home)
    hub.delay = 30.0
    begun = time.monotonic()

    def look(got: int) -> None:
        if time.monotonic() - begun > 0.3:
            raise StopRequested()

    with pytest.raises(StopRequested):
        list(downloads(store_of(text, home), text.files, look))


def test_bytes_are_counted_on_the_way(hub: LoopbackHub, home: Path) -> None:
    text = seen(home)
    got: list[int] = []

    def look(bytes_here: int) -> None:
        got.append(bytes_here)
        hub.release()

    hub.delay = 3600.0
    list(downloads(store_of(text, home), text.files, look))
    assert got[0] == 0 and got[-1] == text.manifest["download_bytes"] and got == sorted(got)


def test_bytes_that_are_counted_twice_do_not_go_back(home: Path) -> None:
    class Twice(Store):
        def fetch(self, file: HubFile, on_bytes: Callable[[int], None] = print, wait: object = None) -> Path:
            for bytes_here in (90, 30):  # as put together, as they came
                on_bytes(bytes_here)
                enough = len(got) + 2  # the look under way may have begun before
                while len(got) < enough:
                    time.sleep(0.02)
            return home

    got: list[int] = []
    list(downloads(Twice("a/b", "c", home), [HubFile("x", "0" * 64, 100)], got.append))
    assert 90 in got and got == sorted(got)


def test_more_shards_than_there_are(hub: LoopbackHub, home: Path) -> None:
    with pytest.raises(UserError, match=r"data\.shards = 9000"):
        wanted(SOURCE, 9000)
    with pytest.raises(UserError, match=r"has no shard_00003\.parquet"):
        listing(SOURCE, wanted(SOURCE, 4), home)


def test_parquet_that_is_none_or_has_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a whole parquet"):
        list(documents(tmp_path / "a", "text"))
    (tmp_path / "b").write_bytes(parquet(["x"], column="body"))
    with pytest.raises(UserError, match="has no column text"):
        list(documents(tmp_path / "b", "text"))
    torn = bytearray(parquet([f"text {n * 7919}" for n in range(2000)]))
    torn[200:2000] = bytes(1800)  # within its pages: the footer is whole
    (tmp_path / "torn").write_bytes(torn)
    with pytest.raises(UserError, match="torn is not a whole parquet"):
        list(documents(tmp_path / "torn", "text"))
    with pytest.raises(UserError, match="was removed"):
        list(documents(tmp_path / "none", "text"))
    (tmp_path / "c").write_bytes(parquet(["one", None, "", " \n", "two"], rows=2))
    assert list(documents(tmp_path / "c", "text")) == ["one", "two"]


def test_the_sources_pin_their_validation_file_by_name() -> None:
    assert SOURCES["climbmix"].val == "shard_06542.parquet" and SOURCES["fineweb-edu"].val == "shard_01822.parquet"
    few = Source(repo="a/b", shards=3, licence="", about="")
    files = {few.name(n): HubFile(few.name(n), "0" * 64, 1) for n in range(3)}
    assert Listing("a/b", "c", files).files[few.val].name == "shard_00002.parquet"


def test_nothing_secret_is_printed() -> None:
    said = plain(f"GET https://cdn/x.parquet?X-Amz-Signature=abc&y=1 with {SECRET} failed")
    assert said == "GET https://cdn/x.parquet with hf_… failed"
    assert explain(OSError("no route to host"))[:2] == ("OSError: no route to host", True)
