"""The tokens of an answer, shaded by how likely they were; of the one under the cursor the number, and what else could
have stood there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.cells import cell_len
from rich.color import Color, blend_rgb
from rich.console import RenderableType
from rich.style import Style
from rich.text import Text

from picollm.run.stream import Token
from tui.figures import bar, counted
from tui.widgets.lines import clean, text
from tui.widgets.tones import tone

BAR = 16
MARGIN = 6  # cells at the end of a line that wrapping between words may leave empty
BENEATH = 14  # lines around the tokens: who said it, the one under the cursor, what else was likely, the measures
UNLIKELY = 0.1
MIDDLING = 0.5


def probability(logprob: float) -> float:
    """0 to 1, whatever a server says."""
    return min(1.0, math.exp(min(0.0, logprob))) if not math.isnan(logprob) else 0.0


def shade(p: float) -> Style:
    """The less likely, the stronger the ground. Unlikely tokens are underlined too: colour alone says nothing."""
    ground = _ground("bad" if p < UNLIKELY else "warn", 0.55 * (1 - p)) if p < 0.95 else Style()
    return tone("plain") + ground + Style(underline=True if p < UNLIKELY else None)


def _ground(name: str, strength: float) -> Style:
    """A tone as a background, mixed towards black; nothing where the terminal's own colours are used."""
    color = tone(name).color
    if color is None or color.triplet is None:
        return Style()
    ink = tone("plain").color
    paper = (0, 0, 0) if ink is None or ink.triplet is None or sum(ink.triplet) > 380 else (255, 255, 255)
    mixed = blend_rgb(color.triplet.__class__(*paper), color.triplet, cross_fade=strength)
    return Style(bgcolor=Color.from_triplet(mixed))


def named(token: str) -> str:
    """A token as one can point at it: blanks and line ends are seen."""
    return "“" + clean(token).replace("\n", "\\n").replace("\t", "\\t") + "”"


def percent(p: float) -> str:
    return f"{p:.1%}".replace("%", " %") if p >= 0.0005 else "< 0.1 %"


def page_of(seen: Sequence[Token], at: int, width: int, height: int) -> tuple[int, int]:
    """The first and past the last of the tokens that are drawn with the one at `at`: what fits on `height` lines of
    `width` cells. A page stays the same while the cursor moves on it."""
    start, line, column = 0, 1, 0
    for number, token in enumerate(seen):
        for letter in clean(token.text):
            column += cell_len(letter)
            if letter == "\n" or column > width:
                line, column = line + 1, 0 if letter == "\n" else cell_len(letter)
        if line > height and number > start:
            if number > at:
                return start, number
            start, line, column = number, 1, 0
    return start, len(seen)


def token_blocks(seen: Sequence[Token], at: int, width: int, height: int) -> list[RenderableType]:
    """The answer by its tokens, and beneath it the one at `at`; of a long answer the page that the cursor is on.

    `width` and `height` are those of the conversation, in cells.
    """
    if not seen:
        return [text(("the probabilities of this answer's tokens are not known: answer again to see them", "faint"))]
    at = min(max(0, at), len(seen) - 1)
    first, past = page_of(seen, at, max(8, width - MARGIN), max(3, height - BENEATH))
    body = Text()
    for number, token in enumerate(seen[first:past], first):
        style = shade(probability(token.logprob))
        words = clean(token.text)
        if number == at:
            style = style + Style(reverse=True, bold=True)
            words = words.replace("\n", "\\n\n") or " "
        body.append(words, style)
    whole = past - first == len(seen)
    page = [] if whole else [text((f"tokens {first + 1:,} to {past:,} of {len(seen):,}", "faint"))]
    return [*page, body, Text(""), *_about(seen[at], at, len(seen)), _surprise(seen)]


def _about(token: Token, at: int, of: int) -> list[RenderableType]:
    found: list[RenderableType] = [
        text((f"token {at + 1} of {of}  ", "faint"), (named(token.text), "strong"), ("  drawn with ", "faint"),
             (percent(probability(token.logprob)), "strong")),
    ]  # fmt: skip
    listed = [(words, logprob) for words, logprob in token.top if words != token.text]
    for words, logprob in sorted([*listed, (token.text, token.logprob)], key=lambda pair: -pair[1]):
        mine = words == token.text
        p = probability(logprob)
        found.append(text(("> " if mine else "  ", "accent"), (f"{percent(p):>8}  ", "strong" if mine else "plain"),
                          (bar(p, BAR), "accent" if mine else "faint"), ("  " + named(words), "plain")))  # fmt: skip
    return found


def _surprise(seen: Sequence[Token]) -> Text:
    """How sure the model was over the whole answer."""
    mean = -sum(min(0.0, token.logprob) for token in seen if math.isfinite(token.logprob)) / len(seen)
    rare = sum(probability(token.logprob) < UNLIKELY for token in seen)
    under = f"{rare} of {counted(len(seen), 'token')} under 10 % (underlined)"
    return text((f"whole answer: perplexity {math.exp(min(mean, 50)):.3g}, {under}", "faint"))
