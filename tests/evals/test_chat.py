from __future__ import annotations

import json
import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm.evals import chat
from picollm.evals.chat import TOO_LONG, chat_core, evaluate, wilson
from picollm.infer.engine import Engine
from picollm.run.errors import UserError
from tests.evals.fakes import Capitals, Letters, TableEngine
from tests.infer.fakes import ByteTokenizer, tiny_model

TOK = ByteTokenizer()


def test_wilson_agrees_with_the_textbook():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_narrows_with_n(counts):
    correct, n = counts
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    wide, narrow = high - low, math.dist(*[[x] for x in wilson(correct * 4, n * 4)])
    assert narrow < wide


def test_answers_are_judged_and_failures_kept():
    engine = TableEngine(lambda prompt: None if "7" in prompt else "9" if "1" in prompt else prompt.split()[-1])
    result = evaluate(Capitals(), engine, TOK, block=6)
    wrong = {example.question for example in Capitals().heldout() if "1" in example.question or "7" in example.question}
    assert result.n == 20 and result.correct == 20 - len(wrong)
    assert result.accuracy == result.correct / 20 and (result.low, result.high) == wilson(result.correct, 20)
    assert {f.prompt for f in result.failures} == wrong
    assert [f.index for f in result.failures] == sorted(f.index for f in result.failures)
    assert all(f.expected in f.prompt and f.got in ("9", "") for f in result.failures)
    assert result.ended == 18 / 20
    assert {topic: asked for topic, (_, asked) in result.topics.items()} == {"even": 10, "odd": 10}
    assert engine.batches == [6, 6, 6, 2]
    assert len(evaluate(Capitals(), engine, TOK, keep_failures=2).failures) == 2


def test_the_result_is_plain_json():
    result = evaluate(Capitals(), TableEngine(lambda prompt: "no"), TOK, 5)
    loaded = json.loads(json.dumps(result.as_dict()))
    assert set(loaded) == {
        "task",
        "kind",
        "n",
        "correct",
        "accuracy",
        "low",
        "high",
        "baseline",
        "too_long",
        "ended",
        "topics",
        "max_new_tokens",
        "sampling",
        "seconds",
        "failures",
    }
    assert set(loaded["failures"][0]) == {"index", "topic", "prompt", "expected", "got"}


def test_a_prompt_that_does_not_fit_is_wrong_and_counted():
    engine = TableEngine(lambda prompt: prompt.split()[-1])
    engine.context = 12  # room for the nine tokens of "say 3", not for "say 13"
    result = evaluate(Capitals(), engine, TOK, max_new_tokens=4)
    assert (result.too_long, result.correct) == (10, 10)
    assert all(failure.got == TOO_LONG for failure in result.failures)


def test_choices_padded_together_are_as_alone():
    engine = Engine(tiny_model(), TOK)
    whole = evaluate(Letters(), engine, TOK, block=20)
    alone = evaluate(Letters(), engine, TOK, block=1)
    assert (whole.correct, whole.failures) == (alone.correct, alone.failures)
    assert whole.ended is None and whole.max_new_tokens == 0 and 0 < whole.n == 20


def test_the_likeliest_letter_is_chosen():
    model = tiny_model()
    with torch.no_grad():  # an output head that says B whatever it reads
        model.lm_head.weight.zero_()
        engine = Engine(model, TOK)
    engine.model.logits = lambda x: torch.nn.functional.one_hot(torch.tensor([[ord("B")]] * len(x)), 265).float()
    engine.live = False
    result = evaluate(Letters(), engine, TOK)
    assert result.correct == 10 and {failure.got for failure in result.failures} == {"B"}


def test_a_real_engine_answers():
    result = evaluate(Capitals(), Engine(tiny_model(), TOK), TOK, 5, max_new_tokens=4)
    assert result.n == 5 and len(result.failures) == 5 - result.correct


def test_progress_is_told_and_nothing_to_ask_is_an_error():
    seen = []
    engine = TableEngine(lambda prompt: "x")
    evaluate(Capitals(), engine, TOK, 8, block=4, on_progress=lambda *at: seen.append(at))
    assert seen == [(4, 8), (8, 8)]
    with pytest.raises(UserError, match="no held-out examples"):
        evaluate(Capitals(), engine, TOK, examples=[])


def cell(correct: int, n: int, baseline: float) -> dict:
    low, high = wilson(correct, n)
    return {"accuracy": correct / n, "low": low, "high": high, "baseline": baseline, "n": n}


def test_chat_core_by_hand():
    core = chat_core({"letters": cell(60, 80, 0.5), "sums": cell(10, 40, 0.0)})
    assert core["chatcore"] == pytest.approx((0.5 + 0.25) / 2) and core["n"] == 120 and core["tasks"] == 2
    (low, _), (_, high) = wilson(60, 80), wilson(10, 40)
    below = [(0.75 - low) / (2 * 0.5), (0.25 - wilson(10, 40)[0]) / 2]
    above = [(wilson(60, 80)[1] - 0.75) / (2 * 0.5), (high - 0.25) / 2]
    assert core["low"] == pytest.approx(0.375 - math.hypot(*below))
    assert core["high"] == pytest.approx(0.375 + math.hypot(*above))
    assert chat_core({"letters": cell(40, 80, 0.5)})["chatcore"] == 0
    assert chat_core({"letters": cell(80, 80, 0.5)})["chatcore"] == 1
    assert chat_core({}) == {}


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from([0.0, 0.25, 0.5])), min_size=1, max_size=6))
def test_chat_core_of_one_task_has_its_interval_and_more_tasks_narrow_it(tasks):
    cells = {str(i): cell(right, 50, baseline) for i, (right, baseline) in enumerate(tasks)}
    core = chat_core(cells)
    assert core["low"] <= core["chatcore"] <= core["high"]
    first = chat_core({"0": cells["0"]})
    scale = 1 - cells["0"]["baseline"]
    assert first["high"] == pytest.approx((cells["0"]["high"] - cells["0"]["baseline"]) / scale)
    twice = chat_core({**cells, **{f"again {name}": found for name, found in cells.items()}})
    assert twice["chatcore"] == pytest.approx(core["chatcore"])
    assert twice["high"] - twice["low"] == pytest.approx((core["high"] - core["low"]) / math.sqrt(2))


def test_long_questions_are_read_few_at_a_time(monkeypatch):
    engine, shapes = Engine(tiny_model(), TOK), []
    whole = evaluate(Letters(), engine, TOK)
    hidden = engine.model.hidden
    monkeypatch.setattr(engine.model, "hidden", lambda ids: shapes.append(tuple(ids.shape)) or hidden(ids))
    monkeypatch.setattr(chat, "CHOICE_TOKENS", 150)
    bounded = evaluate(Letters(), engine, TOK)
    assert (bounded.correct, bounded.failures) == (whole.correct, whole.failures)
    assert all(rows == 1 or rows * length <= 150 for rows, length in shapes) and max(shapes)[0] > 1
    assert sum(rows for rows, _ in shapes) == 20


def test_answers_are_judged_side_by_side_and_stay_in_their_order():
    class Slow(Capitals):
        def score(self, example, answer_text):
            gate.wait(timeout=60)  # passes only when two are judged at once
            return super().score(example, answer_text)

    gate = threading.Barrier(2)
    if chat.usable_cpus() < 2:
        pytest.skip("one core judges one at a time")
    result = evaluate(Slow(), TableEngine(lambda prompt: prompt.split()[-1]), TOK, 20)
    assert result.correct == 20
