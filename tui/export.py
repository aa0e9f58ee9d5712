"""Pictures for documentation: one screen of a run, drawn without a terminal, as SVG."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picollm.run import pipeline
from picollm.run.errors import UserError
from tui import actions, asks
from tui.preferences import Preferences

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from tui.app import PicollmApp

SIZE = (120, 40)
LARGEST = 1000
PATIENCE_S = 30.0
ANSWERS_S = 120.0
ASKING = "compare:ask"
QUIET_S = 0.4  # a screen that did not change for so long is complete
LOOK_S = 0.03


def size_of(text: str) -> tuple[int, int]:
    """`120x40` as (columns, rows). Raises `UserError`."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not all(0 < int(part) <= LARGEST for part in found.groups()):
        raise UserError(f"--size {text}: expected columns and rows of a terminal, for example 120x40")
    return int(found[1]), int(found[2])


def export_svg(
    options: asks.Options, screen: str, file: str, size: tuple[int, int] = SIZE, look: Preferences | None = None
) -> None:
    """Write SCREEN (a tab, `tab:stage`, or `help`) of the run as an SVG picture. Chat is drawn with the newest
    conversation, `compare:ask` with the answers to the first prompt. Raises `UserError`."""
    tab, _, stage = screen.partition(":")
    if tab not in (*actions.TAB_NAMES, "help"):
        raise UserError(
            f"--export-svg {screen}: expected one of {', '.join(actions.TAB_NAMES)}, help, train:sft, or {ASKING}"
        )
    asking = screen == ASKING
    if asking:
        stage = ""
    if stage:
        pipeline.stage(stage)
    path = Path(file)
    if not path.absolute().parent.is_dir():
        raise UserError(f"--export-svg {file}: the folder {path.absolute().parent} does not exist")
    options = replace(options, tab="stage" if tab == "help" else tab, stage=stage)
    svg = asyncio.run(_draw(options, tab, size, look, asking))
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--export-svg {file}: {error.strerror}") from None
    print(path)


async def _draw(
    options: asks.Options, tab: str, size: tuple[int, int], look: Preferences | None, asking: bool
) -> str:  # fmt: skip
    from tui import conversations
    from tui.app import PicollmApp

    if look is not None:
        look.toured = True
    app = PicollmApp(options, look=look)
    async with app.run_test(size=size) as pilot:
        await settled(pilot, lambda: _read(app))
        if tab == "help":
            app.action_help()
            await settled(pilot)
        pane: Any = app.main.panes.get(tab)
        if tab == "chat" and (kept := conversations.kept(app.conversations_folder())):
            await pane.open(kept[0])
            await settled(pilot)
        if asking:
            pane.ask()
            await settled(pilot, lambda: not pane.busy, patience=ANSWERS_S)
        svg = app.export_screenshot(title=f"picollm-tui · {Path(options.run).name}")
    # A picture must not fetch fonts from somebody's server when it is looked at.
    return re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)


def _read(app: PicollmApp) -> bool:
    """Whether the run was looked at, and the stage that is shown."""
    detail = app.main.detail
    return app.main.view.known and detail is not None and detail.stage == app.main.stage


async def settled(
    pilot: Pilot[Any], ready: Callable[[], bool] = lambda: True, quiet: float = QUIET_S, patience: float = PATIENCE_S
) -> None:
    """Wait until `ready()` and nothing has changed on the screen for `quiet` seconds; for `patience` at most. They are
    counted in looks, between each of which the app had its turn: time passes on a machine that stands still, too."""
    end = time.monotonic() + patience
    app: Any = pilot.app
    before: object = None
    calm = 0
    while time.monotonic() < end and calm * LOOK_S < quiet:
        await pilot.pause(LOOK_S)
        now = [hash(tuple(strip)) for strip in app.screen._compositor.render_strips()]
        calm = calm + 1 if app.at_rest and ready() and now == before else 0
        before = now
