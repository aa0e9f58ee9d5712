"""The loss of every training stage, step by step, on text made here: what the golden files hold.

`python -m tests.golden.curves` writes them anew. Do that only after a change that is meant to alter training, and say
so in the changelog. Nothing depends on the Python version, on its documentation, on a trained tokenizer or on sampling:
text and answers come from the small generator below, tokens are bytes. The stages follow one another as in a run.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from picollm.data.chat_loader import ChatLoader
from picollm.data.loader import StreamLoader
from picollm.data.shards import Tokens
from picollm.infer.rows import Completion
from picollm.infer.sampling import Sampling, TokenLogprob
from picollm.model.gpt import GPT
from picollm.run.scaling import shape_for
from picollm.tasks.base import Example
from picollm.text.chat import Message, render
from picollm.train.batch import Batch
from picollm.train.device import Ranks, set_deterministic
from picollm.train.optim import OptimizerSettings
from picollm.train.rollouts import rollout
from picollm.train.schedule import Schedule
from picollm.train.step import Compute
from picollm.train.trainer import TrainSettings, train_stage
from tests.infer.fakes import ByteTokenizer
from tests.train.conftest import FakeContext

FOLDER = Path(__file__).parent
TOK = ByteTokenizer()
T, ROWS, DIM, SEED = 64, 8, 64, 7
STEPS = {"pretrain": 40, "midtrain": 20, "sft": 20, "rl": 12}
# Small rates: at the recipe's own the smallest difference in rounding grows to a visible one within these steps.
LR = {"pretrain": 0.2, "midtrain": 0.1, "sft": 0.1, "rl": 0.05}
QUESTIONS, SAMPLES = 4, 4

Batches = Callable[[int], Iterator[Batch]]


class Draw:
    """Numbers for ever the same: a linear congruential generator (Knuth's MMIX constants), its upper half used."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, n: int) -> int:
        self.state = (6364136223846793005 * self.state + 1442695040888963407) % 2**64
        return (self.state >> 32) % n

    def one(self, items: Sequence[str]) -> str:
        return items[self.below(len(items))]


def sentence(draw: Draw) -> str:
    who, what = draw.one(["the boat", "a grey bird", "the old clock", "my sister"]), draw.one(["river", "hill", "wall"])
    return f"{who} {draw.one(['waits by', 'looks at', 'comes from'])} the {draw.one(['long', 'green', 'dark'])} {what}."


def documents() -> Tokens:
    draw, parts = Draw(1), []
    for _ in range(40):
        text = " ".join(sentence(draw) for _ in range(3 + draw.below(5)))
        parts.append(np.array([TOK.bos_id, *TOK.encode(text)], dtype=np.uint16))
    bounds = np.cumsum([0, *(len(part) for part in parts)])
    return Tokens([np.concatenate(parts)], [bounds])


def sum_of(draw: Draw) -> tuple[list[Message], int]:
    a, b = draw.below(30), draw.below(30)
    call: list[Message] = [
        {"role": "user", "content": f"{a} and {b}?"},
        {
            "role": "assistant",
            "content": [
                {"type": "python", "text": f"{a}+{b}"},
                {"type": "output", "text": str(a + b)},
                {"type": "text", "text": f"{a + b}."},
            ],
        },
    ]
    return call, a + b


def chat_batches(all_tokens: bool) -> Batches:
    draw = Draw(2)
    rendered = [render(sum_of(draw)[0], TOK, T + 1) for _ in range(120)]  # type: ignore[arg-type]
    loader = ChatLoader(rendered, T, ROWS, SEED, TOK.bos_id, all_tokens=all_tokens)

    def batches(step: int) -> Iterator[Batch]:
        yield Batch.from_numpy(*loader.batch(step))

    return batches


def text_batches() -> Batches:
    tokens = documents()
    loader = StreamLoader(SimpleNamespace(train=tokens, val=tokens), T, ROWS, SEED)

    def batches(step: int) -> Iterator[Batch]:
        yield Batch.from_numpy(*loader.batch(step), denom=ROWS * T)

    return batches


class Scripted:
    """In the engine's place: its answers are drawn beforehand, about half of them right, so no rounding decides."""

    tok, context = TOK, T

    def __init__(self, step: int, answers: list[int]) -> None:
        self.draw, self.answers = Draw(1000 + step), answers

    def refresh(self) -> None: ...

    def generate(self, prompts: list[list[int]], *_: object, **__: object) -> list[Completion]:
        made = []
        for i, prompt in enumerate(prompts):
            right = self.answers[i // SAMPLES]
            text = f"{right if self.draw.below(2) else self.draw.below(60)}."
            ids = [*TOK.encode(text), TOK.special("<|assistant_end|>")]
            logprobs = [TokenLogprob(token, 0.0) for token in ids]
            made.append(Completion(ids, [False] * len(ids), text, "stop", len(prompt), 0, 0.0, 0.0, logprobs))
        return made


class RightSum:
    name = "sum"

    def reward(self, example: Example, answer_text: str) -> float:
        return float(answer_text == f"{example.answer}.")


def rollout_batches(step: int) -> Iterator[Batch]:
    draw = Draw(2000 + step)
    asked = [sum_of(draw) for _ in range(QUESTIONS)]
    examples = [Example(messages=talk, answer=str(answer)) for talk, answer in asked]
    engine = Scripted(step, [answer for _, answer in asked])
    how = {"samples": SAMPLES, "seed": SEED, "step": step, "sampling": Sampling(max_tokens=8), "row_length": T}
    made = rollout(engine, RightSum(), examples, **how)  # type: ignore[arg-type]
    yield Batch.from_numpy(made.inputs, made.targets, made.weights, made.denom)


def curves(folder: Path, last: str = "rl") -> dict[str, dict[str, list[float]]]:
    """Loss and gradient norm of every step of the stages up to `last`; checkpoints go below `folder`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_deterministic(True)
    sources = {
        "pretrain": text_batches(),
        "midtrain": chat_batches(all_tokens=True),
        "sft": chat_batches(all_tokens=False),
        "rl": rollout_batches,
    }
    found, parent = {}, None
    try:
        for stage, batches in sources.items():
            model = GPT(shape_for(2, TOK.vocab_size, T, dim=DIM, head_dim=16))
            model.init_weights(SEED)
            ctx = FakeContext()
            ctx.name = stage
            settings = TrainSettings(
                Schedule(STEPS[stage], 5 if stage == "pretrain" else 0, 0.5, 0.1),
                OptimizerSettings().for_run(DIM).scaled(LR[stage]),
                Compute("fp32", "explicit"),
                save_every=0.0,
            )
            done = train_stage(
                ctx, model=model, batches=batches, settings=settings, checkpoint_dir=folder / stage,
                meta={"fingerprint": stage, "tokenizer": TOK.hash}, ranks=Ranks(torch.device("cpu")), init_from=parent,
            )  # fmt: skip
            parent = done.checkpoint
            steps = [values for _, values in ctx.of("metrics")]
            found[stage] = {key: [values[key] for values in steps] for key in ("loss", "grad_norm")}
            if stage == last:
                break
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        for stage, curve in curves(Path(folder)).items():
            rounded = {key: [float(f"{value:.7g}") for value in values] for key, values in curve.items()}
            (FOLDER / f"{stage}.json").write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
            print(f"{stage}: {rounded['loss'][0]:.4f} to {rounded['loss'][-1]:.4f} in {len(rounded['loss'])} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
