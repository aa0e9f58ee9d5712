"""The command line of `picollm-tui`: what can be wrong is said before the screen is taken over."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from picollm.run.errors import UserError
from picollm.run.folder import Run
from tui import actions, asks, preferences, terminal
from tui.widgets import tones

SWITCH_S = 0.001  # the reader's thread and the keys wait for each other no longer than this


class _Parser(argparse.ArgumentParser):
    """Says what is wrong on one line."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    found = _Parser(prog="picollm-tui", description="Make your own chatbot from raw text, and watch every stage.")
    found.add_argument("--run", metavar="NAME", help="the run to show (default: the newest, else 'demo')")
    found.add_argument("--profile", metavar="P", help="profile of a new run, for example pocket")
    found.add_argument("--config", metavar="FILE", type=Path, help="your own settings, for a new run")
    found.add_argument("--set", metavar="K=V", action="append", default=[], dest="sets", help="one setting")
    found.add_argument("--go", action="store_true", help="make the run if needed and launch the whole pipeline")
    found.add_argument("--readonly", action="store_true", help="look only: nothing is launched, stopped or changed")
    found.add_argument("--replay", metavar="RUN", help="play a recorded run again, by name or folder; look only")
    found.add_argument("--speed", type=float, default=0.0, metavar="N", help="of a replay: N times as fast")
    found.add_argument("--theme", metavar="NAME", help=f"colours: {', '.join(tones.NAMES)}; , in the app keeps one")
    found.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")
    found.add_argument("--keys", action="store_true", help="print every action with its keys, as keys.toml, and leave")
    named = ", ".join(actions.TAB_NAMES)
    found.add_argument("--export-svg", nargs=2, metavar=("SCREEN", "FILE"),
                       help=f"draw SCREEN ({named}, help, train:sft or compare:ask) and leave")  # fmt: skip
    found.add_argument("--size", metavar="COLSxROWS", default="120x40", help="of that picture (default: 120x40)")
    return found


def main(argv: list[str] | None = None) -> None:
    """The entry point. Exit 0 after a normal end (signals included), 2 for the person's mistake."""
    given = parser().parse_args(argv)
    player = None
    try:
        if given.keys or preferences.keys_file().exists():
            from tui import keymap

            actions.remap(keymap.load())
        if given.keys:
            print(keymap.listing(), end="")
            return
        pictured = {"TERM": ""} if given.export_svg else {}  # a picture is not of this terminal
        look = preferences.chosen(given.theme, given.ascii, {**os.environ, **pictured})
        if given.speed and not given.replay:
            raise UserError("--speed is that of a replay: picollm-tui --replay RUN --speed 20")
        options = asks.resolve(given.run, given.profile, given.config, given.sets)
        if given.export_svg:
            from tui.export import export_svg, size_of

            screen, file = given.export_svg
            export_svg(options, screen, file, size_of(given.size), look)
            return
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UserError("picollm-tui needs a terminal; without one use: picollm watch")
        if os.environ.get("TERM") == "dumb":
            raise UserError("TERM is dumb: this terminal cannot move its cursor; use: picollm watch")
        if given.replay:
            from tui.replay import Player

            look.toured = True  # a replay teaches nothing about launching
            player = Player(Run.open(given.replay), given.speed or 1.0)
            player.start()
            options = asks.Options(run=str(player.run.dir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    from tui.app import PicollmApp

    readonly = given.readonly or player is not None
    options = replace(options, go=given.go and not readonly, readonly=readonly)
    app = PicollmApp(options, player, look)
    sys.setswitchinterval(SWITCH_S)
    terminal.give_size(sys.stdout.fileno())
    terminal.leave_with(sys.stdin.fileno())
    terminal.leave_on_signals(sys.stdin.fileno(), app.exit)
    try:
        app.run()
    finally:
        if player is not None:
            player.close()
    if app.farewell:
        print(app.farewell)
    sys.exit(app.return_code or 0)
