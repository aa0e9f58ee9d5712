"""Answers as an OpenAI-compatible API streams them: what is asked, and the lines of an answer folded into pieces."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import msgspec

from picollm.run.errors import UserError


class Token(msgspec.Struct, frozen=True):
    """A token of an answer, how likely it was (natural log), and the likeliest that could have stood there."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class ToolCall(msgspec.Struct, frozen=True):
    """What the model asked of the calculator, and what it was told; None when that was refused."""

    code: str
    result: str | None = None


class Delta(msgspec.Struct, kw_only=True):
    """A piece of an answer. The last has a `finish_reason` ("stop", "length"), the tokens per second and the counts.

    `first_token_s`: seconds from the request to the first piece; on the last one what the server measured, if it says:
    loading the model is not in it. `cut_tokens`: of the prompt, dropped because it was too long.
    """

    text: str = ""
    finish_reason: str | None = None
    tok_s: float | None = None
    first_token_s: float | None = None
    tokens: int = 0
    prompt_tokens: int | None = None
    cut_tokens: int = 0
    seen: tuple[Token, ...] = ()
    calls: tuple[ToolCall, ...] = ()


class Fold:
    """Folds the lines of one server-sent stream. Reasons and figures are kept for one last delta.

    Servers differ: any field may be missing or null, and an answer may end without a reason. `who` answers, for
    messages.
    """

    def __init__(self, who: str = "the inference process") -> None:
        self.who = who
        self.begun = time.monotonic()
        self.first: float | None = None
        self.measured: float | None = None
        self.reason: str | None = None
        self.pieces = 0
        self.tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.cut_tokens = 0
        self.tok_s: float | None = None

    def take(self, line: str) -> Delta | None:
        """One line to a piece of the answer; None when it holds none. Raises `UserError` for an error in the stream."""
        if not line.startswith("data:"):
            return None
        if line[5:].strip() == "[DONE]":
            self.reason = self.reason or "stop"
            return None
        return self._take(json.loads(line[5:]))

    def take_whole(self, content: bytes) -> Delta | None:
        """The answer of a server that does not stream."""
        found = self._take(json.loads(content))
        self.reason = self.reason or "stop"
        return found

    def _take(self, chunk: dict[str, Any]) -> Delta | None:
        if chunk.get("error"):
            raise UserError(f"{self.who}: {message_of(chunk)}")
        usage = chunk.get("usage") or {}
        self.tokens = usage.get("completion_tokens", self.tokens)
        self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
        self.tok_s = usage.get("tokens_per_second", self.tok_s)
        own = chunk.get("picollm") or {}
        self.measured = own.get("first_token_s", self.measured)
        self.cut_tokens = own.get("cut_tokens", self.cut_tokens)
        calls = tuple(ToolCall(str(call["code"]), call.get("result")) for call in own.get("tool_calls") or ())
        text, seen = "", _tokens({})
        for choice in (chunk.get("choices") or [])[:1]:
            self.reason = choice.get("finish_reason") or self.reason
            text = choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
            seen = _tokens(choice.get("logprobs") or {})
        if not (text or seen or calls):
            return None
        if text:
            self.pieces += 1
            self.first = time.monotonic() - self.begun if self.first is None else self.first
        return Delta(text=text, first_token_s=self.first, tokens=self.pieces, seen=seen, calls=calls)

    def last(self) -> Delta:
        """After the last line. Raises `UserError` where the answer did not come to its end."""
        if self.reason is None:
            raise UserError(f"the answer was cut off: {self.who} is gone; ask again")
        tokens = self.pieces if self.tokens is None else self.tokens
        spent = time.monotonic() - self.begun - (self.first or 0.0)
        pace = self.tok_s or ((tokens - 1) / spent if tokens > 1 and self.pieces > 1 and spent > 0 else None)
        first = self.first if self.measured is None else self.measured
        return Delta(finish_reason=self.reason, tok_s=pace, first_token_s=first, tokens=tokens,
                     prompt_tokens=self.prompt_tokens, cut_tokens=self.cut_tokens)  # fmt: skip


def is_stream(content: bytes) -> bool:
    """Whether a body holds the lines of a server-sent stream (WHATWG, HTML, 9.2.5), and not one JSON value."""
    return re.match(rb"\s*(data|event|id|retry)?:", content) is not None


def _tokens(found: dict[str, Any]) -> tuple[Token, ...]:
    """From either shape: that of chat, a list of records, or that of plain completions, lists side by side."""
    if found.get("content"):
        return tuple(
            Token(str(each["token"]), float(each["logprob"]),
                  tuple((str(top["token"]), float(top["logprob"])) for top in each.get("top_logprobs") or ()))
            for each in found["content"]
        )  # fmt: skip
    texts, logprobs = found.get("tokens") or [], found.get("token_logprobs") or []
    tops = found.get("top_logprobs") or [{}] * len(texts)
    return tuple(
        Token(str(text), float(logprob or 0.0), tuple((str(k), float(v)) for k, v in _ranked(top or {})))
        for text, logprob, top in zip(texts, logprobs, tops, strict=False)
    )


def _ranked(top: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(top.items(), key=lambda pair: -pair[1])


def body_of(
    model: str, *, chat: bool, own: bool, temperature: float, top_k: int, seed: int, max_tokens: int, logprobs: int,
    show_tools: bool,
) -> dict[str, Any]:  # fmt: skip
    """The request without its prompt. A server of others (not `own`) is asked in the words of the standard alone."""
    body: dict[str, Any] = {"model": model, "temperature": temperature, "seed": seed, "max_tokens": max_tokens,
                            "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    if logprobs:
        body |= {"logprobs": True, "top_logprobs": logprobs} if chat else {"logprobs": logprobs}
    if own:
        body["top_k"] = top_k
        if show_tools and chat:
            body["show_tools"] = True
    return body


def milder(body: dict[str, Any], refusal: str) -> dict[str, Any] | None:
    """The same request without what a server refused to hear of, where that can be done without; else None. Without a
    seed the answer is another one each time, which is better than none."""
    if "max_completion_tokens" in refusal and "max_tokens" in body:
        rest = {key: value for key, value in body.items() if key != "max_tokens"}
        return rest | {"max_completion_tokens": body["max_tokens"]}
    for named in ("logprobs", "stream_options", "seed"):
        if named in refusal and named in body:
            return {key: value for key, value in body.items() if key not in (named, f"top_{named}")}
    return None


def message_of(answer: Any) -> str:
    """What a server says of its refusal, on one line: in the shapes of OpenAI, Ollama, vLLM, FastAPI, or a page."""
    error = answer
    for name in ("error", "message", "detail", "msg"):
        if isinstance(error, list) and error:
            error = error[0]
        if isinstance(error, dict) and error.get(name):
            error = error[name]
    words = str(error)
    if title := re.search(r"<title>(.*?)</title>", words, re.IGNORECASE | re.DOTALL):
        words = title[1]
    words = "".join(letter if letter.isprintable() else " " for letter in words)
    return " ".join(words.split())[:400]
