"""How fast a model answers: reading prompts, first tokens, decoding; by precision, batch and context.

    python benchmarks/infer.py [--depth 4 --dim 256 --head-dim 64 --seq 512 --vocab 4096] [--device cuda] [--quick]

Weights are random and no answer ends early. Every figure goes through the engine, sampling (temperature 1, top-k 50)
and text included, with the whole batch joining at once. Lines are measured in turn, round after round, and the best
round counts: other work on the machine only ever slows. `bandwidth` is the share of `--bandwidth` GB/s that reading the
weights once a step amounts to, the limit at batch 1.
"""

from __future__ import annotations

import argparse
from typing import Any

HEAD = ("precision", "rows", "prompt", "first token", "prefill tok/s", "decode tok/s", "a step", "bandwidth")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in {"depth": 4, "dim": 256, "head-dim": 64, "seq": 512, "vocab": 4096}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 256], help="lengths")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "int8"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--bandwidth", type=float, help="of the memory, GB/s")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.depth, options.dim, options.seq, options.vocab = 2, 64, 64, 320
        options.rows, options.prompts, options.tokens, options.rounds = [1, 4], [8, 24], 8, 1

    if max(options.prompts) + options.tokens > options.seq:
        parser.error(
            f"--prompts {max(options.prompts)} and --tokens {options.tokens} do not fit in --seq {options.seq}"
        )

    from picollm.train.device import start

    device = start(options.device, threads=options.threads).device
    engines = {name: make_engine(options, device, name) for name in options.precision}
    lines = [(name, rows, prompt) for name in engines for rows in options.rows for prompt in options.prompts]
    best: dict[tuple[str, int, int], tuple[float, float]] = {}
    for _ in range(options.rounds + 1):  # the first one warms up
        for line in lines:
            name, rows, prompt = line
            measured = measure(engines[name], rows, prompt, options.tokens)
            best[line] = tuple(map(min, measured, best.get(line, measured)))  # type: ignore[assignment]
    print(" ".join(f"{head:>14}" for head in HEAD))
    for (name, rows, prompt), (first, step) in best.items():
        engine = engines[name]
        read = sum(p.numel() for n, p in engine.source.named_parameters() if "embed" not in n and "wte" not in n)
        size = 1 if engine.model.int8 else engine.dtype.itemsize
        share = read * size / step / 1e9 / options.bandwidth if options.bandwidth else None
        cells = (name, rows, prompt, f"{1000 * first:.1f} ms", f"{rows * prompt / first:,.0f}", f"{rows / step:,.0f}",
                 f"{1000 * step:.2f} ms", "" if share is None else f"{100 * share:.0f} %")  # fmt: skip
        print(" ".join(f"{cell:>14}" for cell in cells), flush=True)


def make_engine(options: argparse.Namespace, device: Any, precision: str) -> Any:
    from picollm.infer.engine import Engine
    from picollm.infer.precision import DTYPES
    from picollm.infer.rows import Mute
    from picollm.model.gpt import GPT
    from picollm.run.scaling import shape_for

    shape = shape_for(options.depth, options.vocab, options.seq, dim=options.dim, head_dim=options.head_dim)
    model = GPT(shape)
    model.init_weights(0)
    return Engine(
        model.to(device), Mute(shape.vocab_size), dtype=DTYPES[precision], int8=precision == "int8", live=False,
        max_rows=max(options.rows),
    )  # fmt: skip


def measure(engine: Any, rows: int, prompt: int, tokens: int) -> tuple[float, float]:
    """Seconds until all rows have their first token, and of a step thereafter: that of the row that met no reading."""
    from picollm.infer.sampling import Sampling

    prompts = [[(7 * row + 3 * at + row * at) % 200 for at in range(prompt)] for row in range(rows)]
    answers = engine.generate(prompts, Sampling(max_tokens=tokens, temperature=1.0, top_k=50))
    return max(answer.first_token_s for answer in answers), 1 / max(answer.tok_s for answer in answers)


if __name__ == "__main__":
    main()
