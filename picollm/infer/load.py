"""From a checkpoint folder and a tokenizer folder to an engine that answers."""

from __future__ import annotations

from pathlib import Path

import torch

from picollm.infer.engine import Engine
from picollm.text.tokenizer import Tokenizer
from picollm.train import checkpoint


def load_model(
    checkpoint_dir: Path,
    tokenizer_dir: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Engine:
    """An engine over the weights of one finished checkpoint (`.../step-000200`), with the optimizer left on disk.

    Args:
        dtype: of weights and cache, see `Engine`. The fp32 originals are dropped when it is another.
        backend: attention backend; changes speed only.

    Raises:
        UserError: files are missing or damaged, or the checkpoint was trained with another tokenizer.
    """
    tok = Tokenizer.load(tokenizer_dir)
    model, meta = checkpoint.load_model(checkpoint_dir, device=device, tokenizer_hash=tok.hash)
    model.attention_backend = backend
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
    cos, sin = model.cos, model.sin
    model.to(dtype)
    model.cos, model.sin = cos, sin  # positions stay exact
    engine = Engine(model.requires_grad_(False), tok, dtype=dtype, live=False)
    engine.meta = meta
    return engine
