"""The engine: whichever way a prompt is asked, the same answer."""

from __future__ import annotations

import threading

import pytest
import torch

from picollm.infer.engine import Engine, fit
from picollm.infer.rows import Chunk, Completion
from picollm.infer.sampling import Sampling
from picollm.run.errors import UserError
from tests.infer.fakes import ByteTokenizer, scripted_engine, tiny_model

TOK = ByteTokenizer()
S = TOK.special
PROMPTS = [[256, *b"hello there, what is it"], [256, *b"a"], [256, *b"hello"], [256, *b"a"], [256] + [7] * 60]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(), TOK)


@pytest.mark.parametrize("windows", ["L", "SL"])
def test_greedy_with_cache_is_greedy_without(windows: str) -> None:
    model = tiny_model(seq_len=256, window_pattern=windows, depth=3)
    prompt = [256, *bytes(range(60)) * 2]
    [got] = Engine(model, TOK).generate([prompt], Sampling(max_tokens=40))
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + len(got.ids):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert got.ids == ids[len(prompt) :] and len(got.ids) > 5


@pytest.mark.parametrize("sampling", [
    Sampling(max_tokens=50, temperature=1.0, top_k=50), Sampling(max_tokens=50, temperature=1.0, top_k=0),
    Sampling(max_tokens=50, temperature=0.7, top_k=0, top_p=0.9), Sampling(max_tokens=50),
])  # fmt: skip
def test_a_row_says_the_same_alone_and_in_company(engine: Engine, sampling: Sampling) -> None:
    seeds = [3, 4, 5, 6, 7]
    together = engine.generate(PROMPTS, sampling, seeds=seeds)
    for prompt, seed, answer in zip(PROMPTS, seeds, together, strict=True):
        [alone] = engine.generate([prompt], sampling, seeds=[seed])
        assert (alone.ids, alone.text, alone.finish_reason) == (answer.ids, answer.text, answer.finish_reason)
        *chunks, last = engine.stream(prompt, sampling, seed=seed)
        assert isinstance(last, Completion) and last.ids == answer.ids
        assert all(isinstance(c, Chunk) for c in chunks)
        assert "".join(c.text for c in chunks) == answer.text  # type: ignore[union-attr]
        assert [t for c in chunks for t in c.ids] == answer.ids  # type: ignore[union-attr]


def test_seeds_make_samples_differ_and_repeat(engine: Engine) -> None:
    how = Sampling(max_tokens=30, temperature=1.0)
    a = [c.ids for c in engine.generate([PROMPTS[0]] * 6, how, seeds=list(range(6)))]
    b = [c.ids for c in engine.generate([PROMPTS[0]] * 6, how, seeds=list(range(6)))]
    assert a == b and len({tuple(x) for x in a}) == 6
    c = engine.generate([PROMPTS[0]] * 2, how)
    assert c[0].ids == c[1].ids


def test_more_prompts_than_rows(engine: Engine) -> None:
    how = Sampling(max_tokens=20, temperature=1.0)
    small = Engine(tiny_model(), TOK, max_rows=2)
    seeds = [1, 2, 3, 4, 5]
    assert [c.ids for c in small.generate(PROMPTS, how, seeds=seeds)] == [
        c.ids for c in engine.generate(PROMPTS, how, seeds=seeds)
    ]
    assert engine.generate([], how) == []


def test_rows_that_fill_the_context_leave_the_others_alone(engine: Engine) -> None:
    """The longest row ends at the context's edge while short ones go on far beyond that many steps."""
    prompts = [[256] + [9] * 100, [256, 65], [256, 66]]
    how = Sampling(max_tokens=120, temperature=2.0, top_k=0)
    together = engine.generate(prompts, how, seeds=[1, 2, 3])
    for prompt, seed, answer in zip(prompts, [1, 2, 3], together, strict=True):
        assert engine.generate([prompt], how, seeds=[seed])[0].ids == answer.ids
        assert len(prompt) - answer.cut_tokens + len(answer.ids) <= engine.context


def test_tool_call_inside_the_loop() -> None:
    call = [*b"so ", S("<|python_start|>"), *b"12*12", S("<|python_end|>")]
    output = [S("<|output_start|>"), *b"144", S("<|output_end|>")]
    script = [*call, *b"?????", *b"144!"]  # the five ? are what the model would have said instead of the output
    engine = scripted_engine(script, prompt_tokens=3)
    [done] = engine.generate([[256, 65, 66]], Sampling(max_tokens=60))
    assert done.ids == [*call, *output, *b"144!", S("<|assistant_end|>")]
    assert [done.ids[i] for i, forced in enumerate(done.forced) if forced] == output
    assert done.text == "so 144!" and done.finish_reason == "stop"
    [plain] = engine.generate([[256, 65, 66]], Sampling(max_tokens=60), tools=False)
    assert plain.text == "so ?????144!"


def test_tool_call_in_one_row_of_a_batch() -> None:
    """Forced tokens of one row must not disturb its neighbours."""
    engine = Engine(tiny_model(), TOK)
    how = Sampling(max_tokens=60, temperature=1.5, top_k=0)
    seeds = list(range(200, 216))
    prompts = [[256, *b"x", S("<|python_start|>"), *b"1+1"]] * 8 + [[256, *b"long prompt here"]] * 8
    for prompt, seed, answer in zip(prompts, seeds, engine.generate(prompts, how, seeds=seeds), strict=True):
        assert engine.generate([prompt], how, seeds=[seed])[0].ids == answer.ids


