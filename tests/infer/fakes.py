"""A tokenizer of bytes and a tiny model with lively random weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from picollm.infer.engine import Engine
from picollm.model.gpt import GPT
from picollm.run.scaling import ModelShape

NAMES = ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>", "<|python_start|>",
         "<|python_end|>", "<|output_start|>", "<|output_end|>"]  # fmt: skip


class ByteTokenizer:
    """Ids 0..255 are bytes, the specials follow."""

    vocab_size = 256 + len(NAMES)
    bos_id = 256
    hash = "bytes"

    def special(self, name: str) -> int:
        return 256 + NAMES.index(name)

    def is_special(self, token: int) -> bool:
        return token >= 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(bytes([i]) if i < 256 else NAMES[i - 256].encode() for i in ids)

    def decode(self, ids: Sequence[int], skip_specials: bool = False) -> str:
        return self.decode_bytes([i for i in ids if i < 256 or not skip_specials]).decode("utf-8", "replace")


def tiny_model(seed: int = 0, *, scale: float = 0.25, **changes) -> GPT:
    base = dict(depth=2, dim=32, heads=2, kv_heads=1, head_dim=16, vocab_size=ByteTokenizer.vocab_size, seq_len=128)
    model = GPT(ModelShape(**{**base, **changes}))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * scale)
    return model.eval()


def scripted_engine(answer: Sequence[int], prompt_tokens: int) -> Engine:
    """An engine whose model says `answer` after any prompt of `prompt_tokens` tokens, then assistant_end forever."""
    tok = ByteTokenizer()
    engine = Engine(tiny_model(), tok)
    end = tok.special("<|assistant_end|>")
    real = engine.model.hidden

    def hidden(ids, span=None):
        x = real(ids, span)
        places = torch.arange(x.shape[1])[None] if span is None else span.places
        for b in range(x.shape[0]):
            for t in range(x.shape[1]):
                at = int(places[b % len(places), t]) - prompt_tokens + 1
                x[b, t, 0] = float(answer[at] if 0 <= at < len(answer) else end)  # read back by logits below
        return x

    def logits(x):
        out = torch.full((*x.shape[:-1], tok.vocab_size), -10.0)
        return out.scatter(-1, x[..., :1].round().long(), 10.0)

    engine.model.hidden, engine.model.logits = hidden, logits  # type: ignore[method-assign]
    return engine
