"""From a Hub's files to token shards: made in processes, once, as the files come; killed and gone on with."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from picollm.data import hub_shards
from picollm.data.hub import SOURCES, HubFile, Listing, Store
from picollm.data.hub_shards import HubShards, encode_files, known_tokenizer, learn_tokenizer, missing, write_shard_set
from picollm.data.hub_text import HubText, write_hub_text
from picollm.data.loader import Growing, StreamLoader, ValLoader
from picollm.data.publish import sha256
from picollm.data.shards import ShardSet, Tokens
from picollm.data.workers import Workers
from picollm.run.errors import StopRequested, UserError
from picollm.text.tokenizer import Tokenizer
from tests.hub import parquet

SOURCE = SOURCES["climbmix"]


class Here(Store):
    """A store whose files are put there by the test instead of a Hub."""

    def __init__(self, folder: Path, home: Path) -> None:
        super().__init__(SOURCE.repo, "0" * 40, home)
        self.folder = folder

    def local(self, file: HubFile) -> Path | None:
        path = self.folder / file.name
        return path if path.exists() else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three training files and the validation file, of 30 documents each."""
    found = tmp_path / "files"
    found.mkdir()
    for number in (0, 1, 2, 6542):
        texts = [f"document {n} of file {number}: the cat sat on the mat " * (1 + n % 5) for n in range(30)]
        (found / SOURCE.name(number)).write_bytes(parquet(texts))
    return found


def text_of(folder: Path, home: Path, shards: int = 3) -> HubText:
    files = {
        path.name: HubFile(path.name, sha256(path), path.stat().st_size) for path in sorted(folder.glob("*.parquet"))
    }
    return write_hub_text(SOURCE, Listing(SOURCE.repo, "0" * 40, files, "cc-by-nc-4.0"), shards, home)


def never(file: HubFile) -> None:
    raise AssertionError(f"{file.name} is there")


def encode_all(text: HubText, tok: Tokenizer, home: Path, store: Store) -> list[str]:
    tok.save(home / "tok")
    return [f.name for f in encode_files(text, tok, home / "tok", home, store, never, lambda done, files: None)]


def decoded(tokens: Tokens, tok: Tokenizer) -> list[str]:
    ids = tokens.take(np.arange(len(tokens)))
    return [tok.decode(ids[a + 1 : b].tolist()) for a, b in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]


def test_the_set_is_named_first_and_grows(folder: Path, tok: Tokenizer, tmp_path: Path) -> None:
    text = text_of(folder, tmp_path)
    shards = write_shard_set(text, tok, tmp_path)
    assert isinstance(ShardSet.open(shards.folder), HubShards) and isinstance(shards, Growing)
    assert [f.name for f in missing(text, tok.hash, tmp_path)] == [f.name for f in text.files]
    assert shards.block(0) is None
    with pytest.raises(UserError, match=r"shard of shard_06542\.parquet is missing"):
        ValLoader(shards, 8, 2)
    assert sorted(encode_all(text, tok, tmp_path, Here(folder, tmp_path))) == sorted(f.name for f in text.files)
    assert missing(text, tok.hash, tmp_path) == []
    for number in range(3):
        tokens = shards.block(number)
        assert tokens is not None
        assert decoded(tokens, tok)[7] == f"document 7 of file {number}: the cat sat on the mat " * 3
    counts = shards.counts()
    assert counts["train_documents"] == 90 and counts["val_documents"] == 30
    assert counts["train_tokens"] == len(shards.train) and counts["val_tokens"] == len(shards.val)
    assert counts["train_bytes"] == sum(len(d.encode()) for d in decoded(shards.train, tok))
    assert shards.excerpt().startswith("document 0 of file 6542")
    assert "not for commercial use" in shards.manifest["provenance"]["licence"]
    shards.verify()
    assert StreamLoader(shards, 16, 4, 0).batch(0)[0][0, 0] == tok.bos_id
    assert write_shard_set(text, tok, tmp_path).hash == shards.hash
    assert encode_all(text, tok, tmp_path, Here(folder, tmp_path)) == []
    assert write_shard_set(text_of(folder, tmp_path, 2), tok, tmp_path).hash != shards.hash
    assert missing(text_of(folder, tmp_path, 2), tok.hash, tmp_path) == []  # the same files, the same shards


def test_files_are_encoded_as_they_come(folder: Path, tok: Tokenizer, tmp_path: Path) -> None:
    text = text_of(folder, tmp_path)
    later = tmp_path / "later"
    (folder / SOURCE.name(1)).rename(later)
    tok.save(tmp_path / "tok")
    waited: list[str] = []

    def wait_for(file: HubFile) -> None:
        waited.append(file.name)
        if len(waited) == 3:
            later.rename(folder / SOURCE.name(1))

    done: list[float] = []
    store = Here(folder, tmp_path)
    came = [
        file.name
        for file in encode_files(text, tok, tmp_path / "tok", tmp_path, store, wait_for, lambda n, _: done.append(n))
    ]
    assert set(waited) == {SOURCE.name(1)} and came[-2:] != [SOURCE.name(6542), SOURCE.name(0)] and len(came) == 4
    assert done[-1] == 4


