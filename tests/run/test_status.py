from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picollm.data import hub
from picollm.run import config as settings
from picollm.run import event_file, lease, pipeline, planned
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tests.run.conftest import lines, make_done, started, state, write_attempt

T = 1_000_000.0


@pytest.fixture
def alive(run: Run) -> Iterator[lease.Lock]:
    """Somebody holds the lock of pretrain."""
    lock = lease.Lock(run.lock_file("pretrain"))
    assert lock.share()
    yield lock
    lock.release()


def status(run: Run, *events: ev.Event, now: float = T + 10) -> Any:
    write_attempt(run, "pretrain", lines(started(run, "pretrain"), *events, start=T))
    return run.status("pretrain", now=now)


def test_nothing_happened_yet(run: Run) -> None:
    states = {found.name: found.state for found in run.statuses()}
    assert states.pop("doctor") == "ready" and set(states.values()) == {"waiting"}
    assert list(states) == list(pipeline.NAMES[1:])


def test_ready_needs_everything_before_it(run: Run) -> None:
    make_done(run, "doctor", "preflight", "dataset", "tokenizer")
    states = {found.name: found.state for found in run.statuses()}
    assert states["tokenizer_eval"] == "ready" and states["pretrain"] == "waiting"


def test_running_with_step_phase_and_eta(run: Run, alive: lease.Lock) -> None:
    found = status(
        run, ev.Phase(name="train"), ev.Progress(step=10, steps=100), ev.Progress(step=20, steps=100), now=T + 3
    )
    assert (found.state, found.step, found.steps, found.phase) == ("running", 20, 100, "train")
    assert found.seconds == 3 and found.eta == pytest.approx(8.0) and found.started == T


def test_what_takes_longer_than_thought_has_no_time_left_to_tell(run: Run, alive: lease.Lock) -> None:
    assert status(run, ev.Phase(name="load"), now=T + 3).eta
    late = status(run, ev.Phase(name="load"), now=T + 110)
    assert late.state == "running" and late.eta is None and late.seconds > (late.predicted_s or math.inf)


def test_the_launcher_holds_the_lock_before_there_is_an_attempt(run: Run, alive: lease.Lock) -> None:
    assert state(run, "pretrain") == "running"


def test_silence_is_stalled_and_compiling_is_given_longer(run: Run, alive: lease.Lock) -> None:
    found = status(run, ev.Progress(step=1, steps=9), now=T + 200)
    assert found.state == "stalled" and "no sign for 199 s" in found.reason and found.eta is None
    assert status(run, ev.Phase(name="compile"), now=T + 200).state == "running"
    assert status(run, ev.Phase(name="compile"), now=T + 1000).state == "stalled"


def test_stopping(run: Run, alive: lease.Lock) -> None:
    run.request_stop("pretrain")
    assert status(run, ev.Progress(step=1, steps=9)).state == "stopping"


def test_last_words(run: Run) -> None:
    assert status(run, ev.Stopped(step=7)).reason == "stopped at step 7"
    failed = status(run, ev.Failed(error="no text", hint="give some", code=2))
    assert (failed.state, failed.reason) == ("failed", "no text; give some")
    assert status(run, ev.Finished(seconds=4.5)).state == "done"


def test_crashed_names_the_signal_and_grows_no_older(run: Run) -> None:
    found = status(run, ev.Progress(step=3, steps=9), now=T + 10_000)
    assert found.state == "crashed" and found.seconds == 1 and found.eta is None
    assert "nobody saw how" in found.reason
    event_file.append(run.conductor_events, ev.Exited(stage="pretrain", attempt=1, code=-9))
    assert "SIGKILL" in run.status("pretrain").reason
    event_file.append(run.conductor_events, ev.Exited(stage="pretrain", attempt=1, code=7))
    assert run.status("pretrain").reason == "exit code 7 without a last word; see attempt-001.console.log"


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_jumps_gives_no_negative_times(run: Run, alive: lease.Lock, jump: float) -> None:
    data = lines(started(run, "pretrain"), ev.Progress(step=1, steps=100), start=T)
    data += lines(ev.Progress(step=2, steps=100), ev.Progress(step=3, steps=100), start=T + jump)
    write_attempt(run, "pretrain", data)
    found = run.status("pretrain", now=T + jump + 1)
    assert found.state == "running" and found.step == 3
    assert found.seconds >= 0 and (found.eta is None or found.eta >= 0)


def test_the_newest_attempt_counts(run: Run) -> None:
    write_attempt(run, "pretrain", lines(started(run, "pretrain"), ev.Failed(error="x")))
    write_attempt(run, "pretrain", lines(started(run, "pretrain", 2), ev.Stopped(step=4)), attempt=2)
    assert run.status("pretrain").state == "stopped" and run.attempts("pretrain") == [1, 2]


