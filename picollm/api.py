"""The library for notebooks and scripts: load what a run made, tokenise, generate, evaluate. See docs/library.md.

from picollm import load
model = load("demo")
print(model.generate("What does str.split do?"))
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from picollm.evals.bpb import TextLoss, text_loss
from picollm.infer.engine import Engine, prompt_room
from picollm.infer.load import load_model
from picollm.infer.rows import Chunk
from picollm.infer.sampling import Sampling
from picollm.run import pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.text.chat import Message, render_prompt
from picollm.text.tokenizer import Tokenizer
from picollm.train.checkpoint import latest
from picollm.train.device import pick_device

ROWS = 16
"""Windows of text read at a time when a loss is measured."""


class Model:
    """A trained model with its tokenizer.

    Attributes:
        tokenizer: text to ids and back.
        engine: the decoder, for what is not offered here (logprobs, batches, cancelling).
        chat: whether it answers conversations (trained past the base model) or only continues text.
        context: most tokens of prompt and answer together.
        meta: what the checkpoint says of itself: stage, step, shape.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine, self.tokenizer, self.meta = engine, tokenizer, engine.meta
        self.chat = engine.meta.get("stage") != "pretrain"
        self.context = engine.context

    def __repr__(self) -> str:
        params = sum(p.numel() for p in self.engine.source.parameters())
        return f"Model({self.meta.get('stage')}, step {self.meta.get('step')}, {params:,} parameters)"

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; the spelling of a special token is ordinary text."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(ids)

    def generate(self, prompt: str | Sequence[Message], **sampling: Any) -> str:
        """The answer to a prompt, or to a conversation `[{"role": "user", "content": …}, …]`; a base model continues.

        `sampling` are the fields of `picollm.infer.sampling.Sampling`: max_tokens, temperature (0: the likeliest
        token, the default), top_k, top_p, seed, stop, … The calculator runs where the model calls it.

        Raises:
            UserError: an empty conversation or prompt, a conversation for a base model, or a setting out of bounds.
        """
        [answer] = self.engine.generate([self._prompt(prompt, sampling)], _sampling(sampling))
        return answer.text

    def stream(self, prompt: str | Sequence[Message], **sampling: Any) -> Iterator[str]:
        """The text of `generate`, piece by piece as it is made."""
        for piece in self.engine.stream(self._prompt(prompt, sampling), _sampling(sampling)):
            if isinstance(piece, Chunk) and piece.text:
                yield piece.text

    def loss(self, text: str) -> TextLoss:
        """How well the model predicts `text`: `.bpb` bits per byte, `.loss` nats per token, `.tokens`, `.bytes`.

        The text is read in windows of the context length that do not overlap, so only the first begins with the
        beginning of a document. Raises UserError for an empty text.
        """
        ids = np.array([self.tokenizer.bos_id, *self.encode(text)], dtype=np.int64)
        T, count = min(self.context, len(ids) - 1), len(ids) - 1
        if not count:
            raise UserError("there is no text to measure a loss on: give some")
        padded = np.zeros(-(-count // T) * T + 1, dtype=np.int64)
        padded[: count + 1] = ids
        rows = np.stack([padded[:-1], padded[1:]]).reshape(2, -1, T)
        weights = (np.arange(rows[0].size) < count).astype(np.float32).reshape(-1, T)
        batches = [
            (rows[0, i : i + ROWS], rows[1, i : i + ROWS], weights[i : i + ROWS]) for i in range(0, len(weights), ROWS)
        ]
        return text_loss(self.engine.source, batches, self.tokenizer.token_bytes())

    def bits_per_byte(self, text: str) -> float:
        """`loss(text).bpb`: comparable between models with different tokenizers."""
        return self.loss(text).bpb

    def _prompt(self, prompt: str | Sequence[Message], sampling: dict[str, Any]) -> list[int]:
        if isinstance(prompt, str) and not self.chat:
            return [self.tokenizer.bos_id, *self.encode(prompt)]
        if not self.chat:
            raise UserError("a base model only continues text: give it a string, or load a chat model (sft, rl)")
        messages: Sequence[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        room = prompt_room(self.context, _sampling(sampling).max_tokens)
        return render_prompt(messages, self.tokenizer, max_tokens=room)


def load(
    source: str | Path,
    model: str = "",
    *,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
) -> Model:
    """Load a trained model.

    Args:
        source: the name of a run (in `$PICOLLM_RUNS`, else ./runs), its folder, or the folder of one checkpoint
            (`…/chatsft_checkpoints/step-000200`).
        model: which of the run's models: "base", "mid", "sft" or "rl"; by default the last that is finished.
        tokenizer: its folder; by default the one of the run that the checkpoint lies in.
        device: "auto" (cuda, else mps, else cpu), "cpu", "cuda" or "mps".
        precision: of generating: "fp32", "bf16", "int8", or "auto", the fastest of the first two; by default fp32 on a
            CPU and bf16 on a GPU.

    Raises:
        UserError: no such run or checkpoint, nothing trained yet, damaged files, another model's tokenizer, or a
            precision that does not run there.
    """
    path = Path(source).expanduser()
    if (path / "manifest.json").is_file():
        checkpoint, found = path, path.absolute().parents[1] / "tokenizer"
        if model:
            raise UserError(f"{path} is one checkpoint: leave out model = {model!r}, or give the run")
    else:
        run = Run.open(str(path) if os.sep in str(source) else str(source))
        checkpoint, found = _checkpoint_of(run, model), run.output("tokenizer", "tokenizer")
    found = Path(tokenizer).expanduser() if tokenizer else found
    tok = Tokenizer.load(found)
    return Model(load_model(checkpoint, found, device=pick_device(device), precision=precision), tok)


def _checkpoint_of(run: Run, model: str) -> Path:
    """Of a finished stage, or else the newest one a stage has saved so far."""
    known = pipeline.MODEL_STAGES
    if model and model not in known:
        raise UserError(f"model = {model!r}: expected one of {', '.join(known)}")
    for name in [model] if model else reversed(known):
        if run.finished(known[name]) is not None:
            return run.output(known[name], "checkpoint")
    for name in [model] if model else reversed(known):
        saved = latest(run.dir / pipeline.CHECKPOINT_FOLDERS[known[name]])
        if saved is not None:
            return saved
    what = f"model '{model}'" if model else "model"
    raise UserError(f"{run.name} has no {what} yet; make it first: picollm run --run {run.name}")


def _sampling(values: dict[str, Any]) -> Sampling:
    try:
        return Sampling(**values)
    except TypeError:
        unknown = sorted(set(values) - set(Sampling.__struct_fields__))
        raise UserError(
            f"unknown sampling setting {', '.join(unknown)}: expected some of {', '.join(Sampling.__struct_fields__)}"
        ) from None
