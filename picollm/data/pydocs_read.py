"""Reading the documentation that every Python carries, without importing what is documented.

    from_sources   the standard library's .py files, parsed with `ast`
    from_c         builtins and C modules, whose docstrings exist only at run time; an allow-list of modules that
                   do nothing when imported
    topics         `pydoc_data/topics.py`, a dict literal

See `pydocs` for what is made of it.
"""

from __future__ import annotations

import ast
import builtins
import gc
import importlib
import inspect
import re
import sysconfig
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

LEFT_OUT_FOLDERS = frozenset({
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "pgen2", "turtledemo",
    "ensurepip", "encodings", "pydoc_data", "lib-dynload", "__phello__", "_vendor", "_bundled",
})  # fmt: skip
LEFT_OUT_FILES = frozenset({"antigravity.py", "this.py", "turtle.py", "__hello__.py"})

# C module -> the public name its members are known under. All are harmless to import; one that is missing on this
# system is skipped.
C_MODULES = {
    "array": "array", "atexit": "atexit", "binascii": "binascii", "cmath": "cmath", "errno": "errno",
    "faulthandler": "faulthandler", "fcntl": "fcntl", "gc": "gc", "grp": "grp", "itertools": "itertools",
    "marshal": "marshal", "math": "math", "mmap": "mmap", "posix": "os", "pwd": "pwd", "resource": "resource",
    "select": "select", "sys": "sys", "syslog": "syslog", "termios": "termios", "time": "time",
    "unicodedata": "unicodedata", "zlib": "zlib", "pyexpat": "xml.parsers.expat",
    "_ast": "ast", "_asyncio": "asyncio", "_bisect": "bisect", "_bz2": "bz2", "_codecs": "codecs",
    "_collections": "collections", "_contextvars": "contextvars", "_csv": "csv", "_ctypes": "ctypes",
    "_datetime": "datetime", "_decimal": "decimal", "_elementtree": "xml.etree.ElementTree",
    "_functools": "functools", "_hashlib": "hashlib", "_heapq": "heapq", "_imp": "imp", "_io": "io",
    "_json": "json", "_locale": "locale", "_lsprof": "profile", "_lzma": "lzma", "_operator": "operator",
    "_pickle": "pickle", "_queue": "queue", "_random": "random", "_signal": "signal", "_socket": "socket",
    "_sqlite3": "sqlite3", "_ssl": "ssl", "_stat": "stat", "_statistics": "statistics", "_string": "string",
    "_struct": "struct", "_symtable": "symtable", "_thread": "threading", "_tracemalloc": "tracemalloc",
    "_uuid": "uuid", "_warnings": "warnings", "_weakref": "weakref", "_zoneinfo": "zoneinfo",
}  # fmt: skip

