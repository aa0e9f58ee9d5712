"""A person's own keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.run.errors import UserError
from tests.tui.conftest import WIDE, shown, until
from tui import actions, keymap


@pytest.fixture
def as_found():
    """Puts the table of keys back."""
    before = actions.ACTIONS
    yield
    actions.ACTIONS = before


def test_the_listing_is_a_keymap_that_changes_nothing() -> None:
    found = keymap.parse(keymap.listing())
    assert set(found) == {row.identity for row in actions.ACTIONS}
    for row in actions.ACTIONS:
        assert [actions.spelled(key) for key in found[row.identity]] == [actions.spelled(key) for key in row.keys]


def test_what_may_be_written() -> None:
    text = 'launch = "G"\npage_up = []\nshow_tab.train = ["2", "f6"]\n[log]\nfollow = "ctrl+t"\n'
    assert keymap.parse(text) == {"launch": ("G",), "page_up": (), "show_tab.train": ("2", "f6"),
                                  "log.follow": ("ctrl+t",)}  # fmt: skip
    assert keymap.parse('help = "!"')["help"] == ("exclamation_mark",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("launch = ", "not valid TOML"),
        ('\nlaunhc = "z"', "line 2: launhc: no such action; did you mean launch?"),
        ('qwertz = "z"', "picollm-tui --keys lists the actions"),
        ("launch = 3", "line 1: launch: expected a key or a list of keys"),
        ('# mine\nlaunch = "alt+l"', "line 2: launch: 'alt+l' needs alt, which many terminals keep"),
        ('launch = "cmd+l"', "needs cmd"),
        ('launch = "ctrl+m"', "'ctrl+m' is Enter to a terminal"),
        ('launch = "hello"', "'hello' is not a key"),
        ('[log]\n\nfollow = "g"', "line 3: g is the key of both launch and log.follow"),
        ('stop = "g"', "line 1: g is the key of both launch and stop"),
        ("quit = []", "line 1: quit: needs a key, else there is no way out"),
    ],
)
def test_mistakes_are_named_by_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        keymap.parse(text, "keys.toml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_keymap_or_a_sentence(text: str) -> None:
    try:
        keymap.parse(text)
    except UserError as error:
        assert str(error).startswith("keys.toml")


_KEYS = st.sampled_from([row.identity for row in actions.ACTIONS])


@given(st.dictionaries(_KEYS, st.lists(st.sampled_from(["a", "z", "Q", "f6", "ctrl+t", "?"]), max_size=2), max_size=4))
def test_what_is_accepted_has_no_key_twice_in_one_place(wanted: dict[str, list[str]]) -> None:
    text = "\n".join(f"{identity} = {keys!r}" for identity, keys in wanted.items())
    try:
        found = keymap.parse(text)
    except UserError:
        return
    for place in (*actions.TAB_NAMES, *actions.MODAL):
        rows = actions.of(place) if place in actions.MODAL else [*actions.of(""), *actions.of(place)]
        keys = [key for row in rows for key in dict.fromkeys(found.get(row.identity, row.keys))]
        assert len(keys) == len(set(keys))


async def test_new_keys_work_and_are_shown(a_run, an_app, as_found) -> None:
    a_run("finished")
    some = actions.of("chat")[0].identity
    actions.remap(keymap.parse(f'help = "f11"\nshow_tab.doctor = "f12"\n{some} = "5"\ncommand_palette = "f10"'))
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        await until(pilot, lambda: "F11 Help" in shown(app).splitlines()[-1])
        await pilot.press("5")
        assert app.main.tab == "stage"
        await pilot.press("f12")
        await until(pilot, lambda: app.main.tab == "doctor")
        await pilot.press("f11")
        await until(pilot, lambda: "esc closes" in shown(app))
        await pilot.press("escape", "f10")
        await until(pilot, lambda: "Search for" in shown(app))
