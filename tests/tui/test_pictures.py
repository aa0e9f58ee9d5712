"""Pictures of every screen: states, sizes, themes, dialogs. `PICTURES=write pytest tests/tui/test_pictures.py` keeps
what is drawn now; look at it (`git diff`, or `cat`) before committing it.

Fixture runs, a fixed clock, a fixed time zone and a machine whose readings are given: what is drawn depends on the
code alone. Where a picture differs, the test says in which lines and where an SVG of what was drawn lies.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from picollm.run import events as ev
from picollm.run.folder import Run
from tests.fixtures import make_runs
from tests.tui import pictures
from tests.tui.conftest import shown, until
from tui import asks
from tui.app import PicollmApp
from tui.export import settled
from tui.preferences import Preferences

NOW = 1_750_000_000.0  # 15 June 2025, 15:06:40 UTC
WIDE, COMFORTABLE, SMALL, HUGE = (120, 40), (80, 24), (60, 20), (220, 60)
WRITE = os.environ.get("PICTURES") == "write"


@dataclass(frozen=True)
class Shot:
    """One picture: a tab (with the stage selected for it), keys pressed there, and how it is drawn."""

    screen: str
    size: tuple[int, int] = WIDE
    theme: str = "dark"
    keys: tuple[str, ...] = ()
    title: str = ""
    ascii: bool = False

    def name(self, kind: str) -> str:
        what = self.screen.replace(":", "-") + (f"-{self.title}" if self.title else "")
        look = ("" if self.theme == "dark" else f".{self.theme}") + (".ascii" if self.ascii else "")
        return f"{what}.{kind}.{self.size[0]}x{self.size[1]}{look}"


def shots(screens: str, size: tuple[int, int] = WIDE, **more: str) -> list[Shot]:
    return [Shot(screen, size, **more) for screen in screens.split()]


EVERY = "runs stage:sft train:rl machine log:sft doctor report compare chat"
SESSIONS: dict[str, list[Shot]] = {
    "finished": [
        *shots(EVERY),
        Shot("train:pretrain"),
        Shot("stage:pretrain", keys=("question_mark",), title="help"),
        Shot("train:sft", keys=("f1",), title="help"),
        Shot("stage:base_eval", keys=("ctrl+p", *"chat"), title="palette"),
        *shots(EVERY, COMFORTABLE),
        *shots("runs stage:sft train:rl report compare chat", SMALL),
        *shots("runs stage:sft train:rl report compare chat", HUGE),
        *shots("compare chat report", COMFORTABLE, theme="light"),
    ],
    "running": [
        *shots("stage train machine log"),
        *shots("stage train machine log", COMFORTABLE),
        *shots("stage train machine log", SMALL),
        *(shot for theme in ("light", "ansi", "contrast", "colour-blind", "plain")
          for shot in shots("stage train", COMFORTABLE, theme=theme)),
        *(Shot(screen, COMFORTABLE, ascii=True) for screen in ("stage", "train", "machine")),
        Shot("stage", keys=("x", "x"), title="kill"),
    ],
    "stalled": [*shots("stage train log"), *shots("stage", COMFORTABLE)],
    "crashed": [*shots("stage train machine log"), *shots("stage", COMFORTABLE)],
    "failed": [*shots("stage log doctor"), *shots("stage", COMFORTABLE)],
    "torn": shots("stage train"),
    "stopped": [*shots("stage train chat"), *shots("stage", SMALL)],
    "stale": [*shots("stage:sft report"), Shot("stage:sft", keys=("g",), title="asks"), *shots("stage:sft", SMALL)],
    "exploding": [*shots("stage train"), *shots("train", COMFORTABLE)],
    "gpus": [*shots("machine"), *shots("machine", COMFORTABLE), *shots("machine", SMALL), *shots("machine", HUGE)],
    "empty": [*shots("stage train machine log doctor report compare chat"), *shots("stage", COMFORTABLE)],
    "nothing": [*shots("runs stage chat"), *shots("runs stage", COMFORTABLE)],
}  # fmt: skip


class FixedReader:
    """A machine that never changes."""

    def __init__(self, *_: object) -> None:
        self.gpus: list[object] = []

    def read(self) -> ev.Machine:
        disk = {"what": "run", "path": "runs", "free": 31 << 30, "total": 120 << 30}
        return ev.Machine(cpu=12.5, cores=[5.0, 20.0], memory_used=5 << 30, memory_total=16 << 30, disk_free=31 << 30,
                          host="elsewhere", load=0.42, disks=[disk],
                          gpu_note="no NVIDIA driver on this machine")  # fmt: skip


@pytest.fixture(scope="module")
def fixed() -> Iterator[Path]:
    """The runs folder of all pictures, at a path of a fixed length, on a clock that stands still."""
    root = Path(tempfile.mkdtemp(prefix="picollm-", dir="/tmp"))
    zone = os.environ.get("TZ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        patch.setenv("PICOLLM_HOME", str(root / "home"))
        patch.setattr(time, "time", lambda: NOW)
        patch.setattr("tui.sampler.MachineReader", FixedReader)
        patch.setattr("tui.conversations.uuid.uuid4", lambda: uuid.UUID(int=7))
        for kind in make_runs.KINDS:
            patch.setenv("PICOLLM_RUNS", str(root / kind))
            make_runs.make(root / kind, kind, now=NOW)
        for path in root.rglob("*"):
            os.utime(path, (NOW - 60, NOW - 60), follow_symlinks=False)
        yield root
    if zone is not None:
        os.environ["TZ"] = zone
    time.tzset()
    shutil.rmtree(root)


async def read(app: Any, pilot: Any) -> None:
    """Wait until the reader has looked at everything twice and found nothing more, however long it gets no processor:
    what the open tab shows has then been posted."""
    reader, calm, real = app.reader, 0, type(app.reader).look

    def look() -> bool:
        nonlocal calm
        busy = real(reader)
        calm = 0 if busy else calm + 1
        reader._wake.set()
        return busy

    reader.look = look
    reader._wake.set()
    try:
        await until(pilot, lambda: calm > 2)
    finally:
        del reader.look


def complete(app: PicollmApp) -> bool:
    """Whether everything that the open tab waits for has been read and drawn."""
    detail, plain = app.main.detail, app.main.plain
    if not app.main.view.known or detail is None or detail.stage != app.main.stage:
        return False
    tried = bool(app.main.view.stage(app.main.stage).attempt)
    if app.main.tab == "log":
        return not tried or any(words in shown(app) for words in ("this is a fixture", "what it printed"))
    if app.main.tab == "report":
        return not app.main.report or not app.main.report[0] or "No report yet" not in plain
    if app.main.tab == "runs":
        pane: Any = app.main.panes["runs"]
        return pane.known and all(one.read for one in pane.rows)
    if app.main.tab == "machine":
        return "CPU" in app.main.plain
    if app.main.tab == "doctor":
        return bool(app.main.checks) or not app.main.view.stage("doctor").attempt
    if app.main.tab == "train":
        pane = app.main.panes["train"]
        return not tried or (bool(pane.charts) and "┴" in plain and not pane._stale())
    return True


async def bring_up(app: Any, pilot: Any, shot: Shot) -> None:
    """Show what the picture is of."""
    tab, _, stage = shot.screen.partition(":")
    if app.size != shot.size:
        await pilot.resize_terminal(*shot.size)
    if (app.look.theme, app.look.ascii) != (shot.theme, shot.ascii):
        app.dress(Preferences(theme=shot.theme, ascii=shot.ascii, toured=True))
    app.main.rail.focus()
    if stage:
        app.action_select_stage(stage)
    await app.action_show_tab(tab)
    if tab == "machine" and not any(status.attempt for status in app.main.view.stages):
        app.main.panes["machine"].sample()  # nothing ran, so nothing was recorded: the app reads by itself
    await read(app, pilot)
    await settled(pilot, lambda: complete(app), quiet=0.15, patience=60)
    if shot.keys:
        for key in shot.keys:
            await pilot.press(key)
            await until(pilot, lambda: all(one.is_finished for one in app.workers))
            await read(app, pilot)
        await settled(pilot, quiet=0.15, patience=60)


@pytest.mark.timeout(900)  # dozens of pictures
@pytest.mark.parametrize("kind", SESSIONS)
async def test_screens_look_as_they_did(kind: str, fixed: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PICOLLM_RUNS", str(fixed / kind))
    (fixed / kind).mkdir(exist_ok=True)
    run = Run(fixed / kind / kind)
    lock = make_runs.hold(run, make_runs.ALIVE[kind]) if kind in make_runs.ALIVE else None
    mask = {str(fixed): "/tmp/picollm-pictures"}
    wrong: list[str] = []
    try:
        app = PicollmApp(asks.Options(run=kind, stage=make_runs.ALIVE.get(kind, "")))
        async with app.run_test(size=WIDE) as pilot:
            for shot in SESSIONS[kind]:
                await bring_up(app, pilot, shot)
                picture, file = pictures.take(app, mask), pictures.FOLDER / f"{shot.name(kind)}.txt"
                assert not picture.blank(), f"{file.name} is blank:\n" + "\n".join(picture.rows)
                if WRITE:
                    file.parent.mkdir(exist_ok=True)
                    file.write_text(picture.dump(), encoding="utf-8")
                elif changed := picture.differences(file.read_text(encoding="utf-8") if file.is_file() else ""):
                    svg = tmp_path / f"{shot.name(kind)}.svg"
                    svg.write_text(app.export_screenshot(), encoding="utf-8")
                    wrong.append(f"{file.name} (drawn now: {svg}):\n{changed}")
                for _ in shot.keys:
                    await pilot.press("escape")
    finally:
        if lock is not None:
            lock.release()
    assert not wrong, "\n\n".join(wrong)


def test_no_two_pictures_are_alike() -> None:
    """Each shows its own screen: without the first line and the last, which say where one is."""
    names = {shot.name(kind) for kind, session in SESSIONS.items() for shot in session}
    kept = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in pictures.FOLDER.glob("*.txt")}
    assert set(kept) == names and len(names) >= 60
    bodies: dict[str, str] = {}
    for name, lines in kept.items():
        body = "\n".join(lines[2 : lines.index("styles:") - 1]) + "\n".join(lines[lines.index("styles:") :])
        assert bodies.setdefault(body, name) == name, f"{name} is {bodies[body]}"


@pytest.mark.parametrize("name", ["plain", "ansi"])
def test_a_theme_without_colours_of_its_own_sends_none(name: str) -> None:
    files = list(pictures.FOLDER.glob(f"*.{name}.txt"))
    assert files
    for file in files:
        legend = [line.partition(" = ")[2] for line in file.read_text(encoding="utf-8").splitlines() if " = " in line]
        assert not [style for style in legend if "#" in style], file.name


def test_ascii_is_ascii() -> None:
    files = list(pictures.FOLDER.glob("*.ascii.txt"))
    assert files and all(file.read_text(encoding="utf-8").isascii() for file in files)
