"""From logits to a token: temperature, top-k, top-p, min-p, a penalty on repetition, and random numbers that do not
depend on history.

The number that picks a token is a hash of (seed of the row, index of the token in the answer). A row therefore says the
same alone, in a batch, or after a resume; two samples of one prompt differ because their seeds do.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from picollm.run.errors import UserError


COLDEST = 1e-4  # a lower temperature is 0: logits divided by it could leave fp32


class Sampling(msgspec.Struct, frozen=True):
    """How to choose tokens, and when to stop.

    Attributes:
        max_tokens: most tokens of an answer, forced tool output included.
        temperature: divides the logits; 0 = always the likeliest token.
        top_k: choose among the k likeliest; 0 = all.
        top_p: choose among the likeliest tokens that together hold this probability (Holtzman et al. 2020).
        seed: used by rows that are given no seed of their own.
        stop: texts that end the answer; they are not part of it.
        logprobs: also report the log-probability of each token, before temperature, truncation and penalty.
        top_logprobs: with `logprobs`, also report this many of the likeliest tokens at each place.
        min_p: drop tokens less likely than this share of the likeliest one (Nguyen et al. 2024); 0 = off.
        repetition_penalty: above 1 makes tokens of the prompt and of the answer so far less likely (Keskar et al.
            2019, CTRL); 1 = off.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0
    stop: list[str] = []
    logprobs: bool = False
    top_logprobs: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks = [
            (self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens),
            (0 <= self.temperature <= 100, "temperature", "between 0 and 100", self.temperature),
            (self.top_k >= 0, "top_k", "0 (off) or more", self.top_k),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p),
            (all(self.stop), "stop", "texts that are not empty", self.stop),
            (self.top_logprobs >= 0, "top_logprobs", "0 or more", self.top_logprobs),
            (0 <= self.min_p <= 1, "min_p", "between 0 and 1", self.min_p),
            (0 < self.repetition_penalty <= 10, "repetition_penalty", "above 0 and at most 10",
             self.repetition_penalty),
        ]  # fmt: skip
        for good, name, expected, got in checks:
            if not good:
                raise UserError(f"sampling: {name} must be {expected}, not {got!r}")


class TokenLogprob(NamedTuple):
    """One sampled token: its log-probability, and the likeliest tokens at its place with theirs, likeliest first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def row_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, for example (seed, step, row, sample)."""
    text = ",".join(str(int(p)) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def uniforms(seeds: list[int], count: int) -> np.ndarray:
    """Random numbers in [0, 1), float64 (rows, count); entry (b, i) is a hash of (seeds[b], i) alone.

    SplitMix64 (Steele et al. 2014) read at a position instead of stepped through.
    """
    mask = (1 << 64) - 1
    start = np.array([row_seed(s) & mask for s in seeds], dtype=np.uint64)[:, None]
    with np.errstate(over="ignore"):
        z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def pick(logits_BV: Tensor, sampling: Sampling, u_B: Tensor) -> Tensor:
    """Choose one token per row: int64 (B,).

    Args:
        logits_BV: fp32.
        u_B: float64 in [0, 1), one per row; the token is found by inverting the cumulative distribution at u.
    """
    if sampling.temperature < COLDEST:
        return logits_BV.argmax(dim=-1)
    V = logits_BV.shape[-1]
    k = min(sampling.top_k, V) if sampling.top_k else V
    order: Tensor | None = None
    if k < V:
        logits_BV, order = torch.topk(logits_BV, k, dim=-1)
    elif sampling.top_p < 1 or sampling.min_p > 0:
        logits_BV, order = torch.sort(logits_BV, dim=-1, descending=True)
    p = torch.softmax(logits_BV / sampling.temperature, dim=-1, dtype=torch.float64)
    total = p.cumsum(dim=-1)
    mass = total[:, -1]
    if sampling.top_p < 1 or sampling.min_p > 0:
        # Likeliest first. The token that crosses top_p is still in: at least one always remains.
        kept = (((total - p) < sampling.top_p) & (p >= sampling.min_p * p[:, :1])).sum(dim=-1, keepdim=True)
        mass = total.gather(1, kept - 1)[:, 0]
    place = torch.searchsorted(total, (u_B * mass)[:, None], right=True).clamp_(max=total.shape[-1] - 1)
    return (place if order is None else order.gather(1, place))[:, 0]


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits with those of tokens seen before (bool) divided by `penalty` where positive, else multiplied."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def logprobs_of(logits_BV: Tensor, tokens_B: Tensor, top: int = 0) -> list[TokenLogprob]:
    """The chosen tokens under the untouched distribution (natural logarithm), and the `top` likeliest beside them."""
    scale_B1 = torch.logsumexp(logits_BV, dim=-1, keepdim=True)
    chosen = (logits_BV.gather(1, tokens_B[:, None]) - scale_B1)[:, 0].tolist()
    ids = tokens_B.tolist()
    if not top:
        return [TokenLogprob(token, logprob) for token, logprob in zip(ids, chosen, strict=True)]
    values, others = torch.topk(logits_BV, min(top, logits_BV.shape[-1]), dim=-1)
    rows = zip(ids, chosen, others.tolist(), (values - scale_B1).tolist(), strict=True)
    return [TokenLogprob(token, p, tuple(zip(who, how, strict=True))) for token, p, who, how in rows]
