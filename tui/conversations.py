"""Conversations on disk: one JSON file each in `runs/<name>/conversations/`, written after every turn."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import msgspec

from picollm.run.errors import UserError
from picollm.run.folder import write_atomic
from picollm.run.stream import ToolCall
from tui.talk import Sampling
from tui.voices import Voice


class Earlier(msgspec.Struct, kw_only=True):
    """An answer that another one took the place of."""

    content: str
    model: str = ""
    sampling: Sampling | None = None


class Turn(msgspec.Struct, kw_only=True):
    """One message. An answer also keeps who gave it, how it was drawn, why it ended and what was measured.

    `plain`: it continues text, so it is not Markdown. `prompt_tokens` and `tokens` are what the context held then.
    """

    role: str
    content: str
    model: str = ""
    plain: bool = False
    finish_reason: str = ""
    tok_s: float | None = None
    first_token_s: float | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    cut_tokens: int = 0
    calls: list[ToolCall] = []
    sampling: Sampling | None = None
    earlier: list[Earlier] = []


class Conversation(msgspec.Struct, kw_only=True):
    """`model` as the screen named it, `voice` so that it can be asked again."""

    id: str
    created: float
    model: str = ""
    voice: Voice | None = None
    turns: list[Turn] = []

    @property
    def title(self) -> str:
        """The first thing that was asked, on one line."""
        first = next((turn.content for turn in self.turns if turn.role == "user"), "empty")
        return " ".join(first.split())[:60]

    def messages(self) -> list[dict[str, str]]:
        """As the inference process takes them."""
        return [{"role": turn.role, "content": turn.content} for turn in self.turns]


def begin(model: str = "") -> Conversation:
    """A new, empty conversation; nothing is written before the first turn."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return Conversation(id=f"{stamp}-{uuid.uuid4().hex[:4]}", created=now, model=model)


def save(folder: Path, conversation: Conversation) -> None:
    """Raises `UserError` when the disk refuses."""
    text = msgspec.json.format(msgspec.json.encode(conversation), indent=1).decode()
    write_atomic(folder / f"{conversation.id}.json", text + "\n")


def load(path: Path) -> Conversation:
    """Raises `UserError` for a file that is not a conversation."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Conversation)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: not a conversation: {error}; move it away") from None


def kept(folder: Path) -> list[Conversation]:
    """Every readable conversation, newest first; files that are something else are passed over."""
    found: list[Conversation] = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            found.append(load(path))
        except UserError:
            continue
    return found
