"""`picollm report`: the report as Markdown or as one HTML page, and the wrong answers behind its figures."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from picollm import cli_show
from picollm.run import failures, pipeline
from picollm.run import report as reports
from picollm.run.errors import UserError
from picollm.run.folder import Run, write_atomic
from picollm.run.report_blocks import visible


def report(
    run: Annotated[str | None, typer.Option("--run", help="run name (or its folder); default: the newest")] = None,
    html: Annotated[bool, typer.Option("--html", help="as one page that needs nothing else")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="write it there")] = None,
    wrong: Annotated[
        str | None,
        typer.Option("--failures", help="wrong answers instead: a model, or a model and task (sft/spelling)"),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="how many of them; 0: all that are kept")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="them as JSON lines")] = False,
) -> int:
    """Everything measured so far, also of a run that is not done; with --failures, what was answered wrongly."""
    found = cli_show.existing(run)
    if wrong is not None:
        if html or out:
            raise UserError("--failures prints; leave out --html and --out")
        print(_failures(found, wrong, limit, as_json))
        return 0
    if html:
        out = out or found.dir / "report" / "report.html"
        write_atomic(out.expanduser().absolute(), reports.page_of(found))
        print(out)
    elif out:
        write_atomic(out.expanduser().absolute(), reports.text_of(found))
        print(out)
    else:
        print(reports.text_of(found), end="")
    return 0


def _failures(run: Run, wanted: str, limit: int, as_json: bool) -> str:
    if wanted in pipeline.MODEL_STAGES and wanted in (kept := failures.kept(run)):
        if as_json:
            raise UserError(f"--json is for the answers to one task: --failures {wanted}/{next(iter(kept[wanted]))}")
        rows = [["wrong answers", ""], *([f"{wanted}/{task}", f"{len(failures.read(file)):,}"]
                                         for task, file in kept[wanted].items())]  # fmt: skip
        return cli_show.table(rows, right=(1,))
    name, file = failures.find(run, wanted)
    rows_found = failures.read(file)
    shown = rows_found[: limit or None]
    if as_json:
        return "\n".join(json.dumps(row) for row in shown)
    head = f"{name}: {len(rows_found):,} wrong answers kept" + (f", the first {limit}" if shown != rows_found else "")
    return "\n\n".join([head, *map(_one, shown)])


def _one(row: dict[str, Any]) -> str:
    topic = f"  {row['topic']}" if row["topic"] else ""
    parts = [("asked", row["prompt"]), ("right", row["expected"]), ("said", row["got"] or "(nothing)")]
    lines = [textwrap.indent(visible(text), " " * 8)[8:] for _, text in parts]
    said = (f"  {what:<6}{text}" for (what, _), text in zip(parts, lines, strict=True))
    return "\n".join([f"item {row['index']}{topic}", *said])
