"""Conversations in a JSONL file: one JSON value a line, read strictly.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    {"prompt": "Hi", "answer": "Hello!"}
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]

A message may also hold parts, `{"type": "text" | "python" | "output", "text": "…"}`, in the assistant's turns. A file
that is missing, empty or has a bad row is an error that names the file and the line; rows are never dropped silently.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from picollm.run.errors import UserError
from picollm.text.chat import Message

SHOWN_LINES = 5
PART_TYPES = ("text", "python", "output")


class Row:
    """A checked conversation, the line it stands on (from 1), and the row's other fields."""

    def __init__(self, line: int, messages: list[Message], extra: dict[str, Any]) -> None:
        self.line, self.messages, self.extra = line, messages, extra


def read_rows(path: Path) -> list[Row]:
    """Every row of the file; blank lines and a byte order mark are skipped.

    UserError when the file is missing, is not UTF-8 text, holds no rows, or has malformed ones: the first is
    explained, the lines of the next few are named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a .jsonl file of conversations") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a .jsonl file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    rows, bad = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(number, line))
        except ValueError as error:
            bad.append((number, str(error)))
    if bad:
        more = ", ".join(str(number) for number, _ in bad[1 : 1 + SHOWN_LINES])
        rest = f" ({len(bad)} bad rows; also lines {more}{', …' if len(bad) > 1 + SHOWN_LINES else ''})" if more else ""
        raise UserError(f"{path} line {bad[0][0]}: {bad[0][1]}{rest}")
    if not rows:
        raise UserError(f"{path}: no rows; write one JSON conversation per line")
    return rows


def _row(number: int, line: str) -> Row:
    """Raises ValueError saying what is wrong with the line."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if isinstance(value, list):
        return Row(number, _messages(value), {})
    if not isinstance(value, dict):
        raise ValueError("expected an object with messages, or with prompt and answer")
    if "messages" in value:
        extra = {key: item for key, item in value.items() if key != "messages"}
        return Row(number, _messages(value["messages"]), extra)
    if {"prompt", "answer"} <= value.keys():
        extra = {key: item for key, item in value.items() if key not in ("prompt", "answer")}
        pair = [{"role": "user", "content": value["prompt"]}, {"role": "assistant", "content": value["answer"]}]
        return Row(number, _messages(pair), extra)
    keys = ", ".join(map(repr, value)) or "none"
    raise ValueError(f"expected the key messages, or prompt and answer; found {keys}")


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages must be a list that is not empty")
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {number} needs a role and a content")
    turns = value[1:] if value[0]["role"] == "system" else value
    for number, message in enumerate(turns, 1 + len(value) - len(turns)):
        expected = "user" if (number - 1 - len(value) + len(turns)) % 2 == 0 else "assistant"
        if message["role"] != expected:
            raise ValueError(f"message {number} has role {message['role']!r}; expected {expected!r}")
    if not turns or turns[-1]["role"] != "assistant":
        raise ValueError("the conversation must end with the assistant's answer")
    return [{"role": message["role"], "content": _content(number, message)} for number, message in enumerate(value, 1)]


def _content(number: int, message: dict[str, Any]) -> Any:
    content = message["content"]
    if isinstance(content, str):
        if not content.strip():
            raise ValueError(f"message {number} ({message['role']}) is empty")
        return content
    if not isinstance(content, list) or not content:
        raise ValueError(f"message {number} ({message['role']}): content must be text or a list of parts")
    allowed = PART_TYPES if message["role"] == "assistant" else ("text",)
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in allowed or not isinstance(part.get("text"), str):
            raise ValueError(
                f"message {number} ({message['role']}): a part must have a text and a type out of {', '.join(allowed)}"
            )
    if not any(part["text"].strip() for part in content):
        raise ValueError(f"message {number} ({message['role']}) is empty")
    return [{"type": part["type"], "text": part["text"]} for part in content]
