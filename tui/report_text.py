"""The report, read back from its Markdown: sections of headings, paragraphs, quotes, fences and tables. Pure.

It understands what `picollm.run.report_blocks` writes; of a person's own notes, which may be any Markdown, it keeps
the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_ESCAPED = re.compile(r"\\(.)")
_BOLD = re.compile(r"(?<!\\)\*\*")
_BAR = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r"\|?[\s:|-]+\|?")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_UNITS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 0.001,
          "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12,
          "B/s": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}  # fmt: skip
_TIMES = ("d", "h", "min", "s", "ms")


@dataclass(frozen=True)
class Heading:
    text: str
    level: int


@dataclass(frozen=True)
class Words:
    """A paragraph as (words, whether they are bold)."""

    runs: tuple[tuple[str, bool], ...]

    @property
    def plain(self) -> str:
        return "".join(words for words, _ in self.runs)


@dataclass(frozen=True)
class Quote:
    text: str


@dataclass(frozen=True)
class Fence:
    """`kind` is what stands behind its opening: sh, text, json, or nothing."""

    text: str
    kind: str


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def numeric(self, column: int) -> bool:
        """Whether most cells of a column begin with a number."""
        cells = [row[column] for row in self.rows if row[column].strip(" –-")]
        return bool(cells) and 2 * sum(number(cell) is not None for cell in cells) > len(cells)

    def by(self, column: int, down: bool) -> Table:
        """Sorted by a column: numbers by size, before words by letter; what has neither comes last."""

        def rank(row: tuple[str, ...]) -> tuple[int, float, str]:
            cell, value = row[column], number(row[column])
            if not cell.strip(" –-"):
                return 2, 0.0, ""
            if value is None:
                return 1, 0.0, cell.lower()
            return 0, -value if down else value, ""

        ranked = sorted(self.rows, key=rank)
        words = [row for row in ranked if rank(row)[0] == 1]
        if down and words:
            rest = [row for row in ranked if rank(row)[0] == 2]
            ranked = [*(row for row in ranked if rank(row)[0] == 0), *reversed(words), *rest]
        return Table(self.head, tuple(ranked))


Block = Heading | Words | Quote | Fence | Table


@dataclass
class Section:
    title: str
    blocks: list[Block] = field(default_factory=list)


def number(cell: str) -> float | None:
    """What a cell begins with as a number: `1,000`, `20.0 % (14–28)`, `3 min 33 s` in seconds, `1.5 GiB` in bytes."""
    found = _NUMBER.match(cell.strip().lstrip("~≈$ "))
    if found is None:
        return None
    value = float(found[0].replace(",", ""))
    rest = cell.strip().lstrip("~≈$ ")[found.end() :]
    unit = re.match(r"\s?([A-Za-z/]+)", rest)
    if unit is None or unit[1] not in _UNITS:
        return value
    value *= _UNITS[unit[1]]
    more = rest[unit.end() :].strip()
    if unit[1] in _TIMES and re.match(r"\d+(\.\d+)?\s(h|min|s|ms)\b", more):
        value += number(more) or 0.0
    return value


def sections(report: str, only: str = "Overview") -> list[Section]:
    """One for each heading of the second level, the first with what stands before it; `only` where there is none of
    them, and without a text nothing."""
    found: list[Section] = []
    before: list[Block] = []
    for block in parse(report):
        if isinstance(block, Heading) and block.level == 2:
            found.append(Section(block.text))
            found[-1].blocks += before
            before = []
        else:
            (found[-1].blocks if found else before).append(block)
    if before:
        found.append(Section(only))
        found[-1].blocks += before
    return found


def parse(text: str) -> list[Block]:
    """All blocks, in order."""
    return list(_blocks(text.split("\n")))


def _blocks(lines: list[str]) -> Iterable[Block]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif line.startswith("```"):
            end = next((n for n in range(at + 1, len(lines)) if lines[n].rstrip() == "```"), len(lines))
            yield Fence("\n".join(lines[at + 1 : end]), line[3:].strip())
            at = end + 1
        elif found := re.match(r"(#{1,6}) (.*)", line):
            yield Heading(_plain(found[2]).strip(), len(found[1]))
            at += 1
        elif line.startswith(">"):
            end = _while(lines, at, lambda each: each.startswith(">"))
            yield Quote("\n".join(_quoted(each) for each in lines[at:end]))
            at = end
        elif line.startswith("|") and at + 1 < len(lines) and "-" in lines[at + 1] and _RULE.fullmatch(lines[at + 1]):
            end = _while(lines, at, lambda each: each.startswith("|"))
            head, *rows = (_cells(each) for each in (line, *lines[at + 2 : end]))
            width = len(head)
            yield Table(head, tuple((*row, *[""] * width)[:width] for row in rows))
            at = end
        else:
            end = _while(lines, at + 1, lambda each: bool(each.strip()) and not each.startswith(("```", "> ", "# ")))
            yield Words(_runs(lines[at:end]))
            at = end


def _while(lines: list[str], at: int, holds: object) -> int:
    """The first line from `at` on for which it does not hold."""
    assert callable(holds)
    return next((n for n in range(at, len(lines)) if not holds(lines[n])), len(lines))


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def _quoted(line: str) -> str:
    bare = line[1:].removeprefix(" ")
    bare = bare[:-1] if bare.endswith("\\") and not bare.endswith("\\\\") else bare
    return _plain(bare).replace("\u00a0", " ")


def _cells(line: str) -> tuple[str, ...]:
    parts = _BAR.split(line.strip())
    return tuple(_plain(part.strip()) for part in parts[1 : -1 if line.rstrip().endswith("|") else None])


def _runs(lines: list[str]) -> tuple[tuple[str, bool], ...]:
    """The lines of a paragraph joined, but for those of lists; bold is what stands between two pairs of stars."""
    text = lines[0]
    for line in lines[1:]:
        text += ("\n" if re.match(r"\s*([-*+]|\d+[.)]) ", line) else " ") + line
    parts = _BOLD.split(text)
    return tuple((_plain(part), number % 2 == 1) for number, part in enumerate(parts) if part)
