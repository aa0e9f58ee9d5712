"""The model of the memory of a step: which profiles fit which GPUs, and that its answer fits what it was given."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.run import config, memory, plan
from picollm.run.errors import UserError
from picollm.run.memory import GIB, How
from picollm.run.planned import Plan, apply_plan
from picollm.run.scaling import shape_for

SIZES = (8, 12, 16, 24, 48, 80, 141)
GPU = How(device="cuda", precision="bf16")

shapes = st.builds(
    lambda depth, vocab, T: shape_for(depth, vocab, T, window_pattern="SSSL"),
    st.integers(2, 26),
    st.sampled_from([4096, 16384, 32768]),
    st.sampled_from([256, 512, 2048]),
)


def on(profile: str, size: int, ranks: int) -> Plan:
    """The plan of a profile for `ranks` GPUs of `size` GiB each."""
    found = plan.Measured(
        light_s=0.2, torch_s=4.0, train_flops_s=1e14 * ranks, decode_flops_s=1e12, text_bytes=10**9, world=ranks,
        memory_bytes=size * GIB,
    )  # fmt: skip
    return plan.make_plan(config.load(profile, environ={}), found, GPU)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("profile", "ranks"), [("workshop", 1), ("single-gpu", 1), ("speedrun", 8), ("speedrun", 3)])
def test_every_profile_on_every_size_fits_or_is_refused_by_name(profile: str, ranks: int, size: int) -> None:
    too_small = profile == "speedrun" and size < 24
    if too_small:
        with pytest.raises(UserError, match=r"training at depth 24, dim 1536 takes .* lower model\.depth"):
            on(profile, size, ranks)
        return
    made = on(profile, size, ranks)
    wishes = config.load(profile, environ={})
    resolved = apply_plan(wishes, made)
    rows = resolved.machine.device_rows
    how = msgspec.structs.replace(GPU, world=ranks, checkpointing=made.choices["checkpointing"] == "on")
    assert 1 <= rows <= plan.rank_rows(wishes, resolved.pretrain.rows, ranks)
    assert memory.step_bytes(plan.shape(resolved), rows, how)["total"] <= memory.USABLE["cuda"] * size * GIB


def test_activations_are_computed_twice_only_where_they_must() -> None:
    assert {on("single-gpu", size, 1).choices["checkpointing"] for size in SIZES} == {"off"}
    deep = shape_for(24, 32768, 2048)
    assert memory.fit(deep, 64, 21 * GIB, msgspec.structs.replace(GPU, world=8)).checkpointing
    assert not memory.fit(deep, 64, 80 * GIB, msgspec.structs.replace(GPU, world=8)).checkpointing
    with pytest.raises(UserError, match=r"machine\.checkpointing = auto"):
        memory.fit(deep, 64, 17 * GIB, msgspec.structs.replace(GPU, world=8), "off")


@given(shapes, st.integers(1, 512), st.integers(4, 200), st.integers(1, 9))
def test_what_fits_fits_and_as_few_parts_as_can_be(shape, wanted: int, size: int, world: int) -> None:
    how = msgspec.structs.replace(GPU, world=world)
    room = memory.USABLE["cuda"] * size * GIB
    try:
        found = memory.fit(shape, wanted, size * GIB, how)
    except UserError:
        assert memory.step_bytes(shape, 1, msgspec.structs.replace(how, checkpointing=True))["total"] > room
        return
    assert found.bytes <= room and 1 <= found.rows <= wanted
    parts = -(-wanted // found.rows)
    assert parts * found.rows - wanted < parts  # nobody has more than one row to fill up for each part
    how = msgspec.structs.replace(how, checkpointing=found.checkpointing)
    if parts > 1:  # one part fewer would not have fitted
        assert memory.step_bytes(shape, -(-wanted // (parts - 1)), how)["total"] > room


@given(shapes, st.integers(1, 64), st.integers(2, 9))
def test_more_rows_take_more_and_more_ranks_and_checkpointing_less(shape, rows: int, world: int) -> None:
    total = memory.step_bytes(shape, rows, GPU)["total"]
    assert memory.step_bytes(shape, rows + 1, GPU)["total"] >= total
    parts = memory.step_bytes(shape, rows, GPU)
    few, many = (msgspec.structs.replace(GPU, world=ranks) for ranks in (world, 2 * world))
    assert memory.step_bytes(shape, rows, many)["optimizer"] < memory.step_bytes(shape, rows, few)["optimizer"]
    twice = memory.step_bytes(shape, rows, msgspec.structs.replace(GPU, checkpointing=True))
    assert twice["activations"] < parts["activations"] or shape.depth < 3
    assert total == sum(count for name, count in parts.items() if name != "total")


def test_disk_holds_every_checkpoint_and_all_tokens() -> None:
    shape = shape_for(12, 32768, 2048)
    found = memory.disk_bytes(shape, 2, 4, {"tokens": 10**9, "bytes": 10**8})
    assert found["token shards"] == 2 * 10**9 and found["text"] == 10**8
    assert found["checkpoints"] > 9 * 8 * 286_000_000 * 0.99
    assert found["total"] == sum(count for name, count in found.items() if name != "total")
