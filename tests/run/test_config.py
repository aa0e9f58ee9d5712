from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.run import config
from picollm.run.errors import UserError

TOML_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_template_is_the_head_of_the_shipped_file() -> None:
    shipped = config.default_file().read_text(encoding="utf-8")
    body = "\n".join(shipped.split("\n\n", 1)[1].split("\n# ----")[0].rstrip("\n").split("\n")) + "\n"
    assert body == config.template()


def test_every_profile_loads_and_every_knob_says_what_it_is() -> None:
    for name in config.profile_names():
        assert config.load(name, environ={}).run.profile == name
    for knob in config.knobs().values():
        assert knob.description and knob.affects in ("result", "how", "display")


def test_later_layers_win(tmp_path: Path) -> None:
    mine = file(tmp_path, "[sft]\nlr = 0.1\nrows = 4\n[rl]\nsteps = 7\n")
    environ = {"PICOLLM_SFT__LR": "0.2", "PICOLLM_BASE_EVAL__VAL_TOKENS": "99", "PICOLLM_HOME": "/x", "PATH": "y"}
    found = config.load("smoke", mine, ["sft.lr=0.3", "data.source=~/notes and more"], environ)
    assert (found.sft.lr, found.sft.rows, found.rl.steps) == (0.3, 4, 7)
    assert found.base_eval.val_tokens == 99 and found.data.source == "~/notes and more"
    assert found.model.depth == 2 and config.load("smoke", mine, [], environ).sft.lr == 0.2


def test_the_profile_may_come_from_any_layer(tmp_path: Path) -> None:
    assert config.load(sets=["run.profile=smoke"], environ={}).model.depth == 2
    assert config.load(environ={"PICOLLM_RUN__PROFILE": "smoke"}).model.depth == 2
    mine = file(tmp_path, '[run]\nprofile = "tiny"\n[profiles.tiny.model]\ndepth = 1\n')
    assert config.load(file=mine, environ={}).model.depth == 1
    with pytest.raises(UserError, match="unknown profile 'x': expected one of pocket, pocket-plus, single-gpu, "):
        config.load("x", environ={})


@pytest.mark.parametrize(
    "text, where, said",
    [
        ("[sft]\nlr = 0.1\nlearning_rate = 3\n", ":3", "unknown key 'sft.learning_rate'; expected one of sft."),
        ("\n[sftt]\nlr = 1\n", ":2", "unknown table"),
        ('[sft]\n\nlr = "high"\n', ":3", "expected `float`, got `str` (×)"),
        ("[sft]\nrows = 0\n", ":2", ">= 1"),
        ("[sft]\nrows = true\n", ":2", "expected `int`, got `bool`"),
        ("sft = 3\n", ":1", "must be a table"),
        ("[sft]\nlr = nan\n", ":2", "expected"),
        ("[run]\nminutes = inf\n", ":2", "finite"),
        ("[sft]\nmixture = { identity = -5 }\n", ":2", ">= 0"),
        ("[profiles.mine.sft]\nlr = 'x'\n", ":2", "sft.lr"),
        ("profiles = 3\n", ":1", "table of profiles"),
        ("[profiles]\nmine = 3\n", "", "expected tables"),
        ("[sft\n", "", "not valid TOML"),
        ("x = " + "9" * 5000, "", "not valid TOML"),
        ("x = " + "[" * 5000, "", "not valid TOML"),
        ("[machine]\ndevice = 'tpu'\n", ":2", "invalid enum value"),
    ],
)
def test_mistakes_name_file_line_and_what_was_expected(tmp_path: Path, text: str, where: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(file=file(tmp_path, text), environ={})
    message = str(caught.value)
    assert f"mine.toml{where}" in message and said in message and "\n" not in message.strip()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        config.load(file=tmp_path / "absent.toml", environ={})
    with pytest.raises(UserError, match="Is a directory"):
        config.load(file=tmp_path, environ={})
    (tmp_path / "latin.toml").write_bytes(b"[data]\nsource = '\xe9'\n")
    with pytest.raises(UserError, match="not UTF-8"):
        config.load(file=tmp_path / "latin.toml", environ={})


@pytest.mark.parametrize(
    "item", ["sft.lr", "=", "sft=1", "sft.=1", "sft.lr=", "sft.lr=[", "x.y=1", "sft.lr=" + "9" * 5000]
)
def test_wrong_sets_say_so(item: str) -> None:
    with pytest.raises(UserError, match="--set"):
        config.load(sets=[item], environ={})


def test_a_variable_of_the_environment_is_named() -> None:
    with pytest.raises(UserError, match=r"environment variable PICOLLM_SFT__LR: sft\.lr = 'x'"):
        config.load(environ={"PICOLLM_SFT__LR": "x"})


@given(st.text(max_size=300))
@settings(max_examples=150)
def test_garbage_is_the_users_mistake_never_another_exception(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        config.load(file=path, environ={})
    except UserError:
        return


NAMES = st.sampled_from([*config.knobs(), "sft", "profiles", "profiles.smoke.sft.lr", "run.profile", "x"])
VALUES = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), TOML_TEXT, st.datetimes()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TOML_TEXT, inner, max_size=3)),
    max_leaves=5,
)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
@settings(max_examples=150)
def test_any_well_formed_file_loads_or_is_the_users_mistake(
    tmp_path_factory: pytest.TempPathFactory, flat: dict[str, Any]
) -> None:
    import tomli_w

    document: dict[str, Any] = {}
    for key, value in flat.items():
        place = document
        *tables, name = key.split(".")
        for table in tables:
            place = place.setdefault(table, {}) if isinstance(place.get(table, {}), dict) else {}
        place[name] = value
    path = tmp_path_factory.getbasetemp() / "formed.toml"
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    try:
        config.load(file=path, environ={})
    except UserError as error:
        assert str(path) in str(error) or "profile" in str(error)


@st.composite
def configs(draw: st.DrawFn) -> config.Config:
    values = config.flat(config.Config())
    values["sft.lr"] = draw(st.floats(0, 100))
    values["run.minutes"] = draw(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
    values["data.source"] = draw(TOML_TEXT)
    values["report.notes"] = draw(TOML_TEXT)
    values["model.seq_len"] = draw(st.integers(32, 1 << 20))
    values["sft.mixture"] = draw(st.dictionaries(TOML_TEXT, st.integers(0, 10**9), max_size=3))
    values["machine.compile"] = draw(st.sampled_from(["auto", "on", "off"]))
    values["model.smear"] = draw(st.booleans())
    return config.build(values)


@given(configs())
@settings(max_examples=100)
def test_what_is_dumped_loads_as_it_was(tmp_path_factory: pytest.TempPathFactory, made: config.Config) -> None:
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(config.dump(made), encoding="utf-8", newline="")
    loaded = config.load_file(path)
    assert loaded == made and not math.isnan(loaded.sft.lr)


def test_messages_are_short_whatever_the_value(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        config.load(file=file(tmp_path, f"[sft]\nlr = '{'x' * 10_000}'\n"), environ={})
    assert len(re.sub(r".*mine\.toml", "", str(caught.value))) < 300


def test_a_place_is_looked_for_only_when_something_is_wrong() -> None:
    asked: list[str] = []

    def where() -> str:
        asked.append("here")
        return "here:3"

    assert config.check("sft.lr", 0.5, where) == 0.5 and not asked
    with pytest.raises(UserError, match=r"^here:3: sft\.lr = -1: "):
        config.check("sft.lr", -1, where)
