"""Many clients at once: requests a second, time to first token and per token, and whether any answer was lost or mixed.

python benchmarks/serve_load.py                                    1, 8 and 64 clients, 10 seconds each, a random model
python benchmarks/serve_load.py --clients 64 --seconds 300         the long test
python benchmarks/serve_load.py --run NAME --model sft             a trained model
python benchmarks/serve_load.py --url http://127.0.0.1:8000        a server that runs already ($PICOLLM_TOKEN is sent)

Without --url a server is started as `picollm serve` starts it. Every prompt is asked once alone, greedily; then each
client streams prompts in random order and compares every answer with that one. Clients and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from picollm.run import config, event_file, launch
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.scaling import shape_for

WORDS = ("boat", "rain", "river", "stone", "paper", "light", "garden", "winter", "letter", "engine", "music", "road")


class Answered(NamedTuple):
    """One request: its text, seconds to its first piece and between pieces, and what went wrong, if anything did."""

    text: str = ""
    first_s: float = 0.0
    gaps_s: Sequence[float] = ()
    tokens: int = 0
    wrong: str = ""


def random_run(folder: Path) -> Run:
    """A run with a tokenizer and an untrained model of the size of the pocket profile."""
    import torch

    from picollm.model.gpt import GPT
    from picollm.text.tokenizer import train_tokenizer
    from picollm.train import checkpoint

    os.environ["PICOLLM_RUNS"] = str(folder)
    run = Run.create("random", config.load(environ={}))
    text = " ".join(random.Random(1).choices(WORDS, k=5000))
    tok = train_tokenizer([text, *(chr(code) * 3 for code in range(32, 127))], 320)
    tok.save(run.dir / "tokenizer")
    model = GPT(shape_for(2, tok.vocab_size, 256, dim=128, head_dim=64))
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():  # lively ones, so that different prompts get different answers
            weights.copy_(torch.randn(weights.shape, generator=dice) * 0.1)
    info = checkpoint.save(run.dir / "chatsft_checkpoints", 1, model, None, {"fingerprint": "", "tokenizer": tok.hash})
    made = {"tokenizer": ("tokenizer", "tokenizer", tok.hash), "sft": ("checkpoint", str(info.path), info.hash)}
    for stage, (key, path, content) in made.items():
        run.stage_dir(stage).mkdir(parents=True)
        event_file.append(
            run.events_file(stage, 1), ev.Finished(seconds=1.0, paths={key: path}, artifacts={key: content})
        )
    return run


@contextmanager
def serving(run: Run) -> Iterator[str]:
    """`picollm serve` on a free port; yields its host:port."""
    argv = [sys.executable, "-m", "stages.serve", "--host", "127.0.0.1", "--run", str(run.dir), "--device", "cpu"]
    with subprocess.Popen(argv, env=launch.child_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("the page is at ")), None)
        if line is None:
            raise UserError("the server ended before it listened")
        try:
            yield line.split()[-1].removeprefix("http://").rstrip("/")
        finally:
            process.terminate()


async def ask(address: str, model: str, prompt: str, tokens: int, expected: str | None) -> Answered:
    """Stream one answer over a connection of its own, in HTTP/1.0: what comes is read line by line and understood
    when all is there. A client library would need more time for a piece than the server, on the same cores.
    """
    body = json.dumps({
        "model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": tokens,
        "stream": True, "stream_options": {"include_usage": True},
    })  # fmt: skip
    token = os.environ.get("PICOLLM_TOKEN")
    head = ["POST /v1/chat/completions HTTP/1.0", f"Host: {address}", "Content-Type: application/json",
            f"Content-Length: {len(body)}", *([f"Authorization: Bearer {token}"] if token else [])]  # fmt: skip
    begun = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    except OSError as error:
        return Answered(wrong=f"{address}: {error}")
    try:
        writer.write("\r\n".join([*head, "", body]).encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if answer.split(maxsplit=2)[1] != b"200":
            return Answered(wrong=f"{answer.splitlines()[0].decode()}: {(await reader.read()).decode()[:200]}")
        lines = [(time.perf_counter(), line) async for line in reader if line.startswith(b"data: {")]
    except (OSError, EOFError) as error:
        return Answered(wrong=f"the connection was lost: {error}")
    finally:
        writer.close()
    text, said_at, made, reason = "", [], 0, None
    for now, line in lines:
        piece = json.loads(line[6:])
        if "error" in piece:
            return Answered(wrong=piece["error"]["message"])
        made = (piece.get("usage") or {}).get("completion_tokens", made)
        for choice in piece["choices"]:
            reason = choice["finish_reason"] or reason
            if said := choice["delta"].get("content"):
                text += said
                said_at.append(now)
    gaps = [later - before for before, later in itertools.pairwise(said_at)]
    wrong = "" if expected in (None, text) else f"{prompt!r}: {text!r} instead of {expected!r}"
    first = said_at[0] - begun if said_at else 0.0
    return Answered(text, first, gaps, made, "the answer was cut off" if reason is None else wrong)


async def alone(address: str, model: str, tokens: int) -> dict[str, str]:
    """What each prompt is answered when nobody else asks."""
    expected = {}
    for k in range(24):
        prompt = " ".join(random.Random(k).choices(WORDS, k=1 + k % 6))
        answer = await ask(address, model, prompt, tokens, None)
        if answer.wrong:
            raise UserError(f"no answer to {prompt!r}: {answer.wrong}")
        expected[prompt] = answer.text
    return expected


async def measure(address: str, model: str, clients: int, seconds: float, tokens: int, expected: dict[str, str]) -> str:
    """One line of the table. Raises UserError when an answer was lost or is another than the prompt has alone."""
    done: list[Answered] = []
    begun = time.perf_counter()

    async def one(seed: int) -> None:
        rng, prompts = random.Random(seed), list(expected)
        while time.perf_counter() - begun < seconds:
            prompt = rng.choice(prompts)
            done.append(await ask(address, model, prompt, tokens, expected[prompt]))

    await asyncio.gather(*(one(k) for k in range(clients)))
    spent = time.perf_counter() - begun
    wrong = [answer.wrong for answer in done if answer.wrong]
    firsts, gaps = [answer.first_s for answer in done if answer.first_s], [gap for a in done for gap in a.gaps_s]
    line = (
        f"{clients:7} {len(done):8} {len(wrong):6} {len(done) / spent:10.1f} {sum(a.tokens for a in done) / spent:6.0f}"
        f"   {figures(firsts)}   {figures(gaps)}"
    )
    if wrong:
        raise UserError(f"{line}\n{len(wrong)} answers were wrong, the first: {wrong[0]}")
    return line


def figures(seconds: Sequence[float]) -> str:
    """p50, p95 and p99 in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    return " ".join(f"{1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]:8.1f}" for q in (0.5, 0.95, 0.99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--run", help="a run with a trained model")
    parser.add_argument("--model", default="sft")
    parser.add_argument("--url", help="a server that runs already")
    options = parser.parse_args()

    def table(address: str) -> None:
        expected = asyncio.run(alone(address, options.model, options.tokens))
        print(f"{len(expected)} prompts, {len(set(expected.values()))} different answers")
        print(f"{'':42}   {'first token, ms':26}   {'between pieces, ms':26}")
        quantiles = f"{'p50':>8} {'p95':>8} {'p99':>8}"
        print(f"clients requests  wrong requests/s  tok/s   {quantiles}   {quantiles}")
        for clients in options.clients:
            line = measure(address, options.model, clients, options.seconds, options.tokens, expected)
            print(asyncio.run(line), flush=True)

    if options.url:
        table(options.url.removeprefix("http://").rstrip("/"))
        return
    with (
        tempfile.TemporaryDirectory(prefix="serve_load") as folder,
        serving(Run.open(options.run) if options.run else random_run(Path(folder))) as address,
    ):
        table(address)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
