"""Conversations as ids: the only place that knows the chat format.

    <|bos|> ( <|user_start|> text <|user_end|>  <|assistant_start|> answer <|assistant_end|> )*

An answer is text, or parts: text, `python` (<|python_start|> code <|python_end|>, written by the model) and
`output` (<|output_start|> result <|output_end|>, written by the tool). Supervised, mask 1: the answer's text,
python parts with both their marks, and <|assistant_end|>. Everything else is context, mask 0.

A system message has no mark of its own: it is put before the first user turn, a blank line between, in training
and in serving alike, because both go through this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from picollm.run.errors import UserError
from picollm.text.tokenizer import Tokenizer


class Part(TypedDict):
    type: Literal["text", "python", "output"]
    text: str


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


Rendered = tuple[list[int], list[int]]


class TooLong(UserError):
    """The last message alone is more than the model reads."""


def render(messages: Sequence[Message], tok: Tokenizer, max_tokens: int | None = None) -> Rendered:
    """(ids, mask) of a training conversation, both of the same length; mask 1 = learn to predict this id.

    With `max_tokens`, a longer conversation is cut after the last answer that fits. If not even the first
    exchange fits the result is ([], []): there is nothing to learn from half a question, so the caller drops and
    counts it. UserError for turns out of order or content of the wrong form.
    """
    turns = _turns(messages)
    ids, mask = [tok.bos_id], [0]
    ends: list[int] = []  # lengths at which the conversation may be cut
    for message in turns:
        if message["role"] == "user":
            turn_ids, turn_mask = _user_turn(message, tok)
        else:
            turn_ids, turn_mask = _assistant_turn(message, tok)
        ids += turn_ids
        mask += turn_mask
        if message["role"] == "assistant":
            ends.append(len(ids))
        if max_tokens is not None and len(ids) > max_tokens:
            end = max((n for n in ends if n <= max_tokens), default=0)
            return ids[:end], mask[:end]
    return ids, mask


def render_prompt(messages: Sequence[Message], tok: Tokenizer, max_tokens: int | None = None) -> list[int]:
    """Ids up to and including <|assistant_start|>: exactly the prefix `render` would give the coming answer.

    With `max_tokens`, the oldest exchanges are left out until the rest fits; the system message stays. UserError
    when the last turn is not the user's, or when it alone does not fit (`TooLong`).
    """
    turns = _turns(messages)
    if turns[-1]["role"] != "user":
        raise UserError("the conversation ends with the assistant's turn; add a user message to answer")
    system = messages[0] if messages[0]["role"] == "system" else None
    plain = messages[1:] if system else messages
    # Backwards, each turn encoded when it is reached: what will not fit is never looked at, however long it is.
    kept: list[int] | None = None
    later = [tok.special("<|assistant_start|>")]
    for k in range(len(plain) - 1, -1, -2):
        [first] = _turns([system, plain[k]]) if system else [plain[k]]
        opening = _user_turn(first, tok)[0]
        length = 1 + len(opening) + len(later)
        if max_tokens is not None and length > max_tokens:
            if kept is None:
                raise TooLong(f"the message is {length} tokens long and the model reads {max_tokens}; shorten it")
            break
        kept = [tok.bos_id, *opening, *later]
        if k:
            later = [*_assistant_turn(plain[k - 1], tok)[0], *(_user_turn(plain[k], tok)[0]), *later]
    assert kept is not None
    return kept


def read_answer(ids: Sequence[int], tok: Tokenizer) -> list[Part]:
    """The parts of a generated answer (ids after <|assistant_start|>): the inverse of how `render` writes one.

    Reading stops at <|assistant_end|> or <|bos|>. A part still open at the end is given as far as it goes;
    marks out of place, which a weak model does write, are skipped.
    """
    kinds: dict[int, Literal["python", "output"]] = {
        tok.special("<|python_start|>"): "python",
        tok.special("<|output_start|>"): "output",
    }
    stops = {tok.special("<|assistant_end|>"), tok.bos_id}
    parts: list[Part] = []
    kind: Literal["text", "python", "output"] = "text"
    held: list[int] = []

    def close() -> None:
        if held:
            parts.append(Part(type=kind, text=tok.decode(held)))
            held.clear()

    for token in ids:
        if token in stops:
            break
        if tok.is_special(token):
            close()
            kind = kinds.get(token, "text")
        else:
            held.append(token)
    close()
    return parts


def text_of(content: str | Sequence[Part]) -> str:
    """What a reader sees of a message: its text parts, without code and tool output."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _user_turn(message: Message, tok: Tokenizer) -> Rendered:
    text = tok.encode(text_of(message["content"]))
    ids = [tok.special("<|user_start|>"), *text, tok.special("<|user_end|>")]
    return ids, [0] * len(ids)


def _assistant_turn(message: Message, tok: Tokenizer) -> Rendered:
    content = message["content"]
    parts: Sequence[Part] = [Part(type="text", text=content)] if isinstance(content, str) else content
    ids, mask = [tok.special("<|assistant_start|>")], [0]
    for part in parts:
        kind, body = part["type"], tok.encode(part["text"])
        if kind != "text":
            body = [tok.special(f"<|{kind}_start|>"), *body, tok.special(f"<|{kind}_end|>")]
        ids += body
        mask += [0 if kind == "output" else 1] * len(body)
    ids.append(tok.special("<|assistant_end|>"))
    mask.append(1)
    return ids, mask


def _turns(messages: Sequence[Message]) -> list[Message]:
    """Checked turns, user first and alternating, with the system message merged into the first."""
    for number, message in enumerate(messages, 1):
        _check(number, message)
    turns = list(messages)
    if turns and turns[0]["role"] == "system":
        system = text_of(turns.pop(0)["content"])
        if turns and turns[0]["role"] == "user":
            turns[0] = Message(role="user", content=f"{system}\n\n{text_of(turns[0]['content'])}")
    if not turns:
        raise UserError("the conversation has no user message; add one")
    for number, message in enumerate(turns):
        expected = "user" if number % 2 == 0 else "assistant"
        if message["role"] != expected:
            raise UserError(
                f"conversation turn {number + 1} is {message['role']!r}; expected {expected!r}: after an "
                "optional system message, user and assistant alternate"
            )
    return turns


def _check(number: int, message: Message) -> None:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise UserError(f"message {number} of the conversation needs a role and a content")
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise UserError(f"message {number} has role {role!r}; expected system, user or assistant")
    if isinstance(content, str):
        return
    allowed = ("text", "python", "output") if role == "assistant" else ("text",)
    if not isinstance(content, list) or not all(
        isinstance(part, dict) and part.get("type") in allowed and isinstance(part.get("text"), str) for part in content
    ):
        raise UserError(
            f"message {number} ({role}): content must be text or a list of parts of type "
            f"{', '.join(allowed)}, each with a text"
        )
