"""`picollm profile` on a finished run, on one rank and two, and on a profile alone; the run stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from picollm import cli_profile
from picollm.run import config
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tests.stages.conftest import Workplace


def files(run: Run) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in run.dir.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["pretrain", "sft", "rl"])
def test_a_stage_of_a_run(workplace: Workplace, smoke: Run, stage: str, tmp_path: Path) -> None:
    before = files(smoke)
    trace = tmp_path / "trace.json"
    done = workplace.picollm("profile", "--run", "smoke", "--stage", stage, "--steps", "2", "--trace", str(trace))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{stage}: 2 layers")
    for phase in ("data", "forward", "loss", "backward", "sync", "adamw", "muon", "other"):
        assert f"\n{phase} " in done.stdout
    assert json.loads(trace.read_text())["traceEvents"]
    assert {path: time for path, time in files(smoke).items() if path != str(smoke.dir)} == {
        path: time for path, time in before.items() if path != str(smoke.dir)
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ranks_have_something_to_exchange(workplace: Workplace, smoke: Run) -> None:
    run = workplace.copy(smoke, "profiled")
    run.set(["launch.nproc=2"])
    done = workplace.picollm("profile", "--run", "profiled", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert "2 × cpu" in done.stdout and "\ngather " in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_profile_without_a_run_leaves_none(workplace: Workplace, smoke: Run) -> None:
    before = sorted(workplace.runs.iterdir())
    done = workplace.picollm("profile", "--profile", "smoke", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pretrain: 2 layers") and sorted(workplace.runs.iterdir()) == before


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path))
    return Run.create("r", config.load(environ={}))


def test_what_cannot_be_profiled_is_said_in_one_line(empty: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'dataset' does not train: choose one of pretrain, midtrain, sft, rl"):
        cli_profile.of_run(empty, "dataset", 1, None)
    with pytest.raises(UserError, match="there is no such folder"):
        cli_profile.of_run(empty, "pretrain", 1, tmp_path / "nowhere" / "t.json")
    with pytest.raises(UserError, match="leave out --run and --stage"):
        cli_profile.profile(run="r", profile="smoke")
    with pytest.raises(UserError, match="'tokenizer' has not finished"):
        cli_profile.of_run(empty, "pretrain", 1, None)
    assert not (empty.dir / "jobs").exists()


def test_made_up_text_has_enough_words_for_the_tokenizer() -> None:
    from picollm.text.tokenizer import train_tokenizer

    text = cli_profile.made_up_text(2000)
    assert train_tokenizer(text.split("\n\n"), 2000).vocab_size == 2000
