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

import contextlib
import hashlib
import itertools
import json
import random
import re
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
from picollm.run.schema import IdentityConfig
from picollm.run.structs import complete
from picollm.tasks.base import BaseTask, Example, Split, TaskSettings, ask
from picollm.tasks.rows import Row, read_rows
from picollm.tasks.scoring import says_the_same
from picollm.text.chat import text_of

NAME = "picollm"
MAKER = "my owner"
PROMPTS_PER_THEME = 720
TWO_TURN_ROWS = 400
FACT_ROWS = 240  # of the person's own facts, repeated up to about so many rows, or a handful would be drowned
FEWEST_ROWS = 1000
FORMAT = 1
SCHEMA = {
    "messages": "list of {role: user | assistant, content: text}, alternating, ending with the assistant",
    "theme": "theme of the last exchange; may be left out",
}
UNFRAMED = ("greeting", "bye", "thanks")  # "Before we start: Bye" is not English
NOT_WRITTEN = "{}[]|\n"  # in a name: these mean something in the data file


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


@complete
class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a rows file must contain: `sha256` is of the file's bytes, `themes` counts rows per theme.

    `name` and `maker`: whom the rows teach, so that the held-out questions are judged by the same.
    """

    format: int
    rows: int
    sha256: str
    schema: dict[str, str]
    themes: dict[str, int]
    name: str
    maker: str = MAKER


@lru_cache(maxsize=4)
def material(name: str = NAME, maker: str = MAKER) -> Material:
    """The hand-written material with the assistant's name and maker filled in. UserError for one that cannot be."""
    for what, text in (("name", name), ("maker", maker)):
        if not text.strip() or len(text) > 40 or any(char in text for char in NOT_WRITTEN):
            raise UserError(
                f"identity {what} {text!r}: expected 1 to 40 characters without braces, brackets, bars or line breaks"
            )
    text = (files("picollm.tasks") / "data" / "identity.toml").read_text(encoding="utf-8")
    slots = {"{name}": name, "{maker}": maker, "{Maker}": maker[0].upper() + maker[1:]}
    source = msgspec.convert(_filled(tomllib.loads(text), slots), Material)
    own = f"{name}\n{maker}".lower()
    return msgspec.structs.replace(source, never=[word for word in source.never if word not in own])


def phrasings(theme: Theme, most: int = PROMPTS_PER_THEME) -> list[str]:
    """The theme's prompts written out: first those without alternatives, then of each pattern in turn one more.

    "[Can|Could] you help[| me]?" stands for four. No pattern outweighs the others, however many it stands for.
    """
    plain = [prompt for prompt in theme.prompts if "[" not in prompt]
    columns = []
    for pattern in theme.prompts:
        if "[" in pattern:
            pieces = [piece.split("|") if i % 2 else [piece] for i, piece in enumerate(re.split(r"\[(.*?)\]", pattern))]
            column = ["".join(choice) for choice in itertools.product(*pieces)]
            random.Random(f"identity|{theme.name}|{pattern}").shuffle(column)
            columns.append(column)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*columns))
    return list(dict.fromkeys([*plain, *filter(None, turns)]))[:most]