def test_what_another_run_encoded_meanwhile_is_not_waited_for(folder: Path, tok: Tokenizer, tmp_path: Path) -> None:
    text, store = text_of(folder, tmp_path), Here(folder, tmp_path)
    tok.save(tmp_path / "tok")
    files = encode_files(text, tok, tmp_path / "tok", tmp_path, store, never, lambda done, files: None)
    came = [next(files).name]
    encode_all(text, tok, tmp_path, store)
    for path in folder.glob("*"):  # as that run may do with data.keep_text = false
        path.unlink()
    assert sorted([*came, *(file.name for file in files)]) == sorted(file.name for file in text.files)


def test_the_text_may_go_when_its_shards_are_there(folder: Path, tmp_path: Path) -> None:
    text = text_of(folder, tmp_path)
    looked: list[int] = []
    assert known_tokenizer(text, 300, tmp_path) is None
    tok = learn_tokenizer(text, 300, tmp_path, lambda file: folder / file.name, lambda n, _: looked.append(n))
    encode_all(text, tok, tmp_path, Here(folder, tmp_path))
    for path in folder.glob("*"):
        path.unlink()
    again = known_tokenizer(text, 300, tmp_path)
    assert again is not None and again.hash == tok.hash and looked
    assert missing(text, again.hash, tmp_path) == []
    assert known_tokenizer(text, 301, tmp_path) is None


def test_the_merges_are_learnt_from_the_first_characters(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of(folder, tmp_path)
    read: list[str] = []

    def get(file: HubFile) -> Path:
        read.append(file.name)
        return folder / file.name

    whole = learn_tokenizer(text, 300, tmp_path, get, lambda done, most: None)
    monkeypatch.setattr(hub_shards, "TOKENIZER_CHARACTERS", 30)
    part = learn_tokenizer(text, 300, tmp_path, get, lambda done, most: None)
    assert read == [SOURCE.name(0)] * 2
    assert part.vocab_size < whole.vocab_size  # so little text has no more pairs


def test_a_file_that_is_none_is_named(folder: Path, tok: Tokenizer, tmp_path: Path) -> None:
    text = text_of(folder, tmp_path)
    (folder / SOURCE.name(1)).write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"shard_00001\.parquet is not a whole parquet file"):
        encode_all(text, tok, tmp_path, Here(folder, tmp_path))
    left = [path.name for path in (tmp_path / "shards").iterdir()]
    assert not [
        name for name in left if name.endswith(".tmp") and (tmp_path / "shards" / name / "manifest.json").exists()
    ]


def _busy(look: object, seconds: float) -> None:
    time.sleep(seconds)


def _dies(look: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _breaks(look: object) -> None:
    raise KeyError("ours")


def _fills_the_disk(look: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "a.bin")


def test_workers_say_how_they_ended() -> None:
    workers = Workers(_fills_the_disk, 1)
    workers.start("a file")
    with pytest.raises(OSError, match="No space left") as full:
        while True:
            workers.finished(1.0)
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, "a.bin")
    workers = Workers(_dies, 1)
    workers.start("a file")
    assert not workers.free and workers.busy
    with pytest.raises(UserError, match="a file: its process was killed by SIGKILL"):
        while True:
            workers.finished(1.0)
    workers = Workers(_breaks, 1)
    workers.start("a file")
    with pytest.raises(RuntimeError, match="KeyError: 'ours'"):
        while True:
            workers.finished(1.0)
    workers = Workers(_busy, 1)
    workers.start("a file", 600)
    workers.stop()
    assert workers.free and not multiprocessing.active_children()


def test_a_stop_leaves_whole_shards_only(folder: Path, tok: Tokenizer, tmp_path: Path) -> None:
    text = text_of(folder, tmp_path)
    tok.save(tmp_path / "tok")

    came: list[str] = []

    def stop(done: float, files: int) -> None:
        if came:
            raise StopRequested()

    with pytest.raises(StopRequested):
        for file in encode_files(text, tok, tmp_path / "tok", tmp_path, Here(folder, tmp_path), never, stop):
            came.append(file.name)
    left = missing(text, tok.hash, tmp_path)
    assert 1 <= len(left) < 4
    assert len(encode_all(text, tok, tmp_path, Here(folder, tmp_path))) == len(left)
    write_shard_set(text, tok, tmp_path).verify()


KILLED = """
import sys, time
from pathlib import Path
from picollm.data import hub_shards, hub_text, publish
from picollm.text.tokenizer import Tokenizer
from tests.data.test_hub_shards import Here

folder, home = map(Path, sys.argv[1:])
text = hub_text.open_text(next((home / "text").iterdir()))
tok = Tokenizer.load(home / "tok")
Tokenizer.threads = 2
for file in hub_shards.encode_files(text, tok, home / "tok", home, Here(folder, home), print, lambda done, files: None):
    print(file.name, flush=True)
    time.sleep(3600)  # what is being encoded beside it goes on; no other file is begun
"""


@pytest.mark.slow
def test_killed_while_encoding_it_goes_on_where_it_was(folder: Path, tok: Tokenizer, tmp_path: Path) -> None:
    for number in range(3):  # long enough to be caught at it
        (folder / SOURCE.name(number)).write_bytes(parquet([f"{n} the cat sat on the mat " * 4000 for n in range(100)]))
    text = text_of(folder, tmp_path)
    tok.save(tmp_path / "tok")
    argv = [sys.executable, "-c", KILLED, str(folder), str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline().strip()
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    psutil.wait_procs(children, timeout=60)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    left = [file.name for file in missing(text, tok.hash, tmp_path)]
    assert first and first not in left and left
    assert sorted(encode_all(text, tok, tmp_path, Here(folder, tmp_path))) == sorted(left)
    write_shard_set(text, tok, tmp_path).verify()
