from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.train.batch import Batch
from picollm.train.loss import nll_from_hidden, token_nll, weighted_nll
from tests.train.conftest import ROWS, T, counting_rows, small_model


def plain(x, head, targets, weights, cap):
    logits = cap * torch.tanh(x @ head.t() / cap)
    return (weights * F.cross_entropy(logits, targets, reduction="none")).sum()


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), vocab=st.integers(2, 70), chunk=st.integers(1, 50), seed=st.integers(0, 99))
def test_loss_and_gradients_are_those_of_the_plain_formula(rows, vocab, chunk, seed):
    g = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, 8, generator=g, dtype=torch.float64) * 4).requires_grad_()
    head = (torch.randn(vocab, 8, generator=g, dtype=torch.float64) * 4).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), generator=g)
    weights = torch.randn(rows, generator=g)  # advantages may be negative
    expected = plain(x, head, targets, weights, 15.0)
    expected_grads = torch.autograd.grad(expected, (x, head))
    x32, head32 = (t.detach().float().requires_grad_() for t in (x, head))
    loss = nll_from_hidden(x32, head32, targets, weights, softcap=15.0, chunk_rows=chunk)
    (3 * loss).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    torch.testing.assert_close(x32.grad.double() / 3, expected_grads[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(head32.grad.double() / 3, expected_grads[1], rtol=1e-3, atol=1e-4)


def test_huge_logits_stay_finite():
    x = torch.full((3, 4), 1e6, requires_grad=True)
    head = torch.tensor([[1.0] * 4, [-1.0] * 4], requires_grad=True)
    loss = nll_from_hidden(x, head, torch.tensor([0, 1, 0]), torch.ones(3), softcap=15.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all() and torch.isfinite(head.grad).all()
    with pytest.raises(ValueError, match="softcap"):
        nll_from_hidden(x, head, torch.tensor([0, 1, 0]), torch.ones(3), softcap=1000.0)


def test_training_and_evaluation_paths_agree():
    x, head = torch.randn(10, 8), torch.randn(33, 8, requires_grad=True)
    targets, weights = torch.randint(0, 33, (10,)), torch.rand(10)
    with_gradient = nll_from_hidden(x, head, targets, weights, softcap=15.0)
    with torch.no_grad():
        without = nll_from_hidden(x, head, targets, weights, softcap=15.0)
    assert with_gradient.item() == pytest.approx(without.item(), rel=1e-5)
    each = token_nll(x, head, targets, softcap=15.0, chunk_rows=3)
    assert (each * weights).sum().item() == pytest.approx(without.item(), rel=1e-5)


def test_a_batch_without_counted_tokens_gives_zero_not_nan():
    model = small_model()
    inputs, targets = counting_rows(0)
    loss = weighted_nll(model, Batch(inputs, targets, torch.zeros(ROWS, T), 0.0))
    loss.backward()
    assert loss.item() == 0.0
    assert all(bool((p.grad == 0).all()) for p in model.parameters() if p.grad is not None)


def test_the_loss_of_the_whole_model():
    model = small_model()
    inputs, targets = counting_rows(0)
    ours = weighted_nll(model, Batch(inputs, targets, None, float(inputs.numel())))
    theirs = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_micro_batches_add_up_to_the_batch():
    model = small_model()
    batch = Batch(*counting_rows(0), torch.rand(ROWS, T), 50.0)
    weighted_nll(model, batch).backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for part in batch.split(1):
        weighted_nll(model, part).backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, whole[n], rtol=1e-4, atol=1e-6)


def test_padding_rows_of_the_vocabulary_are_never_predicted():
    model = small_model()
    assert model.lm_head.weight.shape[0] > model.shape.vocab_size
    weighted_nll(model, Batch(*counting_rows(0), None, 64.0)).backward()
    assert bool((model.lm_head.weight.grad[model.shape.vocab_size :] == 0).all())
