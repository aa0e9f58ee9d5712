"""Training speed of a small model on this machine, by precision, attention and compile.

    python benchmarks/cpu_train.py [--depth 4 --dim 256 --head-dim 64 --seq 512 --rows 8 --vocab 4096] [--ratio]

Each line is measured in a process of its own. Compiled lines run twice, with an empty and with a filled compiler cache.
"share" is model FLOP/s over the best matrix-product FLOP/s of the same precision here; "fastest" is the best single
step, the figure to compare when other work shares the machine.

The last line, alone with --ratio, is compiled bf16 against eager fp32: both in one process, in alternating blocks, so
that whatever else the machine does disturbs them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEAD = ("precision", "attention", "code", "tok/s", "fastest", "share", "optimizer", "compile cold", "warm")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in {"depth": 4, "dim": 256, "head-dim": 64, "seq": 512, "rows": 8, "vocab": 4096}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=10.0, help="measuring time of each line")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--ratio", action="store_true", help="only compiled bf16 against eager fp32")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_one(options)))
        return
    if not options.ratio:
        table()
    print_ratio(options)


def table() -> None:
    print(" ".join(f"{h:>12}" for h in HEAD))
    for precision in ("fp32", "bf16"):
        for attention in ("explicit", "sdpa"):
            for code in ("eager", "compiled"):
                with tempfile.TemporaryDirectory() as cache:
                    times = 2 if code == "compiled" else 1
                    runs = [in_process(precision, attention, code, cache) for _ in range(times)]
                last = runs[-1]
                row = [precision, attention, code, f"{last['tok_s']:,.0f}", f"{last['fastest']:,.0f}"]
                row += [f"{100 * last['share']:.0f} %", f"{100 * last['optimizer']:.0f} %"]
                row += [f"{r['compile_s']:.1f} s" for r in runs] if code == "compiled" else ["", ""]
                print(" ".join(f"{cell:>12}" for cell in row), flush=True)


def print_ratio(options: argparse.Namespace, blocks: int = 7, steps: int = 3) -> None:
    """Whole steps of eager fp32 (SDPA) and compiled bf16 (explicit), the order turned round from block to block."""
    import torch

    from picollm.model.gpt import GPT
    from picollm.run.scaling import shape_for
    from picollm.train.batch import Batch
    from picollm.train.device import start
    from picollm.train.optim import OptimizerSettings, build_optimizer
    from picollm.train.step import Compute, ForwardBackward

    start("cpu", threads=options.threads)
    shape = shape_for(options.depth, options.vocab, options.seq, dim=options.dim, head_dim=options.head_dim)
    ids = torch.randint(0, shape.vocab_size, (options.rows, shape.seq_len + 1))
    batch = Batch.from_numpy(ids[:, :-1].numpy(), ids[:, 1:].numpy())
    kinds = []
    for compute in (Compute("fp32", "sdpa", False), Compute("bf16", "explicit", True)):
        model = GPT(shape)
        model.init_weights(0)
        optimizer = build_optimizer(model, OptimizerSettings(muon_dtype=compute.dtype))
        kinds.append((ForwardBackward(model, compute), optimizer))

    def step(which: int) -> float:
        run, optimizer = kinds[which]
        begun = time.perf_counter()
        run(batch)
        optimizer.step(lr_mult=0.0)
        optimizer.zero_grad()
        return time.perf_counter() - begun

    seconds: list[list[float]] = [[], []]
    for which in (0, 1):
        step(which)  # compiles
    for block in range(blocks):
        for which in (0, 1) if block % 2 else (1, 0):
            seconds[which].append(statistics.median(step(which) for _ in range(steps)))
    ratios = sorted(eager / compiled for eager, compiled in zip(*seconds, strict=True))
    eager, compiled = (f"{batch.tokens / statistics.median(times):,.0f}" for times in seconds)
    print(
        f"bf16 compiled {compiled} tok/s, fp32 eager {eager} tok/s: {statistics.median(ratios):.2f} times"
        f" (blocks {ratios[0]:.2f} to {ratios[-1]:.2f}), {torch.get_num_threads()} threads"
    )


def in_process(precision: str, attention: str, code: str, cache: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", precision, attention, code]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "PYTHONPATH": root}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_one(options: argparse.Namespace) -> dict[str, float]:
    from picollm.model.gpt import GPT
    from picollm.run.scaling import flops_per_token, shape_for
    from picollm.train.device import gemm_peak, start
    from picollm.train.probe import measure
    from picollm.train.step import Compute

    precision, attention, code = options.one
    device = start("cpu", threads=options.threads).device
    shape = shape_for(options.depth, options.vocab, options.seq, dim=options.dim, head_dim=options.head_dim)
    model = GPT(shape)
    model.init_weights(0)
    compute = Compute(precision, attention, code == "compiled")
    figure = measure(model, compute, options.rows, options.seconds, warn=lambda text: print(text, file=sys.stderr))
    peak = gemm_peak(compute.dtype, device, 1.0)
    return {
        "tok_s": figure.tok_s,
        "fastest": figure.fastest,
        "share": figure.fastest * flops_per_token(shape) / peak,
        "optimizer": figure.optimizer_share,
        "compile_s": figure.compile_s,
        "peak": peak,
    }


if __name__ == "__main__":
    main()
