"""What a GPU does with this trainer, in one table: is every kernel right, how fast is each way to train and decode.

    python benchmarks/gpu.py                   about 8 minutes on one H200 or H100; `--minutes` sets the limit
    python benchmarks/gpu.py --quick           the same table at toy sizes in under two minutes, on a CPU too

Needs a CUDA torch (2.9 or newer) with its Triton, numpy and psutil, and of this project's other dependencies only
msgspec, platformdirs and tomli-w. To a machine without a network carry these three as wheels for its Python, unpack
them there (`python -m zipfile -e X.whl FOLDER`; msgspec cannot be imported from the wheel itself) and put the folder on
PYTHONPATH. Nothing is fetched.

Each section is a process of its own, so that one which fails, hangs or poisons the device leaves the others and its own
earlier rows standing. Whole-step rates are for the recipe's batch: the optimizer's time is shared by as many
micro-batches as a step of 2^19 tokens (d12) or 2^20 (d24) has.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a checkout that is not installed works

GOALS = {"d12": 530_000, "d24": 145_000}  # tokens/s on one H200
# Seconds each section may take; together they stay inside eight minutes. What one leaves over, later ones may use.
SECTIONS = {"machine": 40, "kernels": 80, "d12": 135, "d24": 165, "decode": 50}
REPEATS = 5

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --quick")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop starting things after this long")
    parser.add_argument("--only", choices=list(SECTIONS), action="append", help="only this section; may be repeated")
    parser.add_argument("--pattern", default="SSSL", help="windows of the layers, see model.window_pattern")
    parser.add_argument("--out", type=Path, help="also write the rows here, as JSON")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        section(options)
        return
    if not usable(options.device):
        print("no CUDA GPU here, nothing to measure; --quick --device cpu shows the table at toy sizes")
        return
    end = time.time() + 60 * options.minutes
    rows: list[Row] = []
    wanted = options.only or list(SECTIONS)
    for i, name in enumerate(wanted):
        later = sum(SECTIONS[other] for other in wanted[i + 1 :])
        share = max(SECTIONS[name], end - time.time() - later)
        rows += run_section(name, options, min(end, time.time() + share))
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))
    print_table(rows)
    if not options.quick:
        print_goals(rows)


def usable(device: str) -> bool:
    import torch

    return device != "cuda" or torch.cuda.is_available()


def run_section(name: str, options: argparse.Namespace, until: float) -> list[Row]:
    """The rows a section printed before it ended, was ended, or fell over; why it did is a row too."""
    command = [sys.executable, __file__, "--section", name, "--until", str(until), "--device", options.device]
    command += ["--pattern", options.pattern, *(["--quick"] * options.quick)]
    rows: list[Row] = []
    environment = dict(os.environ)
    if name == "kernels" and options.device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    # A group of its own, ended as one: the compiler's workers would keep the pipes open.
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        timer = threading.Timer(max(5.0, until - time.time() + 10), os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        complaints: list[str] = []
        assert process.stdout is not None and process.stderr is not None
        reader = threading.Thread(target=lambda: complaints.extend(process.stderr or ()))
        reader.start()
        try:
            for line in process.stdout:
                if line.startswith("ROW "):
                    rows.append(json.loads(line[4:]))
                    print(" ", " ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            code = process.wait()
            reader.join()
            timer.cancel()
    if code:
        last = next((line.strip() for line in reversed(complaints) if line.strip()), "")
        why = "out of time" if code == -9 else f"ended with {code}: {last[:140]}"
        rows.append({"section": name, "what": "section", "note": why})
        print(" ", name, why, flush=True)
    return rows


def print_table(rows: list[Row]) -> None:
    columns = ("section", "what", "tok/s", "MFU", "ms", "compile s", "peak GiB", "error", "note")
    text = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in text), 1) for i, column in enumerate(columns)]
    print()
    for line in [list(columns), *text]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_goals(rows: list[Row]) -> None:
    for name, goal in GOALS.items():
        rates = [int(row["tok/s"].replace(",", "")) for row in rows if row["section"] == name and row.get("tok/s")]
        best = max(rates, default=0)
        print(f"goal {name} on one H200: {goal:,} tok/s; best here {best:,}" if best else f"goal {name}: not measured")


# What follows runs in a section's own process.


def section(options: argparse.Namespace) -> None:
    import torch

    from picollm.train.device import start

    start(options.device, deterministic="off")
    torch.manual_seed(0)
    make: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
        "machine": machine,
        "kernels": kernels,
        "d12": training,
        "d24": training,
        "decode": decode,
    }
    for row in make[options.section](options):
        print("ROW " + json.dumps({"section": options.section, **row}), flush=True)


def left(options: argparse.Namespace) -> float:
    return options.until - time.time()


def tried(what: str, attempt: Callable[[], Row]) -> Row:
    """The attempt's row, or what it died of."""
    try:
        return {"what": what, **attempt()}
    except Exception as error:  # whatever a kernel, a compiler or a driver throws is the finding
        text = (str(error).strip().splitlines() or [""])[0]
        return {"what": what, "note": f"FAILED {type(error).__name__}: {text[:120]}"}


