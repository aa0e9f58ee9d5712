"""Training speed of a small model on this machine, by precision, attention and compile.

    python benchmarks/cpu_train.py [--depth 4 --dim 256 --head-dim 64 --seq 256 --rows 16 --vocab 4096]

Each line is measured in a process of its own. Compiled lines run twice, with an empty and with a filled compiler cache.
"share" is model FLOP/s over the best matrix-product FLOP/s of the same precision here; "fastest" is the best single
step, the figure to compare when other work shares the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HEAD = ("precision", "attention", "code", "tok/s", "fastest", "share", "optimizer", "compile cold", "warm")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in {"depth": 4, "dim": 256, "head-dim": 64, "seq": 256, "rows": 16, "vocab": 4096}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=10.0, help="measuring time of each line")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_one(options)))
        return
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
