"""The transformer: token ids in, next-token logits out. It knows nothing about text, tasks or optimisers.

Shape legend: B rows, T positions, D model width, V real vocabulary, H query heads, G key/value heads, C head width.

A decoder-only transformer (Radford et al. 2019) with the parts that paid off in small-model speed runs:
parameterless RMSNorm, rotary positions (Su et al. 2021), normalised queries and keys, squared-ReLU MLP
(So et al. 2021), untied embeddings, softcapped logits (Gemma 2), value embeddings on alternate layers, learned
residual and embedding-skip weights per layer, a smear of the previous token's embedding, and backout of the mid-layer
residual.

Parameters are kept in the dtype they are given (fp32 masters in training) and cast to the activations' dtype where
they are used, so the same module runs in fp32, under autocast, or with a bf16 copy of its parameters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from picollm.model import fp8
from picollm.model.attention import attention
from picollm.model.attention_kernels import block_mask
from picollm.run.scaling import ModelShape

QK_SCALE = 1.2  # sharpens attention after q and k are normalised
VALUE_GATE_CHANNELS = 12
SMEAR_GATE_CHANNELS = 24
NORM_EPS = 1e-6


def norm(x: Tensor) -> Tensor:
    """RMSNorm without parameters over the last axis (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


class Linear(nn.Linear):
    """A bias-free linear map whose weight follows the dtype of its input; in training perhaps in 8 bits (`fp8`)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.eight: fp8.Eight | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.eight is not None and torch.is_grad_enabled():
            return fp8.product(x, self.eight, self.weight)
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions, normalised q and k, and a gated value embedding."""

    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.q = Linear(shape.dim, shape.heads * shape.head_dim)
        self.k = Linear(shape.dim, shape.kv_heads * shape.head_dim)
        self.v = Linear(shape.dim, shape.kv_heads * shape.head_dim)
        self.proj = Linear(shape.heads * shape.head_dim, shape.dim)
        gated = shape.has_value_embed(layer)
        self.value_gate = Linear(min(VALUE_GATE_CHANNELS, shape.dim), shape.kv_heads) if gated else None
        self.eight: fp8.Eight | None = None  # q, k and v in 8 bits, for training only

    def forward(
        self,
        x_BTD: Tensor,
        value_embed: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        *,
        window: int | None,
        segments: Tensor | None,
        backend: str,
        blocks: Any,
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        H, G, C = self.heads, self.kv_heads, self.head_dim
        qkv = self._qkv(x_BTD).view(B, T, H + 2 * G, C)
        qk, v = qkv[:, :, : H + G], qkv[:, :, H + G :]
        if self.value_gate is not None and value_embed is not None:
            gate = 3 * torch.sigmoid(self.value_gate(x_BTD[..., : self.value_gate.in_features]))
            v = v + gate.unsqueeze(-1) * value_embed.view(B, T, G, C)
        qk = norm(apply_rotary(qk, *rotary)) * QK_SCALE
        qk = qk.transpose(1, 2)
        q, k, v = qk[:, :H], qk[:, H:], v.transpose(1, 2)
        out = attention(q, k, v, window=window, segments=segments, backend=backend, blocks=blocks)
        return self.proj(out.transpose(1, 2).reshape(B, T, H * C))

    def _qkv(self, x: Tensor) -> Tensor:
        """One product for q, k and v: the input is read once, and its gradient is summed inside the GEMM."""
        masters = (self.q.weight, self.k.weight, self.v.weight)
        if self.eight is not None and torch.is_grad_enabled():
            return fp8.product(x, self.eight, *masters)
        return F.linear(x, torch.cat(masters).to(x.dtype))


class MLP(nn.Module):
    """Two linear maps around a squared ReLU, four times as wide as the model."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.fc = Linear(shape.dim, 4 * shape.dim)
        self.proj = Linear(4 * shape.dim, shape.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    def __init__(self, shape: ModelShape, layer: int) -> None:
        super().__init__()
        self.attn = Attention(shape, layer)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, value_embed: Tensor | None, rotary: tuple[Tensor, Tensor], **how) -> Tensor:
        x = x + self.attn(norm(x), value_embed, rotary, **how)
        return x + self.mlp(norm(x))


def apply_rotary(x_BTHC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + C/2) by the angle of the position; cos, sin: (1, T, 1, C/2)."""
    a, b = x_BTHC.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class GPT(nn.Module):
    """The whole model. Construction allocates; `init_weights` gives values.

    Attributes:
        shape: everything that decides the function computed, stored in checkpoints.
        compute_dtype: dtype of the activations; None = that of the embedding weights.
        attention_backend: one of `picollm.model.attention.BACKENDS`; changes speed only.
        checkpointing: keep only what enters each block and compute its inside again in backward (Chen et al. 2016):
            about a third more arithmetic for a fraction of the memory, same numbers.
        eight_bit: the 8-bit copies of the block matrices while training with them, else None.
    """

    cos: Tensor  # (seq_len, C / 2), rotary angles
    sin: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.compute_dtype: torch.dtype | None = None
        self.attention_backend = "auto"
        self.checkpointing = False
        self.eight_bit: fp8.EightBitWeights | None = None
        self.windows = [w if w < shape.seq_len else None for w in shape.windows()]
        vocab = shape.padded_vocab
        self.wte = nn.Embedding(vocab, shape.dim)
        with_values = [i for i in range(shape.depth) if shape.has_value_embed(i)]
        self.value_embeds = nn.ModuleDict({str(i): nn.Embedding(vocab, shape.kv_dim) for i in with_values})
        self.blocks = nn.ModuleList([Block(shape, i) for i in range(shape.depth)])
        self.lm_head = Linear(shape.dim, vocab)
        self.resid_lambdas = nn.Parameter(torch.ones(shape.depth))
        self.x0_lambdas = nn.Parameter(torch.zeros(shape.depth))
        if shape.smear:
            self.smear_gate = Linear(min(SMEAR_GATE_CHANNELS, shape.dim), 1)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if shape.backout_layer is not None:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.register_buffer("cos", torch.empty(shape.seq_len, shape.head_dim // 2), persistent=False)
        self.register_buffer("sin", torch.empty(shape.seq_len, shape.head_dim // 2), persistent=False)
        self.reset_buffers()

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Compute the rotary tables; needed again after the module was built on the meta device."""
        half = self.shape.head_dim // 2
        frequency = self.shape.rope_base ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
        angle = torch.arange(self.shape.seq_len, dtype=torch.float64, device="cpu")[:, None] * frequency
        self.cos.copy_(angle.cos())
        self.sin.copy_(angle.sin())

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Give every parameter its starting value.

        Each parameter has its own generator, seeded by (seed, name): the values depend on neither the world size,
        nor the device, nor the order of modules.
        """
        depth, bound = self.shape.depth, math.sqrt(3) / math.sqrt(self.shape.dim)  # std 1/sqrt(dim)
        for name, p in self.named_parameters():
            g = torch.Generator().manual_seed(_name_seed(seed, name))
            value = torch.empty(p.shape, dtype=torch.float32, device="cpu")
            if name == "wte.weight":
                value.normal_(0, 0.8, generator=g)
            elif name == "lm_head.weight":
                value.normal_(0, 0.001, generator=g)
            elif name == "resid_lambdas":
                value.copy_(torch.linspace(1.15, 1.05, depth))
            elif name == "x0_lambdas":
                value.copy_(torch.linspace(0.20, 0.05, depth))
            elif name == "backout_lambda":
                value.fill_(0.2)
            elif name == "smear_lambda" or name.endswith(".proj.weight"):
                value.zero_()
            elif name.endswith("gate.weight"):
                value.uniform_(0, 0.02, generator=g)
            elif name.endswith(".fc.weight"):
                value.uniform_(-0.4 * bound, 0.4 * bound, generator=g)
            else:  # q, k, v and value embeddings
                value.uniform_(-bound, bound, generator=g)
            p.copy_(value)
        self.reset_buffers()

    def param_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Every parameter exactly once, by the rule that trains it; empty groups are left out.

        `matrices` are the 2-D weights of the blocks (Muon); the rest are named for their AdamW settings: `wte`,
        `lm_head`, `value_embeds`, `resid`, `x0`, `smear` (smear gate, its lambda, and the backout lambda).
        """
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
        for name, p in self.named_parameters():
            groups.setdefault(_group_of(name), []).append((name, p))
        return groups

    def weights_changed(self) -> None:
        """To be called after every change of the parameters, such as an optimizer step."""
        if self.eight_bit is not None:
            self.eight_bit.stale = True

    def each_block(self) -> Iterator[Block]:
        yield from self.blocks  # type: ignore[misc]

    def hidden(self, ids_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Final normed activations (B, T, D) of a batch of rows; the input of `logits`.

        Args:
            ids_BT: int64 token ids; T <= shape.seq_len.
            segments_BT: document numbers; attention and smear then stay inside a document.
        """
        T = ids_BT.shape[1]
        shape, backend = self.shape, self.attention_backend
        x = F.embedding(ids_BT, self.wte.weight)
        if self.compute_dtype is not None:
            x = x.to(self.compute_dtype)
        x = norm(x)
        cos, sin = self.cos[None, :T, None], self.sin[None, :T, None]
        rotary = cos.to(x.dtype), sin.to(x.dtype)

        if shape.smear:
            x = self._smear(x, segments_BT)
        blocks = {}
        if backend == "flex" and segments_BT is None and shape.seq_len == T:
            blocks = {w: block_mask(T, w, ids_BT.device) for w in set(self.windows)}
        x0, middle = x, None
        for i, block in enumerate(self.each_block()):
            x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            value_embed = None
            if shape.has_value_embed(i):
                table = self.value_embeds[str(i)].weight
                value_embed = F.embedding(ids_BT, table).to(x.dtype)  # type: ignore[arg-type]
            window = self.windows[i]
            how: dict[str, Any] = {
                "window": window,
                "segments": segments_BT,
                "backend": backend,
                "blocks": blocks.get(window),
            }
            if self.checkpointing and torch.is_grad_enabled():
                # Nothing inside a block is random, so there is no generator to put back.
                x = checkpoint(block, x, value_embed, rotary, use_reentrant=False, preserve_rng_state=False, **how)
            else:
                x = block(x, value_embed, rotary, **how)
            if i == shape.backout_layer:
                middle = x
        if middle is not None:
            x = x - self.backout_lambda.to(x.dtype) * middle
        return norm(x)

    def _smear(self, x_BTD: Tensor, segments: Tensor | None) -> Tensor:
        """Add a gated share of the previous token's embedding, so that one layer can already see bigrams."""
        shifted = F.pad(x_BTD[:, :-1], (0, 0, 1, 0))
        gate = self.smear_lambda.to(x_BTD.dtype) * torch.sigmoid(
            self.smear_gate(x_BTD[..., : self.smear_gate.in_features])
        )
        if segments is not None:
            same = F.pad(segments[:, 1:] == segments[:, :-1], (1, 0))
            gate = gate * same.unsqueeze(-1)
        return x_BTD + gate * shifted

    def logits(self, x_BTD: Tensor) -> Tensor:
        """fp32 logits (B, T, V) of the real vocabulary, softcapped to (-softcap, softcap)."""
        raw = self.lm_head(x_BTD)[..., : self.shape.vocab_size].float()
        return self.shape.softcap * torch.tanh(raw / self.shape.softcap)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """`logits(hidden(ids))`: fp32 (B, T, V)."""
        return self.logits(self.hidden(ids_BT))


def _group_of(name: str) -> str:
    top = name.split(".", 1)[0]
    if top == "blocks":
        return "matrices"
    return {
        "resid_lambdas": "resid",
        "x0_lambdas": "x0",
        "smear_gate": "smear",
        "smear_lambda": "smear",
        "backout_lambda": "smear",
    }.get(top, top)


def _name_seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1
