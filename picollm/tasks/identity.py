"""Identity: who the assistant is, and the builder of its conversations.

    user       Who made you?
    assistant  My owner trained me, from raw text, in a terminal.

`data/identity.toml` holds hand-written prompts, answers and rules for nineteen themes. The builder turns them into
conversations of one or two exchanges, always the same ones:

    build(path) -> Manifest     writes rows to `path` and `<path>.manifest.json` (rows, sha256, schema, themes)
    sign(path) -> Manifest      writes the manifest for rows of your own
    verify(path) -> Manifest    checks them; UserError for a missing file, a malformed row, a wrong checksum

The held-out phrasings are written by hand too and lie more than five edits from every training prompt. Right means:
the answer obeys the rule of its theme (words that must occur, words that must not). Rules are blunt: they tell whether
the model understood the theme, not whether it said it well.
"""

from __future__ import annotations

import hashlib
import json
import random
import tomllib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from picollm.run.errors import UserError
from picollm.run.folder import write_atomic
from picollm.tasks.base import BaseTask, Example, Split, TaskSettings, ask
from picollm.tasks.rows import Row, read_rows
from picollm.tasks.scoring import says_the_same
from picollm.text.chat import Message, text_of

NAME = "picollm"
ANSWERS_PER_PROMPT = 3
TWO_TURN_ROWS = 300
FEWEST_ROWS = 1000
FORMAT = 1
SCHEMA = {
    "messages": "list of {role: user | assistant, content: text}, alternating, ending with the assistant",
    "theme": "theme of the last exchange; may be left out",
}


class Theme(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of the data file; see there."""

    name: str
    must: list[list[str]]
    prompts: list[str]
    answers: list[str]
    heldout: list[str]


class Material(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole data file."""

    never: list[str]
    openers: list[str]
    theme: list[Theme]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a rows file must contain: `sha256` is of the file's bytes, `themes` counts rows per theme."""

    format: int
    rows: int
    sha256: str
    schema: dict[str, str]
    themes: dict[str, int]
    name: str


@lru_cache(maxsize=4)
def material(name: str = NAME) -> Material:
    """The hand-written material with the assistant's name filled in."""
    text = (files("picollm.tasks") / "data" / "identity.toml").read_text(encoding="utf-8")
    return msgspec.convert(_named(tomllib.loads(text), name), Material)


def rows(name: str = NAME) -> list[dict[str, Any]]:
    """All conversations in file order, `{"messages": [...], "theme": ...}`; a pure function of the name.

    Each prompt is paired with several answers of its theme, once more behind an opener, and some follow a greeting or
    another question.
    """
    source = material(name)
    found: list[dict[str, Any]] = []
    for theme in source.theme:
        for number, prompt in enumerate(theme.prompts):
            for turn in range(ANSWERS_PER_PROMPT):
                answer = theme.answers[(number + turn) % len(theme.answers)]
                found.append({"messages": ask(prompt, answer), "theme": theme.name})
            if theme.name not in ("greeting", "bye", "thanks"):  # "Before we start: Bye" is not English
                opener = source.openers[number % len(source.openers)]
                answer = theme.answers[(number + ANSWERS_PER_PROMPT) % len(theme.answers)]
                found.append({"messages": ask(opener.format(prompt=prompt), answer), "theme": theme.name})
    rng = random.Random("identity|two turns")
    for _ in range(TWO_TURN_ROWS):
        first, second = rng.sample(source.theme, 2)
        if "bye" in (first.name, second.name):
            first, second = (second, first) if first.name == "bye" else (first, second)
        messages = _exchange(first, rng) + _exchange(second, rng)
        found.append({"messages": messages, "theme": second.name})
    return found


def manifest_path(path: Path) -> Path:
    """`identity.jsonl` -> `identity.jsonl.manifest.json`, beside it."""
    return path.with_name(path.name + ".manifest.json")


def build(path: Path, name: str = NAME) -> Manifest:
    """Write the rows and then their manifest, both atomically. The same name gives the same bytes."""
    path = Path(path)
    if not name.strip() or len(name) > 40 or any(char in name for char in "{}\n"):
        raise UserError(f"assistant name {name!r}: expected 1 to 40 characters without braces or line breaks")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name))
    write_atomic(path, text)
    return sign(path, name)


def sign(path: Path, name: str = NAME) -> Manifest:
    """Write the manifest that declares the rows of `path` good as they are; also for rows of your own.

    UserError when a row is malformed.
    """
    path = Path(path)
    found = _checked_rows(path)
    manifest = Manifest(
        format=FORMAT,
        rows=len(found),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        schema=SCHEMA,
        themes=dict(Counter(row.extra.get("theme", "") for row in found)),
        name=name,
    )
    write_atomic(manifest_path(path), msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode() + "\n")
    return manifest


