"""What each extra of the model is worth on the pocket corpus: bits per byte with and without it, in equal time.

    python benchmarks/ablations.py [--steps 293 --seeds 3 --only smear,backout] [--threads 2]

Variant and baseline share the seed (first weights where they have the same, order of text), so the differences are
paired; the interval is Student's t over the seeds. A variant whose step costs r times the baseline's gets steps / r of
them; costs are CPU time, in alternating blocks, because on a shared machine the clock on the wall measures the others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from picollm.data import pydocs
from picollm.data.loader import StreamLoader, ValLoader
from picollm.data.shards import ShardSet, encode, write_text
from picollm.evals.bpb import text_loss
from picollm.model import gpt
from picollm.model.gpt import GPT
from picollm.run.folder import picollm_home
from picollm.run.scaling import shape_for
from picollm.text.tokenizer import Tokenizer, train_tokenizer
from picollm.train.batch import Batch
from picollm.train.device import start
from picollm.train.optim import Optimizer, OptimizerSettings, build_optimizer
from picollm.train.schedule import Schedule
from picollm.train.step import Compute, ForwardBackward

COMPUTE = Compute("bf16", "explicit", True)
ROWS, T, VOCAB = 8, 256, 4096  # the pocket profile
POCKET = {"depth": 2, "dim": 128, "head_dim": 64}
T_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % points of Student's t by degrees of freedom."""


def nothing(_: Any) -> None:
    """Leave the model as it was made."""


@torch.no_grad()
def plain_residual(model: GPT) -> None:
    """x + block(x), without the learned weights of residual and embedding (`frozen` keeps them so)."""
    model.resid_lambdas.fill_(1.0)
    model.x0_lambdas.fill_(0.0)


@torch.no_grad()
def residual_only(model: GPT) -> None:
    """No skip from the embedding; the residual keeps its learned weight."""
    model.x0_lambdas.fill_(0.0)


@dataclass(frozen=True)
class Variant:
    """One way to build and train the model.

    `shape` and `settings` change arguments of `shape_for` and fields of `OptimizerSettings`; `frozen` groups get a
    learning rate of 0; `model` makes the module and `prepare` edits its first weights; `loader(shards, seed)` gives
    something with `batch(step)`.
    """

    shape: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    prepare: Callable[[GPT], None] = nothing
    qk_scale: float = 1.2
    model: Callable[..., GPT] = GPT
    loader: Callable[[ShardSet, int], Any] = lambda shards, seed: StreamLoader(shards, T, ROWS, seed)


BASELINE = Variant()
VARIANTS = {
    "value_embeds": Variant({"value_embeds": False}),
    "smear": Variant({"smear": False}),
    "backout": Variant({"backout": False}),
    "x0 skip": Variant(frozen=("x0",), prepare=residual_only),
    "resid + x0 lambdas": Variant(frozen=("resid", "x0"), prepare=plain_residual),
    "qk scale": Variant(qk_scale=1.0),
    "softcap": Variant({"softcap": 80.0}),  # the loss's largest: at the logits of this model no cap at all
    "full window (SL)": Variant({"window_pattern": "SL"}),
    "NorMuon": Variant(settings={"muon_beta2": 0.0}),
    "weight decay": Variant(settings={"matrix_weight_decay": 0.0}),
}


@cache
def corpus() -> tuple[Tokenizer, ShardSet]:
    """The documentation of this Python, as the pocket profile encodes it."""
    text = write_text(pydocs.documents(), picollm_home(), provenance=pydocs.provenance())
    tokenizer = train_tokenizer(text.train_texts(), VOCAB)
    return tokenizer, encode(text, tokenizer, picollm_home())


