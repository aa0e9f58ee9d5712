"""What every screen has in common: bugs survived, jump mode, tour, themes, ASCII, read-only, sizes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.color import Color

from tests.tui.conftest import NARROW, WIDE, shown, until
from tui import actions, filters, guard, preferences
from tui.app import PicollmApp
from tui.preferences import Preferences
from tui.screens import jump, tour
from tui.widgets import tones
from tui.widgets.doctor import DoctorPane
from tui.widgets.failed import FailedPane
from tui.widgets.stage import StagePane


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The app's own files go here."""
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    tones.use(tones.DEFAULT)


# a bug in one widget --------------------------------------------------------------------------------------------------


async def test_a_bug_in_a_pane_shows_a_panel_and_the_rest_lives_on(a_run, an_app, monkeypatch, home) -> None:
    a_run("finished")

    def broken(self, *anything):
        raise KeyError("no such column")

    monkeypatch.setattr(DoctorPane, "update_from", broken)
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        await pilot.press("5")
        await until(pilot, lambda: "hit a bug of its own" in shown(app) and "no such column" in shown(app))
        assert "no such column" in (home / "tui-crash.log").read_text()
        await pilot.press("1")
        await until(pilot, lambda: app.main.tab == "stage" and "State" in app.main.plain)
        monkeypatch.undo()
        monkeypatch.setenv("PICOLLM_HOME", str(home))
        await pilot.press("5", "ctrl+l")
        await until(pilot, lambda: "fix: nothing to do" in app.main.plain)
        assert [type(error) for error in app.failures] == [KeyError]
        app.failures.clear()


async def test_a_bug_while_drawing_and_in_a_handler(a_run, an_app, monkeypatch) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "State" in shown(app))
        monkeypatch.setattr(StagePane, "render_line", lambda self, y: 1 / 0)
        app.main.panes["stage"].refresh()
        await until(pilot, lambda: isinstance(app.main.panes["stage"], FailedPane), what="drawing")
        await until(pilot, lambda: "ZeroDivisionError" in shown(app))
        monkeypatch.undo()
        await pilot.press("ctrl+l")
        await until(pilot, lambda: "State" in app.main.plain)
        monkeypatch.setattr(StagePane, "on_key", lambda self, event: 1 / 0, raising=False)
        app.main.panes["stage"].focus()
        await pilot.press("v")
        await until(pilot, lambda: "ZeroDivisionError" in shown(app))
        await pilot.press("ctrl+l", "j", "k")
        await until(pilot, lambda: "State" in app.main.plain)
        assert [type(error) for error in app.failures] == [ZeroDivisionError] * 2
        app.failures.clear()


async def test_an_action_of_a_failed_tab_says_so(a_run, an_app, monkeypatch) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        await app.main.show_tab("log")
        await app.main.show_failure("log", ValueError("x"))
        row = actions.of("log")[0]
        await app.action_press(row.identity)
        await until(pilot, lambda: "builds it anew" in shown(app))


async def test_a_bug_that_comes_again_and_again_outside_the_panes_ends_the_app(
    a_run, an_app, monkeypatch, home
) -> None:
    a_run("finished")
    monkeypatch.setattr(guard, "WITHIN_S", 3600.0)
    app = an_app("finished")
    with pytest.raises(RuntimeError, match="over and over"):
        async with app.run_test(size=WIDE) as pilot:
            await until(pilot, lambda: app.main.view.exists)
            app._handle_exception(RuntimeError("over and over"))
            assert app.is_running
            for _ in range(3):
                app._handle_exception(RuntimeError("over and over"))
            await pilot.pause(0.1)
    app.failures.clear()
    assert app.return_code == 1 and "the run was not touched" in app.farewell
    assert "over and over" in (home / "tui-crash.log").read_text()


# finding one's way ----------------------------------------------------------------------------------------------------


