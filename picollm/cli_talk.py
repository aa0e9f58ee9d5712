"""Talking to what was made, from the command line: one answer, a conversation, or the comparison of all prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from picollm.run import serving
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.measures import measure
from picollm.run.schema import ChatConfig

BEST_FIRST = ("rl", "sft", "mid", "base")


class Talk(msgspec.Struct, kw_only=True):
    """How to sample, resolved: the command line's word, else the run's [chat] table."""

    temperature: float
    top_k: int
    seed: int
    max_tokens: int
    system: str = ""


def resolve(chat: ChatConfig, **given: float | int | None) -> Talk:
    values: dict[str, Any] = msgspec.structs.asdict(chat)
    values |= {key: value for key, value in given.items() if value is not None}
    return Talk(**{field: values[field] for field in Talk.__struct_fields__})


def connect(run: Run) -> tuple[serving.Client, list[str]]:
    """A client and the models it can talk to, best first. Raises `UserError` when nothing has been trained yet."""
    if not any((run.dir / folder).is_dir() for folder in _checkpoint_folders()):
        raise UserError(f"run '{run.name}' has no model yet; make one with: picollm run --run {run.name}")
    client = reach(run)
    found = client.models()
    known = [name for name in BEST_FIRST if name in found]
    if not known:
        raise UserError(f"run '{run.name}' has no model yet; make one with: picollm run --run {run.name}")
    return client, known


def reach(run: Run) -> serving.Client:
    """A client of the inference process, which is started when it is not there: it leaves when idle."""
    return serving.Client(serving.ensure_serving(run))


def choose(wanted: str | None, known: list[str]) -> str:
    if wanted is None:
        return known[0]
    if wanted not in BEST_FIRST:
        raise UserError(f"unknown model '{wanted}': expected one of {', '.join(BEST_FIRST)}")
    if wanted not in known:
        raise UserError(f"model '{wanted}' is not made yet; there is {', '.join(known)}")
    return wanted


def answer(
    client: serving.Client, model: str, messages: list[dict[str, Any]], talk: Talk
) -> Iterator[serving.Delta]:  # fmt: skip
    """Stream one answer; a base model continues the last message as raw text, which is all that it can do."""
    sampling: dict[str, Any] = {
        "temperature": talk.temperature,
        "top_k": talk.top_k,
        "seed": talk.seed,
        "max_tokens": talk.max_tokens,
    }
    if model == "base":
        return client.stream_completion(model, messages[-1]["content"], **sampling)
    system = [{"role": "system", "content": talk.system}] if talk.system else []
    return client.stream_chat(model, system + messages, **sampling)


def say(client: serving.Client, model: str, messages: list[dict[str, Any]], talk: Talk) -> tuple[str, serving.Delta]:
    """Print an answer as it comes; returns it whole, with its last delta."""
    text, last = "", serving.Delta()
    for last in answer(client, model, messages, talk):
        text += last.text
        print(last.text, end="", flush=True)
    print(flush=True)
    return text, last


def converse(run: Run, model: str, talk: Talk) -> None:
    """Read, answer, repeat. `/new` forgets the conversation, `/quit` or the end of the input ends it."""
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"talking to {model}; /new starts over, /quit ends")
    messages: list[dict[str, Any]] = []
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            messages = []
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        try:
            text, _ = say(reach(run), model, messages, talk)
        except UserError as error:
            if not terminal:
                raise
            print(f"error: {error}", file=sys.stderr)
            messages.pop()  # what was said before is still there
            continue
        messages.append({"role": "assistant", "content": text})


def compare(client: serving.Client, models: list[str], prompts: list[str], talk: Talk) -> None:
    """Every prompt to every model with the same seed, the measures below each answer."""
    for prompt in prompts:
        print(f"### {prompt}")
        for model in models:
            print(f"[{model}] ", end="")
            text, last = say(client, model, [{"role": "user", "content": prompt}], talk)
            print(f"    {measures_line(text, last)}")
        print(flush=True)


def measures_line(text: str, last: serving.Delta) -> str:
    found = measure(text, last.finish_reason)
    parts = [
        f"{found.words} word" + "s" * (found.words != 1),
        f"{found.characters} characters",
        f"repetition {found.repetition:.0%}",
        "ended by itself" if found.ended else "cut off",
    ]
    if last.tok_s:
        parts.append(f"{last.tok_s:.0f} tok/s")
    return ", ".join(parts)


def _checkpoint_folders() -> list[str]:
    from picollm.run.pipeline import CHECKPOINT_FOLDERS

    return list(CHECKPOINT_FOLDERS.values())
