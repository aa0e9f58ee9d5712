"""Pictures for the README: one screen of a run, drawn without a terminal, as SVG."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

from picollm.run import pipeline
from picollm.run.errors import UserError
from tui import actions, asks

SIZE = (120, 40)
SETTLE_S = 2.0


def export_svg(options: asks.Options, screen: str, file: str) -> None:
    """Write SCREEN (a tab, or `tab:stage`) of the run as an SVG picture. Raises `UserError`."""
    tab, _, stage = screen.partition(":")
    if tab not in actions.TAB_NAMES:
        raise UserError(f"--export-svg {screen}: expected one of {', '.join(actions.TAB_NAMES)}, or train:sft")
    if stage:
        pipeline.stage(stage)
    path = Path(file)
    if not path.absolute().parent.is_dir():
        raise UserError(f"--export-svg {file}: the folder {path.absolute().parent} does not exist")
    svg = asyncio.run(_draw(replace(options, tab=tab, stage=stage)))
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--export-svg {file}: {error.strerror}") from None
    print(path)


async def _draw(options: asks.Options) -> str:
    from tui.app import PicollmApp

    app = PicollmApp(options)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(SETTLE_S)
        svg = app.export_screenshot(title=f"picollm-tui · {Path(options.run).name}")
    # A picture must not fetch fonts from somebody's server when it is looked at.
    return re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
