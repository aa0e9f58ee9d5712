from __future__ import annotations

import pytest
import torch

from picollm.train.batch import Batch
from picollm.train.device import Ranks
from picollm.train.nonfinite import where_not_finite
from tests.train.conftest import ROWS, T, counting_batches, counting_rows, small_model
from tests.train.ranked import on_ranks

CPU = Ranks(torch.device("cpu"))


def spoiled(name: str, value: float):
    model = small_model()
    with torch.no_grad():
        model.get_parameter(name).fill_(value)
    return model


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("blocks.1.mlp.fc.weight", "the output of blocks.1.mlp.fc"),
        ("blocks.0.attn.k.weight", "the input of blocks.0.attn.proj"),  # what attention made of it
    ],
)
def test_the_first_place_of_the_forward_pass_is_named(name, where):
    said = where_not_finite(spoiled(name, 3e38), counting_batches(0), CPU)
    assert said.startswith(f"it begins in {where}") and "rank" not in said


def test_a_weight_that_is_not_finite_is_named():
    model = spoiled("blocks.1.attn.v.weight", float("nan"))
    said = where_not_finite(model, counting_batches(0), CPU)
    assert said == "it begins in the weights: blocks.1.attn.v.weight is not finite"


def test_the_first_gradient_of_the_backward_pass_is_named():
    model = small_model()
    handle = model.blocks[1].mlp.proj.register_full_backward_hook(lambda *_: (torch.full((ROWS, T, 128), torch.inf),))
    with torch.no_grad():
        model.blocks[1].mlp.proj.weight.normal_()
    assert where_not_finite(model, counting_batches(0), CPU) == "it begins in the gradient of blocks.1.mlp.fc.weight"
    handle.remove()
    assert all(p.grad is None for p in model.parameters())


def test_a_bad_weight_of_the_batch():
    inputs, targets = counting_rows(0)
    batch = Batch(inputs, targets, torch.full((ROWS, T), torch.inf), float(ROWS * T))
    assert "the weights of the batch" in where_not_finite(small_model(), [*counting_batches(0), batch], CPU)


def test_nothing_to_find():
    assert "finite everywhere" in where_not_finite(small_model(), counting_batches(0), CPU)
    assert "finite everywhere" in where_not_finite(small_model(), [], CPU)


def test_the_rank_is_named_on_every_rank(tmp_path):
    def work(ranks):
        model = spoiled("blocks.1.mlp.fc.weight", 3e38) if ranks.rank == 1 else small_model()
        return where_not_finite(model, counting_batches(0), ranks)

    assert on_ranks(2, work, tmp_path) == ["it begins in the output of blocks.1.mlp.fc on rank 1"] * 2
