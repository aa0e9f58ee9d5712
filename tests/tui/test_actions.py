"""The one table of keys."""

from __future__ import annotations

import pytest
from textual.command import CommandList

from tests.tui.conftest import shown, until
from tui import actions, palette
from tui.screens.help import help_blocks


@pytest.mark.parametrize("tab", actions.TAB_NAMES)
def test_no_key_is_bound_twice_in_one_place(tab: str) -> None:
    keys = [key for row in (*actions.of(""), *actions.of(tab)) for key in row.keys]
    assert len(keys) == len(set(keys))


def test_nothing_needs_alt() -> None:
    assert not [key for row in actions.ACTIONS for key in row.keys if "alt" in key]


async def test_every_action_is_implemented(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=(120, 40)):
        for tab in actions.TAB_NAMES:
            await app.main.show_tab(tab)
        for row in actions.ACTIONS:
            if row.place in app.main.panes:
                assert hasattr(app.main.panes[row.place], f"do_{row.base}"), row.identity
            elif not row.place:
                assert hasattr(app, f"action_{row.base}"), row.name


def test_every_action_is_in_the_palette() -> None:
    found = {action for _, _, action in palette.entries()}
    assert {f"press('{row.identity}')" for row in actions.ACTIONS if row.place not in actions.MODAL} <= found
    names = [name for name, _, _ in palette.entries()]
    assert len(names) == len(set(names))


def test_every_action_is_in_the_help_of_every_tab() -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for tab in actions.TAB_NAMES:
        with console.capture() as capture:
            console.print(*help_blocks(tab))
        for row in actions.ACTIONS:
            assert row.title in capture.get(), (tab, row.title)


def test_footer_is_short() -> None:
    for tab in actions.TAB_NAMES:
        rows = actions.footer(tab)
        assert 3 <= len(rows) <= actions.FOOTER_LIMIT
        assert any(row.short == "Help" for row in rows)


def test_tabs_are_numbered_from_zero() -> None:
    for number, tab in enumerate(actions.TABS):
        assert [row.keys for row in actions.ACTIONS if row.identity == f"show_tab.{tab.name}"] == [(str(number),)]


async def test_help_opens_and_closes(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("question_mark")
        await until(pilot, lambda: "Everywhere" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: "Everywhere" not in shown(app))


async def choose(pilot, words: str) -> None:
    """Search the palette and take what stands first."""
    await pilot.press("ctrl+p")
    await until(pilot, lambda: "Launch the whole pipeline" in shown(pilot.app))
    await pilot.press(*words)
    found = pilot.app.screen.query_one(CommandList)

    def first() -> bool:
        return found.highlighted is not None and words in found.get_option_at_index(found.highlighted).hit.text

    await until(pilot, first)
    await pilot.press("enter")


async def test_palette_runs_an_action(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        await choose(pilot, "Go to Midtrain")
        await until(pilot, lambda: app.main.stage == "midtrain")


async def test_palette_does_what_belongs_to_another_tab(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        await choose(pilot, "New run")
        await until(pilot, lambda: "What it takes" in shown(app), what="the form of a new run, out of Pipeline")
        assert app.main.tab == "runs"
