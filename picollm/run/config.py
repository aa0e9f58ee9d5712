"""From files, environment and command line to a `Config`; the knobs themselves are in `schema`.

Layers: schema defaults < profile < `--config` file < environment (`PICOLLM_SFT__LR=0.1`) < `--set sft.lr=0.1`.
"""

from __future__ import annotations

import functools
import math
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from picollm.run.errors import UserError
from picollm.run.schema import Config, flat, knobs, tables


def default_file() -> Path:
    """The `picollm.toml` that ships with the package (or lies beside it in a checkout)."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "picollm.toml"
    return inside if inside.exists() else package.parent / "picollm.toml"


def layers(
    profile: str | None = None,
    file: Path | None = None,
    sets: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> list[tuple[str, dict[str, Any]]]:
    """Every layer with its name, weakest first: dotted keys that it sets, checked. Raises `UserError`."""
    environ = os.environ if environ is None else environ
    shipped, profiles = _read(default_file())
    own: dict[str, Any] = {}
    if file is not None:
        own, own_profiles = _read(file)
        for name, tables in own_profiles.items():
            profiles[name] = {**profiles.get(name, {}), **tables}
    from_environment, from_sets = _from_environment(environ), parse_sets(sets)
    profile = profile or ({"run.profile": "pocket"} | own | from_environment | from_sets)["run.profile"]
    if profile not in profiles:
        raise UserError(f"unknown profile '{profile}': expected one of {', '.join(sorted(profiles))}")
    return [
        ("default", shipped),
        (f"profile {profile}", profiles[profile] | {"run.profile": profile}),
        (str(file), own),
        ("environment", from_environment),
        ("--set", from_sets),
    ]


def load(
    profile: str | None = None,
    file: Path | None = None,
    sets: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """All layers merged and checked.

    Raises `UserError` naming file, line, key and what was expected.
    """
    found = layers(profile, file, sets, environ)
    values: dict[str, Any] = {}
    for _, layer in found:
        values |= layer
    values["run.profile"] = found[1][1]["run.profile"]
    return build(values)


@functools.lru_cache(32)
def profile_values(profile: str) -> dict[str, Any]:
    """What a shipped profile sets, defaults included, by dotted key; empty for a profile of somebody's own file.

    Read it only: it is read from the file once.
    """
    try:
        found = layers(profile, environ={})[:2]
    except UserError:
        return {}
    return flat(build(found[0][1] | found[1][1]))


def file_values(file: Path) -> dict[str, Any]:
    """What one settings file sets, its profiles aside, by dotted key. Raises `UserError`."""
    return _read(file)[0]


def profile_names(file: Path | None = None) -> list[str]:
    names = dict(_read(default_file())[1])
    if file is not None:
        names |= _read(file)[1]
    return list(names)


@functools.cache
def profile_about(name: str) -> str:
    """What a profile that ships with the package is for: the comment above it; "" for any other."""
    found = re.search(rf"^# {re.escape(name)}: (.+)$", default_file().read_text(), re.MULTILINE)
    return found[1] if found else ""


def load_file(file: Path) -> Config:
    """A complete configuration, as a run folder keeps it, with no profile and no environment."""
    return build(_read(file)[0])


def build(values: Mapping[str, Any]) -> Config:
    """Dotted keys, already checked one by one, to a Config."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return msgspec.convert(tables, Config)


def dump(config: Config) -> str:
    """TOML text that `load_file` reads back."""
    return tomli_w.dumps(msgspec.to_builtins(config))


