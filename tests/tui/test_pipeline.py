"""The tab Pipeline: every stage in every state, explained; what differs from the profile; how attempts ended; kill."""

from __future__ import annotations

import dataclasses
import time

import msgspec
import pytest
from rich.console import Console, Group

from picollm.run import overview, pipeline
from picollm.run.folder import Run
from tests.fixtures import make_runs
from tests.tui.conftest import WIDE, shown, until
from tui import bridge, state, table
from tui.stage_reader import StageReader
from tui.widgets.stage import blocks

WIDTHS = (38, 78, 178)


def seen(run: Run) -> state.RunView:
    """What the reader makes of a run."""
    found: list[object] = []
    reader = bridge.Reader(str(run.dir), found.append)
    reader.look()
    return next(message.view for message in found if isinstance(message, bridge.RunChanged))


def drawn(view: state.RunView, name: str, detail: state.Detail | None, width: int, explained: bool = True) -> str:
    console = Console(width=width, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.capture() as capture:
        console.print(Group(*blocks(view, name, detail, explained, width)))
    return capture.get()


@pytest.mark.parametrize("kind", make_runs.KINDS)
def test_every_stage_in_every_state_and_width(kind: str, a_run) -> None:
    run = a_run(kind)
    view = seen(run)
    for name in pipeline.NAMES:
        reader = StageReader(run, name)
        while reader.poll():
            pass
        detail = reader.detail()
        for width in WIDTHS:
            text = drawn(view, name, detail, width)
            assert all(len(line) <= width for line in text.splitlines())
            assert "The idea" in text and "Typical" in text and "When it looks wrong" in text
            assert state.LOOKS[view.stage(name).state].word in text
            assert "The idea" not in drawn(view, name, detail, width, explained=False)


def test_settings_that_are_not_as_in_the_profile_come_first(a_run) -> None:
    run = a_run("stale")
    view = seen(run)
    assert view.differs["sft.lr"] == 0.8 and "sft.rows" not in view.differs
    text = drawn(view, "sft", None, 78)
    assert "* pocket has 0.8" in text and text.index("sft.lr") < text.index("sft.rows")
    assert "sft.lr was 0.8, is now 0.123" in text, "why it is stale"


def test_a_profile_of_somebodys_own_differs_from_nothing(a_run) -> None:
    run = a_run("finished")
    run.save_config(type(run.wishes())())
    text = (run.dir / "config.toml").read_text().replace('"pocket"', '"mine"')
    (run.dir / "config.toml").write_text(text)
    assert seen(run).differs == {}


def test_attempts_say_how_they_ended(a_run) -> None:
    run = a_run("stopped")
    script = make_runs.start(run, "rl", time.time() - 5, run.config(), attempt=2)
    make_runs.fill(script, 1.0)
    make_runs.finish(script)
    reader = StageReader(run, "rl")
    while reader.poll():
        pass
    first, second = reader.detail().attempts
    assert first.startswith("1: ") and first.endswith("stopped at step 16")
    assert second.startswith("2: ") and second.endswith("done")
    assert "made/rl" in drawn(seen(run), "rl", reader.detail(), 78)


def test_why_a_stage_failed_steers_no_terminal(a_run) -> None:
    view = seen(a_run("failed"))
    failed = next(status for status in view.stages if status.state == "failed")
    words = "out of \x1b[2J[bold]memory"
    stages = [msgspec.structs.replace(one, reason=words) if one is failed else one for one in view.stages]
    view = dataclasses.replace(view, stages=tuple(stages), notice="no\x9b2J room", problem="torn \x1b[2J")
    seen_so = drawn(view, failed.name, None, 178)
    assert "out of \ufffd[2J[bold]memory" in seen_so and "no\ufffd2J room" in seen_so
    one = overview.Summary(name="a\x1b[2J", dir="a", state="failed", stage=failed.name, reason=words)
    head, rest = table.detail(one, 0.0)
    row = table.line(one, table.columns(120, [one]), 120, 0.0, chosen=True, is_open=True)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(head, rest, row, markup=False)
    assert "out of \ufffd[2J[bold]memory" in capture.get()
    assert not {"\x1b", "\x9b"} & {*seen_so, *capture.get()}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("failed", "0:29  failed: tokenizer: the text is empty"),
        ("crashed", "0:17  crashed"),
        ("stopped", "stopped at step 16"),
    ],
)
def test_the_newest_attempt_says_how_long_it_took_and_how_it_ended(kind: str, words: str, a_run) -> None:
    view = seen(run := a_run(kind))
    name = next(status.name for status in view.stages if status.state == kind)
    reader = StageReader(run, name)
    while reader.poll():
        pass
    line = next(line for line in drawn(view, name, reader.detail(), 140).splitlines() if line.strip().startswith("1: "))
    assert words in line and "0:" in line.partition("1: ")[2][12:]


async def test_explaining_and_killing_have_keys(a_run, an_app, monkeypatch) -> None:
    a_run("running")
    asked: list[bool] = []

    def stop(run: Run, kill: bool = False) -> list[str]:
        asked.append(kill)
        return ["pretrain"]

    monkeypatch.setattr("picollm.run.conductor.stop", stop)
    app = an_app("running")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "The idea" in app.main.plain and "▶ running" in app.main.plain)
        await pilot.press("e")
        await until(pilot, lambda: "e explains this stage" in app.main.plain and "The idea" not in app.main.plain)
        await pilot.press("X")
        await until(pilot, lambda: "Kill Pretrain?" in shown(app))
        assert not asked
        await pilot.press("y")
        await until(pilot, lambda: asked == [True])
