"""The whole pipeline through the command line, at miniature size, on real text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from picollm.run import pipeline, serving
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from tests.stages.conftest import WAIT_S, Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_every_stage_is_done_and_the_manifest_holds_real_values(smoke: Run) -> None:
    assert [status.state for status in smoke.statuses()] == ["done"] * len(pipeline.NAMES)
    manifest = json.loads((smoke.dir / "run_manifest.json").read_text())
    assert manifest["stages"]["dataset"]["summary"]["documents"] > 1000
    assert 0 < manifest["results"]["base"]["bpb"] < 8
    for model in pipeline.MODEL_STAGES:
        for cell in manifest["results"][model].values():
            if isinstance(cell, dict):
                assert cell["n"] >= 8 and cell["low"] <= cell["accuracy"] <= cell["high"]
    report = (smoke.dir / "report" / "report.md").read_text()
    assert "| task | base | mid | sft | rl |" in report and "## Time and cost, planned and spent" in report


def test_training_learns(smoke: Run) -> None:
    loss = StageHistory(smoke, "pretrain").read_all().series["loss"]
    assert loss.steps == list(range(1, 21))
    assert loss.values[-1] < loss.values[0] - 0.5


def test_after_sft_it_is_asked_who_it_is(smoke: Run) -> None:
    history = StageHistory(smoke, "sft").read_all()
    [found] = [event for event in history.evals if event.name == "identity_check"]
    assert found.step == 10 and found.n >= 200
    assert found.values["low"] <= found.values["accuracy"] <= found.values["high"]
    assert '"identity: ' in (smoke.stage_dir("sft") / "attempt-001.events.jsonl").read_text()
    assert "identity_check" not in {event.name for event in StageHistory(smoke, "midtrain").read_all().evals}


def test_a_second_run_repeats_nothing(workplace: Workplace, smoke: Run) -> None:
    before = {name: smoke.attempts(name) for name in pipeline.NAMES}
    again = workplace.picollm("run", "--run", "smoke")
    assert again.returncode == 0, again.stderr
    assert {name: smoke.attempts(name) for name in pipeline.NAMES} == before


def test_a_changed_setting_marks_exactly_what_is_stale(workplace: Workplace, smoke: Run) -> None:
    run = workplace.copy(smoke, "stale")
    run.set(["sft.lr=0.5"])
    states = {status.name: status for status in run.statuses()}
    assert {name for name in states if states[name].state == "stale"} == {"sft", "rl", "chat_eval", "report"}
    assert states["sft"].reason == "sft.lr was 0.8, is now 0.5"
    refused = workplace.picollm("run", "--run", "stale")
    assert refused.returncode == 2 and "sft.lr was 0.8, is now 0.5" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_display_settings_make_nothing_stale(workplace: Workplace, smoke: Run) -> None:
    run = workplace.copy(smoke, "display")
    run.set(["chat.temperature=0.2", "sft.save_every=99", "machine.threads=1"])
    assert {status.state for status in run.statuses()} == {"done"}


def test_a_wrong_identity_checksum_stops_before_training(workplace: Workplace, smoke: Run) -> None:
    run = workplace.copy(smoke, "checksum")
    rows = run.output("identity", "rows")
    rows.write_text(rows.read_text().replace("picollm", "somebody"))
    assert workplace.launch(run, "sft").wait(WAIT_S) == 2
    status = run.status("sft")
    assert status.state == "failed" and "checksum" in status.reason and str(rows) in status.reason


def test_another_tokenizer_is_refused(workplace: Workplace, smoke: Run) -> None:
    run = workplace.copy(smoke, "tokenizer")
    run.set(["tokenizer.vocab_size=900"])
    assert workplace.launch(run, "tokenizer").wait(WAIT_S) == 0
    assert workplace.launch(run, "base_eval").wait(WAIT_S) == 2
    assert "tokenizer" in run.status("base_eval").reason


def test_chat_and_compare_answer(workplace: Workplace, smoke: Run) -> None:
    chat = workplace.picollm("chat", "--run", "smoke", "-p", "Who are you?", "--max-tokens", "8")
    assert chat.returncode == 0, chat.stderr
    compare = workplace.picollm("compare", "--run", "smoke")
    assert compare.returncode == 0, compare.stderr
    assert "Why is the sky blue?" in compare.stdout
    serving.stop_serving(smoke)  # else it ends by itself, while others look whether something changes in this run


def test_your_own_text(workplace: Workplace, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    verse = "The {n} boats came home over the grey water, and the {n} lamps were lit along the quay.\n\n"
    (folder / "a.md").write_text("".join(verse.format(n=n) for n in range(400)))
    (folder / "b.txt").write_bytes(b"not \xff utf-8, but text all the same, line after line\n\n" * 20)
    (folder / "c.jsonl").write_text('{"text": "a row of its own"}\n{"text": "torn')
    sets = ["--set", f"data.source={folder}", "--set", "pretrain.steps=2", "--set", "tokenizer.vocab_size=400"]
    made = workplace.picollm("run", "--profile", "smoke", "--run", "own", *sets, "--only", "doctor")
    assert made.returncode == 0, made.stderr
    for stage in ("preflight", "dataset", "tokenizer", "tokenizer_eval", "pretrain"):
        assert workplace.picollm("run", "--run", "own", "--only", stage).returncode == 0
    run = workplace.run("own")
    history = StageHistory(run, "dataset").read_all()
    assert any("c.jsonl" in warning for warning in history.warnings)
    assert history.finished is not None and history.finished.summary["encoding_errors"] == 1


def test_missing_text_is_the_persons_mistake(workplace: Workplace) -> None:
    done = workplace.picollm("run", "--profile", "smoke", "--run", "missing", "--set", "data.source=/no/such/place")
    assert done.returncode == 2
    assert "/no/such/place" in done.stderr + done.stdout and "Traceback" not in done.stderr
