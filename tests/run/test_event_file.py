from __future__ import annotations

import errno
import math
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.run import event_file
from picollm.run import events as ev
from tests.run.conftest import until


def texts(path: Path) -> list[str]:
    return [event.text for event in event_file.read_events(path) if isinstance(event, ev.Message)]


def write(path: Path, *messages: str) -> None:
    writer = event_file.EventWriter(path)
    for message in messages:
        writer.write(ev.Message(text=message))
    writer.close()


def test_every_line_carries_version_seq_time_and_type(tmp_path: Path) -> None:
    write(tmp_path / "e", "a", "b")
    first, second = (tmp_path / "e").read_text().splitlines()
    assert '"type":"message"' in first and '"v":1' in first and '"time":' in first
    assert '"seq":1' in first and '"seq":2' in second


def test_torn_last_line_is_not_yet_there(tmp_path: Path) -> None:
    path = tmp_path / "e"
    write(path, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    reader = event_file.EventReader(path)
    assert [event.text for event in reader.poll()] == ["a"]
    assert reader.poll() == []
    path.write_bytes(whole)
    assert [event.text for event in reader.poll()] == ["b"]


def test_torn_line_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "e"
    write(path, "a", "b")
    path.write_bytes(path.read_bytes()[:-9])
    write(path, "c")  # the next attempt to write starts a line of its own
    event_file.append(path, ev.Message(text="d"))
    assert texts(path) == ["a", "c", "d"]
    assert [event.seq for event in event_file.read_events(path)] == [1, 2, 3]


def test_unknown_types_fields_and_foreign_bytes_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_bytes(
        b'{"type":"hologram","seq":1}\n\xff\xfe\x00\n[]\n\n{"type":"message","text":"x","newer_field":1,"seq":7}\n'
    )
    assert texts(path) == ["x"]
    event_file.append(path, ev.Message(text="y"))
    assert [event.seq for event in event_file.read_events(path)] == [7, 8]


def test_a_portion_without_a_known_event_does_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_bytes(b'{"type":"hologram"}\n' * 10_000 + b'{"type":"message","text":"end"}\n')
    assert [event.text for event in event_file.EventReader(path).poll(limit_bytes=1000)] == ["end"]


def test_a_last_event_longer_than_the_tail_is_found(tmp_path: Path) -> None:
    path = tmp_path / "e"
    event_file.append(path, ev.Message(text="first"))
    event_file.append(path, ev.Finished(seconds=1, summary={"failures": ["x" * 1000] * 300}))
    assert isinstance(event_file.tail_events(path)[-1], ev.Finished)
    event_file.append(path, ev.Message(text="after"))
    assert [event.seq for event in event_file.read_events(path)] == [1, 2, 3]


def test_the_tail_reads_little_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e"
    path.write_bytes(b'{"type":"metrics","seq":1,"time":1.0,"step":1,"values":{"loss":2.0}}\n' * 1_000_000)
    asked: list[int] = []
    decode = event_file.decode

    def counting(line: bytes) -> Any:
        asked.append(len(line))
        return decode(line)

    monkeypatch.setattr(event_file, "decode", counting)
    assert len(event_file.tail_events(path)) > 500 and len(event_file.head_events(path)) > 500
    assert sum(asked) <= 2 * (64 << 10)


def test_numbers_of_other_libraries_and_broken_text_are_written(tmp_path: Path) -> None:
    class Scalar:
        def item(self) -> float:
            return 1.5

    path = tmp_path / "e"
    writer = event_file.EventWriter(path)
    writer.write(ev.Metrics(step=1, values={"loss": Scalar(), "nan": math.nan, "inf": math.inf}))  # type: ignore[dict-item]
    writer.write(
        ev.Sample(prompt="p", text="bad \udcff byte", step=1, details={"path": Path("/x"), "\ud800": ["\ud800"]})
    )
    writer.close()
    metrics, sample = event_file.read_events(path)
    assert metrics.values == {"loss": 1.5, "nan": None, "inf": None}
    assert sample.text == "bad ? byte" and sample.details == {"path": "/x", "?": ["?"]}


@given(st.binary(max_size=400))
def test_no_bytes_upset_a_reader(data: bytes) -> None:
    for line in data.split(b"\n"):
        event_file.decode(line)


@given(st.lists(st.text(max_size=20), max_size=12), st.integers(0, 400))
def test_whatever_is_cut_off_the_rest_is_read(
    tmp_path_factory: pytest.TempPathFactory, said: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "e"
    for text in said:
        event_file.append(path, ev.Message(text=text))
    if not said:
        return
    data = path.read_bytes()
    path.write_bytes(data[: max(0, len(data) - cut)])
    kept = texts(path)
    event_file.append(path, ev.Message(text="next"))
    # A line that lost only its newline is whole again once the next writer has ended it.
    assert texts(path)[-1] == "next" and texts(path)[: len(kept)] == kept and len(texts(path)) - len(kept) in (1, 2)


def test_a_full_disk_delays_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    path = tmp_path / "e"
    real, full = os.write, threading.Event()
    monkeypatch.setattr(event_file.EventWriter, "RETRY_S", 0.02)

    def almost(fd: int, data: bytes) -> int:
        if full.is_set() and data.startswith((b"{", b"\n{")):
            if len(data) > 30 and not full.hit:  # type: ignore[attr-defined]
                full.hit = True  # type: ignore[attr-defined]
                return real(fd, data[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    full.hit = False  # type: ignore[attr-defined]
    writer = event_file.EventWriter(path)
    monkeypatch.setattr(os, "write", almost)
    full.set()
    for number in range(20):
        writer.write(ev.Message(text=f"m{number}"))
    until(lambda: full.hit)  # type: ignore[attr-defined]
    assert texts(path) == []
    full.clear()
    writer.close()
    assert texts(path) == [f"m{number}" for number in range(20)]
    assert "cannot write" in capfd.readouterr().err and writer.lost == 0


def test_a_disk_that_stays_full_is_said_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(event_file.EventWriter, "RETRY_S", 0.01)
    monkeypatch.setattr(event_file.EventWriter, "CLOSE_PATIENCE_S", 0.1)
    writer = event_file.EventWriter(tmp_path / "e")
    monkeypatch.setattr(os, "write", refuse)
    for _ in range(3):
        writer.write(ev.Message(text="x"))
    writer.close()
    writer.close()
    assert "3 lines" in capfd.readouterr().err


def test_two_appenders_neither_interleave_nor_share_a_seq(tmp_path: Path) -> None:
    path = tmp_path / "e"
    threads = [
        threading.Thread(target=lambda: [event_file.append(path, ev.Message(text="x" * 500)) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.seq for event in event_file.read_events(path)] == list(range(1, 201))
