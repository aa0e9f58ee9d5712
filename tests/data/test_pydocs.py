from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from picollm.data import pydocs, pydocs_read
from picollm.run.errors import UserError


def test_the_corpus_is_there_quickly() -> None:
    pydocs._corpus.cache_clear()
    begun = time.process_time()
    found = pydocs.documents()
    assert time.process_time() - begun < 30
    assert len(found) > 500
    assert sum(len(document.text) for document in found) > 1_000_000
    assert max(len(document.text) for document in found) <= 2 * 4000
    texts = [document.text for document in found]
    assert len(set(texts)) == len(texts) and all(text.strip() for text in texts)


def test_entries_make_questions() -> None:
    entries = pydocs.docstrings()
    assert len(entries) > 1000
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    for entry in entries:
        assert 20 <= len(entry.first_sentence) <= 160
        assert re.fullmatch(r"[A-Z][a-z]+ .*[.!?]", entry.first_sentence), entry
        assert not any(part.startswith("_") for part in entry.name.split("."))
        assert entry.module == "builtins" or entry.name.startswith(entry.module)
    by_name = {entry.name: entry for entry in entries}
    assert by_name["str.split"].kind == "method"
    assert by_name["str.split"].signature == "(sep=None, maxsplit=-1)"
    assert by_name["math.gcd"].kind == "function"
    assert by_name["textwrap.wrap"].signature == "(text, width=70, **kwargs)"
    assert by_name["collections.Counter.most_common"].signature == "(n=None)"


def test_provenance() -> None:
    found = pydocs.provenance()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "Python Software Foundation" in found["licence"]
    assert found["unreadable_files"] == 0 and len(found["sha256"]) == 64


def test_nothing_with_side_effects_is_imported() -> None:
    code = (
        "import sys; from picollm.data import pydocs; pydocs.documents();"
        "print(sorted({'antigravity', 'this', 'turtle', 'tkinter', 'idlelib', 'webbrowser', 'pydoc_data.topics',"
        "'torch', 'readline', 'lib2to3', 'curses'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""


SOURCE = '''"""A module."""
import os
if os.name:
    def inside(a, /, b=1, *rest, c: int = 2, **more) -> int:
        """Give back what is inside."""
        def nested():
            """Not an entry."""
class Box:
    """A box of things."""
    def put(self, thing, twice=False):
        """Put a thing in."""
    @staticmethod
    def made(size):
        """Say how it was made."""
    @property
    def size(self):
        """How many things it holds."""
    def silent(self): pass
'''


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "boxes.py").write_text(SOURCE)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text('"""A package."""')
    (tmp_path / "torn.py").write_text('"""x"""\ndef f(:')
    (tmp_path / "nul.py").write_bytes(b'"""\x00"""')
    (tmp_path / "latin.py").write_bytes(b'"""\xe9"""')
    (tmp_path / "antigravity.py").write_text('"""never"""')
    for left_out in ("test", "idlelib", "site-packages"):
        (tmp_path / left_out).mkdir()
        (tmp_path / left_out / "a.py").write_text('"""never"""')
    entries, broken = pydocs_read.from_sources(tmp_path)
    assert broken == ["latin.py", "nul.py", "torn.py"]
    assert [(e.name, e.kind, e.signature) for e in entries] == [
        ("boxes", "module", ""),
        ("boxes.inside", "function", "(a, /, b=1, *rest, c: int=2, **more)"),
        ("boxes.Box", "class", ""),
        ("boxes.Box.put", "method", "(thing, twice=False)"),
        ("boxes.Box.made", "method", "(size)"),
        ("boxes.Box.size", "property", ""),
        ("package", "module", ""),
    ]


def test_topics_without_importing(tmp_path: Path) -> None:
    assert pydocs_read.topics(tmp_path) == {}
    folder = tmp_path / "pydoc_data"
    folder.mkdir()
    (folder / "topics.py").write_text("topics = {'assert': 'The assert statement', 'n': 1}\n")
    assert pydocs_read.topics(tmp_path) == {"assert": "The assert statement"}
    (folder / "topics.py").write_text("topics = {")
    assert pydocs_read.topics(tmp_path) == {}


def test_excerpts_of_longer_topics_are_dropped() -> None:
    long = "\n\n".join(f"Paragraph number {n} of it." for n in range(10))
    short = "\n\n".join(f"Paragraph number {n} of it." for n in range(3, 6))
    assert list(pydocs._distinct_topics({"a": short, "b": long, "c": "Something else."})) == ["b", "c"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return the lowest index of sub. Raises nothing.", "Return the lowest index of sub."),
        ("S.find(sub[, start]) -> int\n\nReturn the lowest index in S", "Return the lowest index in S."),
        ("Returns the machine type, e.g. 'i386'.\n\nMore.", "Returns the machine type, e.g. 'i386'."),
        ("Wrapped over\ntwo lines of text here.", "Wrapped over two lines of text here."),
        ("Too short.", ""),
        ("no capital letter at the start of it.", ""),
        ("Return `code` in reST marks for readers.", ""),
        ("range(stop) -> range object", ""),
        ("", ""),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert pydocs_read.first_sentence(text) == sentence


def test_a_python_without_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    pydocs._corpus.cache_clear()
    monkeypatch.setattr(pydocs, "from_sources", lambda: ([], []))
    monkeypatch.setattr(pydocs, "from_c", lambda: [])
    monkeypatch.setattr(pydocs, "topics", lambda: {})
    with pytest.raises(UserError, match=r"data\.source"):
        pydocs.documents()
    pydocs._corpus.cache_clear()


def test_a_hook_put_in_the_place_of_pythons_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining torch's ranks replaces `sys.excepthook`; one rank and two must read the same."""
    before = pydocs_read.from_c()
    assert "sys.excepthook" in {entry.name for entry in before}
    monkeypatch.setattr(sys, "excepthook", lambda *what: None)
    assert pydocs_read.from_c() == before
