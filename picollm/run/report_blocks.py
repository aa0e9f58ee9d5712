"""What a report is made of, and the same as Markdown. Text from models and data is data: it is never read as Markdown.

`report_html` shows the same blocks as a page.
"""

from __future__ import annotations

import re

import msgspec

from picollm.run import curves

_MARKS = re.compile(r"[\\`*\[\]<|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
_FIRST = re.compile(r"^(\d*)(?=[.)\-+=>#])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Heading(msgspec.Struct, frozen=True):
    """`level` 1 is the title of the report."""

    text: str
    level: int = 2


class Text(msgspec.Struct, frozen=True):
    """A paragraph."""

    text: str


class Notes(msgspec.Struct, frozen=True):
    """The person's own words, Markdown as they wrote it."""

    text: str


class Table(msgspec.Struct, frozen=True):
    """Cells are text. The first column names the rows."""

    head: list[str]
    rows: list[list[str]]


class Said(msgspec.Struct, frozen=True):
    """What a model wrote: `who`, the text, and a line about it."""

    who: str
    text: str
    about: str = ""


class Command(msgspec.Struct, frozen=True):
    """What can be typed."""

    text: str


class Chart(msgspec.Struct, frozen=True):
    """One curve over steps; `marks` are words about some of them."""

    title: str
    steps: list[int]
    values: list[float]
    note: str = ""
    marks: list[tuple[int, str]] = []


Block = Heading | Text | Notes | Table | Said | Command | Chart


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, within a line."""
    return _MARKS.sub(lambda found: "\\" + found[0], text)


def line(text: str) -> str:
    """The same at the beginning of a line, where more has a meaning."""
    return _FIRST.sub(r"\1\\", escaped(text))


def visible(text: str) -> str:
    """Without the control characters that neither Markdown nor a page can hold."""
    return _CONTROLS.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def markdown(blocks: list[Block]) -> str:
    """All blocks, a blank line between them."""
    return "\n\n".join(_markdown(block) for block in blocks).rstrip() + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return "#" * block.level + " " + _cell(block.text)
        case Text():
            return line(" ".join(visible(block.text).split()))
        case Notes():
            return block.text.strip()
        case Table():
            rows = [[_cell(cell) for cell in row] for row in (block.head, *block.rows)]
            lines = ["| " + " | ".join(row) + " |" for row in rows]
            return "\n".join([lines[0], "|" + "---|" * len(block.head), *lines[1:]])
        case Said():
            about = f" ({escaped(block.about)})" if block.about else ""
            return f"**{escaped(block.who)}**{about}\n\n{_quote(block.text)}"
        case Command():
            return f"```sh\n{visible(block.text)}\n```"
        case Chart():
            marks = [step for step, _ in block.marks]
            said = [visible(f"│ {step:,}: {text}").replace("\n", " ") for step, text in block.marks]
            drawn = "\n".join([*curves.lines(block.steps, block.values, marks=marks), *said])
            return f"**{escaped(block.title)}** {escaped(block.note)}".rstrip() + f"\n\n```text\n{drawn}\n```"


def _cell(text: str) -> str:
    return escaped(" ".join(visible(str(text)).split())) or " "


def _quote(text: str) -> str:
    """Every line stays a line, and blanks at its beginning stay."""
    lines = (visible(text).rstrip().lstrip("\n") or "(nothing)").split("\n")
    quoted = []
    for this, following in zip(lines, [*lines[1:], ""], strict=True):
        bare = this.strip()
        indent = "\u00a0" * (len(this) - len(this.lstrip())) if bare else ""
        broken = "\\" if bare and following.strip() else ""  # a break that Markdown honours
        quoted.append(f"> {indent}{line(bare)}{broken}".rstrip(" "))
    return "\n".join(quoted)
