"""The Machine tab: every kind of GPU in words, history as columns, and the app's own readings where no run records."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from picollm.run import event_file
from picollm.run import events as ev
from tests.tui.conftest import WIDE, until
from tui import state, timeline
from tui.widgets.machine_blocks import Look, blocks

GIB = 1 << 30
H100: dict[str, Any] = {
    "index": 0, "name": "NVIDIA H100", "utilisation": 97, "memory_used": 70 * GIB, "memory_total": 80 * GIB,
    "power_w": 612.0, "power_limit_w": 700.0, "temperature_c": 64, "temperature_limit_c": 87, "clock_mhz": 1755,
    "clock_max_mhz": 1980, "slowed": ["power limit"],
}  # fmt: skip


def reading(at: float = 1000.0, **more: Any) -> ev.Machine:
    base = {"cpu": 40.0, "cores": [30.0, 50.0], "memory_used": 6 * GIB, "memory_total": 16 * GIB, "host": "box",
            "disks": [{"what": "run", "path": "/runs", "free": 100 * GIB, "total": 500 * GIB}]}  # fmt: skip
    found = ev.Machine(**(base | more))  # type: ignore[arg-type]
    found.time = at
    return found


def drawn(readings: list[ev.Machine], width: int = 100, look: Look | None = None, now: float = 1001.0,
          height: int = 40) -> str:  # fmt: skip
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(*blocks(state.empty("r"), readings, look or Look(), width, now, False, False, height), sep="\n")
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_all_that_a_gpu_reports() -> None:
    words = drawn([reading(gpus=[H100])])
    for part in ("97 %", "70.0 of 80.0 GiB", "612 W of 700 W", "64 °C, slows at 87", "1755 MHz of 1980",
                 "below its clock: power limit"):  # fmt: skip
        assert part in words


def test_each_gpu_has_its_card_where_the_screen_has_the_room() -> None:
    one, four = [reading(gpus=[H100])], [reading(gpus=[H100 | {"index": index} for index in range(4)])]
    assert "slows at 87" in drawn(one, height=17) and "slows at 87" in drawn(four, 160, height=57)
    assert "slows at 87" not in drawn(four, height=37) and "slows at 87" not in drawn(four, 160, height=20)


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        ({"index": 0, "name": "A100", "missing": {"utilisation": "not reported while cut into slices"}, "power_w": 90.0,
          "mig": [{"name": "A100 MIG 1g.5gb", "memory_used": GIB, "memory_total": 5 * GIB}]}, "cut into slices"),
        ({"index": 0, "name": "GB10", "unified": True, "missing": {"memory_used": "uses the machine's"}}, "machine's"),
        ({"index": 0, "name": "H100", "lost": "does not answer any more"}, "does not answer any more"),
        ({"index": 0, "name": "Old", "missing": {"utilisation": "not reported by this GPU"}}, "not reported by this"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cards", [True, False])
def test_what_is_not_reported_has_a_reason_and_no_zero(gpu: dict[str, Any], said: str, cards: bool) -> None:
    words = drawn([reading(gpus=[gpu])], look=Look(cards=cards))
    assert said in words
    assert " 0 %" not in words.partition("CPU")[0]


def test_no_gpu_says_why() -> None:
    assert "no NVIDIA driver on this machine" in drawn([reading(gpu_note="no NVIDIA driver on this machine")])


def test_alarms_come_first() -> None:
    hot = H100 | {"slowed": ["heat"], "ecc_errors": 2}
    words = drawn([reading(gpus=[hot], memory_limit=8 * GIB, memory_limit_used=8 * GIB)])
    top = words[: words.index("GPU 0  NVIDIA")]
    assert "slowed: heat" in top and "2 memory errors" in top and "container's memory is nearly full" in top


def test_a_disk_that_fills_says_when() -> None:
    course = [
        reading(at=1000.0 + 2 * n, disks=[{"what": "run", "path": "/runs", "free": (10 << 30) - n * (20 << 20),
                                           "total": 500 << 30}])
        for n in range(100)
    ]  # fmt: skip
    left, rate = timeline.filling(course, "/runs") or (0, 0)
    assert rate == pytest.approx(10 << 20) and left == pytest.approx(course[-1].disks[0]["free"] / rate)
    assert "is full in about 14 min" in drawn(course, now=course[-1].time)
    assert timeline.filling(course[:20], "/runs") is None  # too short a course to judge by


def test_processes_are_ours_somebodys_or_hidden() -> None:
    gpu = H100 | {"memory_used": 78 * GIB}
    people = [
        {"pid": 7, "name": "python3", "cpu": 99.0, "memory": GIB, "user": "ada", "stage": "sft", "run": "r", "rank": 1,
         "ours": True, "gpus": {"0": 70 * GIB}},
        {"pid": 8, "name": "python3", "cpu": 50.0, "stage": "rl", "run": "other", "ours": False},
        {"pid": 9, "hidden": True, "gpus": {"0": 4 * GIB}},
    ]  # fmt: skip
    readings = [reading(gpus=[gpu], processes=people), reading(1002.0, gpus=[gpu])]
    words = drawn(readings)
    assert "SFT, rank 1  this run" in words and "RL  run other" in words
    assert "GPU 0: a process with 4.0 GiB hidden" in words
    alone = drawn(readings, look=Look(everyone=False))
    assert "this run" in alone and "run other" not in alone and "hidden" not in alone


def test_idle_among_the_busy_is_noticed() -> None:
    course = [reading(at=2.0 * n, gpus=[H100, H100 | {"index": 1, "utilisation": 0}]) for n in range(40)]
    assert timeline.quiet_gpus(course) == [1]
    assert timeline.quiet_gpus(course[-5:]) == []
    assert timeline.quiet_gpus([reading(at=2.0 * n, gpus=[H100 | {"utilisation": 0}]) for n in range(40)]) == []


number = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), max_size=40), st.floats(0, 1e6), st.sampled_from([600.0, 3600.0, 0.0]),
       st.integers(1, 200))  # fmt: skip
def test_columns_hold_every_reading_of_the_span(times: list[float], now: float, span: float, width: int) -> None:
    readings = [reading(at=at) for at in sorted(times)]
    columns = timeline.Columns(readings, now, span, width)
    means = columns.mean(lambda one: one.time)
    assert len(means) == width
    seen = [at for at in times if at // columns.each > now // columns.each - width]
    assert (sum(value is not None for value in means) > 0) == bool(seen)
    assert all(min(seen) - 1e-6 <= value <= max(seen) + 1e-6 for value in means if value is not None)  # rounding


@settings(max_examples=80, deadline=None)
@given(st.integers(24, 220), st.integers(0, 9), st.integers(0, 300), st.sampled_from([None, True, False]), number,
       st.integers(0, 1 << 62))  # fmt: skip
def test_any_machine_at_any_width(
    width: int, gpus: int, cores: int, cards: bool | None, value: float, used: int
) -> None:
    one = H100 | {"utilisation": value, "memory_used": used, "power_w": value}
    machine = reading(cpu=value, cores=[value] * cores, gpus=[one | {"index": n} for n in range(gpus)],
                      memory_used=used, rates={"received": used, "sent": 0, "read": 0, "written": used})  # fmt: skip
    words = drawn([machine], width, Look(cards=cards))
    assert max(map(len, words.splitlines())) <= width


async def test_the_app_reads_the_machine_itself_when_no_run_does(a_run, an_app) -> None:
    a_run("empty")
    app = an_app("empty", tab="machine")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "No readings yet" in app.main.plain)
        app.main.panes["machine"].sample()
        await until(pilot, lambda: "now, read by this screen" in app.main.plain and "CPU" in app.main.plain)


async def test_keys_change_the_history_and_whose_processes(a_run, an_app) -> None:
    run = a_run("finished")
    with open(run.machine_file, "ab") as file:
        late = reading(time.time(), gpus=[H100], processes=[{"pid": 1, "name": "somebody", "cpu": 50.0}])
        file.write(event_file.encode(late, 99))
    app = an_app("finished", tab="machine")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "somebody" in app.main.plain and "curves: 10 min" in app.main.plain)
        await pilot.press("t", "a", "d", "d")
        await until(pilot, lambda: "curves: 1 h" in app.main.plain and "of this run alone" in app.main.plain)
        assert "below its clock: " not in app.main.plain  # a line per GPU
