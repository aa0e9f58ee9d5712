from __future__ import annotations

import errno
import json
import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from picollm.data import own_text
from picollm.data.documents import Document
from picollm.data.own_text import LOOK_EVERY, MOST_NAMED, Counts
from picollm.run.errors import StopRequested, UserError


def read_source(path: Path, *more: Callable[[int, int], None]) -> tuple[list[Document], Counts]:
    """All at once, for looking at."""
    counts = Counts()
    return list(own_text.read_source(path, counts, *more)), counts


def test_a_folder_of_everything(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffFirst text\r\nwith lines".encode())
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.MD").write_text("# Second")
    (tmp_path / "c.jsonl").write_text(
        json.dumps({"text": "Third"}) + "\n\n" + json.dumps({"content": "Fourth"}) + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}) + "\n"
    )  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "text": ["Fifth", None]}), tmp_path / "d.parquet")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("no")
    documents, counts = read_source(tmp_path)
    assert [(d.id, d.text) for d in documents] == [
        ("a.txt", "First text\nwith lines"),
        ("c.jsonl:1", "Third"),
        ("c.jsonl:3", "Fourth"),
        ("c.jsonl:4", "User: Hi\n\nAssistant: Yo"),
        ("d.parquet:1", "Fifth"),
        ("deep/b.MD", "# Second"),
    ]
    assert counts.as_dict() == {
        "files": 4, "ignored": 1, "unreadable": 0, "documents": 6, "bytes": sum(len(d.text) for d in documents),
        "empty": 0, "duplicates": 0, "encoding_errors": 0, "bad_lines": 1,
    }  # fmt: skip
    assert counts.problems == ["d.parquet:2: no text, content or messages; left out"]


def test_a_sign_of_life_for_every_file_and_many_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(2 * LOOK_EVERY))
    (tmp_path / "b.jsonl").write_text(rows)
    seen: list[tuple[int, int]] = []
    read_source(tmp_path, lambda done, files: seen.append((done, files)))
    assert seen == [(0, 2), (1, 2), (1, 2), (1, 2)]

    def stop(done: int, files: int) -> None:
        raise StopRequested()

    with pytest.raises(StopRequested):
        read_source(tmp_path, stop)


