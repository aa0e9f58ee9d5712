"""The dial and what follows from it, against the published table of the reference recipe."""

from __future__ import annotations

import msgspec
import pytest

from picollm.run import scaling
from picollm.run.errors import UserError

# depth, dim, total M, N M, log2 B, LR ×, WD, steps at ratio 12, at ratio 8, FLOPs per token
TABLE = [
    (4, 256, 36.7, 11.5, 18, 0.707, 1.89, 528, 352, 8.02e7),
    (6, 384, 73.5, 23.2, 18, 0.707, 0.940, 1062, 708, 1.675e8),
    (12, 768, 286, 110, 19, 1.0, 0.280, 2520, 1680, 7.597e8),
    (20, 1280, 896, 435, 20, 1.414, 0.100, 4980, 3320, 2.886e9),
    (24, 1536, 1384, 730, 20, 1.414, 0.0597, 8352, 5568, 4.775e9),
    (26, 1664, 1682, 918, 20, 1.414, 0.0475, 10510, 7007, 5.991e9),
]


@pytest.mark.parametrize(("depth", "dim", "total", "n", "log_b", "lr", "wd", "steps12", "steps8", "flops"), TABLE)
def test_the_table(depth, dim, total, n, log_b, lr, wd, steps12, steps8, flops):
    shape = scaling.shape_for(depth, 32768, 2048, window_pattern="SSSL")
    counts = scaling.num_params(shape)
    batch = scaling.batch_tokens(shape)
    assert shape.dim == dim
    assert counts["total"] / 1e6 == pytest.approx(total, rel=2e-3)
    assert counts["scaling"] / 1e6 == pytest.approx(n, rel=5e-3)
    assert batch == 2**log_b
    assert scaling.batch_lr_scale(batch) == pytest.approx(lr, abs=1e-3)
    assert scaling.muon_weight_decay(shape) == pytest.approx(wd, rel=5e-3)
    assert scaling.iterations(shape, 12) == steps12
    assert scaling.iterations(shape, 8) == steps8
    assert scaling.flops_per_token(shape) == pytest.approx(flops, rel=1e-3)


def test_windows_tile_and_the_last_layer_sees_everything():
    shape = scaling.shape_for(6, 32768, 2048, window_pattern="SSSL")
    assert shape.windows() == (512, 512, 512, 2048, 512, 2048)
    assert scaling.shape_for(3, 100, 96, window_pattern="S").windows() == (96, 96, 96)


def test_value_embeddings_alternate_and_include_the_last_layer():
    assert [scaling.shape_for(5, 64, 32).has_value_embed(i) for i in range(5)] == [True, False, True, False, True]


def test_small_heads_for_small_models():
    shape = scaling.shape_for(4, 4096, 256, head_dim=64)
    assert (shape.dim, shape.heads, shape.kv_heads) == (256, 4, 4)
    assert scaling.shape_for(4, 4097, 256).padded_vocab == 4160


def test_width_scale_is_one_at_the_reference():
    assert scaling.width_lr_scale(768) == 1.0
    assert scaling.width_lr_scale(192) == pytest.approx(2.0)


def test_a_shape_survives_json():
    shape = scaling.shape_for(4, 4096, 256)
    assert msgspec.json.decode(msgspec.json.encode(shape), type=scaling.ModelShape) == shape


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 100},
        {"kv_heads": 3, "dim": 512},
        {"window_pattern": "SX"},
        {"head_dim": 63},
        {"dim": 16, "head_dim": 16},
    ],
)
def test_sizes_that_do_not_fit_are_named(wrong):
    with pytest.raises(UserError):
        scaling.shape_for(4, 4096, 256, **wrong)
