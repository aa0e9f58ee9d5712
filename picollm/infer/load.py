"""From a checkpoint folder and a tokenizer folder to an engine that answers."""

from __future__ import annotations

from pathlib import Path

import torch

from picollm.infer.engine import Engine
from picollm.infer.precision import DTYPES, choose
from picollm.text.tokenizer import Tokenizer
from picollm.train import checkpoint


def load_model(
    checkpoint_dir: Path,
    tokenizer_dir: Path,
    *,
    device: torch.device | str = "cpu",
    precision: str | None = None,
    backend: str = "auto",
    only_decode: bool = False,
) -> Engine:
    """An engine over the weights of one finished checkpoint (`.../step-000200`), with the optimizer left on disk.

    Args:
        precision: fp32, bf16, int8, or auto, see `picollm.infer.precision`; by default fp32 on a CPU, bf16 on a GPU.
            The fp32 originals are dropped for bf16.
        backend: attention backend; changes speed only.
        only_decode: take no more memory than answering needs, see `Engine.only_decode`.

    Raises:
        UserError: files are missing or damaged, the checkpoint was trained with another tokenizer, or the precision
            does not run there.
    """
    tok = Tokenizer.load(tokenizer_dir)
    model, meta = checkpoint.load_model(checkpoint_dir, device=device, tokenizer_hash=tok.hash)
    model.attention_backend = backend
    device = torch.device(device)
    precision = choose(precision or ("fp32" if device.type == "cpu" else "bf16"), model.shape, device)
    cos, sin = model.cos, model.sin
    model.to(DTYPES[precision])
    model.cos, model.sin = cos, sin  # positions stay exact
    engine = Engine(model.requires_grad_(False), tok, dtype=DTYPES[precision], int8=precision == "int8", live=False)
    engine.meta = meta
    if only_decode:
        engine.only_decode()
    return engine
