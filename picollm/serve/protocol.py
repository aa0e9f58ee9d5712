"""The OpenAI wire format: what a request may hold, and how answers are written. No sockets, no models.

Beyond the standard: `top_k`, `min_p`, `repetition_penalty` and `show_tools` in requests, and temperatures to 5; in
answers a `picollm` field with `tok_s` (tokens per second after the first), `first_token_s`, `cut_tokens` and `seed`,
in streams that ask for it `tool_calls`, and `usage.tokens_per_second`. Defaults suit small models: temperature 0.8,
top_k 50, 256 tokens.

A field that would change the answer and cannot be honoured is refused (`REFUSED`, unless it holds a value that asks for
nothing); one that only labels, routes or bills (`user`, `metadata`, `store`, …) is ignored, as are unknown ones.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Any, Literal, TypeVar

import msgspec

from picollm.infer.rows import Completion, ToolCall
from picollm.infer.sampling import Sampling, row_seed
from picollm.run.errors import UserError
from picollm.text.chat import Message

DEFAULT_MAX_TOKENS = 256
MAX_CHOICES = 32
MAX_STOPS = 16
MAX_STOP_LENGTH = 500  # characters
MAX_TOP_LOGPROBS = 20  # of chat
MAX_LOGPROBS = 5  # of plain completions
REFUSED = ("tools", "functions", "logit_bias", "echo", "suffix", "frequency_penalty", "presence_penalty", "audio",
           "prediction", "web_search_options")  # fmt: skip

_Request = TypeVar("_Request", bound="Request")


class BadRequest(UserError):
    """A request that cannot be answered as it is; `param` names the field, `code` is OpenAI's short name for it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class TextPart(msgspec.Struct):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Request(msgspec.Struct, kw_only=True):
    """What chat and plain completions share. Fields that are not listed here are ignored."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        checks = [
            ("temperature", self.temperature, 0, 5), ("top_p", self.top_p, 0, 1), ("top_k", self.top_k, 0, 10**6),
            ("max_tokens", self.most, 1, 10**6), ("n", self.n, 1, MAX_CHOICES), ("stop", len(stop), 0, MAX_STOPS),
            ("min_p", self.min_p, 0, 1), ("repetition_penalty", self.repetition_penalty, 0.01, 10),
        ]  # fmt: skip
        for name, value, low, high in checks:
            if value is not None and not low <= value <= high:
                what = f"has {value} texts" if name == "stop" else f"is {value}"
                raise BadRequest(f"{name} {what}; expected {low} to {high}", param=name)
        if not all(0 < len(text) <= MAX_STOP_LENGTH for text in stop):
            raise BadRequest(f"stop holds an empty text, or one above {MAX_STOP_LENGTH} characters", param="stop")
        logprobs, top_logprobs = self.wanted_logprobs()
        return Sampling(
            max_tokens=self.most or DEFAULT_MAX_TOKENS,
            temperature=0.8 if self.temperature is None else self.temperature,
            top_k=50 if self.top_k is None else self.top_k,
            # OpenAI allows 0, which can only mean the likeliest token.
            top_p=1.0 if self.top_p is None else max(self.top_p, 1e-9),
            stop=stop,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
        )

    def wanted_logprobs(self) -> tuple[bool, int]:
        """Whether log-probabilities are asked for, and how many of the likeliest tokens with them."""
        raise NotImplementedError

    @property
    def most(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def seeds(self) -> list[int]:
        """One per choice: the seed itself for the first, so that n = 1 and the first of many say the same.

        Seeds of our own have 53 bits: answers tell them, and more would be rounded where JSON's numbers are doubles.
        """
        seed = secrets.randbits(53) if self.seed is None else self.seed
        return [seed if k == 0 else row_seed(seed, k) >> 10 for k in range(self.choices)]


class ChatRequest(Request, kw_only=True):
    """`show_tools`: tool calls are told in a stream, under `picollm`; never in the text."""

    messages: list[ChatMessage]
    show_tools: bool = False
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def wanted_logprobs(self) -> tuple[bool, int]:
        top = self.top_logprobs or 0
        if not 0 <= top <= MAX_TOP_LOGPROBS:
            raise BadRequest(f"top_logprobs is {top}; expected 0 to {MAX_TOP_LOGPROBS}", param="top_logprobs")
        if top and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        return bool(self.logprobs), top

    def conversation(self, most: int) -> list[Message]:
        """Messages as training knows them: text only, `developer` is `system`, equal neighbours joined."""
        if len(self.messages) > most:
            raise BadRequest(f"messages has {len(self.messages)}; expected at most {most}", param="messages")
        turns: list[Message] = []
        for number, message in enumerate(self.messages):
            role = "system" if message.role == "developer" else message.role
            text = _text(message.content, f"messages[{number}].content")
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] = f"{turns[-1]['content']}\n\n{text}"
            else:
                turns.append({"role": role, "content": text})
        if not turns:
            raise BadRequest("messages is empty; add a user message", param="messages")
        return turns


class CompletionRequest(Request, kw_only=True):
    prompt: str | list[str]
    logprobs: int | None = None

    def wanted_logprobs(self) -> tuple[bool, int]:
        if not 0 <= (self.logprobs or 0) <= MAX_LOGPROBS:
            raise BadRequest(f"logprobs is {self.logprobs}; expected 0 to {MAX_LOGPROBS}", param="logprobs")
        return self.logprobs is not None, self.logprobs or 0

    def prompts(self) -> list[str]:
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not 1 <= len(prompts) * self.choices <= MAX_CHOICES:
            raise BadRequest(f"prompt and n ask for {len(prompts) * self.choices} answers; expected 1 to {MAX_CHOICES}",
                             param="prompt")  # fmt: skip
        return prompts


def _text(content: str | list[TextPart] | None, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    for part in content:
        if part.type != "text" or part.text is None:
            raise BadRequest(f"{where}: parts of type {part.type!r} are not supported; this model reads text only",
                             param=where)  # fmt: skip
    return "".join(part.text or "" for part in content)


def read(body: bytes, kind: type[_Request]) -> _Request:
    """Decode and check a request. Raises BadRequest, naming the field at fault."""
    try:
        raw = msgspec.json.decode(body)
        request = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        param = re.sub(r"^\$\.?", "", place.strip("`")) or None
        missing = re.search(r"missing required field `(\w+)`", message)
        raise BadRequest(f"{param or 'request'}: {message}", param=missing[1] if missing else param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    for name in REFUSED:
        if raw.get(name):
            raise BadRequest(f"{name} is not supported; leave it out", param=name, code="unsupported_parameter")
    if raw.get("best_of") not in (None, request.choices):
        raise BadRequest("best_of other than n is not supported; leave it out", param="best_of",
                         code="unsupported_parameter")  # fmt: skip
    if raw.get("modalities") not in (None, [], ["text"]):
        raise BadRequest("modalities: only text is supported", param="modalities", code="unsupported_parameter")
    style = raw.get("response_format")
    if isinstance(style, dict) and style.get("type", "text") != "text":
        raise BadRequest("response_format: only text is supported", param="response_format",
                         code="unsupported_parameter")  # fmt: skip
    request.sampling()
    return request


class Answer(msgspec.Struct, kw_only=True):
    """One choice of a response that does not stream."""

    done: Completion
    seed: int
    logprobs: dict[str, Any] | None = None


def error_body(message: str, *, kind: str = "invalid_request_error", param: str | None = None,
               code: str | None = None) -> dict[str, Any]:  # fmt: skip
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage_of(answers: list[Completion], per_prompt: int) -> dict[str, Any]:
    """Tokens read and made. Each prompt counts once, however many answers (`per_prompt`) it has."""
    prompt_tokens = sum(answer.prompt_tokens for answer in answers[::per_prompt])
    made = sum(len(answer.ids) for answer in answers)
    rates = [answer.tok_s for answer in answers if answer.tok_s]
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": made,
        "total_tokens": prompt_tokens + made,
        "tokens_per_second": round(sum(rates) / len(rates), 1) if rates else None,
    }


def figures_of(answer: Completion, seed: int) -> dict[str, Any]:
    return {
        "tok_s": round(answer.tok_s, 1),
        "first_token_s": round(answer.first_token_s, 4),
        "cut_tokens": answer.cut_tokens,
        "seed": seed,
    }


class Envelope:
    """The fields all pieces of one response share, and the shape of a choice in each of the four forms."""

    def __init__(self, *, chat: bool, model: str, with_usage: bool = False, with_tools: bool = False) -> None:
        self.chat, self.model, self.with_usage, self.with_tools = chat, model, with_usage, with_tools
        self.id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())

    def _wrap(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}

    def whole(self, answers: list[Answer], usage: dict[str, Any]) -> dict[str, Any]:
        """The response to a request that does not stream."""
        choices = []
        for index, answer in enumerate(answers):
            done = answer.done
            choice: dict[str, Any] = {"index": index, "logprobs": answer.logprobs, "finish_reason": done.finish_reason}
            if self.chat:
                choice["message"] = {"role": "assistant", "content": done.text, "refusal": None}
            else:
                choice["text"] = done.text
            choices.append(choice)
        kind = "chat.completion" if self.chat else "text_completion"
        return self._wrap(kind, choices, usage=usage, picollm=figures_of(answers[0].done, answers[0].seed))

    def opening(self, index: int) -> dict[str, Any]:
        """The first streamed chunk of a choice; only chat has one."""
        return self._piece(index, delta={"role": "assistant", "content": ""})

    def piece(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        """A streamed chunk of a choice with some text."""
        more: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._piece(index, logprobs=logprobs, **more)

    def tools_piece(self, index: int, calls: list[ToolCall]) -> dict[str, Any]:
        """A streamed chunk without text: what the model asked of the calculator, and what it was told."""
        told = [{"code": call.code, "result": call.result} for call in calls]
        return self.piece(index, "") | {"picollm": {"tool_calls": told}}

    def ending(self, index: int, done: Completion, seed: int) -> dict[str, Any]:
        """The last streamed chunk of a choice: why it ended, and its figures."""
        more: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._piece(index, finish_reason=done.finish_reason, **more) | {"picollm": figures_of(done, seed)}

    def usage_piece(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last chunk when stream_options.include_usage is set: no choices, only the count."""
        return self._wrap(self._kind, [], usage=usage)

    def _piece(self, index: int, **fields: Any) -> dict[str, Any]:
        choice = {"index": index, "logprobs": None, "finish_reason": None, **fields}
        return self._wrap(self._kind, [choice], **({"usage": None} if self.with_usage else {}))

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"