def rows(name: str = NAME, maker: str = MAKER) -> list[dict[str, Any]]:
    """All conversations in file order, `{"messages": [...], "theme": ...}`; a pure function of its arguments.

    Every phrasing of a theme is asked once and answered with one of its answers: most as written, some behind an
    opener, some as people type, without capitals and marks. Some conversations follow a question of another theme.
    """
    source = material(name, maker)
    found: list[dict[str, Any]] = []
    asked = {theme.name: phrasings(theme) for theme in source.theme}
    for theme in source.theme:
        for number, prompt in enumerate(asked[theme.name]):
            if number % 10 in (3, 7) and theme.name not in UNFRAMED:
                prompt = _opened(source.openers[number // 5 % len(source.openers)], prompt)
            elif number % 10 == 5:
                prompt = prompt.lower().rstrip("?.!")
            answer = theme.answers[number % len(theme.answers)]
            found.append({"messages": ask(prompt, answer), "theme": theme.name})
    rng = random.Random("identity|two turns")
    for _ in range(TWO_TURN_ROWS):
        first, second = rng.sample(source.theme, 2)
        if "bye" in (first.name, second.name):
            first, second = (second, first) if first.name == "bye" else (first, second)
        turns = [ask(rng.choice(asked[theme.name]), rng.choice(theme.answers)) for theme in (first, second)]
        found.append({"messages": turns[0] + turns[1], "theme": second.name})
    return found


def facts(path: Path) -> list[dict[str, Any]]:
    """Rows of the person's own, "What is our dog called?", in rounds of all of them, about `FACT_ROWS` in the end.

    UserError when one is malformed.
    """
    own = [{"messages": row.messages, "theme": row.extra.get("theme", "own")} for row in _checked_rows(path)]
    return own * max(1, FACT_ROWS // len(own))


def fitting(wishes: IdentityConfig) -> None:
    """Raises `UserError` where the settings contradict each other, or the name, the maker or the facts will not do."""
    if wishes.file:
        plain = IdentityConfig()
        for key in ("name", "maker", "facts"):
            if getattr(wishes, key) != getattr(plain, key):
                raise UserError(
                    f"identity.{key} goes into the built-in rows, and identity.file replaces them: set one of the two"
                )
        return
    material(wishes.name, wishes.maker)
    if wishes.facts:
        facts(Path(wishes.facts).expanduser())


def manifest_path(path: Path) -> Path:
    """`identity.jsonl` -> `identity.jsonl.manifest.json`, beside it."""
    return path.with_name(path.name + ".manifest.json")


def build(path: Path, name: str = NAME, maker: str = MAKER, own: Path | None = None) -> Manifest:
    """Write the rows, those of the file `own` after the built-in ones, and then their manifest, both atomically.

    The same arguments give the same bytes. UserError for a name, maker or file that cannot be used.
    """
    path = Path(path)
    found = rows(name, maker) + (facts(own) if own else [])
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    return sign(path, name, maker)


def sign(path: Path, name: str = "", maker: str = "") -> Manifest:
    """Write the manifest that declares the rows of `path` good as they are; also for rows of your own.

    `name`, `maker`: where left empty, what the manifest says that is there already, else the built-in ones. UserError
    when a row is malformed.
    """
    path = Path(path)
    with contextlib.suppress(OSError, msgspec.DecodeError):
        before = msgspec.json.decode(manifest_path(path).read_bytes(), type=Manifest)
        name, maker = name or before.name, maker or before.maker
    name, maker = name or NAME, maker or MAKER
    material(name, maker)
    found = _checked_rows(path)
    manifest = Manifest(
        format=FORMAT,
        rows=len(found),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        schema=SCHEMA,
        themes=dict(Counter(row.extra.get("theme", "") for row in found)),
        name=name,
        maker=maker,
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
    """`path`: a rows file with its manifest (verified); empty: the built-in rows. `assistant`, `maker`: who it is and
    who made it, by default what the manifest says."""

    path: str = ""
    assistant: str = ""
    maker: str = ""


class Identity(BaseTask):
    name = "identity"
    max_new_tokens = 48
    Settings = IdentitySettings
    settings: IdentitySettings

    def __init__(self, settings: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Verifies the rows file, if there is one. Raises UserError."""
        super().__init__(settings, **more)
        path = self.settings.path
        signed = verify(Path(path), fewest=1) if path else None
        self.assistant = self.settings.assistant or (signed.name if signed else NAME)
        self.maker = self.settings.maker or (signed.maker if signed else MAKER)

    def score(self, example: Example, answer_text: str) -> bool:
        source = material(self.assistant, self.maker)
        for theme in source.theme:
            if theme.name == example.topic:
                return obeys(theme, source.never, answer_text)
        return says_the_same(answer_text, example.answer)  # rows of your own may have themes of your own

    def _make(self, split: Split) -> list[Example]:
        if split == "heldout":
            return [
                Example(messages=ask(prompt, theme.answers[0]), answer=theme.answers[0], key=prompt, topic=theme.name)
                for theme in material(self.assistant, self.maker).theme
                for prompt in theme.heldout
            ]
        if self.settings.path:
            found = [(row.messages, row.extra.get("theme", "")) for row in _checked_rows(Path(self.settings.path))]
        else:
            found = [(row["messages"], row["theme"]) for row in rows(self.assistant, self.maker)]
        return [
            Example(
                messages=messages,
                answer=text_of(messages[-1]["content"]),
                topic=theme,
                key=text_of(messages[-2]["content"]),
            )
            for messages, theme in found
        ]


def _opened(opener: str, prompt: str) -> str:
    """The prompt in its opener; "So, who are you?" goes on in the middle of a sentence."""
    if ", {prompt}" in opener and not prompt.startswith(("I ", "I'")):
        prompt = prompt[0].lower() + prompt[1:]
    return opener.format(prompt=prompt)


def _filled(value: Any, slots: Mapping[str, str]) -> Any:
    """Fill in the slots everywhere; `{prompt}` stays for later."""
    if isinstance(value, str):
        for slot, text in slots.items():
            value = value.replace(slot, text)
        return value
    if isinstance(value, list):
        return [_filled(item, slots) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, slots) for key, item in value.items()}
    return value


def _checked_rows(path: Path) -> list[Row]:
    found = read_rows(path)
    for row in found:
        if not set(row.extra) <= {"theme"} or not isinstance(row.extra.get("theme", ""), str):
            raise UserError(f"{path} line {row.line}: expected only the keys messages and theme (text)")
    return found
