from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.data import shards as shards_module
from picollm.data.documents import Document
from picollm.data.ranges import line_ranges
from picollm.data.shards import ShardSet, TextSet, Tokens, encode, write_text
from picollm.run.errors import StopRequested, UserError
from picollm.text.tokenizer import Tokenizer, train_tokenizer


def decoded(tokens: Tokens, tok: Tokenizer) -> list[str]:
    ids = tokens.take(np.arange(len(tokens)))
    found = []
    for start, end in zip(tokens.starts[:-1], tokens.starts[1:], strict=True):
        assert ids[start] == tok.bos_id
        found.append(tok.decode(ids[start + 1 : end].tolist()))
    return found


def test_text_round_trip(documents: list[Document], tmp_path: Path) -> None:
    text = write_text(documents, tmp_path, {"licence": "ours"}, val_share=0.1)
    again = TextSet.open(str(text.folder))
    assert text.folder == tmp_path / "text" / text.hash
    both = sorted([*again.train_texts(), *again.val_texts()])
    assert both == sorted(d.text for d in documents)
    counts = again.manifest
    assert counts["documents"] == 120 == counts["train_documents"] + counts["val_documents"]
    assert counts["bytes"] == sum(len(d.text.encode()) for d in documents)
    assert counts["provenance"] == {"licence": "ours"} and len(counts["files"]["val.jsonl"]["sha256"]) == 64
    assert write_text(documents, tmp_path, val_share=0.1).folder == text.folder
    assert write_text(documents, tmp_path, val_share=0.2).hash != text.hash
    assert write_text(documents[1:], tmp_path, val_share=0.1).hash != text.hash


def test_one_small_file_is_enough(tok: Tokenizer, tmp_path: Path) -> None:
    text = write_text([Document(id="a.txt", text="One line.\nAnother line.\n")], tmp_path)
    shards = encode(text, tok, tmp_path)
    assert decoded(shards.train, tok) + decoded(shards.val, tok) == [*text.train_texts(), *text.val_texts()]
    assert len(shards.train) and len(shards.val)


@pytest.mark.parametrize("shard_tokens", [1 << 27, 100])
def test_shards_round_trip(documents: list[Document], tok: Tokenizer, tmp_path: Path, shard_tokens: int) -> None:
    text = write_text(documents, tmp_path, {"licence": "ours"}, val_share=0.2)
    shards = encode(text, tok, tmp_path, shard_tokens=shard_tokens)
    again = ShardSet.open(shards.folder)
    again.verify()
    assert decoded(again.train, tok) == list(text.train_texts())
    assert decoded(again.val, tok) == list(text.val_texts())
    files = [name for name in again.manifest["files"] if name.endswith(".bin")]
    assert len(files) == 2 if shard_tokens > 1000 else len(files) > 4
    assert again.manifest["train_tokens"] == len(again.train) and again.manifest["val_tokens"] == len(again.val)
    assert again.manifest["dtype"] == "<u2" and again.bos_id == tok.bos_id
    assert again.tokenizer_hash == tok.hash and again.manifest["text"] == text.hash
    assert again.manifest["provenance"] == {"licence": "ours"}


def test_batches_of_any_size_keep_the_order(
    documents: list[Document], tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "BATCH_CHARACTERS", 64)
    text = write_text(documents, tmp_path)
    assert decoded(encode(text, tok, tmp_path).train, tok) == list(text.train_texts())


def test_shards_are_addressed_by_content(documents: list[Document], tok: Tokenizer, tmp_path: Path) -> None:
    text = write_text(documents, tmp_path)
    first = encode(text, tok, tmp_path)
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    assert encode(text, tok, tmp_path).folder == first.folder
    assert (first.folder / "manifest.json").stat().st_mtime_ns == stamp
    assert encode(text, train_tokenizer(["other words"], 270), tmp_path).hash != first.hash
    assert [p for p in (tmp_path / "shards").iterdir() if p.name.startswith(".")] == []


def test_a_large_vocabulary_needs_more_bits(documents: list[Document], tok: Tokenizer, tmp_path: Path) -> None:
    class Wide:
        """`tok` with its ids moved up past 16 bits."""

        hash, vocab_size, bos_id, threads = "wide", 70_000, 69_999, 1

        def encode_array(self, text: str) -> np.ndarray:
            return tok.encode_array(text) + 69_000

    text = write_text(documents, tmp_path)
    shards = encode(text, Wide(), tmp_path)  # type: ignore[arg-type]
    assert shards.manifest["dtype"] == "<u4"
    assert int(shards.train.take(np.array([0]))[0]) == 69_999
    assert shards.train.take(np.arange(len(shards.train))).min() >= 69_000


def test_damage_is_seen_and_repaired(documents: list[Document], tok: Tokenizer, tmp_path: Path) -> None:
    text = write_text(documents, tmp_path)
    shards = encode(text, tok, tmp_path)
    file = shards.folder / "train-00000.bin"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"damaged: train-00000\.bin has"):
        ShardSet.open(shards.folder)
    encode(text, tok, tmp_path).verify()
    file.write_bytes(bytes(len(data)))
    with pytest.raises(UserError, match="does not match its checksum"):
        ShardSet.open(shards.folder).verify()


