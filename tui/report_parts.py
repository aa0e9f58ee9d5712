"""What the Report tab is made of: the report's sections, and what lies beside it in the run folder.

A part gives lines to draw and answers the tab's keys. `load` reads the run folder and is called in a thread; nothing
else here touches the disk.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from picollm.run import failures, pipeline, votes
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.models import step_of
from tui.report_text import Section, Table
from tui.widgets.answer import measured
from tui.widgets.lines import clean, empty_state, heading, text
from tui.widgets.lines import rows as pairs
from tui.widgets.report_blocks import drawn, table_of

LISTED = 100  # votes that are drawn, the newest ones
PAGE = 6  # rows of a list above the chosen one in full: few, and in place, so that a step changes little


class Part:
    """The keys that mean nothing to a part do nothing. `cursor` is the line to keep in sight, if any; `look` is all
    that the lines depend on besides the width, None where there is more."""

    title = ""
    hint = ""
    cursor: int | None = None

    @property
    def look(self) -> object:
        return None

    def load(self, run: Run) -> None:
        """Read what is shown; again and again, for it may grow. Raises `UserError`."""

    def blocks(self, width: int) -> list[RenderableType]:
        raise NotImplementedError

    def move(self, by: int) -> None:
        """The next or previous row."""

    def group(self, by: int) -> None:
        """The next or previous task, stage, …"""

    def model(self) -> None:
        """The next model."""

    def toggle(self) -> None:
        """Open or close."""

    def sort(self) -> None:
        """By the next column."""

    def turn(self) -> None:
        """The other way round."""

    @property
    def plain(self) -> str:
        """As text, to copy."""
        return ""


class ReportPart(Part):
    """A section of the report. Its tables are sorted by the same column, where they have it."""

    def __init__(self, section: Section) -> None:
        self.section, self.title = section, section.title
        self.column, self.down = -1, True
        self.width = max((len(block.head) for block in section.blocks if isinstance(block, Table)), default=0)
        self.hint = "t sorts" if self.width else ""

    def blocks(self, width: int) -> list[RenderableType]:
        found: list[RenderableType] = []
        for block in self.section.blocks:
            found += [*drawn(block, width, self.column, self.down), Text("")]
        return found

    @property
    def look(self) -> object:
        return self.column, self.down

    def sort(self) -> None:
        self.column = self.column + 1 if self.column + 1 < self.width else -1

    def turn(self) -> None:
        self.down = not self.down

    @property
    def plain(self) -> str:
        lines = [self.title]
        for block in self.section.blocks:
            match block:
                case Table():
                    lines += ["\t".join(row) for row in (block.head, *block.rows)]
                case _:
                    lines.append(str(getattr(block, "plain", "") or getattr(block, "text", "")))
        return "\n".join(lines) + "\n"


class SamplesPart(Part):
    """What a stage's model said to the same prompt at every step it was read at."""

    title = "Samples"
    hint = "n/p prompt  [ ] stage"

    def __init__(self) -> None:
        self.stages: dict[str, list[tuple[int, dict[str, dict[str, Any]]]]] = {}
        self._read: dict[Path, dict[str, dict[str, Any]]] = {}
        self.stage = self.prompt = 0

    def load(self, run: Run) -> None:
        found: dict[str, list[tuple[int, dict[str, dict[str, Any]]]]] = {}
        for stage in pipeline.NAMES:
            for file in sorted((run.dir / "samples" / stage).glob("step-*.jsonl")):
                if file not in self._read:  # they are written once
                    self._read[file] = _samples(file)
                found.setdefault(stage, []).append((step_of(file.with_suffix("")), self._read[file]))
        self.stages = found

    @property
    def _prompts(self) -> list[str]:
        _, steps = self._chosen
        return list(dict.fromkeys(prompt for _, said in steps for prompt in said))

    @property
    def _chosen(self) -> tuple[str, list[tuple[int, dict[str, dict[str, Any]]]]]:
        names = list(self.stages)
        name = names[self.stage % len(names)]
        return name, sorted(self.stages[name], key=lambda pair: pair[0])

    def blocks(self, width: int) -> list[RenderableType]:
        if not self.stages:
            return empty_state("No samples yet", "While a model trains it is given the same prompts now and then; "
                               "what it says at each of these steps is shown here, one below the other.")  # fmt: skip
        name, steps = self._chosen
        prompts = self._prompts
        prompt = prompts[self.prompt % len(prompts)]
        place = f"prompt {self.prompt % len(prompts) + 1} of {len(prompts)}"
        found: list[RenderableType] = [heading(pipeline.stage(name).title, place),
                                       text((clean(prompt), "strong")), Text("")]  # fmt: skip
        for step, said in steps:
            if prompt in said:
                row = said[prompt]
                words = clean(str(row.get("text", ""))).strip("\n")
                found += [text((f"step {step:,}", "second")), text(words or "(nothing)"),
                          measured(words, row.get("finish_reason"), row.get("tok_s"), row.get("tokens")),
                          Text("")]  # fmt: skip
        return found

    def move(self, by: int) -> None:
        if self.stages:
            self.prompt = (self.prompt + by) % len(self._prompts)

    def group(self, by: int) -> None:
        if self.stages:
            self.stage = (self.stage + by) % len(self.stages)
            self.prompt = 0

    @property
    def plain(self) -> str:
        if not self.stages:
            return ""
        name, steps = self._chosen
        prompt = self._prompts[self.prompt % len(self._prompts)]
        said = [f"step {step}: {rows[prompt].get('text', '')}" for step, rows in steps if prompt in rows]
        return "\n\n".join([f"{name}: {prompt}", *said]) + "\n"