def shape_of(depth: int, options: argparse.Namespace) -> Any:
    from picollm.run.scaling import shape_for

    if options.quick:
        return shape_for(2, 512, 256, dim=64, head_dim=32, window_pattern=options.pattern)
    return shape_for(depth, 32768, 2048, window_pattern=options.pattern)


def random_model(shape: Any, device: Any) -> Any:
    """Random everywhere: the real start has zero matrices, on which a GPU runs faster than on numbers."""
    import torch

    from picollm.model.gpt import GPT

    with torch.device("meta"):
        model = GPT(shape)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02 if parameter.dim() == 2 else 0.5)
    model.reset_buffers()
    return model


def machine(options: argparse.Namespace) -> Iterator[Row]:
    import torch

    from picollm.train.device import gemm_peak, pick_device, wait

    device = pick_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield {"what": f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}"}
    size = 512 if options.quick else 8192
    for dtype in (torch.bfloat16, torch.float32):
        peak = gemm_peak(dtype, device, 0.2 if options.quick else 1.0, size)
        yield {"what": f"matrix product {size} {str(dtype)[6:]}", "note": f"{peak / 1e12:.1f} TFLOP/s"}
    source = torch.randn(2**22 if options.quick else 2**31, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(REPEATS):
        wait(device)
        begun = time.perf_counter()
        target.copy_(source)
        wait(device)
        times.append(time.perf_counter() - begun)
    moved = 2 * source.numel() * source.element_size()
    yield {"what": "copy, bytes read and written", "note": f"{moved / min(times[1:]) / 1e12:.2f} TB/s"}


def kernels(options: argparse.Namespace) -> Iterator[Row]:
    """Relative errors against fp64 of everything that is not a plain operation of torch."""
    import torch

    from picollm.model.attention_proof import backends_for, prove
    from picollm.train.device import pick_device

    device = pick_device(options.device)
    shape = shape_of(12, options)
    dtype = torch.bfloat16
    for backend in backends_for(device, shape.seq_len):
        proof = prove(backend, shape, 1 if options.quick else 16, device, dtype)
        if not proof.ok:
            yield {"what": f"attention {backend}", "note": proof.reason}
            continue
        note = "ms: forward and backward, all layers, 16 rows" if not options.quick else ""
        for window in dict.fromkeys(shape.windows()):
            yield tried(
                f"attention {backend} window {window}",
                lambda b=backend, w=window: {"error": attention_error(b, shape, w, device, dtype)},
            ) | {"ms": round(proof.ms, 2), "note": note}
    yield tried("loss, plain", lambda: {"error": loss_error(shape, device, dtype, kernel=False)})
    yield tried("loss, Triton kernel", lambda: {"error": loss_error(shape, device, dtype, kernel=True)})
    yield tried("FP8 product", lambda: {"error": fp8_error(shape.dim, device), "note": "8-bit rounding explains 0.06"})


def relative(ours: Any, exact: Any) -> str:
    """The largest ‖a − b‖ / ‖b‖ of pairs of tensors."""
    worst = max(float((a.detach().double() - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=True))
    return f"{worst:.1e}"


def attention_error(backend: str, shape: Any, window: int, device: Any, dtype: Any) -> str:
    import torch

    from picollm.model.attention import attention
    from picollm.model.attention_kernels import KERNELS, attend, block_mask

    T, seen = shape.seq_len, None if window >= shape.seq_len else window
    q, k, v = (torch.randn(1, n, T, shape.head_dim, device=device).to(dtype).requires_grad_()
               for n in (shape.heads, shape.kv_heads, shape.kv_heads))  # fmt: skip
    pull = torch.randn(1, shape.heads, T, shape.head_dim, device=device).to(dtype)
    if backend in KERNELS:
        out = attend(backend, q, k, v, seen, block_mask(T, seen, device) if backend == "flex" else None)
    else:
        out = attention(q, k, v, window=seen, backend=backend)
    ours = (out, *torch.autograd.grad(out, (q, k, v), pull))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    behind = torch.arange(T, device=device)[:, None] - torch.arange(T, device=device)
    scores = exact[0] @ exact[1].transpose(-1, -2) * shape.head_dim**-0.5
    scores = scores.masked_fill((behind < 0) | (behind >= window), float("-inf"))
    result = scores.softmax(-1) @ exact[2]
    return relative(ours, (result, *torch.autograd.grad(result, exact, pull.double())))


def loss_error(shape: Any, device: Any, dtype: Any, kernel: bool) -> str:
    import torch

    from picollm.train import loss

    N, V, cap = 67, shape.vocab_size, shape.softcap
    terms = loss.loss_and_gradient
    if kernel:
        from picollm.train import loss_triton

        terms = loss_triton.loss_and_gradient
    logits = (torch.randn(N, V, device=device) * cap).to(dtype)
    targets, weights = torch.randint(0, V, (N, 1), device=device), torch.rand(N, 1, device=device)
    exact = logits.double().requires_grad_()
    capped = cap * torch.tanh(exact / cap)
    value = (weights * (capped.logsumexp(-1, keepdim=True) - capped.gather(1, targets))).sum()
    (slope,) = torch.autograd.grad(value, exact)
    return relative(terms(logits.clone(), targets, weights, cap), (value, slope))


def fp8_error(dim: int, device: Any) -> str:
    import torch

    from picollm.model.fp8 import WEIGHTS, product, quantise

    x = torch.randn(1024, dim, device=device).bfloat16().requires_grad_()
    weight = (torch.randn(4 * dim, dim, device=device) * dim**-0.5).requires_grad_()
    pull = torch.randn(1024, 4 * dim, device=device).bfloat16()
    rows, scale = quantise(weight.detach(), WEIGHTS)
    y = product(x, (rows, rows.t().contiguous(), scale), weight)
    ours = (y, *torch.autograd.grad(y, (x, weight), pull))
    x64, w64, pull64 = x.detach().double(), weight.detach().double(), pull.double()
    return relative(ours, (x64 @ w64.t(), pull64 @ w64, pull64.t() @ x64))


def training(options: argparse.Namespace) -> Iterator[Row]:
    """Whole steps: every attention that works, eager; the fastest compiled; then 8 bits, the loss kernel, memory."""
    import torch

    from picollm.model.attention_proof import prove_all
    from picollm.run import memory
    from picollm.run.scaling import flops_per_token
    from picollm.train.device import peak_flops, pick_device
    from picollm.train.step import Compute

    device = pick_device(options.device)
    depth = int(options.section[1:])
    shape = shape_of(depth, options)
    rows, step_tokens = (2, 2**12) if options.quick else (32, 2**19) if depth == 12 else (16, 2**20)
    if device.type == "cuda":  # d24 takes fewer on 80 GB
        how = memory.How(device="cuda", precision="bf16", fp8=True)
        rows = memory.fit(shape, rows, torch.cuda.mem_get_info(device)[0], how, "off").rows
    model = random_model(shape, device)
    peak, price = peak_flops(torch.bfloat16, device), flops_per_token(shape)
    proofs = prove_all(shape, rows, device, torch.bfloat16)
    working = [proof.backend for proof in proofs if proof.ok]
    best = working[0]
    plans = [("compiled", Compute("bf16", best, True), True)]
    plans += [("compiled fp8", Compute("bf16", best, True, fp8=True), True)]
    plans += [("compiled, plain loss", Compute("bf16", best, True), False)]
    plans += [("eager", Compute("bf16", backend), True) for backend in working]
    plans += [("compiled checkpointing", Compute("bf16", best, True, checkpointing=True), True)]
    plans += [("compiled", Compute("bf16", backend, True), True) for backend in working[1:3]]
    plans += [("eager", Compute("fp32", "sdpa"), True)] * (depth == 12)
    needed = {True: 0.0, False: 0.0}  # seconds that one more compiled, or uncompiled, plan may take
    for code, compute, kernel in plans:
        what = f"{compute.precision} {compute.attention} {code}"
        if left(options) < needed[compute.compile]:
            yield {"what": what, "note": "left out: no time"}
            continue
        begun = time.time()

        def attempt(compute: Compute = compute, kernel: bool = kernel) -> Row:
            found, said = time_steps(model, compute, rows, step_tokens, kernel)
            shares = found["tok/s"] * price / peak
            row = {"tok/s": f"{found['tok/s']:,.0f}", "MFU": f"{100 * shares:.1f} %", "note": "; ".join(said)[:140]}
            return row | {key: f"{found[key]:.1f}" for key in ("ms", "compile s", "peak GiB")}

        yield tried(what, attempt)
        needed[compute.compile] = max(needed[compute.compile], time.time() - begun)


def time_steps(
    model: Any, compute: Any, rows: int, step_tokens: int, kernel: bool
) -> tuple[dict[str, float], list[str]]:
    """Tokens/s at `step_tokens` per optimizer step, and the milliseconds of one micro-batch of `rows` rows."""
    import torch

    from picollm.train import step as step_module
    from picollm.train.batch import Batch
    from picollm.train.device import wait
    from picollm.train.loss import fastest_terms, loss_and_gradient
    from picollm.train.optim import OptimizerSettings, build_optimizer

    device, shape = model.device, model.shape
    ids = torch.randint(0, shape.vocab_size, (rows, shape.seq_len + 1), device=device)
    tokens = rows * shape.seq_len
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), None, float(tokens))
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    said: list[str] = []
    settings = OptimizerSettings(muon_dtype=compute.dtype)
    optimizer = build_optimizer(model, settings, compiled=compute.compile and device.type == "cuda")
    run = step_module.ForwardBackward(model, compute, said.append)
    step_module.fastest_terms = fastest_terms if kernel else (lambda *_: loss_and_gradient)
    try:
        begun = time.perf_counter()
        run(batch)
        optimizer.step(lr_mult=0.0)
        model.weights_changed()
        wait(device)
        first = time.perf_counter() - begun
        micros, updates = [], []
        for _ in range(REPEATS):
            optimizer.zero_grad()
            wait(device)
            times = [time.perf_counter()]
            run(batch)
            wait(device)
            times.append(time.perf_counter())
            optimizer.step(lr_mult=0.0)
            model.weights_changed()
            if model.eight_bit is not None:
                model.eight_bit.refresh()  # once a step, so it counts with the update
            wait(device)
            times.append(time.perf_counter())
            micros.append(times[1] - times[0])
            updates.append(times[2] - times[1])
        micro, update = sorted(micros)[REPEATS // 2], sorted(updates)[REPEATS // 2]
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    finally:
        step_module.fastest_terms = fastest_terms
        optimizer.zero_grad()
    parts = max(1, step_tokens // tokens)
    rate = parts * tokens / (parts * micro + update)
    said += [f"update {1000 * update:.0f} ms"]
    compile_s = max(0.0, first - micro - update) if compute.compile else 0.0
    return {"tok/s": rate, "ms": 1000 * micro, "compile s": compile_s, "peak GiB": peak}, said


def decode(options: argparse.Namespace) -> Iterator[Row]:
    """Sampling with the KV cache, whole answers; the ceiling is memory: bytes of weights over bytes a second."""
    from picollm.infer.engine import Engine
    from picollm.infer.rows import Mute
    from picollm.infer.sampling import Sampling
    from picollm.train.device import pick_device

    device = pick_device(options.device)
    shape = shape_of(12, options)
    engine = Engine(random_model(shape, device), Mute(shape.vocab_size), live=False)
    tokens = 8 if options.quick else 128
    for rows in (1, 2) if options.quick else (1, 16, 64):
        if left(options) < 5:
            yield {"what": f"{rows} rows", "note": "left out: no time"}
            continue

        def attempt(rows: int = rows) -> Row:
            prompts = [[(7 * row + 3 * at) % 200 for at in range(40)] for row in range(rows)]
            sampling = Sampling(max_tokens=tokens, temperature=1.0, top_k=50)
            engine.generate(prompts, Sampling(max_tokens=4, temperature=1.0, top_k=50))
            begun = time.perf_counter()
            engine.generate(prompts, sampling)
            took = time.perf_counter() - begun
            return {"ms": f"{1000 * took / tokens:.2f}", "note": f"{rows * tokens / took:,.0f} tok/s decoded, d12"}

        yield tried(f"{rows} rows", attempt)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