async def test_jump_mode_reaches_every_tab_stage_and_place(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished", tab="chat")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "chat" in app.main.panes and app.main.panes["chat"].is_mounted)
        app.main.rail.focus()
        await until(pilot, lambda: app.main.panes["chat"].query_one("#chat-box") in jump.places(app.main))
        await until(
            pilot, lambda: len(app.main.tab_bar.spots) == len(actions.TABS) and app.main.rail.region.height > 12
        )
        goals = [target.goal for target in jump.targets(app.main)]
        for tab in actions.TAB_NAMES:
            assert ("press", f"show_tab.{tab}") in goals
        for status in app.main.view.stages:
            assert ("select_stage", status.name) in goals
        assert app.main.panes["chat"].query_one("#chat-box") in goals
        labels = [target.label for target in jump.targets(app.main)]
        assert len(labels) == len(set(labels))

        sft = next(target for target in jump.targets(app.main) if target.goal == ("select_stage", "sft"))
        await pilot.press("apostrophe", sft.label)
        await until(pilot, lambda: app.main.stage == "sft" and app.screen is app.main)
        await pilot.press("apostrophe", "1")
        await until(pilot, lambda: app.main.tab == "stage")
        await pilot.press("apostrophe", "escape")
        await until(pilot, lambda: app.screen is app.main)


async def test_the_tour_has_four_steps_and_is_shown_once(a_run, home) -> None:
    a_run("finished")
    from tui import asks

    app = PicollmApp(asks.Options(run="finished"), look=preferences.chosen("light", environ={"TERM": "linux"}))
    async with app.run_test(size=(60, 20)) as pilot:
        for title, _, _ in tour.steps():
            await until(pilot, lambda title=title: f"of 4: {title}" in shown(app))
            await pilot.press("enter")
        await until(pilot, lambda: app.screen is app.main and not app.main.query(".-marked"))
        await until(pilot, lambda: preferences.load() == Preferences("", False, True))
    again = PicollmApp(asks.Options(run="finished"), look=preferences.chosen(environ={}))
    async with again.run_test(size=(60, 20)) as pilot:
        await until(pilot, lambda: again.main.view.exists)
        assert again.screen is again.main


async def test_readonly_refuses_what_changes_a_run_and_the_footer_leaves_it_out(a_run, an_app) -> None:
    a_run("stopped")
    app = an_app("stopped", readonly=True)
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        assert "Resume" not in shown(app).splitlines()[-1]
        for key in ("g", "s", "r", "x", "R"):
            await pilot.press(key)
            await until(pilot, lambda: "read-only" in shown(app))
            app.clear_notifications()
            await until(pilot, lambda: "read-only" not in shown(app))
        assert app.screen is app.main


async def test_readonly_advertises_nothing_that_it_refuses(a_run, an_app) -> None:
    a_run("failed")
    app = an_app("failed", readonly=True)
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "✗ failed" in app.main.plain and "The idea" in app.main.plain)
        assert "continues it" not in app.main.plain and "makes it again" not in app.main.plain
        app.action_select_stage("pretrain")
        for key, words in (("2", "has not trained yet"), ("4", "has printed nothing yet"), ("0", "3 of 13 done")):
            await pilot.press(key)
            await until(pilot, lambda words=words: words in shown(app))
            seen = "\n".join(shown(app).splitlines()[3:])
            assert not any(word in seen for word in ("launches", "starts it", "resumes", "tries again"))


# how it looks ---------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    parts = [part / 255 for part in Color.parse(colour).rgb]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", [name for name in tones.NAMES if not tones.PALETTES[name].own])
def test_every_colour_can_be_read_on_its_ground(name: str) -> None:
    palette = tones.PALETTES[name]
    least = 7.0 if name == "contrast" else 4.5
    for ground in (palette.ground, palette.panel, palette.selected):
        for tone in ("ink", "accent", "second", "good", "warn", "bad"):
            assert contrast(getattr(palette, tone), ground) >= (least if ground != palette.selected else 4.0), tone
    assert contrast(palette.faint, palette.ground) >= 4.5


def test_without_colour_tones_differ_in_weight() -> None:
    tones.use(tones.PLAIN)
    assert all(style.color is None and style.bgcolor is None for style in tones.TONES.values())
    assert len({str(tones.tone(name)) for name in ("plain", "strong", "faint", "selected")}) == 4


