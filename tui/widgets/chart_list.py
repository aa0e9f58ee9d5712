"""Which of a stage's metrics make a chart, in which order, and what they are called."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tui.search import GLANCE_S, Query, TooSlow


@dataclass(frozen=True)
class Kind:
    """Which series go into charts of a kind: those whose name matches. `smooth`: noisy, so a smoothed line helps."""

    title: str
    pattern: str
    smooth: bool = False


@dataclass(frozen=True)
class Chart:
    title: str
    series: str
    smooth: bool = False


KINDS: tuple[Kind, ...] = (
    Kind("Reward", r"^(train/|rollout/)?(mean_)?reward(_mean)?$", True),
    Kind("Rollout length, tokens", r"^(rollout_|answer_)?(length|len|tokens)(_mean)?$", True),
    Kind("Entropy of the sampling, nats", r"^entropy$", True),
    Kind("Loss", r"^(train/)?loss$", True),
    Kind("Bits per byte, validation", r"(^|/)(val_)?bpb$"),
    Kind("Tokens per second", r"(^|/)(tok_s|tokens_per_s(ec)?|tok_per_s)$", True),
    Kind("Held-out accuracy", r"(^|/)(heldout_)?(accuracy|pass_at_1|acc)$"),
    Kind("pass@k, held out", r"(^|/)pass_at_\d+$"),
    Kind("Loss, validation", r"/loss$"),
    Kind("Model FLOPs utilisation", r"(^|/)mfu$", True),
    Kind("Gradient norm", r"(^|/)grad_norm$", True),
    Kind("Seconds per step", r"(^|/)step_s$", True),
    Kind("Learning rate", r"(^|/)(lr|lr_mult)$"),
)

BOUNDS = re.compile(r"(^|/)(low|high)(_\d+)?$")
"""Ends of intervals: said with the readings, and no curves of their own."""


def choose(names: list[str], filter: Query | None = None) -> list[Chart]:
    """In the order to show: the known kinds, then whatever else the stage measures; `filter` looks into title and
    name."""

    def wanted(chart: Chart) -> bool:
        try:
            return filter is None or bool(filter.search(f"{chart.title} {chart.series}", patience=GLANCE_S))
        except TooSlow:
            return True

    chosen: list[Chart] = []
    left = [name for name in names if not BOUNDS.search(name)]
    for kind in KINDS:
        matches = [name for name in left if re.search(kind.pattern, name)]
        stems = [_stem(name) for name in matches]
        for name, stem in zip(matches, stems, strict=True):
            stem = stem if stems.count(stem) == 1 else name
            title = kind.title if len(matches) == 1 else f"{stem}: {kind.title[0].lower()}{kind.title[1:]}"
            chosen.append(Chart(title, name, kind.smooth))
            left.remove(name)
    chosen += [Chart(name, name) for name in sorted(left)]
    return [chart for chart in chosen if wanted(chart)]


def _stem(name: str) -> str:
    """What tells one metric of a kind from another: `docs_qa` of `docs_qa/accuracy`, else all of it."""
    return name.rpartition("/")[0] or name
