"""Commands, options and settings that the documentation names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from picollm import cli
from picollm.run import config, pipeline
from tui import actions, start
from tui.widgets import tones

DOCS = Path(__file__).resolve().parents[1] / "docs"
SMALL = 100_000  # bytes of a picture
FILES = ["operations.md", "library.md", "personality.md"]


@pytest.mark.parametrize("file", FILES)
def test_commands_and_their_options_exist(file: str) -> None:
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    text = (DOCS / file).read_text(encoding="utf-8")
    for line in re.findall(r"(?:`| {4})picollm (\w+[^`\n#]*)", text):
        name, *words = line.split()
        assert name in commands, line
        command = commands[name]
        if hasattr(command, "commands"):  # `picollm identity build`
            assert words[0] in command.commands, line
            command = command.commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert [word for word in words if word.startswith("--") and word not in options] == [], line


@pytest.mark.parametrize("file", FILES)
def test_settings_exist(file: str) -> None:
    known = config.knobs()
    tables = {key.partition(".")[0] for key in known}
    text = (DOCS / file).read_text(encoding="utf-8")
    named = [key for key in re.findall(r"\b([a-z_]+\.(?!md\b)[a-z_]+)\b", text) if key.partition(".")[0] in tables]
    files = {"run.errors", "run.set", "log.wandb", "model.engine", "model.tokenizer", "model.encode", "model.decode",
             "model.generate", "model.stream", "model.loss", "model.chat", "model.bits_per_byte"}  # fmt: skip
    assert [key for key in named if key not in known and key not in files] == []


def test_the_runbook_names_settings_at_all() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert {"machine.device_rows", "launch.timeout", "data.mirrors"} <= set(re.findall(r"[a-z_]+\.[a-z_]+", text))


def test_pictures_are_made_by_the_commands_beside_them() -> None:
    text = (DOCS / "pictures.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^]]+\]\((\S+)\)", text)
    made = [
        start.parser().parse_args(line.split()) for line in re.findall(r"^    picollm-tui (.+)$", text, re.MULTILINE)
    ]
    assert [f"docs/{name}" for name in shown] == [given.export_svg[1] for given in made]
    for given in made:
        tab, _, stage = given.export_svg[0].partition(":")
        assert tab in actions.TAB_NAMES and (not stage or stage in (*pipeline.NAMES, "ask"))
        assert given.theme in tones.NAMES
    for name in [*shown, *(path.relative_to(DOCS) for path in DOCS.glob("pictures/*"))]:
        svg = (DOCS / name).read_text(encoding="utf-8")
        assert svg.startswith("<svg") and len(svg) < SMALL and "@font-face" not in svg, name
        assert str(name) in text
