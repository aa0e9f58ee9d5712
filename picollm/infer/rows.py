"""One answer growing token by token: what is shown, when a tool is called, when it ends. Pure Python, no tensors.

Used by the engine, which owns the model and the batch; nothing here knows about either.
"""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from picollm.infer.sampling import Sampling, TokenLogprob
from picollm.infer.tools import calculate

FinishReason = Literal["stop", "length", "cancel"]


class Vocabulary(Protocol):
    """What generation needs of a tokenizer."""

    vocab_size: int
    bos_id: int

    def special(self, name: str) -> int: ...
    def is_special(self, token: int) -> bool: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...


class Mute:
    """A vocabulary without words, to time random weights with: no answer ends early, and none says anything."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.bos_id = vocab_size  # out of the model's reach

    def special(self, name: str) -> int:
        return self.bos_id

    def is_special(self, token: int) -> bool:
        return False

    def encode(self, text: str) -> list[int]:
        return [0]

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b""


@dataclass
class Completion:
    """A finished answer.

    Attributes:
        ids: every token after the prompt: sampled text, tool calls, forced tool output, and the ending special.
        forced: one flag per id; True = tool output that was fed, not sampled.
        text: what a reader sees: no specials, no tool calls or their output, nothing from a stop text onwards.
        finish_reason: `stop` (ending special or stop text), `length`, or `cancel`.
        prompt_tokens: tokens the model read; `cut_tokens` were dropped from the left of a prompt that was too long.
        first_token_s: seconds from the request to the first token.
        tok_s: tokens per second of this answer after its first token.
        logprobs: one per id, its logprob 0 where forced; None unless asked for.
    """

    ids: list[int]
    forced: list[bool]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cut_tokens: int
    first_token_s: float
    tok_s: float
    logprobs: list[TokenLogprob] | None


@dataclass(frozen=True)
class ToolCall:
    """What a model asked of the calculator, and what it was told: None when that was refused."""

    code: str
    result: str | None


@dataclass(frozen=True)
class Chunk:
    """New text of a streamed answer, and the tokens of this step.

    `logprobs`: the sampled tokens behind text that is shown by now, when asked for. A token comes when its text does,
    so over all chunks they are those behind the answer's text: no specials, no tool calls or their output. `calls` are
    the tool calls that ended in this step.
    """

    text: str
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)


class Marks:
    """The ids that steer an answer, and the bytes of the others; shared by all rows of an engine."""

    def __init__(self, tok: Vocabulary) -> None:
        self.tok = tok
        self.ends = {tok.bos_id, tok.special("<|assistant_end|>")}
        self.python_start, self.python_end = tok.special("<|python_start|>"), tok.special("<|python_end|>")
        self.output_start, self.output_end = tok.special("<|output_start|>"), tok.special("<|output_end|>")
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        data = self._bytes.get(token)
        if data is None:
            data = self._bytes[token] = self.tok.decode_bytes([token])
        return data


class TextStream:
    """Bytes in, text out: never half a character, never part of a stop text."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._shown: list[str] = []
        self.taken = 0  # bytes given to push
        self.shown = 0  # of them, those behind shown text

    @property
    def text(self) -> str:
        """Everything shown so far."""
        return "".join(self._shown)

    def push(self, data: bytes, *, final: bool = False) -> str:
        """Text that may be shown now. What could be the beginning of a stop text waits for the next call."""
        if self.stopped:
            return ""
        self.taken += len(data)
        new = self._held + self._decoder.decode(data, final)
        self._held, hidden = "", ""
        cuts = [place for text in self.stop if (place := new.find(text)) >= 0]
        if cuts:
            self.stopped = True
            new, hidden = new[: min(cuts)], new[min(cuts) :]
        elif not final:
            held = max((_overlap(new, text) for text in self.stop), default=0)
            new, hidden = new[: len(new) - held], new[len(new) - held :]
            self._held = hidden
        if new:
            self._shown.append(new)
        self.shown = self.taken - len(self._decoder.getstate()[0]) - len(hidden.encode())
        return new

    def close(self) -> str:
        """The rest, when no more bytes will come."""
        return self.push(b"", final=True)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Row:
    """The state of one answer.

    `queue` holds tokens that must come next whatever the model says: the output of a tool it has called.
    `calls` are those of which nobody has been told yet.
    """

    def __init__(
        self,
        marks: Marks,
        sampling: Sampling,
        *,
        prompt_tokens: int,
        limit: int,
        cut_tokens: int = 0,
        tools: bool = True,
    ) -> None:
        self.marks, self.limit, self.tools = marks, limit, tools
        self.prompt_tokens, self.cut_tokens = prompt_tokens, cut_tokens
        self.ids: list[int] = []
        self.forced: list[bool] = []
        self.logprobs: list[TokenLogprob] | None = [] if sampling.logprobs else None
        self._unshown: deque[tuple[int, TokenLogprob]] = deque()  # byte where its text begins, token
        self.queue: deque[int] = deque()
        self.calls: list[ToolCall] = []
        self.finish_reason: FinishReason | None = None
        self.out = TextStream(sampling.stop)
        self._kind: Literal["text", "python", "output"] = "text"
        self._code: list[int] = []
        self._started = time.perf_counter()
        self._first = self._last = self._started

    def push(self, token: int, *, forced: bool = False, logprob: TokenLogprob | None = None) -> str:
        """Take the next token, sampled or `forced`; returns the text it adds to what is shown."""
        self._last = time.perf_counter()
        if not self.ids:
            self._first = self._last
        self.ids.append(token)
        self.forced.append(forced)
        if self.logprobs is not None:
            self.logprobs.append(TokenLogprob(token, 0.0) if forced or logprob is None else logprob)
        text = ""
        if token in self.marks.ends:
            self.finish_reason = "stop"
        elif self.marks.tok.is_special(token):
            self._mark(token)
        elif self._kind == "text":
            if logprob is not None and not forced:
                self._unshown.append((self.out.taken, logprob))
            text = self.out.push(self.marks.bytes_of(token))
            if self.out.stopped:
                self.finish_reason = "stop"
        elif self._kind == "python":
            self._code.append(token)
        if self.finish_reason is None and len(self.ids) >= self.limit:
            self.finish_reason = "length"
        return text + self.out.close() if self.finish_reason else text

    def take_logprobs(self) -> list[TokenLogprob]:
        """Sampled tokens whose text has begun to be shown since the last call."""
        taken = []
        while self._unshown and self._unshown[0][0] < self.out.shown:
            taken.append(self._unshown.popleft()[1])
        return taken

    def cancel(self) -> str:
        """End here because nobody waits for the rest; returns text that was held back."""
        self.finish_reason = "cancel"
        return self.out.close()

    def _mark(self, token: int) -> None:
        marks = self.marks
        if token == marks.python_start:
            self._kind, self._code = "python", []
        elif token == marks.output_start:
            self._kind = "output"
        else:
            if token == marks.python_end and self._kind == "python" and self.tools:
                # An expression the calculator refuses gets no output: the model goes on without one.
                code = marks.tok.decode(self._code)
                result = calculate(code)
                self.calls.append(ToolCall(code, result))
                if result is not None:
                    self.queue.extend([marks.output_start, *marks.tok.encode(result), marks.output_end])
            self._kind = "text"

    def completion(self) -> Completion:
        """The finished answer; only after `finish_reason` is set."""
        assert self.finish_reason is not None
        seconds = self._last - self._first
        return Completion(
            ids=self.ids,
            forced=self.forced,
            text=self.out.text,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            cut_tokens=self.cut_tokens,
            first_token_s=self._first - self._started,
            tok_s=(len(self.ids) - 1) / seconds if seconds > 0 else 0.0,
            logprobs=self.logprobs,
        )