def test_ten_thousand_attempts_stay_in_order(run: Run) -> None:
    for number in (999, 1000, 9999, 10000):
        write_attempt(run, "pretrain", b"", attempt=number)
    assert run.attempts("pretrain") == [999, 1000, 9999, 10000]


def test_the_state_of_a_long_file_reads_little_of_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = b'{"type":"metrics","seq":2,"time":1000001.0,"step":1,"values":{"loss":2.0}}\n'
    end = lines(ev.Progress(step=9, steps=9), ev.Finished(seconds=2.0))
    write_attempt(run, "pretrain", lines(started(run, "pretrain")) + metric * 1_000_000 + end)
    decoded: list[int] = []
    decode = event_file.decode
    monkeypatch.setattr(event_file, "decode", lambda line: decoded.append(len(line)) or decode(line))
    assert run.status("pretrain").state == "done"
    assert sum(decoded) < 1 << 20


def test_what_did_not_change_is_not_read_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_done(run, "dataset", "tokenizer")
    run.statuses()
    with monkeypatch.context() as patch:
        patch.setattr(event_file, "decode", lambda line: pytest.fail("an event was read again"))
        patch.setattr(settings, "file_values", lambda file: pytest.fail("settings were read again"))
        assert {found.name: found.state for found in run.statuses()}["tokenizer"] == "done"
    file = run.dir / "config.toml"
    file.write_text(file.read_text().replace("vocab_size = 4096", "vocab_size = 2048"))
    assert run.status("tokenizer").reason == "tokenizer.vocab_size was 4096, is now 2048"
    with open(run.events_file("dataset", 1), "ab") as events:
        events.write(lines(ev.Failed(error="late")))
    assert state(run, "dataset") == "failed"


# stale ----------------------------------------------------------------------------------------------------------------


