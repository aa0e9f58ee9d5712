"""One side of Compare: who answers, what they said, and what was measured of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from rich.console import RenderableType
from rich.text import Text
from textual.strip import Strip

from picollm.run.errors import UserError
from tui.talk import Piece
from tui.voices import Known, Voice
from tui.widgets.answer import Answer, Pace, end_of, told
from tui.widgets.lines import LinesView, text
from tui.widgets.tones import tone

LOW = 10  # lines under which none is left empty


class AnswerPane(LinesView):
    """`trail` holds answers of earlier checkpoints to the same prompt: it stays above the one being written."""

    def __init__(self, letter: str, id: str) -> None:
        super().__init__(id=id)
        self.letter = letter
        self.voice: Voice | None = None
        self.title = ""
        self.about = ""
        self.answer = Answer()
        self.trail: list[tuple[str, Answer]] = []
        self.error = ""
        self.writing = False

    def choose(self, voice: Voice | None, title: str, about: str = "") -> None:
        """Who answers from now on; what the one before said goes."""
        self.voice, self.title, self.about = voice, title, about
        self.clear()

    def meet(self, known: Known, here: str) -> None:
        """The same, with what is known of them."""
        self.choose(known.voice, known.voice.title(here), known.about)

    def clear(self, keep_trail: bool = False) -> None:
        self.answer, self.error, self.writing = Answer(), "", False
        if not keep_trail:
            self.trail = []
        self.draw()

    @property
    def note(self) -> str:
        if self.voice is None:
            return "nobody yet"
        how = "continues the text" if self.voice.continues else "answers"
        if self.voice.url:
            how += ", without top-k, and without the seed where its server takes none"
        return f"{how} · {self.about}" if self.about else how

    def draw(self) -> None:
        """Heading, earlier answers, this one, measures."""
        found: list[RenderableType] = [
            text((f"{self.letter} ", "second"), (self.title or "–", "title"), (f"  {self.note}", "faint")),
        ]  # fmt: skip
        if self.size.height > LOW:
            found.append(Text(""))
        for title, answer in self.trail:
            found += [text((title, "second")), text((answer.text.strip() or "(nothing)", "faint")), Text("")]
        if self.trail:
            found.append(text((self.title, "second")))
        found += told(self.answer.calls)
        body = end_of(self.answer.text)
        if self.writing:
            body.append("▏", tone("accent"))
        if self.answer.text or self.writing:
            found += [body, Text("")]
        if self.writing and not self.answer.text:
            found.append(text(("waiting for the model …", "faint")))
        if self.error:
            found.append(text((self.error, "bad")))
        if self.answer.text or self.answer.finish:
            found.append(self.answer.measured())
        following = self.max_scroll_y - self.scroll_y < 2
        self.show(found)
        if following:
            self.scroll_end(animate=False, immediate=True)

    def render_line(self, y: int) -> Strip:
        """The first line says who answers: it stays when the answer is scrolled."""
        return super().render_line(y if y else -self.scroll_offset.y)

    async def write(self, pieces: AsyncIterator[Piece]) -> None:
        """Show an answer as it comes. What goes wrong is shown in its place; a cancel is noted and raised."""
        self.writing = True
        self.draw()
        pace = Pace()
        try:
            async for piece in pieces:
                self.answer.take(piece)
                if pace.due:
                    begun = time.monotonic()
                    self.draw()
                    await pace.drawn(begun)
        except asyncio.CancelledError:
            self.answer.finish = "cancel"
            raise
        except UserError as error:
            self.error, self.answer.finish = str(error), "error"
        except Exception as error:  # a fault of ours: said here, and the other side goes on
            self.error, self.answer.finish = f"{type(error).__name__}: {error}", "error"
        finally:
            self.writing = False
            if self.is_attached:
                self.draw()