def verify(path: Path, fewest: int = FEWEST_ROWS) -> Manifest:
    """The manifest of a rows file that agrees with it and has at least `fewest` rows.

    UserError, one line, for: a missing file or manifest, a manifest that cannot be read, a malformed row (with its
    line number), a wrong number of rows, a wrong checksum, too few rows. Rows are looked at first, since
    "line 12 is not JSON" helps more than "checksum differs".
    """
    path = Path(path)
    found = _checked_rows(path)
    beside = manifest_path(path)
    try:
        manifest = msgspec.json.decode(beside.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise UserError(f"{beside}: no manifest beside the identity rows; build or sign them") from None
    except msgspec.DecodeError as error:
        raise UserError(f"{beside}: not a manifest ({error}); build the identity rows again") from error
    if manifest.format != FORMAT:
        raise UserError(f"{beside}: format {manifest.format}, expected {FORMAT}; build the identity rows again")
    if len(found) != manifest.rows:
        raise UserError(f"{path}: {len(found)} rows, but its manifest says {manifest.rows}; build the rows again")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != manifest.sha256:
        raise UserError(
            f"{path}: checksum {sha256[:12]}… differs from {manifest.sha256[:12]}… in its manifest: the file was "
            "changed; build it again, or sign your own rows"
        )
    if len(found) < fewest:
        raise UserError(f"{path}: {len(found)} rows, expected at least {fewest}; add rows and sign them again")
    return manifest


def obeys(theme: Theme, never: list[str], answer: str) -> bool:
    """Every `must` group has an entry in the answer, and no `never` entry occurs; case is ignored."""
    text = answer.lower().replace("n't", " not")
    has_all = all(any(entry.lower() in text for entry in group) for group in theme.must)
    return has_all and not any(entry.lower() in text for entry in never)


class IdentitySettings(TaskSettings, frozen=True, kw_only=True):
    """`path`: a rows file with its manifest (verified); empty: the built-in rows. `assistant`: the name to learn,
    by default the manifest's, or picollm."""

    path: str = ""
    assistant: str = ""


class Identity(BaseTask):
    name = "identity"
    max_new_tokens = 48
    Settings = IdentitySettings
    settings: IdentitySettings

    def __init__(self, settings: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Verifies the rows file, if there is one. Raises UserError."""
        super().__init__(settings, **more)
        path = self.settings.path
        signed = verify(Path(path), fewest=1).name if path else NAME
        self.assistant = self.settings.assistant or signed

    def score(self, example: Example, answer_text: str) -> bool:
        source = material(self.assistant)
        for theme in source.theme:
            if theme.name == example.topic:
                return obeys(theme, source.never, answer_text)
        return says_the_same(answer_text, example.answer)  # rows of your own may have themes of your own

    def _make(self, split: Split) -> list[Example]:
        if split == "heldout":
            return [
                Example(messages=ask(prompt, theme.answers[0]), answer=theme.answers[0], key=prompt, topic=theme.name)
                for theme in material(self.assistant).theme
                for prompt in theme.heldout
            ]
        if self.settings.path:
            found = [(row.messages, row.extra.get("theme", "")) for row in _checked_rows(Path(self.settings.path))]
        else:
            found = [(row["messages"], row["theme"]) for row in rows(self.assistant)]
        return [
            Example(
                messages=messages,
                answer=text_of(messages[-1]["content"]),
                topic=theme,
                key=text_of(messages[-2]["content"]),
            )
            for messages, theme in found
        ]


def _exchange(theme: Theme, rng: random.Random) -> list[Message]:
    return ask(rng.choice(theme.prompts), rng.choice(theme.answers))


def _named(value: Any, name: str) -> Any:
    """Fill in the name everywhere; `{prompt}` stays for later."""
    if isinstance(value, str):
        return value.replace("{name}", name)
    if isinstance(value, list):
        return [_named(item, name) for item in value]
    if isinstance(value, dict):
        return {key: _named(item, name) for key, item in value.items()}
    return value


def _checked_rows(path: Path) -> list[Row]:
    found = read_rows(path)
    for row in found:
        if not set(row.extra) <= {"theme"} or not isinstance(row.extra.get("theme", ""), str):
            raise UserError(f"{path} line {row.line}: expected only the keys messages and theme (text)")
    return found
