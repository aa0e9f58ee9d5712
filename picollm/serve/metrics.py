"""Figures of a running server in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

COUNTERS = {
    "picollm_requests_total": "requests by path and status; 499: the client left",
    "picollm_prompt_tokens_total": "tokens read, by model",
    "picollm_completion_tokens_total": "tokens made, by model",
}
HISTOGRAMS = {
    "picollm_first_token_seconds": ("from a request to its first token, waiting and loading included",
                                    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)),
    "picollm_token_seconds": ("between two tokens of one answer",
                              (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)),
}  # fmt: skip

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms by label. The names are those above."""

    def __init__(self) -> None:
        self._counts: dict[str, defaultdict[Labels, float]] = {name: defaultdict(float) for name in COUNTERS}
        self._seen: dict[str, dict[Labels, list[float]]] = {name: {} for name in HISTOGRAMS}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        self._counts[name][tuple(sorted(labels.items()))] += amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        bounds = HISTOGRAMS[name][1]
        # One count per bucket, one for what is above all of them, and the sum.
        row = self._seen[name].setdefault(tuple(sorted(labels.items())), [0.0] * (len(bounds) + 2))
        row[next((i for i, bound in enumerate(bounds) if seconds <= bound), len(bounds))] += 1
        row[-1] += seconds

    def text(self, now: Mapping[str, tuple[str, str, Mapping[Labels, float]]]) -> str:
        """The page a scraper reads. `now`: further figures as name: (type, help, value by labels)."""
        lines: list[str] = []
        for name, (kind, what, values) in now.items():
            lines += _head(name, kind, what)
            lines += [f"{name}{_braces(labels)} {value:g}" for labels, value in values.items()]
        for name, counts in self._counts.items():
            lines += _head(name, "counter", COUNTERS[name])
            lines += [f"{name}{_braces(labels)} {value:.17g}" for labels, value in counts.items()]
        for name, rows in self._seen.items():
            what, bounds = HISTOGRAMS[name]
            lines += _head(name, "histogram", what)
            for labels, row in rows.items():
                total = 0.0
                for bound, count in zip([f"{bound:g}" for bound in bounds] + ["+Inf"], row, strict=False):
                    total += count
                    lines.append(f"{name}_bucket{_braces((*labels, ('le', bound)))} {total:.17g}")
                lines += [f"{name}_sum{_braces(labels)} {row[-1]:.9g}", f"{name}_count{_braces(labels)} {total:.17g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]


def _braces(labels: Iterable[tuple[str, str]]) -> str:
    parts = [f'{name}="{_escape(value)}"' for name, value in labels]
    return "{" + ",".join(parts) + "}" if parts else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
