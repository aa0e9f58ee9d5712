"""Rollouts: which tokens are weighed, by how much, and that a redone rollout is the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picollm.infer.engine import Engine
from picollm.infer.sampling import Sampling
from picollm.run.errors import UserError
from picollm.tasks.base import Example
from picollm.train.batch import Batch
from picollm.train.loss import weighted_nll
from picollm.train.rollouts import Rollouts, added, advantages, figures, rollout
from tests.infer.fakes import ByteTokenizer, scripted_engine, tiny_model

TOK = ByteTokenizer()
S = TOK.special


class LongAnswers:
    """A toy task: the reward is 1 when the answer has an even number of characters."""

    name = "even"

    def reward(self, example: Example, answer_text: str) -> float:
        return float(len(answer_text) % 2 == 0)


def question(text: str) -> Example:
    return Example(messages=[{"role": "user", "content": text}, {"role": "assistant", "content": "x"}], answer="x")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(), TOK)


HOW = Sampling(temperature=1.0, top_k=50, max_tokens=40)
QUESTIONS = [question("one"), question("a longer question"), question("3?")]


def test_rows_hold_prompt_and_answer_and_weigh_only_what_was_sampled(engine: Engine) -> None:
    got = rollout(engine, LongAnswers(), QUESTIONS, samples=4, seed=1, step=0, sampling=HOW)
    assert got.inputs.shape == got.targets.shape == got.weights.shape == (12, 64)
    expected = advantages(got.rewards).reshape(-1)
    for b, done in enumerate(got.completions):
        start, end = done.prompt_tokens - 1, done.prompt_tokens - 1 + len(done.ids)
        assert got.targets[b, start:end].tolist() == done.ids
        assert got.inputs[b, start + 1 : end].tolist() == done.ids[:-1]
        assert got.inputs[b, start] == S("<|assistant_start|>")
        assert not got.counted[b, :start].any() and not got.counted[b, end:].any()
        assert got.counted[b, start:end].tolist() == [not f for f in done.forced]
        assert np.allclose(got.weights[b][got.counted[b]], expected[b])
        assert not got.weights[b][~got.counted[b]].any()
    assert got.denom == got.counted.sum() == sum(len(c.ids) - sum(c.forced) for c in got.completions)
    batch = Batch.from_numpy(got.inputs, got.targets, got.weights, got.denom)
    assert batch.tokens == 12 * 64


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=4))
def test_advantages_sum_to_zero_per_question(rewards: list[list[float]]) -> None:
    a = advantages(np.array(rewards))
    assert np.allclose(a.sum(axis=1), 0)
    for row, r in zip(a, rewards, strict=True):
        assert (np.argsort(row, kind="stable") == np.argsort(np.array(r) - np.mean(r), kind="stable")).all()


def test_equal_rewards_teach_nothing() -> None:
    class Same(LongAnswers):
        def reward(self, example: Example, answer_text: str) -> float:
            return 1.0

    got = rollout(Engine(tiny_model(), TOK), Same(), QUESTIONS, samples=2, seed=0, step=0, sampling=HOW)
    assert not got.weights.any() and got.denom > 0
    stats = figures(got.sums)
    assert stats["useful"] == 0 and stats["reward"] == 1 and stats["solved"] == 1 and stats["reward_std"] == 0
    inputs, _, weights = got.teaching()
    assert len(inputs) == 1 and not weights.any()


def test_redone_and_split_over_ranks_it_is_the_same(engine: Engine) -> None:
    how = {"samples": 3, "seed": 5, "sampling": HOW}
    whole = rollout(engine, LongAnswers(), QUESTIONS, step=7, **how)
    again = rollout(engine, LongAnswers(), QUESTIONS, step=7, **how)
    assert np.array_equal(whole.inputs, again.inputs) and np.array_equal(whole.weights, again.weights)
    rest = rollout(engine, LongAnswers(), QUESTIONS[1:], step=7, first_question=1, **how)
    assert [c.ids for c in whole.completions[3:]] == [c.ids for c in rest.completions]
    other = rollout(engine, LongAnswers(), QUESTIONS, step=8, **how)
    assert [c.ids for c in whole.completions] != [c.ids for c in other.completions]
    assert len({tuple(c.ids) for c in whole.completions[:3]}) > 1


def test_tool_output_is_not_weighed() -> None:
    script = [S("<|python_start|>"), *b"6*7", S("<|python_end|>"), *b"!!!!", *b"so 42"]
    prompt = 1 + 1 + 2 + 1 + 1  # bos, user_start, "q?", user_end, assistant_start
    engine = scripted_engine(script, prompt_tokens=prompt)
    got = rollout(engine, LongAnswers(), [question("q?")], samples=2, seed=0, step=0, sampling=HOW)
    assert got.texts == [["so 42", "so 42"]]
    output = [S("<|output_start|>"), *b"42", S("<|output_end|>")]
    start = prompt - 1 + 5
    assert got.targets[0, start : start + 4].tolist() == output
    assert not got.counted[0, start : start + 4].any()
    assert got.counted[0, prompt - 1 : start].all() and got.counted[0, start + 4 : start + 10].all()


def ask_all(engine: Engine, seed: int) -> Rollouts:
    return rollout(engine, LongAnswers(), QUESTIONS, samples=4, seed=seed, step=0, sampling=HOW, row_length=128)


def test_what_does_not_teach_is_left_out_and_the_gradient_is_the_same(engine: Engine) -> None:
    made = (ask_all(engine, seed) for seed in range(99))
    got = next(one for one in made if 0 < one.sums["useful"] < len(QUESTIONS))
    equal = got.rewards.min(axis=1) == got.rewards.max(axis=1)
    part = got.teaching(16)
    assert part[0].shape[0] == 4 * (~equal).sum() and part[0].shape[1] % 16 == 0 and part[0].shape[1] < 128
    gradients = []
    for arrays in ((got.inputs, got.targets, got.weights), part):
        model = tiny_model()
        loss = weighted_nll(model, Batch.from_numpy(*arrays, got.denom))
        loss.backward()
        gradients.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert gradients[0][0] == pytest.approx(gradients[1][0], abs=1e-6)
    for whole, less in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(whole, less, rtol=1e-3, atol=1e-5)


def test_figures(engine: Engine) -> None:
    how = {"samples": 4, "seed": 1, "step": 0, "sampling": HOW}
    got = rollout(engine, LongAnswers(), QUESTIONS, **how)
    stats = figures(got.sums)
    assert stats["reward"] == pytest.approx(got.rewards.mean())
    assert stats["reward_std"] == pytest.approx(got.rewards.std())
    assert 0 < stats["nll"] < np.log(TOK.vocab_size) * 2
    assert stats["nll"] == pytest.approx(stats["entropy"], rel=0.5), "one is an estimate of the other"
    assert 0 < stats["entropy"] < np.log(TOK.vocab_size)
    assert stats["tokens"] == np.mean([len(c.ids) for c in got.completions])
    shares = [rollout(engine, LongAnswers(), QUESTIONS[:1], **how),
              rollout(engine, LongAnswers(), QUESTIONS[1:], first_question=1, **how)]  # fmt: skip
    assert figures(added(share.sums for share in shares)) == pytest.approx(stats)


def test_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="no questions"):
        rollout(engine, LongAnswers(), [], samples=2, seed=0, step=0)
    with pytest.raises(UserError, match="at least 2"):
        rollout(engine, LongAnswers(), QUESTIONS, samples=1, seed=0, step=0, sampling=HOW)
    with pytest.raises(UserError, match="no room"):
        rollout(engine, LongAnswers(), QUESTIONS, samples=2, seed=0, step=0)
    with pytest.raises(UserError, match="row_length"):
        rollout(engine, LongAnswers(), QUESTIONS, samples=2, seed=0, step=0, sampling=HOW, row_length=8)
