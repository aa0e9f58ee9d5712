from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.data.documents import Document
from picollm.data.loader import StreamLoader, ValLoader
from picollm.data.shards import Tokens, encode, write_text
from picollm.run.errors import UserError
from picollm.text.tokenizer import Tokenizer

BOS = 0


@dataclass
class Fake:
    train: Tokens
    val: Tokens


def shards(lengths: list[int], files: int = 1) -> Fake:
    """Documents of `lengths` tokens: BOS, then numbers that occur nowhere else, over `files` shard files."""
    total = sum(lengths)
    every = np.arange(1, total + 1, dtype=np.uint16)
    starts = np.cumsum([0, *lengths])
    every[starts[:-1]] = BOS
    cuts = [len(lengths) * k // files for k in range(files + 1)]
    arrays = [every[starts[a] : starts[b]] for a, b in pairwise(cuts) if b > a]
    bounds = [starts[a : b + 1] - starts[a] for a, b in pairwise(cuts) if b > a]
    tokens = Tokens(arrays, bounds)
    return Fake(tokens, tokens)


documents = st.lists(st.integers(1, 12), min_size=1, max_size=15)
small = st.integers(1, 9)


@given(documents, small, small, st.integers(0, 5), st.integers(1, 3))
def test_every_token_of_an_epoch_once(lengths: list[int], T: int, rows: int, seed: int, files: int) -> None:
    fake = shards(lengths, files)
    loader = StreamLoader(fake, T, rows, seed)
    epochs = 3
    steps = -(-epochs * len(fake.train) // (rows * T))
    stream = np.concatenate([loader.batch(step)[0].ravel() for step in range(steps)])
    every = Counter(fake.train.take(np.arange(len(fake.train))).tolist())
    for epoch in range(epochs):
        part = stream[epoch * len(fake.train) : (epoch + 1) * len(fake.train)]
        assert Counter(part.tolist()) == every


@given(documents, small, small, st.integers(0, 5))
def test_documents_stay_whole_and_targets_follow(lengths: list[int], T: int, rows: int, seed: int) -> None:
    fake = shards(lengths)
    loader = StreamLoader(fake, T, rows, seed)
    batches = [loader.batch(step) for step in range(8)]
    inputs = np.concatenate([x.ravel() for x, _ in batches])
    targets = np.concatenate([y.ravel() for _, y in batches])
    assert all(x.shape == y.shape == (rows, T) and x.dtype == y.dtype == np.int64 for x, y in batches)
    assert np.array_equal(inputs[1:], targets[:-1])
    inside = targets != BOS
    follows = np.where(inputs == BOS, True, targets == inputs + 1)  # numbers inside a document count up
    assert follows[inside].all()


@given(documents, small, st.integers(1, 8), st.integers(1, 4), st.integers(0, 30))
def test_any_world_size_sees_the_same_batch(lengths: list[int], T: int, rows: int, world: int, step: int) -> None:
    fake = shards(lengths)
    whole = StreamLoader(fake, T, rows, 7).batch(step)
    parts = [StreamLoader(fake, T, rows, 7, rank, world).batch(step) for rank in range(world)]
    for k in (0, 1):
        assert np.array_equal(np.concatenate([part[k] for part in parts]), whole[k])


@given(documents, small, small, st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_a_batch_depends_on_its_step_only(lengths: list[int], T: int, rows: int, steps: list[int]) -> None:
    fake = shards(lengths)
    used = StreamLoader(fake, T, rows, 3)
    for step in steps:
        fresh = StreamLoader(fake, T, rows, 3).batch(step)
        assert all(np.array_equal(a, b) for a, b in zip(used.batch(step), fresh, strict=True))


def test_epochs_and_seeds_differ_in_order() -> None:
    fake = shards([5] * 40)
    per_epoch = StreamLoader(fake, 10, 20, 1)
    assert per_epoch.tokens_per_epoch == 200 and per_epoch.epoch(3) == 3.0
    assert not np.array_equal(per_epoch.batch(0)[0], per_epoch.batch(1)[0])
    assert not np.array_equal(per_epoch.batch(0)[0], StreamLoader(fake, 10, 20, 2).batch(0)[0])


@given(documents, small, small, st.integers(1, 3))
def test_validation_reads_everything_once(lengths: list[int], T: int, rows: int, world: int) -> None:
    fake = shards([*lengths, 2])
    stream = fake.val.take(np.arange(len(fake.val)))
    ranks = [list(ValLoader(fake, T, rows, rank=rank, world=world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen_in, seen_out = [], []
    for batches in zip(*ranks, strict=True):
        inputs, targets, weights = (np.concatenate([batch[k] for batch in batches]) for k in range(3))
        assert inputs.shape == targets.shape == weights.shape == (rows, T) and weights.dtype == np.float32
        seen_in.append(inputs[weights == 1])
        seen_out.append(targets[weights == 1])
        assert set(np.unique(weights)) <= {0.0, 1.0}
    assert np.array_equal(np.concatenate(seen_in), stream[:-1])
    assert np.array_equal(np.concatenate(seen_out), stream[1:])


def test_validation_can_stop_early() -> None:
    fake = shards([10] * 10)
    assert [len(ValLoader(fake, 4, 3, limit)) for limit in (0, 1, 12, 13, 10_000)] == [9, 1, 1, 2, 9]
    assert sum(int(w.sum()) for *_, w in ValLoader(fake, 4, 3, 13)) == 16
    assert sum(int(w.sum()) for *_, w in ValLoader(fake, 4, 3)) == 99


def test_empty_shards_are_a_user_error() -> None:
    empty = Tokens([np.empty(0, dtype=np.uint16)], [np.array([0])])
    with pytest.raises(UserError, match="no training tokens"):
        StreamLoader(Fake(empty, empty), 4, 2, 0)
    with pytest.raises(UserError, match="no validation tokens"):
        ValLoader(Fake(empty, empty), 4, 2)


def test_real_shards(documents: list[Document], tok: Tokenizer, tmp_path: Path) -> None:
    found = encode(write_text(documents, tmp_path), tok, tmp_path, shard_tokens=300)
    loader = StreamLoader(found, 16, 4, 0)
    inputs, _ = loader.batch(0)
    assert inputs[0, 0] == tok.bos_id
    assert tok.decode(inputs.ravel().tolist()).count("<|bos|>") > 1


class FakeGrowing:
    """Shards of `sizes` documents' lengths, of which the first `there` exist; numbers tell where each token is from."""

    def __init__(self, sizes: list[list[int]], there: int) -> None:
        whole = shards([length for lengths in sizes for length in lengths] or [1]).train
        self.every, self.there, self.sizes = whole.arrays[0], there, sizes
        self.asked: list[int] = []

    @property
    def blocks(self) -> int:
        return len(self.sizes)

    def block_name(self, number: int) -> str:
        return f"shard_{number:05d}"

    def block(self, number: int) -> Tokens | None:
        if number >= self.there:
            return None
        start = sum(sum(lengths) for lengths in self.sizes[:number])
        bounds = np.cumsum([0, *self.sizes[number]])
        return Tokens([self.every[start : start + bounds[-1]]], [bounds])

    @property
    def train(self) -> Tokens:
        raise AssertionError("the loader reads shard by shard")

    @property
    def val(self) -> Tokens:
        raise AssertionError("the training loader does not read validation text")


growing = st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=6), min_size=1, max_size=5).filter(
    lambda sizes: any(sizes)
)


@given(growing, small, small, st.integers(0, 5), st.integers(1, 3), st.data())
def test_a_growing_set_gives_the_same_batches_whenever_its_shards_come(
    sizes: list[list[int]], T: int, rows: int, seed: int, world: int, data: st.DataObject
) -> None:
    whole = StreamLoader(FakeGrowing(sizes, len(sizes)), T, rows, seed)
    assert whole.tokens_per_epoch == sum(map(sum, sizes)) and whole.dropped_tokens == 0
    late = FakeGrowing(sizes, data.draw(st.integers(0, len(sizes))))
    waited: list[str] = []

    def one_more_comes(name: str) -> None:
        assert name == f"shard_{late.there:05d}"
        waited.append(name)
        late.there += 1

    loaders = [StreamLoader(late, T, rows, seed, rank, world, one_more_comes) for rank in range(world)]
    for step in data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=6)):
        expected = whole.batch(step)
        parts = [loader.batch(step) for loader in loaders]
        for k in (0, 1):
            assert np.array_equal(np.concatenate([part[k] for part in parts]), expected[k])
    assert len(waited) == len(set(waited))


@given(growing, small, small, st.integers(0, 5))
def test_a_growing_set_reads_every_token_once_in_the_order_of_its_shards(
    sizes: list[list[int]], T: int, rows: int, seed: int
) -> None:
    fake = FakeGrowing(sizes, len(sizes))
    loader = StreamLoader(fake, T, rows, seed)
    total = loader.tokens_per_epoch
    stream = np.concatenate([loader.batch(step)[0].ravel() for step in range(-(-2 * total // (rows * T)))])
    for epoch in range(2):
        start = epoch * total
        for lengths in sizes:
            block = fake.every[start - epoch * total :][: sum(lengths)]
            assert Counter(stream[start : start + sum(lengths)].tolist()) == Counter(block.tolist())
            start += sum(lengths)


def test_only_the_shards_that_a_batch_needs_are_waited_for() -> None:
    fake = FakeGrowing([[10], [10], [10]], there=1)

    def give_up(name: str) -> None:
        raise UserError(f"{name} never came")

    loader = StreamLoader(fake, 3, 1, 0, waiting=give_up)
    for step in range(3):  # the last target of step 2 is the last token of the first shard
        assert loader.batch(step)[0].shape == (1, 3)
    with pytest.raises(UserError, match="shard_00001 never came"):
        loader.batch(3)
    assert loader.epoch(5) == 0.5  # as far as can be told: the others may be of another size
    fake.there = 2
    assert loader.batch(3)[0].shape == (1, 3)
    # a rank waits for what the others need too, so that all of them wait
    last = StreamLoader(FakeGrowing([[10], [10]], there=1), 3, 4, 0, rank=0, world=4, waiting=give_up)
    with pytest.raises(UserError, match="shard_00001 never came"):
        last.batch(0)


def test_a_shard_that_two_threads_see_come_is_taken_up_once() -> None:
    fake = FakeGrowing([[10], [20], [30]], there=1)
    loader = StreamLoader(fake, 5, 2, 0)
    fake.there, block = 3, fake.block

    def slowly(number: int) -> Tokens | None:
        found = block(number)
        time.sleep(0.05)
        return found

    fake.block = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor() as pool:  # as batches are made ahead while the meter asks for the epoch
        batch, epoch = pool.submit(loader.batch, 5), pool.submit(loader.epoch, 6)
        assert epoch.result() == 1.0
    whole = StreamLoader(FakeGrowing([[10], [20], [30]], there=3), 5, 2, 0)
    assert np.array_equal(batch.result()[0], whole.batch(5)[0])


def test_a_growing_set_without_a_token_is_a_user_error() -> None:
    with pytest.raises(UserError, match="no training tokens"):
        StreamLoader(FakeGrowing([[], []], there=2), 4, 2, 0)
    with pytest.raises(UserError, match="shard_00000 is missing; run the tokenizer stage again"):
        StreamLoader(FakeGrowing([[3]], there=0), 4, 2, 0)
