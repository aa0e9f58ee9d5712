from __future__ import annotations

from pathlib import Path

import pytest

from picollm.run import config
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from stages import preflight
from tests.stages.conftest import WAIT_S, Workplace


def test_only_what_will_be_read_counts_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    (tmp_path / "b.md").write_bytes(b"x" * 20)
    (tmp_path / "film.mp4").write_bytes(b"x" * 4000)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "notes.txt").write_bytes(b"x" * 4000)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")

    def size(source: Path | str) -> int:
        return preflight._source_bytes(config.load(sets=[f"data.source={source}"], environ={}))

    assert size(tmp_path) == 120
    assert size(tmp_path / "a.txt") == 100
    assert size("pydocs") > 10**6 and size("climbmix") > 10**9
    with pytest.raises(UserError, match="does not exist"):
        size(tmp_path / "missing")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    return Run.create("r", config.load(environ={}))


def test_the_shipped_settings_pass(run: Run) -> None:
    preflight.check_settings(run)


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ("sft.mixture={speling = 10}", "sft.mixture: unknown task 'speling'"),
        ("chat_eval.tasks={speling = 0}", "chat_eval.tasks: unknown task 'speling'"),
        ("midtrain.mixture={'arithmetic:digitz=3' = 10}", "midtrain.mixture: task 'arithmetic'.*digitz"),
        ("midtrain.mixture={}", "midtrain.mixture is empty"),
        ("rl.task=arithmetic:digits=many", "rl.task: task 'arithmetic'"),
        ("rl.task=smoltalk", "rl.task: 'smoltalk' cannot be judged on this machine: free conversation"),
        ("rl.task=humaneval", "rl.task: task 'humaneval' has no training examples"),
        ("sft.mixture={humaneval = 10}", "sft.mixture: task 'humaneval' has no training examples; ask it in chat_eval"),
        ("sft.custom=/no/such.jsonl", r"sft.custom: /no/such.jsonl: no such file"),
        ("identity.file=/no/such.jsonl", r"identity.file: /no/such.jsonl: no such file"),
        ("run.minutes=0", "model.depth and run.minutes are both 0"),
        ("rl.max_tokens=256", "rl.max_tokens is 256 and model.seq_len 256"),
        ("chat.prompts=/no/such.txt", r"chat.prompts: prompts file /no/such.txt does not exist"),
    ],
)
def test_what_a_later_stage_would_refuse_is_said_first(run: Run, sets: str, says: str) -> None:
    run.set([sets])
    with pytest.raises(UserError, match=says) as caught:
        preflight.check_settings(run)
    assert "\n" not in str(caught.value)


def test_a_prompts_file_that_is_not_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "prompts.txt", tmp_path):
        run.set([f"chat.prompts={file}"])
        with pytest.raises(UserError, match=r"chat\.prompts: "):
            preflight.check_settings(run)


def test_own_files_that_are_good_pass(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Dog?", "answer": "Biscuit."}\n')
    run.set([f"sft.custom={tmp_path / 'mine.jsonl'}", "sft.mixture={}"])
    preflight.check_settings(run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_ranks_measure_exchange_and_step_together(workplace: Workplace) -> None:
    sets = ("--set", "launch.nproc=3", "--set", "pretrain.steps=2")
    made = workplace.picollm("run", "--profile", "smoke", "--run", "three", *sets, "--only", "doctor")
    assert made.returncode == 0, made.stdout + made.stderr
    run = workplace.run("three")
    assert workplace.launch(run, "preflight").wait(WAIT_S) == 0, run.status("preflight").reason
    made_plan = run.plan()
    assert made_plan is not None and made_plan.notes["world"] == 3 and made_plan.notes["memory_bytes"] > 2**28
    assert set(made_plan.figures["exchange"]) == {"world", "small_us", "algorithm_gb_s", "bus_gb_s"}
    # 8 rows on 3 ranks: 2, 3 and 3
    assert made_plan.values["machine.device_rows"] == made_plan.figures["rows"]["worked"] == 3
    history = StageHistory(run, "preflight").read_all()
    assert {"compute", "attention", "rows at a time", "decoding"} <= {choice.what for choice in history.choices}
    assert {check.name: check.status for check in history.checks} == {"training memory": "ok", "disk": "ok"}
    assert workplace.launch(run, "preflight").wait(WAIT_S) == 0
    again = run.plan()
    assert again == made_plan  # the same wishes: kept, not measured again
