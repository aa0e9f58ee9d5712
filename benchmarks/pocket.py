"""What a finished run took and reached: seconds of each stage against the plan, speed, bits per byte by wall-clock.

python benchmarks/pocket.py RUN          reads runs/RUN (or $PICOLLM_RUNS/RUN), trains nothing
"""

from __future__ import annotations

import sys

from picollm.run import pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from picollm.run.report import clock


def main() -> None:
    run = Run.open(sys.argv[1] if len(sys.argv) > 1 else "demo")
    histories = {name: StageHistory(run, name).read_all() for name in pipeline.NAMES}
    print(f"{'stage':15} {'planned':>12} {'spent':>12} {'off':>7}")
    planned_all = spent_all = 0.0
    for name, history in histories.items():
        planned = history.started[-1].predicted_s if history.started else 0.0
        off = f"{100 * (history.seconds / planned - 1):+.0f} %" if planned else "–"
        print(f"{name:15} {clock(planned or None):>12} {clock(history.seconds):>12} {off:>7}")
        planned_all, spent_all = planned_all + planned, spent_all + history.seconds
    if not all(history.started for history in histories.values()):
        raise UserError(f"{run.name} has stages that never ran; finish it first: picollm resume --run {run.name}")
    first = min(history.started[0].time - history.started[0].age for history in histories.values())
    last = max(history.finished.time for history in histories.values() if history.finished)
    print(f"{'all stages':15} {clock(planned_all):>12} {clock(spent_all):>12}    wall clock {clock(last - first)}")

    pretrain = histories["pretrain"]
    summary = pretrain.finished.summary if pretrain.finished else {}
    print(
        f"\npretraining: {summary.get('tok_s', 0):,.0f} tok/s (median step), "
        f"{100 * summary.get('mfu', 0):.0f} % of this machine's matrix-product peak in {summary.get('precision')}, "
        f"{summary.get('params', 0) / 1e6:.1f}M parameters, {summary.get('epochs', 0):.2f} epochs"
    )
    begun = pretrain.started[0].time
    bpb = pretrain.series.get("val/bpb")
    if bpb:
        points = zip(bpb.steps, bpb.times, bpb.values, strict=True)
        print(
            "bits per byte by seconds of pretraining: "
            + ", ".join(f"{value:.3f} at {time - begun:.0f} s (step {step})" for step, time, value in points)
        )
    base = run.finished("base_eval")
    if base:
        print(f"bits per byte, whole validation text: {base.summary['bpb']:.4f}")
    rl = histories["rl"].series.get("heldout/accuracy")
    if rl:
        print(
            "RL held-out accuracy by step: "
            + ", ".join(f"{step}: {value:.3f}" for step, value in zip(rl.steps, rl.values, strict=True))
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
