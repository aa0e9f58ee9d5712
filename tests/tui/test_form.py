"""The form of a new run as it reads: its last line, its help, and values that are still to be planned."""

from __future__ import annotations

import re

import pytest
from textual.widgets import Input

from tests.tui.conftest import NARROW, WIDE, shown, until
from tui import actions
from tui.form import PROFILE, Form
from tui.screens.new_run import NewRunScreen


def test_what_preflight_chooses_is_planned_and_written_as_a_number() -> None:
    form = Form("x")
    assert (form.said("model.depth"), form.shown("model.depth")) == ("planned", "0")
    assert form.said("machine.threads") == "0", "0 of another meaning stays"
    assert form.said("data.source") == form.shown("data.source") == "pydocs"
    form.set("model.depth", "6")
    assert (form.said("model.depth"), form.said("model.depth", before=True)) == ("6", "planned")
    form.set(PROFILE, "speedrun")
    form.reset("model.depth")
    assert form.said("model.depth") == "24"


def test_the_last_line_has_at_most_eight_keys() -> None:
    short = [row for row in actions.of("form") if row.short]
    assert len(short) <= actions.FOOTER_LIMIT and "help" in [row.base for row in short]


@pytest.mark.parametrize("size", [WIDE, NARROW, (60, 20)])
async def test_help_lists_the_keys_of_the_form(runs, an_app, size: tuple[int, int]) -> None:
    app = an_app("nothing")
    async with app.run_test(size=size) as pilot:
        await app.push_screen(NewRunScreen(Form("mine")))
        await until(pilot, lambda: "? Help" in shown(app).splitlines()[-1])
        if size == WIDE:
            assert re.search(r"depth +planned  layers; 0: planned", shown(app))
        box = app.screen.query_one(Input)
        for key in ("f1", "question_mark"):
            await pilot.press(key)
            await until(pilot, lambda: "In the form of a new run" in shown(app) and "Make and launch" in shown(app))
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(app.screen, NewRunScreen))
        await pilot.press("enter", "question_mark")
        await until(pilot, lambda: box.value.endswith("?"), what="where a value is written, ? is a letter")
        await pilot.press("f1")
        await until(pilot, lambda: "In the form of a new run" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, NewRunScreen) and box.display and app.screen.writing)
