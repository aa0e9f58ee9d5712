"""Answers join and leave one batch at any time, and say what they say alone."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.infer import rows, scheduler
from picollm.infer.cache import KVCache
from picollm.infer.engine import Engine
from picollm.infer.graphs import StepGraphs
from picollm.infer.rows import Chunk, Completion
from picollm.infer.sampling import Sampling, Settings
from tests.infer.fakes import ByteTokenizer, scripted_engine, tiny_model

TOK = ByteTokenizer()
S = TOK.special
CALL = [*b"so ", S("<|python_start|>"), *b"12*12", S("<|python_end|>")]
OUTPUT = [S("<|output_start|>"), *b"144", S("<|output_end|>")]

SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.integers(1, 30),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    top_k=st.sampled_from([0, 5, 50]),
    top_p=st.sampled_from([0.8, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    logprobs=st.booleans(),
    top_logprobs=st.sampled_from([0, 3]),
)
PROMPTS = st.lists(st.integers(0, 255), min_size=1, max_size=90).map(lambda ids: [256, *ids])
JOINS = st.tuples(st.integers(0, 12), PROMPTS, SAMPLINGS, st.integers(0, 5), st.none() | st.integers(0, 6))


@given(st.lists(JOINS, min_size=2, max_size=6), st.integers(0, 3), st.sampled_from([1, 3]), st.sampled_from([1, 2, 64]))
@settings(max_examples=25, deadline=None)
def test_joining_and_leaving_changes_nobody(joins: list[tuple], model: int, ahead: int, max_rows: int) -> None:
    """Streams begin at random times, and some are closed after a few chunks."""
    engine = Engine(tiny_model(model), TOK, live=False, ahead=ahead, max_rows=max_rows)
    open_streams: dict[int, Iterator[Chunk | Completion]] = {}
    done: dict[int, list[Chunk | Completion]] = {}
    for now in range(200):
        for k, (start, prompt, how, seed, _) in enumerate(joins):
            if start == now:
                open_streams[k], done[k] = engine.stream(prompt, how, seed=seed), []
        for k, stream in list(open_streams.items()):
            item = next(stream, None)
            if item is None or len(done[k]) == joins[k][4]:
                stream.close()  # type: ignore[attr-defined]
                del open_streams[k]
            else:
                done[k].append(item)
    assert not open_streams and not engine.scheduler.seated and not engine.scheduler.waiting
    for k, (_, prompt, how, seed, leaves) in enumerate(joins):
        [alone] = Engine(tiny_model(model), TOK, live=False).generate([prompt], how, seeds=[seed])
        ids = [token for item in done[k] if isinstance(item, Chunk) for token in item.ids]
        assert ids == alone.ids[: len(ids)]
        if leaves is None:
            *_, last = done[k]
            assert isinstance(last, Completion) and (last.ids, last.text) == (alone.ids, alone.text)
            for mine, other in zip(last.logprobs or [], alone.logprobs or [], strict=True):
                assert mine.logprob == pytest.approx(other.logprob, abs=1e-3) and len(mine.top) == len(other.top)


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_what_was_decoded_beyond_a_call_is_thrown_away(ahead: int) -> None:
    engine = scripted_engine([*CALL, *b"?????", *b"144!"], prompt_tokens=3)
    engine.scheduler.ahead = ahead
    how = Sampling(max_tokens=60, logprobs=True, repetition_penalty=1.0)
    for done in engine.generate([[256, 65, 66]] * 3, how):
        assert done.ids == [*CALL, *OUTPUT, *b"144!", S("<|assistant_end|>")]
        assert [done.ids[i] for i, forced in enumerate(done.forced) if forced] == OUTPUT
        assert len(done.logprobs or []) == len(done.ids)
    [short] = engine.generate([[256, 65, 66]], Sampling(max_tokens=len(CALL) + 2))
    assert short.ids == [*CALL, *OUTPUT[:2]] and short.finish_reason == "length"


def test_running_ahead_says_the_same_with_tools_and_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "calculate", lambda text: "42")

    def make(ahead: int) -> Engine:
        """One that calls the tool often."""
        engine = Engine(tiny_model(), TOK, live=False, ahead=ahead)
        real, often = engine.model.logits, torch.zeros(TOK.vocab_size)
        often[[S("<|python_start|>"), S("<|python_end|>")]] = 5.0
        engine.model.logits = lambda x: real(x) + often  # type: ignore[method-assign]
        return engine

    prompts = [[256, *b"x"]] * 6 + [[256, *b"long prompt here"]] * 6
    how = Sampling(max_tokens=60, temperature=1.5, top_k=0, repetition_penalty=1.05)
    answers = [make(ahead).generate(prompts, how, seeds=list(range(12))) for ahead in (1, 4)]
    assert [a.ids for a in answers[0]] == [a.ids for a in answers[1]]
    assert sum(any(a.forced) for a in answers[0]) >= 3
    for k in range(12):
        assert make(1).generate([prompts[k]], how, seeds=[k])[0].ids == answers[0][k].ids


def test_a_long_prompt_is_read_in_chunks_between_the_tokens_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "CHUNK", 16)
    engine = Engine(tiny_model(seq_len=256), TOK, live=False)
    read: list[int] = []
    real = engine.model.hidden

    def hidden(ids, span=None):  # type: ignore[no-untyped-def]
        read.append(ids.numel())
        return real(ids, span)

    engine.model.hidden = hidden  # type: ignore[method-assign]
    first = engine.stream([256, 65], Sampling(max_tokens=60))
    next(first)
    read.clear()
    prompt = [256, *bytes(range(180))]
    long = engine.stream(prompt, Sampling(max_tokens=5))
    got, other = [], []
    for item in long:
        got.append(item)
        other += next(first).ids  # type: ignore[union-attr]
    assert max(read) <= 17 and len(other) >= 12
    [alone] = Engine(tiny_model(seq_len=256), TOK).generate([prompt], Sampling(max_tokens=5))
    assert isinstance(got[-1], Completion) and got[-1].ids == alone.ids


def test_a_cancelled_row_frees_its_place_at_once() -> None:
    engine = Engine(tiny_model(), TOK, live=False, max_rows=1)
    cancel = threading.Event()
    how = Sampling(max_tokens=100, temperature=1.0)
    first, second = engine.stream([256, 65], how, cancel), engine.stream([256, 66], how, seed=4)
    next(first), next(second)
    assert len(engine.scheduler.seated) == len(engine.scheduler.waiting) == 1
    cancel.set()
    ends = [item for item in first if isinstance(item, Completion)]
    assert ends[0].finish_reason == "cancel" and not engine.scheduler.seated
    assert next(second).ids  # type: ignore[union-attr]
    second.close()  # type: ignore[attr-defined]
    assert not engine.scheduler.seated and engine.scheduler.cache is None


def test_a_row_that_fails_harms_no_other() -> None:
    engine = Engine(tiny_model(), TOK, live=False)
    how = Sampling(max_tokens=40, temperature=1.0)
    good, bad = engine.stream([256, *b"good"], how), engine.stream([256, *b"bad"], how, seed=1)
    expected = engine.generate([[256, *b"good"]], how)[0].ids
    ids = [*next(good).ids]  # type: ignore[union-attr]
    next(bad)
    [request] = [r for r in engine.scheduler.seated if r.prompt == [256, *b"bad"]]

    def explode(*args: object, **more: object) -> str:
        raise RuntimeError("half a character too many")

    request.row.push = explode  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="half a character"):
        list(bad)
    for item in good:
        ids += item.ids if isinstance(item, Chunk) else []
    assert ids == expected and not engine.scheduler.seated


def test_prompts_that_cannot_be_read_leave_those_under_way_alone() -> None:
    engine = Engine(tiny_model(), TOK, live=False)
    how = Sampling(max_tokens=40)
    expected = engine.generate([[256, 65]], how)[0].ids
    good = engine.stream([256, 65], how)
    ids = [*next(good).ids]  # type: ignore[union-attr]
    real = engine.model.hidden

    def hidden(ids, span=None):  # type: ignore[no-untyped-def]
        if ids.numel() > 20:
            raise torch.OutOfMemoryError("no room")
        return real(ids, span)

    engine.model.hidden = hidden  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate([[256, *bytes(50)]] * 3, how)
    for item in good:
        ids += item.ids if isinstance(item, Chunk) else []
    assert ids == expected


def test_the_cache_keeps_within_its_bytes() -> None:
    model = tiny_model()
    row = 64 * KVCache.token_bytes(model.shape, torch.float32)
    engine = Engine(model, TOK, live=False, cache_bytes=4 * row)
    sizes: list[tuple[int, int]] = []
    real = engine.model.hidden

    def hidden(ids, span=None):  # type: ignore[no-untyped-def]
        sizes.append((span.cache.slots, span.cache.length))
        return real(ids, span)

    engine.model.hidden = hidden  # type: ignore[method-assign]
    prompts = [[256, 65 + k] for k in range(11)]
    how = Sampling(max_tokens=30, temperature=1.0)
    answers = engine.generate(prompts, how, seeds=list(range(11)))
    assert max(sizes) == (4, 64)
    for k in range(11):
        assert engine.generate([prompts[k]], how, seeds=[k])[0].ids == answers[k].ids
    [alone] = engine.generate([[256] * 100], Sampling(max_tokens=20))  # larger than allowed for two, but alone
    assert alone.ids


def test_threads_share_one_engine() -> None:
    engine = Engine(tiny_model(), TOK, live=False)
    how = Sampling(max_tokens=25, temperature=1.0)
    answers: dict[int, list[int]] = {}

    def ask(k: int) -> None:
        answers[k] = engine.generate([[256, 65 + k]], how, seeds=[k])[0].ids

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    for k in range(6):
        assert engine.generate([[256, 65 + k]], how, seeds=[k])[0].ids == answers[k]


@pytest.mark.skipif(torch.cuda.is_available(), reason="capturing works here")
def test_without_cuda_graphs_steps_run_as_they_are() -> None:
    said: list[str] = []
    graphs, state = StepGraphs(said.append), torch.zeros(3)
    for k in range(3):
        [got] = graphs.run(k % 2, lambda: [state.add_(1)], [state])
        assert got.tolist() == [k + 1.0] * 3
    assert len(said) == 1 and "without CUDA graphs" in said[0] and "\n" not in said[0]


def test_a_pool_of_memory_ends_with_its_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    there: weakref.WeakSet[Graph] = weakref.WeakSet()

    class Graph:
        held: object = None

        def pool(self) -> object:
            return self.held

        def replay(self) -> None:
            pass

    @contextlib.contextmanager
    def capture(graph: Graph, pool: object = None) -> Iterator[None]:
        if pool is not None and all(other.held is not pool for other in there):
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")  # as the allocator of CUDA memory does
        graph.held = pool or object()
        there.add(graph)
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda it: contextlib.nullcontext())
    said: list[str] = []
    graphs, step = StepGraphs(said.append), lambda: [torch.zeros(1)]
    for key in ("one", "two"):
        graphs.run(key, step, [])
    assert len({id(graph.held) for graph in there}) == 1
    graphs.forget()  # as when the cache grows
    graphs.run("one", step, [])
    assert graphs.works and not said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_steps_say_what_eager_ones_do() -> None:
    model = tiny_model().cuda()
    how = Sampling(max_tokens=50, temperature=0.8, logprobs=True)
    prompts = [[256, *bytes(range(n))] for n in (1, 30, 60)]
    captured = Engine(model, TOK, dtype=torch.float32)
    eager = Engine(model, TOK, dtype=torch.float32, ahead=1)
    eager.scheduler.graphs.works = False
    got, expected = (engine.generate(prompts, how, seeds=[1, 2, 3]) for engine in (captured, eager))
    assert captured.scheduler.graphs.works and [a.ids for a in got] == [a.ids for a in expected]


@pytest.mark.parametrize("part", ["cache", "state"])
def test_a_request_that_there_is_no_memory_for_ends_alone(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(), TOK, live=False, max_rows=2)
    how = Sampling(max_tokens=30, temperature=1.0)
    expected = engine.generate([[256, 65]], how)[0].ids
    good, other, bad = engine.stream([256, 65], how), engine.stream([256, 66], how), engine.stream([256] * 100, how)
    ids = [*next(good).ids]  # type: ignore[union-attr]
    next(other)
    next(bad)  # waits for a place
    other.close()  # type: ignore[attr-defined]

    def full(*args: object, **more: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(*((KVCache, "resized") if part == "cache" else (Settings, "empty")), full)
        for _ in range(3):
            ids += next(good).ids  # type: ignore[union-attr]
        with pytest.raises(torch.OutOfMemoryError):
            next(bad)
    for item in good:
        ids += item.ids if isinstance(item, Chunk) else []
    assert ids == expected
    assert engine.generate([[256] * 100], how)[0].ids


def test_a_cache_that_is_left_over_does_not_count_for_one_that_is_alone() -> None:
    model = tiny_model()
    engine = Engine(model, TOK, live=False, cache_bytes=4 * 64 * KVCache.token_bytes(model.shape, torch.float32))
    engine.scheduler.cache = KVCache(model.shape, 4, 64)  # as on a GPU, where it stays
    stream = engine.stream([256] * 100, Sampling(max_tokens=20))
    next(stream)
    assert (engine.scheduler.cache.slots, engine.scheduler.cache.length) == (1, 128)