def test_one_file(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Only this.")
    documents, counts = read_source(file)
    assert [d.id for d in documents] == ["notes.txt"] and counts.files == 1


def test_empty_and_duplicate_documents_are_counted(tmp_path: Path) -> None:
    for name, text in {"a": "same", "b": "same\n", "c": " \n ", "d": ""}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    documents, counts = read_source(tmp_path)
    assert len(documents) == 1 and (counts.duplicates, counts.empty) == (1, 2)


def test_torn_and_odd_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\nnot json\n[1]\n{"text": 5}\n{"text": "cut o')
    documents, counts = read_source(tmp_path)
    assert [d.text for d in documents] == ["good"] and counts.bad_lines == 4
    assert [p.split(" (")[0].split(";")[0] for p in counts.problems] == [
        "rows.jsonl:2: not JSON",
        "rows.jsonl:3: no text, content or messages",
        "rows.jsonl:4: no text, content or messages",
        "rows.jsonl:5: cut off",
    ]


def test_many_problems_are_summed_up(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n' + "bad\n" * 500)
    _, counts = read_source(tmp_path)
    assert counts.bad_lines == 500 and len(counts.problems) == MOST_NAMED + 1
    assert counts.problems[-1] == f"and {500 - MOST_NAMED} more problems of this kind"


def test_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("schöne Grüße".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("schöne Welt".encode("utf-16"))
    documents, counts = read_source(tmp_path)
    assert [d.text for d in documents] == ["sch\ufffdne Gr\ufffd\ufffde", "schöne Welt"]
    assert counts.encoding_errors == 1 and counts.problems == ["latin.txt: byte 3 is not UTF-8; save the file as UTF-8"]


@pytest.mark.parametrize("name", ["missing", "missing.txt"])
def test_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} does not exist; set data\.source"):
        read_source(tmp_path / name)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no text in .*: 0 files"):
        read_source(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(UserError, match=r"1 bad lines \(rows\.jsonl:1"):
        read_source(tmp_path)
    (tmp_path / "book.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match=r"book\.pdf is not one of"):
        read_source(tmp_path / "book.pdf")


def test_broken_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match=r"no text in .*x\.parquet: cannot be read .*fetch it again"):
        read_source(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"no column text, content or messages, found: n;"):
        read_source(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("x")
    file.chmod(0)
    with pytest.raises(UserError, match=r"no text in .*a\.txt: cannot be read \(Permission denied\)"):
        read_source(tmp_path)


def test_an_unreadable_file_is_named_and_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 torn")
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    documents, counts = read_source(tmp_path)
    assert [d.id for d in documents] == ["b.txt"] and (counts.files, counts.unreadable) == (1, 2)
    assert counts.problems[0] == "a.txt: cannot be read (Permission denied); left out"
    assert "c.parquet: cannot be read" in counts.problems[1]


@pytest.mark.timeout(120)
def test_odd_entries_are_named_and_neither_kill_nor_hang(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("kept")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "itself.txt").symlink_to(tmp_path / "itself.txt")
    (tmp_path / "up").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path must be short
        try:
            listener.bind("socket.md")
        finally:
            os.chdir(here)
        documents, counts = read_source(tmp_path)
    assert [d.id for d in documents] == ["a.txt"]
    assert (counts.files, counts.ignored, counts.unreadable) == (1, 6, 0)
    assert counts.problems == [
        "up: a link to a folder, which is not followed",
        "gone.txt: a link to nothing; left out",
        "itself.txt: a link to nothing; left out",
        "pipe.txt: not a plain file; left out",
        "socket.md: not a plain file; left out",
    ]
    with pytest.raises(UserError, match="neither a file nor a folder"):
        read_source(tmp_path / "pipe.txt")


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "w") as file:
        file.write("text")
    documents, _ = read_source(tmp_path)
    assert [d.id for d in documents] == ["\ufffd.txt"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_a_file_too_large_to_be_held_becomes_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(own_text, "LARGE_FILE", 400)
    text = "".join(f"Verse {n}: größer als das Meer, und älter.\r\n\r\n" for n in range(40))
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    documents, counts = read_source(tmp_path)
    assert "".join(document.text for document in documents) == text.replace("\r\n", "\n")
    assert max(len(document.text) for document in documents) <= 100 and documents[0].id == "a.txt#1"
    assert counts.encoding_errors == 0 and counts.files == 1


def test_wrong_bytes_in_a_large_file_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_text, "LARGE_FILE", 400)
    lines = [f"line {n} of many\n".encode() for n in range(60)]
    lines[30] = b"torn \xff bytes\n"
    lines[31] = b"halb " + "ö".encode()[:1] + b"\n"
    (tmp_path / "a.txt").write_bytes(b"".join(lines))
    documents, counts = read_source(tmp_path)
    assert counts.encoding_errors == 1 and "not all of it is UTF-8" in counts.problems[0]
    assert "".join(document.text for document in documents) == b"".join(lines).decode(errors="replace")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_large_file_that_ends_within_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(own_text, "LARGE_FILE", 400)
    whole = ("line after line\n" * 60 + "ö").encode(encoding)
    (tmp_path / "a.txt").write_bytes(whole[:-1])
    documents, counts = read_source(tmp_path)
    assert counts.encoding_errors == 1 and "".join(d.text for d in documents).endswith("line after line\n\ufffd")


def test_reading_holds_no_text(tmp_path: Path) -> None:
    with open(tmp_path / "rows.jsonl", "w") as rows:
        for n in range(4000):
            rows.write(json.dumps({"text": f"row {n} " * 500}) + "\n")
    tracemalloc.start()
    for _ in own_text.read_source(tmp_path, Counts()):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "rows.jsonl").stat().st_size > 16_000_000 and peak < 2_000_000
