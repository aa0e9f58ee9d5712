"""The model as it is used to answer: the function of `picollm.model.gpt.GPT` in few, large operations.

On small models most of a token's time is the cost of starting operations, so everything that can be settled once per
set of weights is: q, k, v and the value gate are one product, and rotation comes after the norm of q and k (it changes
no length), with their scale in its tables. `GPT` remains the definition; tests hold the two together.

Shape legend: B rows, T positions, D model width, V vocabulary, H query heads, G key/value heads, C head width, S keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from picollm.infer.cache import Span
from picollm.infer.products import Product, product
from picollm.model.attention import attention
from picollm.model.gpt import GPT, QK_SCALE, norm


class Decoder:
    """Weights of a `GPT` in the form that decodes fastest.

    Attributes:
        dtype: of weights and activations; logits are fp32.
        int8: the matrices are kept and multiplied in 8 bits.
        windows: how far back each layer looks, None = everywhere.
    """

    def __init__(self, model: GPT, dtype: torch.dtype, *, int8: bool = False) -> None:
        self.shape, self.dtype, self.windows = model.shape, dtype, model.windows
        self.backend = model.attention_backend
        scaled = torch.stack([torch.cat([model.cos, model.cos], -1), torch.cat([-model.sin, model.sin], -1)], dim=1)
        self.rotary = (QK_SCALE * scaled).to(dtype)[:, :, None]  # (seq_len, 2, 1, C)
        self.int8 = int8
        self._weights: dict[str, Tensor] = {}
        self._products: dict[str, Product] = {}  # of the matrices; on a CPU these are copies
        self.refresh(model)

    @property
    def device(self) -> torch.device:
        return self.rotary.device

    @torch.no_grad()
    def refresh(self, model: GPT) -> None:
        """Take over the model's present weights, in place: a captured graph reads them where they were."""
        new = {name: p.detach() for name, p in model.named_parameters()}
        for i, block in enumerate(model.each_block()):
            attn, name = block.attn, f"blocks.{i}.attn."
            parts = [new.pop(f"{name}{part}.weight") for part in "qkv"]
            if attn.value_gate is not None:
                gate = new.pop(f"{name}value_gate.weight")
                parts.append(F.pad(gate, (0, self.shape.dim - gate.shape[1])))  # reads the first channels only
            new[f"{name}qkv"] = torch.cat(parts)
        for name in ("resid_lambdas", "x0_lambdas"):
            new.update({f"{name}.{i}": value for i, value in enumerate(new.pop(name))})
        new["lm_head.weight"] = new["lm_head.weight"][: self.shape.vocab_size]
        for name, value in new.items():
            held = self._weights.get(name)
            if held is None:
                self._weights[name] = value.to(self.dtype)
            elif held.data_ptr() != value.data_ptr():
                held.copy_(value)
        matrices = {n: w for n, w in self._weights.items() if n.startswith(("blocks.", "lm_head")) and w.dim() == 2}
        self._products = {n: product(w, int8=self.int8) for n, w in matrices.items()}

    def forget_matrices(self) -> None:
        """Drop those that products have copies of; there is no `refresh` any more."""
        for name, multiply in self._products.items():
            if multiply.copied:
                del self._weights[name]

    def hidden(self, ids: Tensor, span: Span | None = None) -> Tensor:
        """Final normed activations (B, T, D), and the cache of `span` extended by these tokens.

        Args:
            ids: int64 (B, T) tokens that open their rows, or (B, 1 + T) tokens that continue them, of which the first
                was read before: the smear looks back at it.
            span: where the tokens stand; None reads whole rows and keeps nothing.
        """
        w, products, shape = self._weights, self._products, self.shape
        H, G, C = shape.heads, shape.kv_heads, shape.head_dim
        lead = 0 if span is None or span.opens else 1
        e = norm(F.embedding(ids, w["wte.weight"]))
        x = e[:, lead:]
        if shape.smear:
            now = e[:, 1:]
            gate = torch.sigmoid(F.linear(now[..., : w["smear_gate.weight"].shape[1]], w["smear_gate.weight"]))
            now = torch.addcmul(now, gate * w["smear_lambda"], e[:, :-1])
            x = now if lead else torch.cat([e[:, :1], now], dim=1)
        ids = ids[:, lead:]
        B, T = ids.shape
        if span is None:
            cos_sin = self.rotary[None, :T]
        else:
            places = span.places
            cos_sin = self.rotary.index_select(0, places.flatten()).view(*places.shape, 2, 1, C)
        cos, sin = cos_sin[:, :, 0], cos_sin[:, :, 1]
        qk_end, v_end = (H + G) * C, (H + 2 * G) * C
        x0, middle = x, None
        for i in range(shape.depth):
            name = f"blocks.{i}."
            x = torch.addcmul(x * w[f"resid_lambdas.{i}"], x0, w[f"x0_lambdas.{i}"])
            y = products[name + "attn.qkv"](norm(x))
            v = y[..., qk_end:v_end].view(B, T, G, C)
            if shape.has_value_embed(i):
                gate = torch.sigmoid(y[..., v_end:]).unsqueeze(-1)
                v = torch.addcmul(v, gate, F.embedding(ids, w[f"value_embeds.{i}.weight"]).view(B, T, G, C), value=3)
            qk = norm(y[..., :qk_end].view(B, T, H + G, C))
            qk = torch.addcmul(qk * cos, qk.roll(C // 2, -1), sin)
            a = self._attend(i, qk[:, :, :H], qk[:, :, H:], v, span)
            x = x + products[name + "attn.proj.weight"](a)
            h = products[name + "mlp.fc.weight"](norm(x)).relu_()
            x = x + products[name + "mlp.proj.weight"](h.square_())
            if i == shape.backout_layer:
                middle = x
        if middle is not None:
            x = x - w["backout_lambda"] * middle
        return norm(x)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """fp32 logits (B, T, V), softcapped."""
        cap = self.shape.softcap
        return self._products["lm_head.weight"](x_BTD).float().div_(cap).tanh_().mul_(cap)

    def _attend(self, layer: int, q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, span: Span | None) -> Tensor:
        """Attention over what the rows hold, these tokens included: (B, T, H * C)."""
        B, T, H, C = q_BTHC.shape
        window = self.windows[layer]
        if span is not None:
            span.cache.write(layer, span, k_BTGC, v_BTGC)
        if span is None or span.opens:
            q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTGC, v_BTGC))
            out = attention(q, k, v, window=window, backend=self.backend)
        else:
            k, v = span.cache.read(layer, span)
            # Without a mask it is one token for rows that all stand alike, at the last of the keys read.
            last, mask = span.keys - 1, span.masks.get(window)
            out = attention(q_BTHC.transpose(1, 2), k, v, window=window, start=last, mask=mask, backend="sdpa")
        return out.transpose(1, 2).reshape(B, T, H * C)
