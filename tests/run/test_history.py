from __future__ import annotations

from picollm.run import events as ev
from picollm.run.folder import Run
from picollm.run.history import Series, StageHistory
from tests.run.conftest import lines, started, write_attempt


def metrics(*steps: int) -> list[ev.Event]:
    return [ev.Metrics(step=step, values={"loss": float(step)}) for step in steps]


def test_a_resumed_curve_does_not_double_back(run: Run) -> None:
    write_attempt(
        run,
        "pretrain",
        lines(started(run, "pretrain"), *metrics(1, 2, 3, 4), ev.Eval(name="val", step=4, values={"bpb": 1})),
    )
    second = lines(started(run, "pretrain", 2), ev.Resumed(step=2), *metrics(3, 4, 5))
    write_attempt(run, "pretrain", second, attempt=2)
    history = StageHistory(run, "pretrain").read_all()
    assert history.series["loss"].steps == [1, 2, 3, 4, 5]
    assert history.evals == [] and history.series["val/bpb"].steps == []


def test_steps_always_ascend_even_without_a_word(run: Run) -> None:
    series = Series()
    for step in (1, 2, 3, 1, 2):
        series.add(step, None, 0.0)
    assert series.steps == [1, 2] and all(value != value for value in series.values)
    series.add(2, 7.0, 1.0)
    assert series.steps == [1, 2] and series.values[-1] == 7.0 and series.times[-1] == 1.0


def test_a_start_from_nothing_forgets_the_earlier_attempt(run: Run) -> None:
    saved = ev.Checkpoint(step=4, path="step-000004", bytes=1, seconds=0.1)
    write_attempt(run, "pretrain", lines(started(run, "pretrain"), *metrics(1, 2, 3, 4), saved))
    write_attempt(run, "pretrain", lines(started(run, "pretrain", 2), ev.Resumed(step=0)), attempt=2)
    history = StageHistory(run, "pretrain").read_all()
    assert history.series["loss"].steps == [] and history.checkpoints == []


def test_started_over_nothing_is_left_of_the_readings_before_the_first_step(run: Run) -> None:
    for attempt in (1, 2):
        said = [
            ev.Resumed(step=0),
            ev.Eval(name="val", step=0, values={"bpb": float(attempt)}, n=1),
            ev.Sample(prompt="p", text=f"of attempt {attempt}", step=0),
            ev.Note(step=0, text="n"),
            *metrics(1),
        ]
        warned = ev.Warning(text=f"warning {attempt}")
        write_attempt(run, "pretrain", lines(started(run, "pretrain", attempt), warned, *said), attempt)
    history = StageHistory(run, "pretrain").read_all()
    assert history.series["val/bpb"].values == [2.0] and len(history.evals) == len(history.notes) == 1
    assert [sample.text for sample in history.samples] == ["of attempt 2"] and history.warnings == ["warning 2"]
    resumed = lines(started(run, "pretrain", 3), ev.Resumed(step=1), *metrics(2))
    write_attempt(run, "pretrain", resumed, 3)
    history = StageHistory(run, "pretrain").read_all()
    assert history.series["val/bpb"].values == [2.0] and history.warnings == ["warning 2"]


def test_a_stage_without_steps_starts_from_nothing(run: Run) -> None:
    sample = ev.Sample(prompt="p", text="t", step=0)
    for attempt in (1, 2):
        content = lines(started(run, "chat_eval", attempt), sample, ev.Eval(name="x", step=0, values={"a": 1.0}))
        write_attempt(run, "chat_eval", content, attempt)
    history = StageHistory(run, "chat_eval").read_all()
    assert len(history.samples) == len(history.evals) == 1 and history.series["x/a"].steps == [0]


def test_new_events_arrive_between_polls_and_from_the_next_attempt(run: Run) -> None:
    history = StageHistory(run, "pretrain")
    assert not history.poll()
    file = write_attempt(run, "pretrain", lines(started(run, "pretrain"), *metrics(1)))
    assert history.poll()
    file.write_bytes(file.read_bytes() + lines(*metrics(2)))
    write_attempt(run, "pretrain", lines(started(run, "pretrain", 2), ev.Resumed(step=2), *metrics(3)), attempt=2)
    history.read_all()
    assert history.series["loss"].steps == [1, 2, 3] and len(history.started) == 2


def test_what_comes_together_is_what_comes_one_by_one(run: Run) -> None:
    said: list[ev.Event] = [started(run, "pretrain")]
    for step in (1, 2, 3, 3, 4, 2, 3, 4, 5):
        said.append(ev.Metrics(step=step, values={"loss": None if step == 4 else float(step), "lr": 0.5}))
        said.append(ev.Progress(step=step, steps=9))
    said.insert(4, ev.Metrics(step=9, values={"loss": 9.0}))
    write_attempt(run, "pretrain", lines(*said))
    one_by_one = {"loss": Series(), "lr": Series()}
    for event in said:
        if isinstance(event, ev.Metrics):
            for key, value in event.values.items():
                one_by_one[key].add(event.step, value, event.time)
    history = StageHistory(run, "pretrain").read_all()
    assert history.series.keys() == one_by_one.keys()
    for key, series in one_by_one.items():
        read = history.series[key]
        assert read.steps == series.steps and read.times == series.times
        assert str(read.values) == str(series.values)
