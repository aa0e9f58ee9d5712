"""Attention kernels for whole rows on a GPU: what each needs, and how it is called.

All are causal from position 0, see `window` positions back (the query's own included; None: all), take and return
(B, heads, T, D), and let G key/value heads serve H query heads. None is trusted because it can be imported: kernels
have been seen to import and die at their first launch, so `attention_proof.prove` runs each before it is used.

- `cudnn`: `scaled_dot_product_attention` with cuDNN first and FlashAttention-2 next. It knows no window: layers with
  one go through the kernel of `varlen`.
- `varlen`: torch's own FlashAttention-2 with a window, through `torch.nn.attention.varlen` (windows and grouped heads
  since 2.12) or, before that, through the operator below it.
- `flex`: `torch.nn.attention.flex_attention` with a block mask for the window (Dong et al. 2024).
- `flash3`: the package `flash_attn_interface` (Shah et al. 2024), for Hopper.
- `flash4`: the package `flash_attn.cute`, for Hopper and Blackwell.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = ("cudnn", "varlen", "flex", "flash3", "flash4")
PACKAGES = {"flash3": "flash_attn_interface", "flash4": "flash_attn.cute"}
HALF = (torch.bfloat16, torch.float16)
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def unavailable(kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why this kernel cannot even be tried here, in a few words; "" when it can."""
    if device.type != "cuda":
        return f"needs a CUDA GPU, this is {device.type}"
    if dtype not in HALF:
        return "needs 16-bit activations"
    if kernel in PACKAGES:
        try:
            importlib.import_module(PACKAGES[kernel])
        except Exception as error:  # a compiled package fails in as many ways as there are loaders
            return f"{PACKAGES[kernel]} cannot be imported ({type(error).__name__})"
    if kernel == "flex" and importlib.util.find_spec("triton") is None:
        return "needs Triton"
    return ""


def covers(kernel: str, q_BHTD: Tensor, blocks: Any) -> bool:
    """Whether the kernel takes these queries: 16-bit ones on a GPU, and for flex a mask made for their length."""
    return kernel in KERNELS and q_BHTD.is_cuda and q_BHTD.dtype in HALF and (kernel != "flex" or blocks is not None)


def attend(kernel: str, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, window: int | None, blocks: Any) -> Tensor:
    """Attention of whole rows by the kernel of this name; `blocks` is `block_mask` of the same window, for flex.

    Raises whatever the kernel raises.
    """
    grouped = q_BHTD.shape[1] != k_BGTD.shape[1]
    if kernel == "cudnn" and window is None:
        with sdpa_kernel(CUDNN_FIRST, set_priority=True):
            return F.scaled_dot_product_attention(q_BHTD, k_BGTD, v_BGTD, is_causal=True, enable_gqa=grouped)
    if kernel == "flex":
        return _flex()(q_BHTD, k_BGTD, v_BGTD, block_mask=blocks, enable_gqa=grouped)
    # The flash kernels take positions before heads.
    q, k, v = (x.transpose(1, 2) for x in (q_BHTD, k_BGTD, v_BGTD))
    run = _package if kernel in PACKAGES else _varlen
    return run(kernel, q, k, v, -1 if window is None else window - 1).transpose(1, 2)


def _windowed_varlen_attn() -> Any:
    """`varlen_attn` of torch when it has windows and grouped heads, else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "enable_gqa"} <= known.keys() else None


VARLEN_ATTN = _windowed_varlen_attn()
"""Looked for once, here, and not where the compiler is tracing."""


def _varlen(_: str, q_BTHD: Tensor, k: Tensor, v: Tensor, back: int) -> Tensor:
    """`back`: how many positions before its own a query sees, -1 for all."""
    B, T = q_BTHD.shape[:2]
    if VARLEN_ATTN is None:
        # Called with whole rows, as the kernel can be: (…, cum_seq_q, cum_seq_k, max_q, max_k, dropout, causal, debug).
        return torch.ops.aten._flash_attention_forward(
            q_BTHD, k, v, None, None, T, T, 0.0, True, False, window_size_left=back, window_size_right=0
        )[0]
    edges = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q_BTHD.device)
    out = VARLEN_ATTN(
        *(x.flatten(0, 1) for x in (q_BTHD, k, v)), edges, edges, T, T, window_size=(back, 0), enable_gqa=True
    )
    return out.view_as(q_BTHD)


@torch.compiler.disable  # the packages' own code is not for the compiler to trace
def _package(kernel: str, q_BTHD: Tensor, k: Tensor, v: Tensor, back: int) -> Tensor:
    attend = importlib.import_module(PACKAGES[kernel]).flash_attn_func
    everything = None if kernel == "flash4" else -1
    window = (everything, everything) if back < 0 else (back, 0)
    out = attend(q_BTHD, k, v, causal=True, window_size=window)
    return out[0] if isinstance(out, tuple) else out  # some versions add the log-sum-exp


def block_mask(length: int, window: int | None, device: torch.device) -> Any:
    """Which blocks of 128 positions flex attention visits, for one window; made once per shape and shared by layers."""
    return _block_mask(length, window, str(device))


@cache
def _block_mask(length: int, window: int | None, device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        inside = query >= key
        return inside if window is None else inside & (query - key < window)

    with torch.inference_mode(False):  # a reading may be the first to ask for what training keeps for its backward pass
        return create_block_mask(sees, None, None, length, length, device=device)


def _flex() -> Any:
    """`flex_attention` itself where a compiler is tracing already, else compiled: uncompiled it makes all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if torch.compiler.is_compiling() else _compiled_flex()


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