def test_text_changed_behind_our_back_is_refused(documents: list[Document], tok: Tokenizer, tmp_path: Path) -> None:
    text = write_text(documents, tmp_path)
    file = text.folder / "train.jsonl"
    file.write_bytes(file.read_bytes().replace(b"cat", b"cow"))
    with pytest.raises(UserError, match=r"train\.jsonl does not match"):
        encode(text, tok, tmp_path)


def test_opening_what_is_not_there(documents: list[Document], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the dataset stage"):
        TextSet.open(tmp_path / "none")
    with pytest.raises(UserError, match="run the tokenizer stage"):
        ShardSet.open(tmp_path / "none")
    text = write_text(documents, tmp_path)
    with pytest.raises(UserError, match="does not hold shards"):
        ShardSet.open(text.folder)


def test_a_full_disk_is_said_before_writing(
    documents: list[Document], tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(documents, tmp_path)
    monkeypatch.setattr(shards_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match="10 bytes free"):
        encode(text, tok, tmp_path)
    assert list((tmp_path / "shards").iterdir()) == []


def test_surrogates_do_not_stop_us(tok: Tokenizer, tmp_path: Path) -> None:
    text = write_text([Document(id="a", text="odd \ud800 text. " * 20)], tmp_path)
    assert "odd ? text." in "".join(text.train_texts())


def _race(home: str, documents: list[Document], definition: str) -> str:
    tok = Tokenizer(definition)
    return encode(write_text(documents, Path(home)), tok, Path(home)).hash


def test_two_processes_race(documents: list[Document], tok: Tokenizer, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        names = pool.starmap(_race, [(str(tmp_path), documents, tok._definition)] * 4)
    assert len(set(names)) == 1
    ShardSet.open(tmp_path / "shards" / names[0]).verify()
    assert len(list((tmp_path / "shards").iterdir())) == 1


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4), st.data())
def test_take_across_shards(sizes: list[list[int]], data: st.DataObject) -> None:
    arrays, bounds, value = [], [], 0
    for shard in sizes:
        arrays.append(np.arange(value, value + sum(shard), dtype=np.uint16))
        bounds.append(np.cumsum([0, *shard]))
        value += sum(shard)
    tokens = Tokens(arrays, bounds)
    assert len(tokens) == value and tokens.documents == sum(map(len, sizes))
    assert tokens.starts.tolist() == np.cumsum([0, *(n for shard in sizes for n in shard)]).tolist()
    positions = np.array(data.draw(st.lists(st.integers(0, value - 1), max_size=20)), dtype=np.int64)
    assert tokens.take(positions).tolist() == positions.tolist()


def test_encoding_can_be_left_and_leaves_nothing(documents: list[Document], tok: Tokenizer, tmp_path: Path) -> None:
    text = write_text(documents, tmp_path, val_share=0.2)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        raise StopRequested()

    with pytest.raises(StopRequested):
        encode(text, tok, tmp_path, on_progress=stop)
    assert seen == [(0, 120)] and list((tmp_path / "shards").iterdir()) == []
    assert len(encode(text, tok, tmp_path).train)


def test_a_large_text_is_encoded_in_processes_to_the_same_tokens(
    documents: list[Document], tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(documents, tmp_path, val_share=0.2)
    whole = encode(text, tok, tmp_path)
    monkeypatch.setattr(shards_module, "RANGE_BYTES", 3000)
    monkeypatch.setattr(Tokenizer, "threads", 2)
    seen: list[tuple[int, int]] = []
    parts = encode(text, tok, tmp_path / "parts", on_progress=lambda *done: seen.append(done))
    files = [name for name in parts.manifest["files"] if name.endswith(".bin")]
    assert len(files) > 3 and parts.hash == whole.hash and seen[-1] == (120, 120)
    for one, other in ((parts.train, whole.train), (parts.val, whole.val)):
        assert np.array_equal(one.take(np.arange(len(one))), other.take(np.arange(len(other))))
        assert np.array_equal(one.starts, other.starts)
    assert parts.manifest["train_tokens"] == len(parts.train)
    assert all((parts.folder / name).is_file() for name in parts.manifest["files"])

    def stop(done: int, of: int) -> None:
        raise StopRequested()

    with pytest.raises(StopRequested):
        encode(text, tok, tmp_path / "left", on_progress=stop)
    assert list((tmp_path / "left" / "shards").iterdir()) == []


@given(st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=12), st.integers(1, 30))
def test_ranges_are_whole_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], size: int) -> None:
    file = tmp_path_factory.mktemp("ranges") / "lines"
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    data = file.read_bytes()
    found = line_ranges(file, size)
    assert b"".join(data[start:end] for start, end in found) == data
    assert all(data[start:end].endswith(b"\n") and end - start >= size for start, end in found[:-1])