_ROUTINES = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType,
    types.WrapperDescriptorType, types.FunctionType, classmethod, staticmethod,
)  # fmt: skip
_PROPERTIES = (types.GetSetDescriptorType, types.MemberDescriptorType, property)
_SELF = re.compile(r"^\(\s*\$?(?:self|cls|type|module|mcls|metacls)\b\s*(?:,\s*/)?\s*(?:,\s*)?")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)[.!?](?=\s+[A-Z(\"'`]|$)")


class DocEntry(msgspec.Struct, frozen=True):
    """One documented thing.

    Attributes:
        name: "str.split", "heapq.heappush", "collections.Counter.most_common"; builtins carry no module.
        module: "builtins", "heapq", "collections".
        kind: "module", "class", "function", "method" or "property".
        signature: "(sep=None, maxsplit=-1)" without self, or "" when unknown.
        text: the whole docstring, dedented.
        first_sentence: one clean sentence ending in a full stop, or "" when the docstring does not start with one.
    """

    name: str
    module: str
    kind: str
    signature: str
    text: str
    first_sentence: str = ""


def from_sources(root: Path | None = None) -> tuple[list[DocEntry], list[str]]:
    """(entries, paths that could not be read or parsed) of the standard library under `root`, in order of path."""
    root = root or Path(sysconfig.get_path("stdlib"))
    entries: list[DocEntry] = []
    broken: list[str] = []
    collecting = gc.isenabled()
    gc.disable()  # millions of short-lived syntax nodes and no cycles: the collector would take a third of the time
    try:
        for path in _sources(root):
            try:
                source = path.read_bytes()
                if b'"""' not in source and b"'''" not in source:
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # invalid escapes in old sources
                    tree = ast.parse(source)
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                broken.append(str(path.relative_to(root)))
                continue
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            entries += _module(tree, name)
    finally:
        if collecting:
            gc.enable()
    return entries, broken


def from_c() -> list[DocEntry]:
    """Entries of the builtins, of the types behind them, and of the C modules of the allow-list that exist here."""
    entries: dict[str, DocEntry] = {}
    for name, value in sorted(vars(builtins).items()):
        if name.startswith("_"):  # the import machinery
            continue
        for entry in _runtime(value, name, "builtins"):
            entries.setdefault(entry.name, entry)
    for name, value in sorted(vars(types).items()):
        if isinstance(value, type) and value.__module__ == "builtins" and value.__name__ not in vars(builtins):
            for entry in _runtime(value, f"types.{name}", "types"):
                entries.setdefault(entry.name, entry)
    for module_name, public in C_MODULES.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        for name, value in sorted(vars(module).items()):
            if module_name == "sys":  # torch's ranks put a hook of their own in the place of sys.excepthook
                value = vars(module).get(f"__{name}__", value)
            alias = isinstance(value, type) and value.__module__ == "builtins"  # os.error is OSError
            if not name.startswith("_") and not alias:
                for entry in _runtime(value, f"{public}.{name}", public):
                    entries.setdefault(entry.name, entry)
    return list(entries.values())


def topics(root: Path | None = None) -> dict[str, str]:
    """{topic: text} of the language reference that `help("topics")` shows; {} when this Python carries none."""
    path = (root or Path(sysconfig.get_path("stdlib"))) / "pydoc_data" / "topics.py"
    try:
        tree = ast.parse(path.read_bytes())
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                found = ast.literal_eval(node.value)
                return {key: value for key, value in found.items() if isinstance(value, str)}
    except (OSError, SyntaxError, ValueError):
        return {}
    return {}


def first_sentence(text: str) -> str:
    """The first sentence of a docstring on one line, or "" when it does not begin with a clean one.

    Lines that only repeat the signature ("S.find(sub) -> int") are passed over. Clean: 20 to 160 characters of plain
    text, starting with a capital.
    """
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = paragraph.splitlines()
        while lines and re.match(r"\s*[\w.]+\(.*\)?", lines[0]) and not re.match(r"\s*[A-Z][a-z]+ ", lines[0]):
            lines.pop(0)
        if not lines:
            continue
        flat = " ".join(" ".join(lines).split())
        end = _SENTENCE_END.search(flat)
        sentence = flat[: end.end()] if end else flat
        if sentence[-1:] not in ".!?":
            sentence += "."
        plain = all(mark not in sentence for mark in ("`", ">>>", "::", "http", "|", "$", "*", ":func", ": ", "<", "="))
        return sentence if 20 <= len(sentence) <= 160 and plain and re.match(r"[A-Z][a-z]+ ", sentence) else ""
    return ""


def _sources(root: Path) -> Iterator[Path]:
    try:
        children = sorted(root.iterdir())
    except OSError:
        return
    for path in children:
        if path.suffix == ".py" and path.name not in LEFT_OUT_FILES and not path.name.startswith("_sysconfigdata"):
            yield path
        elif path.name not in LEFT_OUT_FOLDERS and "." not in path.name and path.is_dir() and not path.is_symlink():
            yield from _sources(path)


def _module(tree: ast.Module, module: str) -> Iterator[DocEntry]:
    if text := ast.get_docstring(tree):
        yield DocEntry(module, module, "module", "", text)
    yield from _members(tree.body, module, module, in_class=False)


def _members(body: list[ast.stmt], prefix: str, module: str, in_class: bool) -> Iterator[DocEntry]:
    """Entries of functions and classes, and of those inside `if` and `try`; not of functions inside functions."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                static = not in_class or any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list)
                is_property = any("property" in getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list)
                kind = "property" if is_property else "method" if in_class else "function"
                signature = "" if is_property else _signature(node.args, bound=not static)
                yield DocEntry(f"{prefix}.{node.name}", module, kind, signature, text)
        elif isinstance(node, ast.ClassDef):
            name = f"{prefix}.{node.name}"
            if text := ast.get_docstring(node):
                yield DocEntry(name, module, "class", "", text)
            yield from _members(node.body, name, module, in_class=True)
        elif isinstance(node, ast.If):
            yield from _members([*node.body, *node.orelse], prefix, module, in_class)
        elif isinstance(node, ast.Try):
            nested = [statement for handler in node.handlers for statement in handler.body]
            yield from _members([*node.body, *nested, *node.orelse], prefix, module, in_class)


def _signature(arguments: ast.arguments, bound: bool) -> str:
    names = [*arguments.posonlyargs, *arguments.args]
    if bound and names:
        (arguments.posonlyargs or arguments.args).pop(0)
        while len(arguments.defaults) > len(names) - 1:
            arguments.defaults.pop(0)
    return f"({ast.unparse(arguments)})"


def _runtime(value: Any, name: str, module: str) -> Iterator[DocEntry]:
    """Entries of a routine or class met at run time. Instances are passed over: their docstring is their type's."""
    is_class = isinstance(value, type)
    if not is_class and not isinstance(value, (*_ROUTINES, *_PROPERTIES)):
        return
    text = getattr(value, "__doc__", None)
    inside = name.count(".") > (0 if module == "builtins" else module.count(".") + 1)
    if isinstance(text, str) and text.strip():
        is_property = isinstance(value, _PROPERTIES)
        kind = "class" if is_class else "property" if is_property else "method" if inside else "function"
        raw = getattr(value, "__text_signature__", None) or ""
        signature = "" if is_property else _SELF.sub("(", raw).replace("<unrepresentable>", "...")
        yield DocEntry(name, module, kind, signature, inspect.cleandoc(text))
    if is_class and not inside:
        for member, inner in sorted(vars(value).items()):
            if not isinstance(inner, type):
                yield from _runtime(inner, f"{name}.{member}", module)
