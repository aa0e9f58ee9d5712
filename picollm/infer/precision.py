"""The precision a model answers in: bf16 on a GPU; on a CPU the faster of fp32 and bf16, as measured; int8 when asked.

Which of the two is faster depends on the processor (only some multiply bf16 themselves) and on the size of the model:
in a small one starting operations costs more than reading the weights. Fp32 is the more exact, so bf16 must be faster
by `MARGIN`. What was found is remembered in PICOLLM_HOME, so that a server that starts again answers the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from typing import Literal

import msgspec
import torch

from picollm.infer.cache import KVCache, next_token
from picollm.infer.decoder import Decoder
from picollm.infer.products import WrongPrecision
from picollm.model.gpt import GPT
from picollm.run.errors import UserError
from picollm.run.folder import picollm_home, write_atomic
from picollm.run.machine import processor
from picollm.run.scaling import ModelShape

Precision = Literal["fp32", "bf16", "int8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}  # of what is not an int8 matrix
MARGIN = 1.25
LAYERS = 4  # of the model that is measured; more of them change no ratio
KEYS = 64
ROUNDS, SECONDS = 7, 0.25  # at least so many, at least so long


def choose(wanted: str, shape: ModelShape, device: torch.device) -> Precision:
    """`wanted` if it is a precision that runs there, and for "auto" the best one. Raises `WrongPrecision`."""
    match wanted:
        case "auto":
            return _fastest(shape) if device.type == "cpu" else "bf16"
        case "int8" if device.type != "cpu":
            raise WrongPrecision(f"precision int8 is for CPUs, and this model answers on {device}; use bf16")
        case "fp32" | "bf16" | "int8":
            return wanted
    raise WrongPrecision(f"precision {wanted!r}: expected auto, fp32, bf16 or int8")


def speedup(shape: ModelShape) -> float:
    """How many times as fast as in fp32 a step is in bf16 on this CPU, the geometric mean of one row and eight."""
    model = GPT(msgspec.structs.replace(shape, depth=min(shape.depth, LAYERS)))
    model.init_weights(0)
    decoders = [Decoder(model, dtype) for dtype in (torch.float32, torch.bfloat16)]
    ratio = 1.0
    for rows in (1, 8):
        steps = [_Step(decoder, rows) for decoder in decoders]
        best, rounds, end = [float("inf")] * 2, 0, time.perf_counter() + SECONDS
        while rounds < ROUNDS or time.perf_counter() < end:
            for k, step in enumerate(steps):  # in turn, and the best counts: other work only ever slows
                begun = time.perf_counter()
                step()
                best[k] = min(best[k], time.perf_counter() - begun)
            rounds += 1
        ratio *= best[0] / best[1]
    return ratio**0.5


class _Step:
    """Decoding one token for some rows."""

    def __init__(self, decoder: Decoder, rows: int) -> None:
        keys = min(KEYS, decoder.shape.seq_len)
        self.decoder, self.cache = decoder, KVCache(decoder.shape, rows, keys, dtype=decoder.dtype)
        self.place, self.tail = torch.full((rows,), keys - 1), torch.zeros(rows, 2, dtype=torch.int64)

    @torch.inference_mode()
    def __call__(self) -> None:
        span = next_token(self.cache, self.place, self.cache.length, self.decoder.windows, alike=True)
        self.decoder.logits(self.decoder.hidden(self.tail, span))


def _fastest(shape: ModelShape) -> Precision:
    """Measured once for a processor, a version of torch, a number of threads and a shape."""
    on = (processor(), torch.__version__, torch.get_num_threads(), msgspec.structs.astuple(shape))
    file = picollm_home() / "precision" / f"{hashlib.sha256(repr(on).encode()).hexdigest()[:16]}.json"
    try:
        ratio = float(json.loads(file.read_bytes())["bf16_speedup"])
    except (OSError, ValueError, KeyError, TypeError):
        ratio = speedup(shape)
        with contextlib.suppress(UserError):  # where nothing can be written, it is measured again next time
            write_atomic(file, json.dumps({"bf16_speedup": round(ratio, 3), "measured_on": list(map(str, on))}))
    return "bf16" if ratio >= MARGIN else "fp32"
