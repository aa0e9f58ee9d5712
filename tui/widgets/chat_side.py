"""Beside a conversation: how full the context is, who answers, and how."""

from __future__ import annotations

import time

from rich.console import RenderableType
from rich.text import Text

from tui import actions
from tui.conversations import Conversation
from tui.figures import bar, counted
from tui.talk import Sampling
from tui.voices import Known
from tui.widgets.lines import heading, rows, text

GAUGE = 10


def used(conversation: Conversation) -> int:
    """Tokens of the context that the last answer and what led to it took; 0 when nobody counted."""
    for turn in reversed(conversation.turns):
        if turn.role == "assistant" and turn.prompt_tokens:
            return turn.prompt_tokens + (turn.tokens or 0)
    return 0


def context_line(conversation: Conversation, known: Known | None) -> Text:
    """The context gauge: a bar and both numbers."""
    context, held = known.context if known else None, used(conversation)
    if not context:
        return text((f"context {counted(held, 'token')}" if held else "", "faint"))
    share = min(1.0, held / context)
    mood = "bad" if share > 0.9 else "warn" if share > 0.7 else "accent"
    if not held:
        return text(("context ", "faint"), (f"{context:,} tokens", "plain"))
    return text(("context ", "faint"), (bar(share, GAUGE), mood), (f" {held:,} of {context:,} tokens", "plain"))


def side_blocks(conversation: Conversation, model: str, known: Known | None, sampling: Sampling,
                readonly: bool) -> list[RenderableType]:  # fmt: skip
    """The panel of a wide screen."""
    s = sampling
    found: list[RenderableType] = [heading("Model", model or "none yet")]
    if known is not None and known.about:
        found.append(text((known.about, "plain")))
    found.append(context_line(conversation, known))
    share = used(conversation) / known.context if known and known.context else 0
    if share > 0.9:
        found.append(text(("full: the oldest messages are left out from now on", "warn")))
    found += [Text(""), heading("Sampling", actions.find("settings", "chat").first)]
    found.append(rows([("temperature", f"{s.temperature:g}"), ("top-k", f"{s.top_k}"), ("seed", f"{s.seed}"),
                       ("longest", f"{s.max_tokens} tokens")]))  # fmt: skip
    found += [Text(""), heading("System prompt")]
    found.append(text((s.system, "plain")) if s.system else text(("none", "faint")))
    found += [Text(""), heading("Conversation", counted(len(conversation.turns), "message"))]
    began = time.strftime("%d %b %H:%M", time.localtime(conversation.created))
    kept = "not kept: read-only" if readonly else f"conversations/{conversation.id}.json"
    found += [text((f"begun {began}", "plain")), text((kept, "faint"))]
    return found
