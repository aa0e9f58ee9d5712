"""From logits to a token: temperature, top-k, top-p, min-p, a penalty on repetition, and random numbers that do not
depend on history. Rows of one batch may have different settings.

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
    """One sampled token: its log-probability, and the likeliest tokens at its place with theirs, likeliest first.

    `entropy`: of the distribution at its place, in nats; like the others before temperature and truncation.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    entropy: float = 0.0


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


def exact(device: torch.device) -> torch.dtype:
    """Of probabilities that are summed and compared: fp64, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


class Settings(NamedTuple):
    """The settings of B rows, as tensors on the model's device."""

    temperature: Tensor  # fp32, (B,) like all of them; 1 for a row that takes the likeliest token
    top_k: Tensor  # int64, 1 .. V
    top_p: Tensor  # see `exact`
    min_p: Tensor  # like it
    penalty: Tensor  # fp32

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Settings:
        """For rows whose settings come later, see `put`."""
        dtypes = (torch.float32, torch.int64, exact(device), exact(device), torch.float32)
        return cls(*(torch.ones(rows, dtype=dtype, device=device) for dtype in dtypes))

    def put(self, row: int, sampling: Sampling, vocab_size: int) -> None:
        greedy = sampling.temperature < COLDEST
        values = (1.0 if greedy else sampling.temperature, ranks_of(sampling, vocab_size), sampling.top_p,
                  sampling.min_p, sampling.repetition_penalty)  # fmt: skip
        for tensor, value in zip(self, values, strict=True):
            tensor[row] = value

    def rows(self, which: slice | Tensor) -> Settings:
        return Settings(*(tensor[which] for tensor in self))


def ranks_of(sampling: Sampling, vocab_size: int) -> int:
    """Among how many of the likeliest tokens such a row chooses, top-p and min-p aside."""
    if sampling.temperature < COLDEST:
        return 1
    return min(sampling.top_k, vocab_size) if sampling.top_k else vocab_size


def pick(logits_BV: Tensor, settings: Settings, u_B: Tensor, most: int) -> Tensor:
    """Choose one token per row: int64 (B,). A row's choice does not depend on the settings of the others.

    Args:
        logits_BV: fp32.
        u_B: in [0, 1), of the dtype of `top_p`, one per row; the token is found by inverting the cumulative
            distribution, likeliest first, at u.
        most: at least the largest `top_k` among the rows.
    """
    if most == 1:
        return logits_BV.argmax(dim=-1)
    order = torch.topk(_ranking(logits_BV), most, dim=-1).indices
    z = logits_BV.gather(1, order) / settings.temperature[:, None]
    z = z.masked_fill(torch.arange(most, device=z.device) >= settings.top_k[:, None], float("-inf"))
    p = torch.softmax(z, dim=-1, dtype=settings.top_p.dtype)
    total = p.cumsum(dim=-1)
    # The token that crosses top_p is still in: at least one always remains, unless the logits are no numbers.
    kept = (((total - p) < settings.top_p[:, None]) & (p >= settings.min_p[:, None] * p[:, :1]) & (p > 0)).sum(dim=-1)
    last = (kept - 1).clamp_(min=0)[:, None]
    place = torch.searchsorted(total, u_B[:, None] * total.gather(1, last), right=True)
    return order.gather(1, torch.minimum(place, last))[:, 0]


def _ranking(logits_BV: Tensor) -> Tensor:
    """int64 numbers in the order of the logits, all different: of equal logits the one with the lower id is larger.

    Kernels that sort leave the order of equals open, and it may change with the size of the batch.
    """
    bits = (logits_BV + 0.0).view(torch.int32)  # -0.0 + 0.0 = 0.0: the two compare equal and must here
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # two's complement has the order of floats from here on
    ids = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    return (ordered.to(torch.int64) << 32) - ids


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty_B: Tensor) -> Tensor:
    """Logits with those of tokens seen before (bool) divided by the row's penalty where positive, else multiplied."""
    penalty = penalty_B[:, None]
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities: of the chosen tokens (B,), and the likeliest ids and theirs (B, top).

    `entropy`: of each row's distribution in nats, (B,).
    """

    chosen: Tensor
    ids: Tensor
    values: Tensor
    entropy: Tensor


def logprobs_of(logits_BV: Tensor, tokens_B: Tensor, top: int = 0) -> Logprobs:
    """The chosen tokens under the untouched distribution, and the `top` likeliest beside them."""
    logp_BV = torch.log_softmax(logits_BV, dim=-1)
    values, ids = torch.topk(logp_BV, min(top, logits_BV.shape[-1]), dim=-1)
    entropy = -(logp_BV.exp() * logp_BV).sum(dim=-1)
    return Logprobs(logp_BV.gather(1, tokens_B[:, None])[:, 0], ids, values, entropy)