async def test_every_theme_can_be_chosen_in_the_app_and_is_kept(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "✓ SFT" in shown(app))
        for theme in (*tones.NAMES[1:], tones.NAMES[0]):
            await pilot.press("comma", "home", *["j"] * tones.NAMES.index(theme), "enter")
            await until(pilot, lambda theme=theme: app.look.theme == theme and app.screen is app.main)
            await until(pilot, lambda theme=theme: preferences.load().theme == theme)

            def dressed() -> bool:
                strip = app.main.rail.render_lines(app.main.rail.size.region)[0]
                styles = {str(segment.style) for segment in strip if segment.text.strip()}
                colour = tones.tone("good").color
                return colour is None or any(colour.name in style for style in styles)

            await until(pilot, dressed)
        await pilot.press("comma", "j", "escape")
        await until(pilot, lambda: app.screen is app.main)
        assert app.look.theme == tones.NAMES[0] == preferences.load().theme


async def test_ascii_only_means_it(a_run) -> None:
    a_run("finished")
    from tui import asks

    app = PicollmApp(asks.Options(run="finished", stage="sft"), look=Preferences("dark", True, True))
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        for tab in actions.TAB_NAMES:
            await app.main.show_tab(tab)
            await until(pilot, lambda: "+ SFT" in shown(app) or not app.main.rail.display)
            await pilot.pause(0.2)
            assert shown(app).isascii(), re.findall(r".*[^\x00-\x7f].*", shown(app))[:5]
        await pilot.press("question_mark")
        await until(pilot, lambda: "esc closes" in shown(app))
        assert shown(app).isascii()


@given(st.text())
def test_ascii_keeps_the_width(text: str) -> None:
    found = filters.plain(text)
    assert found.isascii()
    assert cell_len(found) == cell_len(text) or any(ord(character) < 32 or ord(character) == 127 for character in text)


def test_how_a_theme_is_found(home) -> None:
    from picollm.run.errors import UserError

    assert preferences.chosen(environ={}) == Preferences("dark", False, False)
    assert preferences.chosen(environ={"NO_COLOR": "1"}).theme == "plain"
    assert preferences.chosen(environ={"PICOLLM_TUI_THEME": "light,ascii"}) == Preferences("light", True, False)
    assert preferences.chosen("contrast", environ={"PICOLLM_TUI_THEME": "light", "NO_COLOR": "1"}).theme == "contrast"
    assert preferences.chosen(environ={"TERM": "linux"}) == Preferences("ansi", True, False)
    preferences.keep(Preferences("colour-blind", True, True))
    assert preferences.chosen(environ={}) == Preferences("colour-blind", True, True)
    assert preferences.chosen(environ={"TERM": "xterm-256color"}).theme == "colour-blind"
    assert preferences.chosen(environ={"TERM": "xterm", "COLORTERM": "truecolor"}).theme == "colour-blind"
    assert preferences.chosen(environ={"TERM": "screen"}).theme == "ansi"  # its sixteen colours would all be greys
    assert preferences.chosen("light", environ={"TERM": "xterm"}).theme == "light"
    with pytest.raises(UserError, match="--theme pink: expected one of dark, light"):
        preferences.chosen("pink", environ={})
    with pytest.raises(UserError, match="PICOLLM_TUI_THEME pink"):
        preferences.chosen(environ={"PICOLLM_TUI_THEME": "pink"})
    preferences.path().write_text("theme = [")
    assert preferences.chosen(environ={}).theme == "dark"


async def test_no_color_sends_no_colour(a_run, monkeypatch) -> None:
    a_run("finished")
    from tui import asks

    monkeypatch.setenv("NO_COLOR", "1")
    look = preferences.chosen()
    look.toured = True
    app = PicollmApp(asks.Options(run="finished"), look=look)
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "✓ SFT" in shown(app))
        for strip in app.screen._compositor.render_strips():
            for segment in strip:
                style = segment.style
                assert style is None or all(c is None or c.is_default for c in (style.color, style.bgcolor)), segment
        await pilot.press("4", "m")
        await until(pilot, lambda: "Enter opens" in shown(app))

        def reversed_() -> set[str]:
            return {segment.text.strip() for strip in app.screen._compositor.render_strips() for segment in strip
                    if segment.style and segment.style.reverse}  # fmt: skip

        await until(pilot, lambda: any("attempt 1" in words for words in reversed_()))
        assert "Conductor" not in reversed_()


# sizes ----------------------------------------------------------------------------------------------------------------