def test_finish_reasons() -> None:
    engine = scripted_engine(list(b"one two three"), prompt_tokens=2)
    prompt = [[256, 65]]
    assert engine.generate(prompt, Sampling(max_tokens=5))[0].finish_reason == "length"
    stopped = engine.generate(prompt, Sampling(max_tokens=50, stop=[" t", "zzz"]))[0]
    assert (stopped.text, stopped.finish_reason) == ("one", "stop")
    assert engine.generate(prompt, Sampling(max_tokens=50))[0].text == "one two three"


def test_cancel() -> None:
    engine = scripted_engine(list(b"abcdefghij"), prompt_tokens=2)
    cancel = threading.Event()
    got = []
    for piece in engine.stream([256, 65], Sampling(max_tokens=50), cancel):
        got.append(piece)
        if len(got) == 3:
            cancel.set()
    assert got[-1].finish_reason == "cancel" and got[-1].text == "abc"
    assert engine.generate([[256, 65]], Sampling(), cancel=cancel)[0].finish_reason == "cancel"


def test_prompt_too_long_is_cut_from_the_left(engine: Engine) -> None:
    assert fit([1, 2, 3], 8, 100, 256) == [1, 2, 3]
    assert fit([256, *range(10)], 8, 100, 256) == [256, 5, 6, 7, 8, 9]
    assert fit(list(range(10)), 8, 1, 256) == [3, 4, 5, 6, 7, 8, 9]
    long = [256, *bytes(range(200))]
    [done] = engine.generate([long], Sampling(max_tokens=1000))
    assert done.prompt_tokens == 96 and done.cut_tokens == 105
    assert done.finish_reason in ("length", "stop") and len(done.ids) <= 32
    [same] = engine.generate([[256, *long[-95:]]], Sampling(max_tokens=1000))
    assert same.ids == done.ids


def test_logprobs(engine: Engine) -> None:
    [done] = engine.generate([PROMPTS[0]], Sampling(max_tokens=10, temperature=1.0, logprobs=True))
    ids = torch.tensor([PROMPTS[0] + done.ids])
    with torch.no_grad():
        expected = torch.log_softmax(tiny_model()(ids)[0], -1)
    for t, (token, record) in enumerate(zip(done.ids, done.logprobs or [], strict=True)):
        assert record.id == token and record.top == ()
        assert record.logprob == pytest.approx(float(expected[len(PROMPTS[0]) - 1 + t, token]), abs=1e-3)


def test_streamed_logprobs_are_those_of_the_text() -> None:
    call = [*b"so ", S("<|python_start|>"), *b"12*12", S("<|python_end|>")]
    engine = scripted_engine([*call, *b"?????", *"144 ☃ never".encode()], prompt_tokens=3)
    how = Sampling(max_tokens=60, logprobs=True, top_logprobs=2, stop=[" never"])
    *chunks, last = engine.stream([256, 65, 66], how)
    assert isinstance(last, Completion) and last.text == "so 144 ☃"
    records = [record for chunk in chunks for record in chunk.logprobs]  # type: ignore[union-attr]
    assert bytes(record.id for record in records).decode() == last.text
    assert all(record.top[0] == (record.id, record.logprob) and len(record.top) == 2 for record in records)


def test_repetition_penalty_counts_prompt_and_answer_row_by_row(engine: Engine) -> None:
    how = Sampling(max_tokens=40, repetition_penalty=10.0)
    together = engine.generate(PROMPTS, how)
    free = engine.generate(PROMPTS, Sampling(max_tokens=40))
    for prompt, answer, loose in zip(PROMPTS, together, free, strict=True):
        assert engine.generate([prompt], how)[0].ids == answer.ids
        assert len(set(answer.ids)) >= len(set(loose.ids))
    assert together[0].ids != free[0].ids


def test_follows_training_when_live() -> None:
    model = tiny_model()
    engine, frozen = Engine(model, TOK), Engine(model, TOK, live=False)
    how = Sampling(max_tokens=20)
    before = engine.generate([PROMPTS[0]], how)[0].ids
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(9)) * 0.3)
    after = engine.generate([PROMPTS[0]], how)[0].ids
    assert after != before
    frozen.refresh()
    assert frozen.generate([PROMPTS[0]], how)[0].ids == after
    assert all(p.requires_grad for p in model.parameters())


def test_bf16_weights_are_a_copy() -> None:
    model = tiny_model()
    engine = Engine(model, TOK, dtype=torch.bfloat16)
    assert len(engine.generate(PROMPTS, Sampling(max_tokens=5))) == 5
    assert model.wte.weight.dtype == torch.float32 and engine.model.dtype == torch.bfloat16
    assert engine.model.hidden(torch.tensor([[1, 2]])).dtype == torch.bfloat16


def test_bad_prompts_and_tokenizers_are_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="empty"):
        engine.generate([[]], Sampling())
    with pytest.raises(UserError, match="outside"):
        engine.generate([[9999]], Sampling())
    with pytest.raises(UserError, match="tokenizer"):
        Engine(tiny_model(vocab_size=300), TOK)