def _samples(file: Path) -> dict[str, dict[str, Any]]:
    """By prompt; a line that is no sample is passed over."""
    found: dict[str, dict[str, Any]] = {}
    for line in file.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
            found[str(row["prompt"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found


class FailuresPart(Part):
    """Wrong answers of the chat evaluation: the chosen one in full, and what the other models made of it."""

    title = "Failures"
    hint = "n/p answer  [ ] task  m model"

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Path]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}  # of the chosen task, by model
        self.name = self.task = ""
        self.at = 0

    def load(self, run: Run) -> None:
        self.files = failures.kept(run)
        if not self.files:
            return
        if self.name not in self.files:
            self.name = list(self.files)[-1]
        tasks = self.files[self.name]
        if self.task not in tasks:
            self.task = next(iter(tasks))
        self.rows = {model: failures.read(files[self.task]) for model, files in self.files.items()
                     if self.task in files}  # fmt: skip

    @property
    def _mine(self) -> list[dict[str, Any]]:
        return self.rows.get(self.name, [])

    def blocks(self, width: int) -> list[RenderableType]:
        if not self.files:
            return empty_state("No wrong answers kept yet", "Chat eval asks every model held-out questions; "
                               "what it got wrong can be read here, beside what the others said.")  # fmt: skip
        rows = self._mine
        found: list[RenderableType] = [heading(f"{self.name} · {self.task}", f"{len(rows)} wrong answers kept")]
        if not rows:
            return [*found, Text(""), text(("none: all of them were right", "good"))]
        self.at = min(self.at, len(rows) - 1)
        row = rows[self.at]
        first = self.at - self.at % PAGE
        for number, each in enumerate(rows[first : first + PAGE], first):
            here = number == self.at
            line = text(("> " if here else "  ", "accent"), (f"{number + 1:>4}  ", "faint"),
                        (" ".join(_said(each, "prompt").split()), "strong" if here else "plain"),
                        ("  → ", "faint"), (" ".join(_said(each, "got").split()), "faint"))  # fmt: skip
            line.truncate(max(20, width), overflow="ellipsis")
            found.append(line)
        said = [("right", text((_said(row, "expected"), "good")))]
        said += [(("> " if model == self.name else "") + model, text(*self._of(model, row))) for model in self.files]
        return [*found, Text(""), text((_said(row, "prompt"), "strong")), Text(""), pairs(said)]

    def _of(self, model: str, row: dict[str, Any]) -> list[tuple[str, str]]:
        """What a model answered to the item of `row`."""
        rows = self.rows.get(model)
        if rows is None:
            return [("not asked", "faint")]
        found = next((each for each in rows if each.get("index") == row.get("index")), None)
        if found is not None:
            return [(_said(found, "got") or "(nothing)", "bad" if model == self.name else "plain")]
        return [("right", "good")] if len(rows) < failures.MOST_KEPT else [("right, or not kept", "faint")]

    def move(self, by: int) -> None:
        if self._mine:
            self.at = (self.at + by) % len(self._mine)

    def group(self, by: int) -> None:
        tasks = list(self.files.get(self.name, {}))
        if tasks:
            self.task = tasks[(tasks.index(self.task) + by) % len(tasks)]
            self.at = 0

    def model(self) -> None:
        names = list(self.files)
        if names:
            self.name = names[(names.index(self.name) + 1) % len(names)]
            self.at = 0

    @property
    def plain(self) -> str:
        if not self._mine:
            return ""
        row = self._mine[min(self.at, len(self._mine) - 1)]
        return "".join(f"{key}: {_said(row, key)}\n" for key in ("prompt", "expected", "got"))


def _said(row: dict[str, Any], key: str) -> str:
    return clean(str(row.get(key, ""))).strip("\n")


class VotesPart(Part):
    """How people judged pairs of models in Compare."""

    title = "Votes"

    def __init__(self) -> None:
        self.votes: list[votes.Vote] = []

    def load(self, run: Run) -> None:
        self.votes = votes.read(run)

    def blocks(self, width: int) -> list[RenderableType]:
        if not self.votes:
            return empty_state("No votes yet", "In Compare you say which of two answers was better; "
                               "how each pair of models came off is counted here.")  # fmt: skip
        rows = []
        for row in votes.tally(self.votes):
            points = [f"{name} {_mean(a)} : {_mean(b)}" for name, (a, b) in row.points.items()]
            rows.append((f"{row.first} : {row.second}", f"{row.won} : {row.lost}", str(row.tied), str(row.neither),
                         ", ".join(points) or "–"))  # fmt: skip
        head = ("pair", "better", "equal", "neither", f"mean points of {votes.MOST}")
        found: list[RenderableType] = [*table_of(Table(head, tuple(rows)), width), Text(""),
                                       heading("The newest")]  # fmt: skip
        for vote in self.votes[: -LISTED - 1 : -1]:
            when = time.strftime("%d %b %H:%M", time.localtime(vote.time))
            better = {"a": vote.a.model, "b": vote.b.model}.get(vote.winner, vote.winner)
            found += [Text(""), text((f"{when}  ", "faint"), (" ".join(clean(vote.prompt).split()), "strong")),
                      text((f"{vote.a.model} against {vote.b.model}: ", "faint"), (better, "plain"),
                           (f"  {clean(vote.note)}" if vote.note else "", "faint"))]  # fmt: skip
        return found


def _mean(points: float | None) -> str:
    return "–" if points is None else f"{points:.1f}"


class ManifestPart(Part):
    """run_manifest.json as a tree."""

    title = "Manifest"
    hint = "n/p line  Enter opens"

    def __init__(self, manifest: str) -> None:
        self.problem = ""
        self.tree: Any = None
        if manifest.strip():
            try:
                self.tree = json.loads(manifest)
            except (ValueError, RecursionError) as error:
                self.problem = f"run_manifest.json is not readable: {error}"
        self.open: set[tuple[str, ...]] = {()}
        self.at = 0
        self._lines: list[tuple[tuple[str, ...], Any]] = []

    def blocks(self, width: int) -> list[RenderableType]:
        if self.problem:
            return [text((self.problem, "bad"))]
        if self.tree is None:
            return empty_state("No manifest yet", "The last stage writes it: settings, machine, hashes, times and "
                               "results of the run, as one JSON file.")  # fmt: skip
        self._lines = list(_lines((), self.tree, self.open))
        self.at = min(self.at, len(self._lines) - 1)
        self.cursor = self.at
        found: list[RenderableType] = []
        for number, (path, value) in enumerate(self._lines):
            inner = isinstance(value, dict | list) and value
            mark = ("- " if path in self.open else "+ ") if inner else "  "
            line = text(("> " if number == self.at else "  ", "accent"), ("  " * (len(path) - 1) + mark, "faint"),
                        (clean(path[-1]), "title" if inner else "faint"), ("  ", "faint"),
                        (_summary(value), "faint" if inner else "plain"))  # fmt: skip
            line.truncate(max(20, width), overflow="ellipsis")
            found.append(line)
        return found

    def move(self, by: int) -> None:
        self.at = max(0, min(len(self._lines) - 1, self.at + by))

    def group(self, by: int) -> None:
        """The next line of the first level."""
        tops = [number for number, (path, _) in enumerate(self._lines) if len(path) == 1]
        ahead = [n for n in tops if (n > self.at if by > 0 else n < self.at)]
        if ahead:
            self.at = ahead[0] if by > 0 else ahead[-1]

    def toggle(self) -> None:
        if self._lines:
            path, value = self._lines[self.at]
            if isinstance(value, dict | list) and value:
                self.open ^= {path}

    @property
    def plain(self) -> str:
        if not self._lines:
            return ""
        path, value = self._lines[self.at]
        return f"{'.'.join(path)} = {json.dumps(value, indent=2, ensure_ascii=False)}\n"


def _lines(path: tuple[str, ...], value: Any, opened: set[tuple[str, ...]]) -> Any:
    """(path, value) of every line that is open, in order."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        here = (*path, str(key))
        yield here, inner
        if here in opened and isinstance(inner, dict | list):
            yield from _lines(here, inner, opened)


def _summary(value: Any) -> str:
    match value:
        case dict() | list() if value:
            return f"{len(value)} {'entries' if isinstance(value, list) else 'keys'}"
        case str():
            return " ".join(clean(value).split())
        case _:
            return json.dumps(value)


def load(part: Part, run: Run) -> str:
    """`part.load`, and what went wrong with it, if anything did."""
    try:
        part.load(run)
    except (UserError, OSError) as error:
        return str(error)
    return ""