def test_a_changed_setting_is_named_with_both_values(run: Run) -> None:
    make_done(run, "dataset", "tokenizer", "pretrain", "identity", "midtrain", "sft")
    run.set(["sft.lr=0.5"])
    found = run.status("sft")
    assert (found.state, found.reason) == ("stale", "sft.lr was 0.8, is now 0.5")
    assert state(run, "midtrain") == "done"
    run.set(["sft.lr=0.8"])
    assert state(run, "sft") == "done"


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("sft", "sft.custom={}"),
        ("identity", "identity.facts={}"),
        ("sft", 'sft.mixture={{ "custom:rows=4,path={}" = 20, spelling = 3 }}'),
        ("rl", "rl.task=custom:path={}"),
        ("base_eval", "base_eval.core={}"),
        ("chat_eval", 'chat_eval.tasks={{ "custom: path = {}" = 9 }}'),
    ],
)
def test_a_file_of_your_own_counts_by_its_content(run: Run, tmp_path: Path, name: str, sets: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("one")
    run.set([sets.format(file)])
    make_done(run, name)
    assert run.status(name).state == "done"
    file.write_text("another")
    found = run.status(name)
    assert found.state == "stale" and f"{sets.partition('=')[0]} content was " in found.reason


def test_files_are_found_from_any_folder(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    (here / "me.jsonl").write_text("{}")
    file = str(here / "me.jsonl")
    monkeypatch.chdir(here)
    sets = ["data.source=text", "sft.custom=me.jsonl", "identity.facts=me.jsonl", "chat.prompts=~/p.txt"]
    sets.append("rl.task=custom:path=me.jsonl,rows=3")
    sets.append('sft.mixture={ "custom:rows=3, path = me.jsonl" = 4, spelling = 5 }')
    run = Run.create("files", settings.load("smoke", None, sets))
    made = run.inputs("sft")
    monkeypatch.chdir(elsewhere)
    wishes = run.wishes()
    assert (wishes.data.source, wishes.sft.custom, wishes.identity.facts) == (str(here / "text"), file, file)
    assert wishes.chat.prompts == str(Path.home() / "p.txt") and wishes.base_eval.core == ""
    assert wishes.rl.task == f"custom:path={file},rows=3"
    assert wishes.sft.mixture == {f"custom:rows=3, path = {file}": 4, "spelling": 5}
    assert run.inputs("sft") == made and "missing" not in made["sft.mixture content"]
    run.set(["identity.file=https://example.org/me.jsonl", "midtrain.custom=you.jsonl", "data.source=pydocs"])
    wishes = run.wishes()
    assert wishes.identity.file == "https://example.org/me.jsonl" and wishes.sft.custom == file
    assert (wishes.midtrain.custom, wishes.data.source) == (str(elsewhere / "you.jsonl"), "pydocs")


def test_a_run_made_with_relative_paths_keeps_them(run: Run, tmp_path: Path) -> None:
    text = (run.dir / "config.toml").read_text()
    (run.dir / "config.toml").write_text(re.sub(r'source = ".*"', 'source = "text"', text, count=1))
    run.set(["sft.lr=0.3"])
    assert run.wishes().data.source == "text" and run.wishes().sft.lr == 0.3


def test_every_word_for_text_that_is_no_file_is_known() -> None:
    assert set(hub.SOURCES) | {"pydocs", "auto", ""} == set(planned.NO_FILES)


def test_a_folder_of_your_own_counts_by_its_names_and_contents(run: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    (bundle / "eval_data").mkdir(parents=True)
    (bundle / "eval_data" / "one.jsonl").write_text("{}")
    run.set([f"base_eval.core={bundle}"])
    make_done(run, "base_eval")
    (bundle / ".listing").touch()
    assert run.status("base_eval").state == "done"
    for change in (
        lambda: (bundle / "eval_data" / "one.jsonl").write_text("[]"),
        lambda: (bundle / "eval_data" / "one.jsonl").rename(bundle / "eval_data" / "two.jsonl"),
        lambda: shutil.rmtree(bundle),
    ):
        change()
        assert "base_eval.core content was " in run.status("base_eval").reason
        make_done(run, "base_eval")
        assert run.status("base_eval").state == "done"


def test_settings_that_change_no_result_make_nothing_stale(run: Run) -> None:
    make_done(run, "dataset", "tokenizer", "pretrain")
    run.set(["pretrain.save_every=5", "machine.compile=off", "chat.temperature=0.1", "run.minutes=9"])
    assert state(run, "pretrain") == "done"


def other_value(value: Any) -> Any:
    """Some value that is not this one."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case _:
            return {"arithmetic": 8}


ADDED = [knob for knob in settings.knobs().values() if knob.added]


@given(unknown=st.sets(st.sampled_from([knob.key for knob in ADDED])))
@hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
    max_examples=20,
)
def test_what_was_made_before_there_was_a_knob_is_as_with_its_default(run: Run, unknown: set[str]) -> None:
    """Whether an attempt wrote the default down or did not know the knob; and neither changes a fingerprint."""
    now = {name: run.inputs(name) for name in pipeline.NAMES}
    assert not any(knob.key in found for knob in ADDED for found in now.values())
    for name in pipeline.NAMES:
        tables = pipeline.stage(name).tables
        known = {knob.key: knob.default for knob in ADDED
                 if knob.key.partition(".")[0] in tables and knob.key not in unknown}  # fmt: skip
        make_done(run, name)
        finished = event_file.tail_events(run.events_file(name, 1))[-1]
        then = started(run, name, inputs=now[name] | known)
        write_attempt(run, name, lines(then, finished))
    # What a stage was given by others was forged in order, so only settings could make anything stale.
    assert not [found for found in Run(run.dir).statuses() if " was " in found.reason]


@pytest.mark.parametrize("knob", [knob for knob in ADDED if knob.affects == "result"], ids=lambda knob: knob.key)
def test_another_value_of_an_added_knob_counts(run: Run, knob: settings.Knob) -> None:
    [name] = [row.name for row in pipeline.STAGES if knob.key.partition(".")[0] in row.tables]
    make_done(run, name)
    run.save_config(settings.build(settings.flat(run.wishes()) | {knob.key: other_value(knob.default)}))
    value = settings.flat(run.wishes())[knob.key]
    assert run.inputs(name)[knob.key] == value != knob.default
    found = run.status(name)
    assert found.state == "stale" and f"{knob.key} was {knob.default!r}, is now {value!r}" in found.reason


def test_a_new_artifact_upstream_is_named_and_spreads(run: Run) -> None:
    make_done(run, "dataset", "tokenizer", "pretrain", "identity", "midtrain")
    new = ev.Finished(seconds=1, paths={"made": "made/tokenizer"}, artifacts={"made": "another hash"})
    write_attempt(run, "tokenizer", lines(started(run, "tokenizer", 2), new), attempt=2)
    found = {status.name: status for status in run.statuses()}
    assert found["pretrain"].reason == "Tokenizer made a new made"
    assert found["pretrain"].undecided and found["midtrain"].undecided
    assert (found["midtrain"].state, found["midtrain"].reason) == ("stale", "Pretrain is stale")


def test_an_artifact_that_is_gone_is_named(run: Run) -> None:
    make_done(run, "dataset")
    (run.dir / "made" / "dataset").unlink()
    assert run.status("dataset").reason == "made/dataset is gone"
    with pytest.raises(UserError, match=r"is gone.*--from dataset"):
        run.output("dataset", "made")


def test_done_is_not_done_while_its_input_is_made_again(run: Run) -> None:
    make_done(run, "dataset", "tokenizer")
    write_attempt(run, "dataset", lines(started(run, "dataset", 2), ev.Failed(error="x")), attempt=2)
    found = {status.name: status for status in run.statuses()}
    assert found["tokenizer"].reason == "Dataset is being made again (failed)"
    assert found["tokenizer"].pending and not found["tokenizer"].lost and not found["tokenizer"].undecided


def test_the_plan_goes_stale_with_the_wishes_it_was_made_from(run: Run) -> None:
    make_done(run, "preflight")
    (run.dir / "plan.json").write_text('{"values": {"model.depth": 6, "pretrain.steps": 40}}')
    assert state(run, "preflight") == "done"
    run.set(["launch.nproc=2"])
    assert state(run, "preflight") == "done"
    before = run.wishes().run.minutes
    run.set(["run.minutes=60"])
    assert run.status("preflight").reason == f"run.minutes was {before}, is now 60.0"


# damage ---------------------------------------------------------------------------------------------------------------


def test_half_deleted_runs_still_have_a_status(run: Run) -> None:
    make_done(run, "dataset", "tokenizer")
    shutil.rmtree(run.stage_dir("dataset"))
    assert state(run, "tokenizer") == "stale"
    shutil.rmtree(run.dir / "stages")
    (run.dir / "stages").write_text("a file where a folder should be")
    assert {found.state for found in run.statuses()} == {"ready", "waiting"}


def test_an_event_file_of_rubbish_is_a_crash_not_an_exception(run: Run) -> None:
    write_attempt(run, "pretrain", b"\x00\xff" * 5000 + b"\n{}\nnull\n")
    assert run.status("pretrain").state == "crashed"


def test_a_finished_stage_without_its_first_event_is_not_trusted(run: Run) -> None:
    write_attempt(run, "pretrain", lines(ev.Finished(seconds=1)))
    assert run.status("pretrain").reason == "its first event is lost"


@pytest.mark.parametrize("content", ["not json", '{"values": 3}', '{"values": {"model.depth": "six"}}', ""])
def test_a_broken_plan_is_one_line(run: Run, content: str) -> None:
    (run.dir / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan\.json"):
        run.statuses()


def test_a_broken_config_names_file_and_line(run: Run) -> None:
    file = run.dir / "config.toml"
    file.write_text(file.read_text() + "\n[sftt]\nlr = 1\n")
    with pytest.raises(UserError, match=r"config\.toml:\d+: unknown table \[sftt\]"):
        run.statuses()


def test_runs_are_listed_newest_first_whatever_lies_beside_them(runs: Path, run: Run) -> None:
    (runs / "a file").write_text("")
    (runs / "no run").mkdir()
    other = Run.create("other", settings.load(environ={}))
    event_file.append(run.conductor_events, ev.Conductor(what="started"))
    assert [found.name for found in Run.all()] in (["r", "other"], ["other", "r"])
    import os

    os.utime(other.dir / "config.toml", (1, 1))
    assert [found.name for found in Run.all()] == ["r", "other"]


def test_a_newer_format_and_bad_names_are_refused(run: Run) -> None:
    (run.dir / "format").write_text("99\n")
    with pytest.raises(UserError, match="newer than this picollm"):
        Run.open("r")
    for name in ("", "../x", ".hidden", "a b", "x" * 65):
        with pytest.raises(UserError, match="run name"):
            Run.create(name, settings.load(environ={}))


def test_set_keeps_what_it_replaces(run: Run) -> None:
    run.set(["sft.lr=0.5"])
    run.set(["sft.lr=0.5"])
    run.set(["sft.lr=0.6"])
    kept = sorted(path.name for path in (run.dir / "revisions").iterdir())
    assert kept == ["001.toml", "002.toml"]
    with pytest.raises(UserError, match="profile 'pocket', which cannot change"):
        run.set(["run.profile=smoke"])


def test_a_folder_that_cannot_be_written_is_one_line(runs: Path) -> None:
    runs.parent.mkdir(exist_ok=True)
    runs.write_text("a file where the runs folder should be")
    with pytest.raises(UserError, match="cannot write"):
        Run.create("r", settings.load(environ={}))
    assert Run.all() == []


def test_the_beginning_of_an_attempt_that_grows_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [ev.Metrics(step=step, values={"loss": 1.0}) for step in range(2000)]
    file = write_attempt(run, "doctor", lines(started(run, "doctor"), *many))
    assert file.stat().st_size > event_file.HEAD_BYTES
    read = []
    real = event_file.head_events
    monkeypatch.setattr(event_file, "head_events", lambda path: read.append(path) or real(path))
    first = run.ends("doctor", 1)
    with open(file, "ab") as out:
        out.write(lines(ev.Stopped(step=2000)))
    head, tail = run.ends("doctor", 1)
    assert head == first[0] and isinstance(tail[-1], ev.Stopped) and read == [file]
    file.write_bytes(lines(started(run, "doctor"), ev.Stopped(step=1)))
    assert len(run.ends("doctor", 1)[0]) == 2 and read == [file, file]
