"""Conversations in a JSONL file, one JSON value a line, or in a .json file, a list of them; read strictly.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    {"prompt": "Hi", "answer": "Hello!"}
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]

A message may also hold parts, `{"type": "text" | "python" | "output", "text": "…"}`, in the assistant's turns. A file
that is missing, empty or has a bad row is an error that names the file and the line (in a .json file, the row); rows
are never dropped silently.
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
        raise UserError(f"{path}: no such file; give the path of a .jsonl or .json file of conversations") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a .jsonl file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    rows, bad = [], []
    listed = _listed(path, text) if Path(path).suffix.lower() == ".json" else None
    unit, given = ("line", enumerate(text.split("\n"), 1)) if listed is None else ("row", enumerate(listed, 1))
    for number, value in given:
        if listed is None and not value.strip():
            continue
        try:
            rows.append(_row(number, value if listed is not None else _parsed(value)))
        except ValueError as error:
            bad.append((number, str(error)))
    if bad:
        more = ", ".join(str(number) for number, _ in bad[1 : 1 + SHOWN_LINES])
        more += ", …" if len(bad) > 1 + SHOWN_LINES else ""
        rest = f" ({len(bad)} bad rows; also {unit}s {more})" if more else ""
        raise UserError(f"{path} {unit} {bad[0][0]}: {bad[0][1]}{rest}")
    if not rows:
        raise UserError(f"{path}: no rows; write one JSON conversation per line")
    return rows


def _listed(path: Path, text: str) -> list[Any] | None:
    """The rows of a whole JSON text: a list of them, or one alone; None when it is one JSON value a line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" or not text.strip():
            return None
        raise UserError(f"{path} line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets without end
        raise UserError(f"{path}: not JSON that can be read ({error})") from None
    alone = not isinstance(value, list) or (value and all(isinstance(v, dict) and "role" in v for v in value))
    return [value] if alone else value


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError:
        raise ValueError("brackets in brackets, more than can be read") from None


def _row(number: int, value: Any) -> Row:
    """Raises ValueError saying what is wrong with the row."""
    if isinstance(value, list):
        return Row(number, checked_messages(value), {})
    if not isinstance(value, dict):
        raise ValueError("expected an object with messages, or with prompt and answer")
    if "messages" in value:
        extra = {key: item for key, item in value.items() if key != "messages"}
        return Row(number, checked_messages(value["messages"]), extra)
    if {"prompt", "answer"} <= value.keys():
        extra = {key: item for key, item in value.items() if key not in ("prompt", "answer")}
        pair = [{"role": "user", "content": value["prompt"]}, {"role": "assistant", "content": value["answer"]}]
        return Row(number, checked_messages(pair), extra)
    keys = ", ".join(map(repr, value)) or "none"
    raise ValueError(f"expected the key messages, or prompt and answer; found {keys}")


def checked_messages(value: Any) -> list[Message]:
    """The conversation, if it is one that ends with an answer. ValueError saying what is wrong with it."""
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
