"""How much memory a training step takes on one device, and how many rows fit.

Pure arithmetic over a `ModelShape`, in bytes; preflight proves its answer by a dry run before anything depends on it.

Weights and gradients are fp32 and whole on every rank. The optimizer's state (Muon: one momentum, AdamW: two moments)
is shared out over the ranks. Activations are what autograd keeps, counted on the uncompiled model with
`torch.autograd.graph.saved_tensors_hooks`; compiled code keeps less.
"""

from __future__ import annotations

from typing import Any

import msgspec

from picollm.run.errors import UserError
from picollm.run.scaling import ModelShape, num_params

GIB = 1 << 30

# Kept for backward, in bytes per token and channel: for each layer, and once for embedding, smear and final norm.
LAYER_BYTES = {"fp32": 81, "bf16": 49}
ONCE_BYTES = {"fp32": 36, "bf16": 22}
INPUT_BYTES = {"fp32": 8, "bf16": 4}
"""With activation checkpointing: a layer's input and, on alternate layers, its value embedding."""
SCORE_BYTES = {"fp32": 4, "bf16": 6}
"""Explicit attention keeps the probabilities, per head and pair of positions; the others do not."""
WORKING_BYTES = {"fp32": 48, "bf16": 32}
"""What backward needs beside what was kept, per token and channel, one layer at a time."""
WORKING_SCORES = 16
LOGITS_AT_ONCE = {"cpu": 2**21, "mps": 2**26, "cuda": 2**28}
"""Numbers in a chunk of logits (`picollm.train.loss` makes them so): small enough for the caches of a CPU, large enough
to fill a GPU."""
LOGIT_BYTES = {"cpu": 20, "mps": 20, "cuda": 6}
"""One of these numbers in the compute dtype, in fp32, and as a gradient; the GPU's kernel keeps no fp32."""
UPDATE_BYTES = 24
"""Muon's working copies per number of the largest stack: values, gradients, direction, Polar Express."""
SHARD_BYTES = 8
"""Several ranks keep their share of summed gradients and of new values apart (see `picollm.train.sharded`)."""
RUNTIME = {"cpu": 0.35 * GIB, "mps": 0.5 * GIB, "cuda": 1.0 * GIB}
"""The runtime itself: context, libraries, their workspaces."""
EXCHANGE = 0.5 * GIB
"""Buffers of the collectives on a GPU."""
SLACK = {"cpu": 0.3, "mps": 0.15, "cuda": 0.06}
"""Share lost between the allocator's blocks (CPU: measured on glibc)."""
USABLE = {"cpu": 0.8, "mps": 0.7, "cuda": 0.96}
"""Share of the memory found free that a plan may use; a CPU shares it with everything else on the machine."""