def shown(value: Any) -> str:
    """A value as TOML writes it within a line."""
    if isinstance(value, dict):
        pairs = ", ".join(tomli_w.dumps({key: item}).strip() for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return tomli_w.dumps({"x": value}).strip().removeprefix("x = ")


def as_set(key: str, value: Any) -> str:
    """`--set` with this value, as a shell takes it."""
    return "--set " + shlex.quote(f"{key}={value if isinstance(value, str) else shown(value)}")


def template() -> str:
    """The commented defaults: what the head of `picollm.toml` says about every knob."""
    lines: list[str] = []
    defaults = flat(Config())
    table = ""
    for key, knob in knobs().items():
        head, _, name = key.partition(".")
        if head != table:
            table = head
            lines += ["", f"[{table}]"]
        note = knob.description + (f" [{knob.unit}]" if knob.unit else "")
        lines += [
            f"# {note}",
            tomli_w.dumps({name: defaults[key]}).strip() if defaults[key] != {} else f"{name} = {{}}",
        ]
    return "\n".join(lines).strip() + "\n"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """One TOML file to checked dotted values and its profiles' dotted values."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"cannot read settings file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # besides TOMLDecodeError: an integer of 5,000 digits, 1,000 brackets
        raise UserError(f"{path}: not valid TOML: {error}") from None
    profiles = document.pop("profiles", {})
    where = _Where(path, text)
    if not isinstance(profiles, dict):
        raise UserError(f"{where.at('profiles')}: [profiles] must be a table of profiles")
    values = _check_tables(document, where, "")
    checked = {name: _check_tables(tables, where, f"profiles.{name}.") for name, tables in profiles.items()}
    return values, checked


def _check_tables(document: Any, where: _Where, prefix: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise UserError(f"{where.at(prefix.rstrip('.'))}: expected tables")
    values = {}
    known = tables()
    for table, content in document.items():
        if table not in known:
            raise UserError(
                f"{where.at(prefix + table)}: unknown table [{prefix}{table}]; expected one of {', '.join(known)}"
            )
        if not isinstance(content, dict):
            raise UserError(f"{where.at(prefix + table)}: [{table}] must be a table")
        for name, value in content.items():
            place = functools.partial(where.at, f"{prefix}{table}.{name}")
            values[f"{table}.{name}"] = check(f"{table}.{name}", value, place)
    return values


def check(key: str, value: Any, where: str | Callable[[], str]) -> Any:
    """One value against its knob; returns it, converted. Raises `UserError` starting with `where`, which may be a
    function when finding the place takes longer than checking."""
    try:
        return _check(key, value)
    except UserError as error:
        raise UserError(f"{where if isinstance(where, str) else where()}: {error}") from None


def _check(key: str, value: Any) -> Any:
    all_knobs = knobs()
    if key not in all_knobs:
        table = key.partition(".")[0]
        near = [k for k in all_knobs if k.startswith(table + ".")] or sorted({k.partition(".")[0] for k in all_knobs})
        raise UserError(f"unknown key '{key}'; expected one of {', '.join(near)}")
    try:
        converted = msgspec.convert(value, all_knobs[key].type)
    except msgspec.ValidationError as error:
        reason = str(error)
        reason = reason[0].lower() + reason[1:]
        unit = f" ({all_knobs[key].unit})" if all_knobs[key].unit else ""
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
        raise UserError(f"{key} = {shown}: {reason}{unit}; {all_knobs[key].description}") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise UserError(f"{key} = {value!r}: expected a finite number; {all_knobs[key].description}")
    return converted


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for name, text in environ.items():
        match = re.fullmatch(r"PICOLLM_([A-Z_]+?)__([A-Z_]+)", name)
        if match:
            key = f"{match[1].lower()}.{match[2].lower()}"
            values[key] = check(key, _parse(key, text), f"environment variable {name}")
    return values


def parse_sets(sets: Iterable[str]) -> dict[str, Any]:
    """`["sft.lr=0.5"]` to checked dotted values. Raises `UserError`."""
    values = {}
    for item in sets:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"--set {item}: expected table.key=value, for example --set sft.lr=0.5")
        values[key] = check(key, _parse(key, text.strip()), f"--set {item}")
    return values


def _parse(key: str, text: str) -> Any:
    """A value written on a command line: TOML where it parses, else a bare string."""
    knob = knobs().get(key)
    if knob is not None and knob.type.__origin__ is str:
        text_value = text.strip()
        if not (text_value.startswith('"') and text_value.endswith('"') and len(text_value) > 1):
            return text_value
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


class _Where:
    """Finds the line of a dotted key in TOML text; msgspec and tomllib name keys, not lines."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()

    def at(self, dotted: str) -> str:
        """`file:line` of the key, of its table when the key is written inline, or the file alone."""
        table, _, _ = dotted.rpartition(".")
        current = ""
        header = 0
        for number, line in enumerate(self.lines, 1):
            if match := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line):
                current = re.sub(r"[\s\"']", "", match[1])
                if current in (dotted, table) or (not header and current.startswith(dotted + ".")):
                    header = header or number
                if current == dotted:
                    return f"{self.path}:{number}"
            elif match := re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line):
                key = re.sub(r"[\"']", "", match[1])
                if f"{current}.{key}".lstrip(".") == dotted:
                    return f"{self.path}:{number}"
        return f"{self.path}:{header}" if header else str(self.path)
