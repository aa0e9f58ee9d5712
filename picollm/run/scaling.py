"""From one dial, depth, to every number of a training run: shape, parameters, FLOPs, batch, horizon, LR and WD scales.

Pure arithmetic, so that `plan` can price a run before torch is loaded. Counts are of single numbers (not bytes),
batches and horizons are in tokens. The rules are those of the public nanochat recipe; they were fitted around depth 12
with a vocabulary of 32768 and sequences of 2048, and every formula below is anchored at that model.
"""

from __future__ import annotations

import math

import msgspec

from picollm.run.errors import UserError
from picollm.run.structs import complete

REFERENCE_DEPTH = 12
REFERENCE_BATCH = 2**19
REFERENCE_WEIGHT_DECAY = 0.28
REFERENCE_DIM = 768
BATCH_EXPONENT = 0.383
SMEAR_CHANNELS = 24
GATE_CHANNELS = 12


@complete
class ModelShape(msgspec.Struct, frozen=True):
    """Everything that decides which tensors a model has and how they are wired."""

    depth: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    seq_len: int
    window_pattern: str = "L"
    rope_base: float = 1e5
    softcap: float = 15.0
    value_embeds: bool = True
    smear: bool = True
    backout: bool = True

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding tables: `vocab_size` rounded up to 64, which matrix kernels like."""
        return -(-self.vocab_size // 64) * 64

    @property
    def kv_dim(self) -> int:
        """Channels of one layer's keys (and of its values and value embeddings)."""
        return self.kv_heads * self.head_dim

    def has_value_embed(self, layer: int) -> bool:
        """Value embeddings sit on alternate layers, the last one included."""
        return self.value_embeds and layer % 2 == (self.depth - 1) % 2

    @property
    def backout_layer(self) -> int | None:
        """The layer whose output is subtracted in part at the end: the middle one, but never the last.

        The last one's output minus a growing part of itself would vanish and turn its sign.
        """
        return min(self.depth // 2, self.depth - 2) if self.backout and self.depth > 1 else None

    def windows(self) -> tuple[int, ...]:
        """How many positions back each layer may look: "S" a quarter of T (in steps of 128), "L" all of it."""
        short = min(self.seq_len, math.ceil(self.seq_len / 4 / 128) * 128)
        pattern = [short if c == "S" else self.seq_len for c in self.window_pattern]
        tiled = [pattern[layer % len(pattern)] for layer in range(self.depth)]
        return (*tiled[:-1], self.seq_len)


def shape_for(
    depth: int,
    vocab_size: int,
    seq_len: int,
    *,
    dim: int | None = None,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    window_pattern: str = "L",
    rope_base: float = 1e5,
    softcap: float = 15.0,
    value_embeds: bool = True,
    smear: bool = True,
    backout: bool = True,
) -> ModelShape:
    """The shape that follows from `depth`: dim = 64·depth rounded up to whole heads of 128, unless told otherwise.

    Raises UserError for sizes that do not fit together.
    """
    if depth < 1 or vocab_size < 1 or seq_len < 1:
        raise UserError(f"depth {depth}, vocab_size {vocab_size} and seq_len {seq_len} must all be at least 1")
    if not window_pattern or set(window_pattern) - {"S", "L"}:
        raise UserError(f'window_pattern is "{window_pattern}": write it with S (short) and L (long), such as "SSSL"')
    head_dim = head_dim or 128
    if head_dim < 2 or head_dim % 2:
        raise UserError(f"head_dim is {head_dim}: rotary positions turn pairs of channels, so give an even number")
    dim = dim or -(-64 * depth // head_dim) * head_dim
    if dim % head_dim:
        raise UserError(f"dim {dim} is not a multiple of head_dim {head_dim}: change one of them")
    if smear and dim < SMEAR_CHANNELS:
        raise UserError(f"dim {dim} is too narrow: the smear gate reads {SMEAR_CHANNELS} channels")
    heads = dim // head_dim
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise UserError(f"kv_heads {kv_heads} does not divide the {heads} heads: choose a divisor")
    return ModelShape(
        depth=depth,
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        seq_len=seq_len,
        window_pattern=window_pattern,
        rope_base=rope_base,
        softcap=softcap,
        value_embeds=value_embeds,
        smear=smear,
        backout=backout,
    )


def num_params(shape: ModelShape) -> dict[str, int]:
    """Parameter counts by optimizer group, plus "total" and "scaling" (block matrices + lm_head: the N of the rules).

    "smear" holds the smear gate, its λ and the backout λ; the value-embedding gates are counted with the matrices.
    """
    table = shape.padded_vocab * shape.dim
    value_layers = sum(shape.has_value_embed(layer) for layer in range(shape.depth))
    attention = shape.dim * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    matrices = shape.depth * (attention + 8 * shape.dim**2) + value_layers * GATE_CHANNELS * shape.kv_heads
    groups = {
        "wte": table,
        "lm_head": table,
        "value_embeds": value_layers * shape.padded_vocab * shape.kv_dim,
        "matrices": matrices,
        "resid": shape.depth,
        "x0": shape.depth,
        "smear": (SMEAR_CHANNELS + 1 if shape.smear else 0) + (0 if shape.backout_layer is None else 1),
    }
    return {**groups, "total": sum(groups.values()), "scaling": groups["matrices"] + groups["lm_head"]}


def flops_per_token(shape: ModelShape) -> float:
    """Forward and backward FLOPs for one trained token: 6 per matmul parameter + 12·dim·min(window, T) per layer."""
    attention = sum(12 * shape.heads * shape.head_dim * min(window, shape.seq_len) for window in shape.windows())
    return float(6 * num_params(shape)["scaling"] + attention)


def reference_params(vocab_size: int = 32768) -> int:
    """N of the depth-12 model that the rules were fitted on, at this vocabulary."""
    return num_params(shape_for(REFERENCE_DEPTH, vocab_size, 2048))["scaling"]


def horizon_tokens(shape: ModelShape, ratio: float = 12.0) -> int:
    """D: tokens to train on, `ratio` per scaling parameter (12 default, 8 for a speedrun; 20 is Chinchilla's)."""
    return round(ratio * num_params(shape)["scaling"])


def relative_horizon(shape: ModelShape) -> float:
    """D / D₁₂ at equal ratio: how much longer than the reference this shape trains."""
    return num_params(shape)["scaling"] / reference_params(shape.vocab_size)


def batch_tokens(shape: ModelShape) -> int:
    """B: tokens in one optimizer step, 2^round(log2(2^19·(D/D₁₂)^0.383))."""
    return int(2 ** round(math.log2(REFERENCE_BATCH * relative_horizon(shape) ** BATCH_EXPONENT)))


def iterations(shape: ModelShape, ratio: float = 12.0, batch: int | None = None) -> int:
    """Optimizer steps that fit in the horizon: D // B, never less than 1."""
    return max(1, horizon_tokens(shape, ratio) // (batch or batch_tokens(shape)))


def batch_lr_scale(batch: int) -> float:
    """Every learning rate (smear and backout excepted) grows with √(B / 2^19)."""
    return math.sqrt(batch / REFERENCE_BATCH)


def width_lr_scale(dim: int) -> float:
    """AdamW learning rates shrink with width: (dim / 768)^−0.5. Muon's do not need it."""
    return (dim / REFERENCE_DIM) ** -0.5


def lr_scales(dim: int, batch: int | None = None) -> dict[str, float]:
    """What the base learning rates are multiplied by, per optimizer group: by width, and by batch (tokens) if given.

    The smear group keeps its own.
    """
    size = 1.0 if batch is None else batch_lr_scale(batch)
    tables = dict.fromkeys(("wte", "lm_head", "value_embeds"), width_lr_scale(dim) * size)
    return {**tables, **dict.fromkeys(("resid", "x0", "matrices"), size)}


def muon_weight_decay(shape: ModelShape, batch: int | None = None, base: float = REFERENCE_WEIGHT_DECAY) -> float:
    """Muon's weight decay: 0.28·√(B / 2^19)·D₁₂/D."""
    return base * batch_lr_scale(batch or batch_tokens(shape)) / relative_horizon(shape)