class How(msgspec.Struct, frozen=True, kw_only=True):
    """What, besides the shape, decides the memory of a step. `world` ranks share the optimizer's state."""

    device: str = "cpu"
    precision: str = "fp32"
    attention: str = "sdpa"
    fp8: bool = False
    checkpointing: bool = False
    world: int = 1


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` a device computes at a time, `checkpointing` or not, and the bytes that this takes."""

    rows: int
    checkpointing: bool
    bytes: int


def step_bytes(shape: ModelShape, rows: int, how: How) -> dict[str, int]:
    """Bytes of one optimizer step at `rows` rows at a time, by part, and their sum as "total"."""
    counts = num_params(shape)
    matrices = counts["matrices"]
    tokens = rows * shape.seq_len
    device, precision = how.device, how.precision
    # Casts of the matrices to bf16 live until backward; in fp32 only q, k and v are copied, into one matrix.
    copies = 2 * matrices if precision == "bf16" else 12 * shape.depth * shape.dim**2
    copies += 2 * matrices if how.fp8 else 0
    scores = tokens * shape.heads * shape.seq_len if how.attention == "explicit" else 0
    layer = LAYER_BYTES[precision] * tokens * shape.dim + SCORE_BYTES[precision] * scores
    working = WORKING_BYTES[precision] * tokens * shape.dim + WORKING_SCORES * scores
    if how.checkpointing:  # one layer's activations at a time, made again from its input
        kept = shape.depth * INPUT_BYTES[precision] * tokens * shape.dim + layer
    else:
        kept = shape.depth * layer
    activations = ONCE_BYTES[precision] * tokens * shape.dim + kept + working
    at_once = min(tokens, max(128, LOGITS_AT_ONCE[device] // shape.vocab_size))
    # The output matrix: cast, its gradient summed over the chunks, and that gradient handed on.
    logits = LOGIT_BYTES[device] * at_once * shape.vocab_size + 10 * shape.padded_vocab * shape.dim
    step = copies + activations + logits
    stack = max(2 * (shape.heads + shape.kv_heads) * shape.head_dim, 4 * shape.dim) * shape.dim * shape.depth
    update = UPDATE_BYTES * stack // how.world
    state = 4 * matrices + 8 * (counts["total"] - matrices) + (SHARD_BYTES * counts["total"] if how.world > 1 else 0)
    parts = {
        "weights": 4 * counts["total"],
        "gradients": 4 * counts["total"],
        "optimizer": state // how.world,
        "copies": copies,
        "activations": activations,
        "logits": logits,
        "update beyond these": max(0, update - step),
        "runtime": int(RUNTIME[device] + (EXCHANGE if how.world > 1 and device == "cuda" else 0)),
    }
    parts["slack"] = int(SLACK[device] * sum(parts.values()))
    return {**parts, "total": sum(parts.values())}


def largest_rows(shape: ModelShape, wanted: int, room: float, how: How) -> int:
    """The most rows, up to `wanted`, whose step takes no more than `room` bytes; 0 when not even one does."""
    low, high = 0, wanted
    while low < high:
        middle = (low + high + 1) // 2
        if step_bytes(shape, middle, how)["total"] <= room:
            low = middle
        else:
            high = middle - 1
    return low


def fit(shape: ModelShape, wanted: int, memory: float, how: How, checkpointing: str = "auto") -> Fit:
    """How to compute `wanted` rows on a device with `memory` bytes free: all at once, or in as few equal parts as fit.

    Activation checkpointing "auto" is turned on only when without it not even one row fits.

    Raises UserError when nothing fits.
    """
    room = USABLE[how.device] * memory
    for on in {"auto": (False, True), "on": (True,), "off": (False,)}[checkpointing]:
        trial = msgspec.structs.replace(how, checkpointing=on)
        rows = largest_rows(shape, wanted, room, trial)
        if rows:
            rows = even(wanted, rows)
            return Fit(rows=rows, checkpointing=on, bytes=step_bytes(shape, rows, trial)["total"])
    least = step_bytes(shape, 1, msgspec.structs.replace(how, checkpointing=checkpointing != "off"))["total"]
    hint = ", or set machine.checkpointing = auto" if checkpointing == "off" else ""
    raise UserError(
        f"training at depth {shape.depth}, dim {shape.dim} takes {least / GIB:.1f} GiB for a single row of "
        f"{shape.seq_len} tokens, and {room / GIB:.1f} GiB may be used on each device; "
        f"lower model.depth, model.seq_len or tokenizer.vocab_size{hint}"
    )


def even(wanted: int, most: int) -> int:
    """Rows of each of the fewest equal parts of at most `most` rows that hold `wanted`."""
    return -(-wanted // -(-wanted // most))


def disk_bytes(shape: ModelShape, kept: int, stages: int, text: dict[str, Any]) -> dict[str, int]:
    """What a run leaves on disk, by part, and "total": `kept` checkpoints of each of `stages` stages, and the text.

    `text`: "tokens" in all shards, "bytes" of text that stays, bytes of rendered "conversations".
    """
    counts = num_params(shape)
    checkpoint = 8 * counts["matrices"] + 12 * (counts["total"] - counts["matrices"])
    parts = {
        "checkpoints": (kept * stages + 1) * checkpoint,  # and the one being written
        "token shards": int(text["tokens"]) * (2 if shape.vocab_size <= 2**16 else 4),
        "text": int(text["bytes"]),
        "conversations": int(text.get("conversations", 0)),
        "compile cache": GIB // 2,
    }
    parts = {name: count for name, count in parts.items() if count}
    return {**parts, "total": sum(parts.values())}
