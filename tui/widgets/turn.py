"""One message of a conversation on the screen: who, the words, and under an answer what was measured."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Markdown
from textual.widgets.markdown import MarkdownStream

from tui.conversations import Turn
from tui.figures import counted
from tui.widgets.answer import LONGEST_DRAWN, Answer, end_of, measured, told
from tui.widgets.frame import OneLine
from tui.widgets.lines import LinesView, clean, text
from tui.widgets.token_view import token_blocks
from tui.widgets.tones import tone

MARKER = r"(?:>|[-*+][ \t]|\d{1,9}[.)][ \t])"
NESTED = re.compile(rf"^(?:{MARKER}[ \t]*){{10}}|^(?: {{30}}|\t{{8}})[ \t]*{MARKER}", re.MULTILINE)
DEEPEST = 200


def _parser() -> MarkdownIt:
    """Nothing of what was said may be missing: HTML is the text it is, and by itself the parser would pass over what is
    nested deeper than twenty levels, with all that follows."""
    return MarkdownIt("gfm-like", {"html": False, "maxNesting": DEEPEST})


def _drawable(words: str) -> bool:
    """Whether they can be laid out as Markdown: neither longer nor deeper than anybody reads."""
    return len(words) < LONGEST_DRAWN and not NESTED.search(words)


class TurnView(Vertical):
    """`markdown`: show the words as such. `tokens` is the place of the cursor in the token view, None without it."""

    DEFAULT_CSS = """
    TurnView { height: auto; margin-bottom: 1; }
    TurnView LinesView { height: auto; scrollbar-size: 0 0; }
    TurnView Markdown { background: transparent; padding: 0; margin: 0; }
    TurnView Markdown MarkdownH1, TurnView Markdown MarkdownH2, TurnView Markdown MarkdownH3,
    TurnView Markdown MarkdownH4, TurnView Markdown MarkdownH5, TurnView Markdown MarkdownH6 {
        margin: 0 0 1 0; content-align: left middle; }
    """

    def __init__(self, turn: Turn, answer: Answer | None = None, markdown: bool = True) -> None:
        super().__init__()
        self.turn, self.answer = turn, answer
        self.markdown = markdown and turn.role == "assistant" and not turn.plain and _drawable(turn.content)
        self.chosen, self.writing = False, False
        self.tokens: int | None = None
        self._stream: MarkdownStream | None = None
        self._shown = 0  # characters

    def compose(self) -> ComposeResult:
        yield OneLine()
        yield LinesView(classes="tools")
        if self.markdown and self.tokens is None:
            yield Markdown(clean(self.turn.content), parser_factory=_parser, open_links=False)
        else:
            yield LinesView(classes="words")
        yield LinesView(classes="foot")

    def on_mount(self) -> None:
        for view in self.query(LinesView):
            view.can_focus = False
        self.call_after_refresh(self.draw)

    def draw(self) -> None:
        """Everything but Markdown, which draws itself."""
        if not self.is_mounted:
            return
        turn = self.turn
        who = "you" if turn.role == "user" else turn.model or "model"
        head = text(("> " if self.chosen else "", "accent"), (who, "second" if turn.role == "user" else "title"))
        if turn.earlier:
            head.append(f"  answer {len(turn.earlier) + 1}, the earlier ones are kept on disk", tone("faint"))
        if turn.cut_tokens:
            head.append(f"  the oldest {counted(turn.cut_tokens, 'token')} did not fit", tone("warn"))
        self.query_one(OneLine).set_line(head)
        self._fill(".tools", told(turn.calls))
        self._draw_words()
        foot: list[RenderableType] = []
        if turn.finish_reason:
            foot = [measured(turn.content, turn.finish_reason, turn.tok_s, turn.tokens, turn.first_token_s)]
        elif self.writing and not turn.content:
            foot = [text(("waiting for the model …", "faint"))]
        self._fill(".foot", foot)

    def _fill(self, which: str, blocks: list[RenderableType] | list[Text]) -> None:
        """An empty one has no height; hidden it would not know its width when it gets lines."""
        self.query_one(which, LinesView).show(blocks)

    def _draw_words(self) -> None:
        found = list(self.query(".words"))
        if not found:
            return
        if self.tokens is not None:
            blocks = token_blocks(self.answer.seen if self.answer else [], self.tokens, *self._room)
        else:
            body = end_of(self.turn.content)
            if self.writing:
                body.append("▏", tone("accent"))
            blocks = [body]
        self._fill(".words", blocks)

    @property
    def _room(self) -> tuple[int, int]:
        """Cells that the conversation has on the screen."""
        return self.parent.size if isinstance(self.parent, Widget) else self.size

    async def show_tokens(self, at: int | None) -> None:
        """Open the token view with its cursor at a token, move that, or with None close it."""
        was, self.tokens = self.tokens, at
        if (was is None) != (at is None) and self.markdown:
            await self._compose_anew()
        self.call_after_refresh(self.draw)

    async def _compose_anew(self) -> None:
        await self.recompose()
        for view in self.query(LinesView):
            view.can_focus = False

    async def begin(self) -> None:
        """From now on `write` shows the words that are new."""
        self.writing = True
        found = list(self.query(Markdown))
        self._stream = Markdown.get_stream(found[0]) if found else None
        self.draw()

    async def write(self) -> None:
        """`turn.content` has grown. Markdown that cannot be drawn any more goes on as the text it is."""
        words = self.turn.content[self._shown :]
        self._shown = len(self.turn.content)
        if self._stream is not None and not _drawable(self.turn.content):
            await self._end_stream()
            self.markdown = False
            await self._compose_anew()
        if self._stream is not None:
            await self._stream.write(words)
        self.draw()

    async def end(self) -> None:
        """No more words come."""
        if self._shown < len(self.turn.content):
            await self.write()
        self.writing = False
        await self._end_stream()
        self.draw()

    async def _end_stream(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.stop()
