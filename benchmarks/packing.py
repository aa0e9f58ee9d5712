"""How to cut text into rows: bits per byte on the pocket corpus, per token and per second, seeds paired.

    python benchmarks/packing.py [--steps 293 --seeds 3 --only "best fit"] [--threads 2]

- stream: all documents back to back, nothing dropped, rows begin anywhere (what training does).
- segments: the same rows, but neither attention nor smear crosses from one document into the next.
- best fit: every row begins with a document; each time the longest waiting one that still fits is added whole, and
  when none fits the shortest is cut to fill the row and its rest dropped.

All are read on the same validation stream; "alone" is the same text with documents kept apart while reading.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from ablations import ROWS, T, Trainer, Variant, corpus, cost_ratio, interval, trained
from torch import Tensor

from picollm.data.shards import ShardSet
from picollm.model.gpt import GPT, KVCache
from picollm.train.device import start

WAITING = 1000  # documents to choose from


class DocumentGPT(GPT):
    """Keeps documents apart while `apart` is set: a new segment begins at every <|bos|>."""

    apart = True

    def hidden(self, ids_BT: Tensor, cache: KVCache | None = None, segments_BT: Tensor | None = None) -> Tensor:
        return super().hidden(ids_BT, cache, (ids_BT == corpus()[1].bos_id).cumsum(1) if self.apart else None)


def together(model: GPT) -> None:
    """Attention crosses from document to document, as in plain rows."""
    model.apart = False  # type: ignore[assignment]


class BestFit:
    """Rows of T+1 tokens, each begun by a document; drawn in advance, epoch after epoch, as far as asked."""

    def __init__(self, shards: ShardSet, seed: int) -> None:
        self._tokens, self._seed = shards.train, seed
        self._rows: list[np.ndarray] = []
        self._waiting: list[np.ndarray] = []
        self._order: list[int] = []
        self.epochs = self.seen = 0

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        while len(self._rows) < (step + 1) * ROWS:
            self._rows.append(self._row())
        rows = np.stack(self._rows[step * ROWS : (step + 1) * ROWS])
        return rows[:, :-1], rows[:, 1:]

    @property
    def dropped(self) -> float:
        """Share of the tokens taken from documents so far that are in no row."""
        return 1 - len(self._rows) * (T + 1) / self.seen

    def _row(self) -> np.ndarray:
        parts: list[np.ndarray] = []
        space = T + 1
        while space:
            self._refill()
            lengths = [len(document) for document in self._waiting]
            fitting = [i for i, length in enumerate(lengths) if length <= space]
            chosen = max if fitting else min
            pick = chosen(fitting or range(len(lengths)), key=lengths.__getitem__)
            document = self._waiting.pop(pick)
            self.seen += len(document)
            parts.append(document[:space])
            space -= len(parts[-1])
        return np.concatenate(parts)

    def _refill(self) -> None:
        starts = self._tokens.starts
        while len(self._waiting) < WAITING:
            if not self._order:
                self._order = np.random.default_rng((self._seed, self.epochs)).permutation(len(starts) - 1).tolist()
                self.epochs += 1
            index = self._order.pop()
            self._waiting.append(self._tokens.take(np.arange(starts[index], starts[index + 1])))


STREAM = Variant(model=DocumentGPT, prepare=together)
WAYS = {
    "segments": Variant(model=DocumentGPT),
    "best fit": Variant(model=DocumentGPT, prepare=together, loader=BestFit),
    "best fit, segments": Variant(model=DocumentGPT, loader=BestFit),
}


def readings(trainer: Trainer) -> tuple[float, float]:
    """Bits per byte over the stream as it is, and with documents apart."""
    found = []
    for apart in (False, True):
        trainer.model.apart = apart  # type: ignore[assignment]
        found.append(trainer.bits_per_byte())
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=293, help="293 are 0.6M tokens")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help=f"some of {', '.join(WAYS)}; separated by semicolons")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    options = parser.parse_args()
    start("cpu", threads=options.threads)
    torch.manual_seed(0)
    base = [readings(trained(STREAM, seed, options.steps)) for seed in range(options.seeds)]
    print("stream, as it is and alone:", *(f"{a:.4f} {b:.4f}" for a, b in base), flush=True)
    print("difference to stream, each read in its better way, with its 95 % half-width:")
    print(f"{'packing':>20} {'dropped':>8} {'cost':>6} {'equal tokens':>20} {'equal time':>20}  as it is, alone")
    for name in options.only.split(";") if options.only else WAYS:
        variant = WAYS[name]
        cost = (
            1.0 if variant.prepare is together else cost_ratio(name, variant, STREAM)
        )  # the same arithmetic, other rows
        cells, dropped = [], 0.0
        for steps in dict.fromkeys((options.steps, round(options.steps / cost))):
            runs = [trained(variant, seed, steps) for seed in range(options.seeds)]
            found = [readings(run) for run in runs]
            mean, half = interval([min(ours) - min(theirs) for ours, theirs in zip(found, base, strict=True)])
            cells.append(f"{mean:+.4f} ± {half:.4f}")
            dropped = getattr(runs[0].loader, "dropped", 0.0)
            shown = " ".join(f"{a:.4f} {b:.4f}" for a, b in found)
        print(f"{name:>20} {100 * dropped:>6.1f} % {cost:>6.3f} {cells[0]:>20} {cells[-1]:>20}  {shown}", flush=True)


if __name__ == "__main__":
    main()
