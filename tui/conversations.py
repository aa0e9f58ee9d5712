"""Conversations on disk: one JSON file each in `runs/<name>/conversations/`, written after every turn."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path

import msgspec

from picollm.run.errors import UserError
from picollm.run.folder import Run, write_atomic
from picollm.run.stream import ToolCall
from picollm.run.structs import complete
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

    def put_back(self) -> None:
        """Be the last of the earlier answers again. What was measured of that one was not kept."""
        *self.earlier, last = self.earlier
        self.content, self.model, self.sampling = last.content, last.model, last.sampling
        self.finish_reason, self.calls = "stop", []
        self.tok_s = self.first_token_s = self.tokens = self.prompt_tokens = None
        self.cut_tokens = 0


@complete
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


class Keeper:
    """Keeps conversations as they grow: written by threads, which may come late, and yet never an older state last."""

    def __init__(self) -> None:
        self._newest: dict[str, Conversation] = {}
        self._lock = threading.Lock()

    def hold(self, conversation: Conversation) -> None:
        """Remember its present state."""
        self._newest[conversation.id] = msgspec.structs.replace(conversation, turns=list(conversation.turns))

    def write(self, folder: Path, identity: str) -> None:
        """Write what is remembered, unless another thread has. Raises `UserError` when the disk refuses, or `folder`'s
        run is gone."""
        with self._lock:
            try:
                Run(folder.parent).require()
            except UserError as error:
                raise UserError(f"this conversation is not kept: {error}") from None
            newest = self._newest.pop(identity, None)
            if newest is not None:
                save(folder, newest)


def begin(model: str = "") -> Conversation:
    """A new, empty conversation; nothing is written before the first turn."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return Conversation(id=f"{stamp}-{uuid.uuid4().hex[:4]}", created=now, model=model)


def save(folder: Path, conversation: Conversation) -> None:
    """Into `folder` of a run. That run goes unnamed: its folder may be copied or renamed. Raises `UserError` when the
    disk refuses."""
    if conversation.voice is not None and conversation.voice.run == str(folder.parent):
        own = msgspec.structs.replace(conversation.voice, run="")
        conversation = msgspec.structs.replace(conversation, voice=own)
    text = msgspec.json.format(msgspec.json.encode(conversation), indent=1).decode()
    write_atomic(folder / f"{conversation.id}.json", text + "\n")


def load(path: Path) -> Conversation:
    """An answer that was being written when the app was killed has broken off. Raises `UserError` for a file that is
    not a conversation."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Conversation)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: not a conversation: {error}; move it away") from None
    voice = found.voice
    if voice is not None and not voice.url and (not voice.run or found.model == voice.model):
        found.voice = msgspec.structs.replace(voice, run=str(path.parent.parent))
    for turn in found.turns:
        if turn.role != "user" and not turn.finish_reason:
            if turn.earlier and not turn.content:  # of the new answer there is no word yet: the one before it counts
                turn.put_back()
            elif turn.content or turn.calls:
                turn.finish_reason = "cut"
    found.turns = [turn for turn in found.turns if turn.role == "user" or turn.finish_reason]
    return found


def kept(folder: Path) -> list[Conversation]:
    """Every readable conversation, newest first; files that are something else are passed over."""
    found: list[Conversation] = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            found.append(load(path))
        except UserError:
            continue
    return found
