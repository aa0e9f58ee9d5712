"""The form of a new run, without a screen: which settings it has, what they may be, what was changed. Pure.

Everything is read from the schema: a knob that is added there is a field here, with its unit, bounds and choices.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from msgspec import Meta

from picollm.run import config as settings
from picollm.run import pipeline
from picollm.run.errors import UserError
from picollm.run.folder import new_name
from picollm.run.plan import HUB_SHARDS
from picollm.run.schema import Knob

NAME, PROFILE, START = "name", "run.profile", "start"
BASIC = (
    "run.minutes", "run.seed", "data.source", "data.shards", "model.depth", "machine.device", "identity.name",
    "sft.custom",
)  # fmt: skip
TITLES = {
    "run": "Run", "launch": "Processes", "machine": "Machine", "data": "Text", "model": "Model",
    "log": "Other places for metrics", "chat": "Compare and chat",
}  # fmt: skip
NOTHING = "nothing"
PLANNED = "planned"
_BOUNDS = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))


@dataclass(frozen=True)
class Field:
    """One line of the form. `choices`: what it can be, when that is a list; `group`: the heading above it."""

    key: str
    label: str
    group: str
    about: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    bounds: str = ""
    affects: str = ""


class Form:
    """What the person has chosen so far. `base`: the run whose settings it starts from, its wishes as `values`, in
    `base_dir`, and the stages with which a run on what it made may begin. `taken`: names of the runs there are."""

    def __init__(
        self,
        name: str,
        profile: str = "pocket",
        base: str = "",
        values: Mapping[str, Any] | None = None,
        taken: Collection[str] = (),
        base_dir: str = "",
        beginnings: tuple[str, ...] = (),
    ) -> None:
        self.name, self.base, self.base_dir, self.start = name, base, base_dir, NOTHING
        self.taken, self.beginnings = taken, beginnings
        self.profile, self.profiles = profile, tuple(settings.profile_names())
        self.given: dict[str, Any] = dict(values or _profile_values(profile))
        self.changes: dict[str, Any] = {}

    @property
    def stage(self) -> str:
        """The first stage that the new run makes itself; "" when it makes all."""
        return "" if self.start == NOTHING else self.start

    @property
    def touched(self) -> bool:
        """Whether anything would be lost by leaving the form."""
        return bool(self.changes) or self.start != NOTHING

    def fields(self, everything: bool = False, find: str = "") -> list[Field]:
        """The lines to show: the important settings or all, those that `find` occurs in."""
        head = [Field(NAME, "name", "Run", "what the new run is called; letters, digits, dot, dash, underscore")]
        if self.base:
            about = f"the first stage made anew, on what {self.base} made before it; nothing: its settings alone"
            head.append(Field(START, "begin with", "Run", about, choices=(NOTHING, *self.beginnings)))
        else:
            about = settings.profile_about(self.profile) or "a set of settings for a kind of machine"
            head.append(Field(PROFILE, "profile", "Run", about, choices=self.profiles))
        keys = [key for key in settings.knobs() if key != PROFILE] if everything or find else list(BASIC)
        if not everything and not find and self.value("data.source") not in HUB_SHARDS:
            keys.remove("data.shards")
        found = [*head, *(field_of(key) for key in keys)]
        words = find.lower().split()
        return [one for one in found if all(word in f"{one.key} {one.about}".lower() for word in words)]

    def value(self, key: str) -> Any:
        if key in (NAME, PROFILE, START):
            return {NAME: self.name, PROFILE: self.profile, START: self.start}[key]
        return self.changes.get(key, self.given[key])

    def shown(self, key: str) -> str:
        """A value as the person would write it."""
        return _written(self.value(key))

    def said(self, key: str, before: bool = False) -> str:
        """A value as the form shows it: what preflight will choose is "planned". `before`: that of the profile, or of
        the run that it was copied from."""
        knob = settings.knobs().get(key)
        value = self.given[key] if before else self.value(key)
        if knob is not None and knob.auto and value == 0:
            return PLANNED
        return _written(value)

    def changed(self, key: str) -> bool:
        """Whether it differs from the profile, or from the run that it was copied from."""
        return key in self.changes

    def check(self, key: str, text: str) -> Any:
        """What `text` means for this field. Raises `UserError` in the schema's own words."""
        text = text.strip()
        if key == NAME:
            name = new_name(text)
            if name in self.taken:
                raise UserError(f"there is a run '{name}' already; choose another name")
            return name
        if key in (PROFILE, START):
            return text
        try:
            return settings.parse_sets([f"{key}={text}"])[key]
        except UserError as error:
            raise UserError(str(error).removeprefix(f"--set {key}={text}: ")) from None

    def set(self, key: str, text: str) -> None:
        """Take `text`. Raises `UserError`, and then nothing has changed."""
        value = self.check(key, text)
        if key == NAME:
            self.name = value
        elif key == START:
            self.start = value
        elif key == PROFILE:
            self.given, self.profile = _profile_values(value), value
            self.changes = {other: kept for other, kept in self.changes.items() if kept != self.given[other]}
        elif value == self.given[key]:
            self.changes.pop(key, None)
        else:
            self.changes[key] = value

    def tried(self, key: str, text: str) -> Form:
        """A copy that has taken `text`, to see what it would mean."""
        other = copy.copy(self)
        other.changes = dict(self.changes)
        other.set(key, text)
        return other

    def reset(self, key: str) -> None:
        """Back to what the profile, or the run copied from, says."""
        self.changes.pop(key, None)

    def cycle(self, field: Field, by: int) -> None:
        """The next or the previous choice."""
        now = self.shown(field.key)
        index = field.choices.index(now) if now in field.choices else 0
        self.set(field.key, field.choices[(index + by) % len(field.choices)])

    def config(self) -> settings.Config:
        """The settings as they are now."""
        return settings.build(self.given | self.changes | {PROFILE: self.profile})


def _written(value: Any) -> str:
    return value if isinstance(value, str) else settings.shown(value)


@functools.cache
def field_of(key: str) -> Field:
    """The line of one knob."""
    knob = settings.knobs()[key]
    table, _, name = knob.key.partition(".")
    title = TITLES.get(table) or pipeline.title(table)
    return Field(knob.key, name.replace("_", " "), title, knob.description, knob.unit, choices(knob), bounds(knob),
                 knob.affects)  # fmt: skip


def choices(knob: Knob) -> tuple[str, ...]:
    """The values there are, when the schema lists them all."""
    kind = knob.type.__origin__
    if kind is bool:
        return ("true", "false")
    return tuple(str(one) for one in get_args(kind)) if get_origin(kind) is Literal else ()


def bounds(knob: Knob) -> str:
    """`at least 0, at most 100`; empty where anything goes."""
    metas = [meta for meta in knob.type.__metadata__ if isinstance(meta, Meta)]
    for inner in get_args(knob.type.__origin__):  # "auto" or a number with bounds of its own
        metas += [meta for meta in getattr(inner, "__metadata__", ()) if isinstance(meta, Meta)]
    return ", ".join(f"{words} {getattr(meta, name):,}" for meta in metas for name, words in _BOUNDS
                     if getattr(meta, name) is not None)  # fmt: skip


def _profile_values(profile: str) -> dict[str, Any]:
    return settings.flat(settings.load(profile))