class Trainer:
    """A variant with its weights, optimizer and text; `step(n, of)` makes update n of a run of so many steps."""

    def __init__(self, variant: Variant, seed: int) -> None:
        self.tokenizer, self.shards = corpus()
        self.variant = variant
        gpt.QK_SCALE = variant.qk_scale
        torch.compiler.reset()  # or it gives up after a few models that differ
        self.model = variant.model(shape_for(vocab_size=self.tokenizer.vocab_size, seq_len=T, **POCKET | variant.shape))
        self.model.init_weights(seed)
        variant.prepare(self.model)
        base = OptimizerSettings(matrix_lr=0.03, matrix_weight_decay=0.1, muon_dtype=COMPUTE.dtype)
        base = replace(base, **variant.settings)
        base = replace(base, **{name: replace(getattr(base, name), lr=0.0) for name in variant.frozen})
        self.optimizer: Optimizer = build_optimizer(self.model, base.for_run(self.model.shape.dim))
        self.forward_backward = ForwardBackward(self.model, COMPUTE)
        self.loader = variant.loader(self.shards, seed)

    def step(self, number: int, of: int) -> float:
        """CPU seconds of all threads that it took."""
        gpt.QK_SCALE = self.variant.qk_scale
        inputs, targets = self.loader.batch(number)
        schedule = Schedule(of, warmup=20)
        begun = time.process_time()
        self.forward_backward(Batch.from_numpy(inputs, targets, denom=float(targets.size)))
        self.optimizer.step(schedule.lr(number), schedule.muon_momentum(number), schedule.weight_decay(number))
        self.optimizer.zero_grad()
        return time.process_time() - begun

    def bits_per_byte(self) -> float:
        """On all of the validation text."""
        return text_loss(self.model, ValLoader(self.shards, T, ROWS), self.tokenizer.token_bytes()).bpb


def trained(variant: Variant, seed: int, steps: int) -> Trainer:
    trainer = Trainer(variant, seed)
    for number in range(steps):
        trainer.step(number, steps)
    return trainer


def cost_ratio(label: str, variant: Variant, baseline: Variant = BASELINE, blocks: int = 9, steps: int = 6) -> float:
    """CPU time of the variant's step over the baseline's, in alternating blocks; 1 if it cannot be told from 1.

    The second smallest and second largest of nine ratios enclose their median in 96 % of cases (binomial). Without
    this rule the noise of a shared machine decides: a cost 5 % off is worth 0.02 bits per byte at 200 steps.
    """
    pair = Trainer(baseline, 0), Trainer(variant, 0)
    ratios = []
    for block in range(blocks + 1):
        medians = [0.0, 0.0]
        for which in (0, 1) if block % 2 else (1, 0):
            medians[which] = statistics.median(pair[which].step(block * steps + n, 1000) for n in range(steps))
        ratios.append(medians[1] / medians[0])
    found = sorted(ratios[1:])  # the first block compiles
    print(f"{label}: a step costs {statistics.median(found):.3f} ({found[1]:.3f} to {found[-2]:.3f})", flush=True)
    return 1.0 if found[1] <= 1.0 <= found[-2] else statistics.median(found)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval of paired differences."""
    n = len(differences)
    if n < 2:
        return differences[0], float("inf")
    return statistics.mean(differences), T_95[n - 1] * statistics.stdev(differences) / n**0.5


def compare(variants: dict[str, Variant], steps: int, seeds: int, equal_steps: bool) -> None:
    """Train everything, seed by seed, and print the table."""
    costs: dict[str, float] = {}
    for name, variant in variants.items():
        costs[name] = 1.0 if equal_steps else cost_ratio(name, variant)
    counts = {name: round(steps / cost) for name, cost in costs.items()}
    base: list[float] = []
    differences: dict[str, list[float]] = {name: [] for name in variants}
    for seed in range(seeds):
        base.append(trained(BASELINE, seed, steps).bits_per_byte())
        print(f"seed {seed}, {steps} steps of {ROWS * T} tokens: {base[-1]:.4f} bits per byte", flush=True)
        for name, variant in variants.items():
            differences[name].append(trained(variant, seed, counts[name]).bits_per_byte() - base[-1])
            print(f"  {name}: {differences[name][-1]:+.4f}", flush=True)
    print(f"{'':>27} {'cost of a step':>15} {'steps':>6} {'bits per byte':>14} {'95 %':>8}")
    for name, found in differences.items():
        mean, half = interval(found)
        print(f"{name:>27} {costs[name]:>15.3f} {counts[name]:>6} {mean:>+14.4f} {half:>8.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=293, help="steps of the baseline; 293 are 0.6M tokens")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of variants, with commas")
    parser.add_argument("--equal-steps", action="store_true", help="count every step as costing the same")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    options = parser.parse_args()
    start("cpu", threads=options.threads)
    names = options.only.split(",") if options.only else list(VARIANTS)
    chosen = {f"without {name}": VARIANTS[name] for name in names}
    compare(chosen, options.steps, options.seeds, options.equal_steps)


if __name__ == "__main__":
    main()