async def test_a_storm_of_sizes_leaves_it_intact(a_run, an_app) -> None:
    a_run("running")
    app = an_app("running", tab="train", stage="pretrain")
    sizes = [(60, 20), (220, 60), (80, 24), (30, 8), (120, 40), (10, 3), (60, 20), (100, 30)]
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        for number, size in enumerate(sizes):
            await pilot.resize_terminal(*size)
            if number % 4 == 0:
                await pilot.press(str(number % len(actions.TABS)))
        await pilot.resize_terminal(*NARROW)
        await pilot.press("1")
        await until(pilot, lambda: "Pretrain" in app.main.plain and "1 Pipe" in shown(app).splitlines()[1])
        await until(pilot, lambda: shown(app).splitlines()[-1].strip().endswith("Help"))
        assert app.failures == []


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40), (220, 60)], ids=str)
async def test_frame_fits(size: tuple[int, int], a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.main.view.exists and "✓ SFT" in shown(app))
        await until(pilot, lambda: shown(app).splitlines()[-1].strip().endswith("Help"))
        lines = shown(app).splitlines()
        for number, tab in enumerate(actions.TABS):
            assert re.search(rf"{number} ?({tab.title}|{tab.short})", lines[1]), lines[1]
        await pilot.press("question_mark")
        await until(pilot, lambda: "esc closes" in shown(app))


def colours(app: PicollmApp) -> set[str]:
    """Every colour that something visible is drawn in or on."""
    styles = [segment.style for strip in app.screen._compositor.render_strips() for segment in strip
              if segment.style and segment.text.strip()]  # fmt: skip
    return {colour.name.lower() for style in styles for colour in (style.color, style.bgcolor) if colour is not None}


def uncoloured(app) -> list[str]:
    """What is drawn in no colour of the theme."""
    return [segment.text.strip() for strip in app.screen._compositor.render_strips() for segment in strip
            if segment.text.strip() and (segment.style is None or segment.style.color is None
                                         or segment.style.color.is_default)]  # fmt: skip


async def test_another_theme_reaches_every_tab(a_run, an_app) -> None:
    """What a tab drew before is drawn anew: no colour of the old theme stays."""
    a_run("finished")
    app = an_app("finished", stage="sft")
    names = ("ink", "faint", "accent", "good", "bad", "warn", "second", "raw", "selected")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        for tab in actions.TAB_NAMES:
            app.dress(Preferences("dark", False, True))
            await app.main.show_tab(tab)
            old = {getattr(tones.PALETTES["dark"], name) for name in names}
            await until(pilot, lambda old=old: len(colours(app) & old) >= 3)
            await pilot.pause(0.2)
            app.dress(Preferences("light", False, True))
            await until(pilot, lambda old=old: not colours(app) & old,
                        what=f"{tab}: old colours stay: {colours(app) & old}")  # fmt: skip
            assert not uncoloured(app), f"{tab}: in whatever colour the terminal has: {uncoloured(app)}"


async def test_moving_the_focus_draws_no_pane_anew(a_run, an_app, monkeypatch) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "State" in shown(app) and app.main.detail is not None)
        app.reader.close()
        app.reader.join()  # what it posted is drawn within the pause, and nothing comes after it
        await pilot.pause(0.3)
        drawn = []
        real = StagePane.render_line
        monkeypatch.setattr(StagePane, "render_line", lambda self, y: drawn.append(y) or real(self, y))
        before = app.focused
        await pilot.press("tab")
        await pilot.pause(0.3)
        assert app.focused is not before and app.focused.has_focus and not before.has_focus and not drawn


async def test_a_pane_that_is_being_replaced_may_fail_once_more(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        old = app.main.panes["stage"]
        old.render_line = lambda y, self=old: 1 / 0  # the frame's `self` is what the guard goes by
        for _ in range(6):
            try:
                old.render_line(0)
            except ZeroDivisionError as error:
                app._handle_exception(error)
        await until(pilot, lambda: not old.is_attached)  # before that, looking at the screen draws it, too
        await until(pilot, lambda: "ZeroDivisionError" in shown(app))
        try:
            old.render_line(0)
        except ZeroDivisionError as error:
            app._handle_exception(error)
        assert len(app.failures) == 1 and app.is_running
        app.failures.clear()


async def test_what_breaks_while_the_app_ends_is_no_bug(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        app.exit()
        app._handle_exception(LookupError("a widget that is gone"))
    assert not app.failures and not app.farewell and app.return_code in (None, 0)
