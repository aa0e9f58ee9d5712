"""The job files, word for word, and what `picollm launch` refuses. REWRITE=1 writes the golden files anew."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from picollm import cli

GOLDEN = Path(__file__).parent / "jobs"
SLURM = ("--slurm", "--run", "big", "--profile", "pocket", "--set", "run.seed=3")
SKYPILOT = ("--skypilot", "--run", "Big_1", "--profile", "pocket")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICOLLM_RUNS", "/scratch/me/my runs")
    monkeypatch.setenv("PICOLLM_HOME", "/scratch/me/cache")


@pytest.mark.parametrize(
    "golden, argv",
    [
        ("one-node.sh", (*SLURM, "--gpus", "4", "--gpu", "h100", "--partition", "long", "--account", "lab")),
        ("four-nodes.sh", (*SLURM, "--nodes", "4", "--time", "1-00:00:00")),
        ("one-node.yaml", (*SKYPILOT, "--gpus", "1", "--gpu", "L40S")),
        ("two-nodes.yaml", (*SKYPILOT, "--nodes", "2", "--volume", "shared")),
    ],
)
def test_the_job_files(golden: str, argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["launch", *argv]) == 0
    text = capsys.readouterr().out
    if os.environ.get("REWRITE"):
        (GOLDEN / golden).write_text(text)
    assert text == (GOLDEN / golden).read_text()


@pytest.mark.parametrize("golden", ["one-node.sh", "four-nodes.sh"])
def test_the_script_starts_node_0_and_lets_the_others_join(golden: str, tmp_path: Path) -> None:
    """With stand-ins for srun and picollm."""
    if not shutil.which("bash"):
        pytest.skip("no bash")
    (tmp_path / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    (tmp_path / "picollm").write_text('#!/bin/bash\nprintf "%s|" "$PICOLLM_RUNS" "$SRUN_CPUS_PER_TASK" "$@"\n')
    for name in ("srun", "picollm"):
        (tmp_path / name).chmod(0o755)
    nodes = {"one-node.sh": ["0"], "four-nodes.sh": ["0", "3"]}[golden]
    for node in nodes:
        environ = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_NODEID": node,
            "SLURM_CPUS_PER_TASK": "9",
        }
        done = subprocess.run(["bash", str(GOLDEN / golden)], env=environ, capture_output=True, text=True, check=True)
        said = done.stdout.split("|")
        assert said[:3] == ["/scratch/me/my runs", "9", "run" if node == "0" else "launch"]
        assert ("--join" in said) == (node != "0") and said[said.index("--run") + 1] == "big"


@pytest.mark.parametrize("golden, nodes", [("one-node.yaml", 1), ("two-nodes.yaml", 2)])
def test_the_task_is_yaml(golden: str, nodes: int) -> None:
    yaml = pytest.importorskip("yaml")
    task = yaml.safe_load((GOLDEN / golden).read_text())
    assert task["num_nodes"] == nodes and task["name"] == "picollm-big-1"
    assert ("volumes" in task) == (nodes > 1) and "exec picollm run --run Big_1" in task["run"]


def test_a_file_instead_of_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["launch", *SLURM, "--out", str(tmp_path / "job.sh")]) == 0
    assert f"sbatch {tmp_path}/job.sh" in capsys.readouterr().out
    assert (tmp_path / "job.sh").read_text().startswith("#!/bin/bash\n#SBATCH --job-name=picollm-big\n")


@pytest.mark.parametrize(
    "argv, says",
    [
        ((), "choose one of --join"),
        (("--slurm", "--skypilot"), "choose one of --join"),
        ((*SKYPILOT, "--nodes", "2"), "--volume"),
        ((*SLURM, "--set", "run.sed=3"), "run.sed"),
        (("--slurm", "--profile", "pockett"), "pockett"),
        (("--slurm", "--run", "a b"), "run name 'a b'"),
        (("--slurm", "--run", "else/where"), "a name has no slash"),
        (("--slurm", "--node-rank", "1"), "are for --join"),
    ],
)
def test_mistakes_are_found_before_the_job_starts(
    argv: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.invoke(["launch", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_nproc_is_a_number_or_auto() -> None:
    assert cli.sets_of(["run.seed=3"], "auto") == ["run.seed=3", "launch.nproc=auto"]
    settings = (
        cli.settings.load(sets=cli.sets_of(None, "auto"), environ={}),
        cli.settings.load(sets=cli.sets_of(None, "3"), environ={}),
    )
    assert [found.launch.nproc for found in settings] == ["auto", 3]


def test_nproc_of_neither_kind_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path))
    assert cli.invoke(["run", "--nproc", "many"]) == 2
    assert "launch.nproc" in capsys.readouterr().err
