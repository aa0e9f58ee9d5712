"""The report that the run wrote, as Markdown, and the run manifest below it."""

from __future__ import annotations

import json

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Markdown

from tui.widgets.lines import LinesView, empty_state

MANIFEST_LINES = 200


class ReportPane(Vertical):
    """Parses only what changed, and only while it is on the screen."""

    DEFAULT_CSS = """
    ReportPane #report-scroll { scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    ReportPane Markdown { background: transparent; padding: 0 1 0 0; margin: 0; }
    ReportPane #report-empty { display: none; }
    ReportPane.empty #report-scroll { display: none; }
    ReportPane.empty #report-empty { display: block; }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id, classes="empty")
        self._shown: str | None = None

    def compose(self) -> ComposeResult:
        yield LinesView(id="report-empty")
        with VerticalScroll(id="report-scroll", can_focus=True):
            yield Markdown(open_links=False)

    def on_mount(self) -> None:
        self.query_one("#report-empty", LinesView).show(
            empty_state(
                "No report yet",
                "The last stage writes it: base, mid, sft and rl side by side,",
                "what was predicted and what it took, and how to make the run again.",
            )
        )

    async def update_from(self, report: str, manifest: str) -> None:
        whole = document(report, manifest)
        if whole == self._shown:
            return
        self._shown = whole
        self.set_class(not whole, "empty")
        if whole:
            await self.query_one(Markdown).update(whole)


def document(report: str, manifest: str) -> str:
    """Report and manifest as one Markdown text; empty when there is neither."""
    parts = [report.rstrip()] if report.strip() else []
    if manifest.strip():
        try:
            shown = json.dumps(json.loads(manifest), indent=2, ensure_ascii=False)
        except ValueError as error:
            shown = f"not readable: {error}"
        lines = shown.splitlines()
        if len(lines) > MANIFEST_LINES:
            lines = [*lines[:MANIFEST_LINES], f"… {len(lines) - MANIFEST_LINES} more lines in run_manifest.json"]
        parts.append("## run_manifest.json\n\n```json\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts)
