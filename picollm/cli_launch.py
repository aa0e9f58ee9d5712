"""`picollm launch`: take part as another machine, or write the job file that starts a run on a cluster."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from picollm.run import config as settings
from picollm.run import join as joining
from picollm.run.errors import UserError
from picollm.run.folder import Run, folder_of, new_name, picollm_home, runs_folder, write_atomic

CPUS_PER_GPU = 8
SAVE_BEFORE_S = 180
SHARED = "/picollm"
RUN_NAME = "demo"


def launch(
    run: Annotated[str, typer.Option("--run", help="run name")] = RUN_NAME,
    join: Annotated[bool, typer.Option("--join", help="take part in a run that node 0 conducts, to its end")] = False,
    node_rank: Annotated[int | None, typer.Option("--node-rank", help="which node this is; --join")] = None,
    rendezvous: Annotated[str | None, typer.Option("--rendezvous", help="host:port of node 0; --join")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="write a script for sbatch")] = False,
    skypilot: Annotated[bool, typer.Option("--skypilot", help="write a YAML file for sky launch")] = False,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="machines")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs on each")] = 8,
    gpu: Annotated[str, typer.Option("--gpu", help="their kind, as SkyPilot or the cluster names it")] = "",
    profile: Annotated[str, typer.Option("--profile", help="profile of the run")] = "speedrun",
    set: Annotated[
        list[str] | None, typer.Option("--set", help="one setting, table.key=value; may be repeated")
    ] = None,
    time: Annotated[str, typer.Option("--time", help="limit, for Slurm; it saves and stops before")] = "08:00:00",
    partition: Annotated[str, typer.Option("--partition", help="for Slurm")] = "",
    account: Annotated[str, typer.Option("--account", help="for Slurm")] = "",
    volume: Annotated[str, typer.Option("--volume", help="SkyPilot volume that all nodes mount")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="write here instead of to stdout")] = None,
) -> int:
    """Run on other machines: --join on every node but the first, or --slurm or --skypilot for a ready job file."""
    if join + slurm + skypilot != 1:
        raise UserError("choose one of --join (on every node but the first), --slurm and --skypilot (a job file)")
    if join:
        return _join(run, node_rank, rendezvous)
    if node_rank is not None or rendezvous is not None:
        raise UserError("--node-rank and --rendezvous are for --join; a job's nodes learn them from its scheduler")
    run = new_name(run)
    sets = [*(set or []), f"launch.nproc={gpus}", f"launch.nnodes={nodes}"]
    settings.load(profile, None, sets)  # a mistake is better found now than when the job starts
    argv = ["picollm", "run", "--run", run, "--profile", profile]
    argv += [word for one in sets for word in ("--set", one)]
    if slurm:
        text, submit = slurm_script(run, argv, nodes, gpus, gpu, time, partition, account), "sbatch"
    else:
        text, submit = skypilot_yaml(run, argv, nodes, gpus, gpu or "H100", volume), "sky launch"
    if out is None:
        print(text, end="")
    else:
        write_atomic(out.expanduser(), text)
        print(f"written; start it with: {submit} {out}")
    return 0


def _join(name: str, node_rank: int | None, rendezvous: str | None) -> int:
    """What is given here holds for this machine alone; the run's own settings stay as node 0 has them."""
    given = {"launch.node_rank": node_rank, "launch.rendezvous": rendezvous}
    return joining.join(Run(folder_of(name)), {key: value for key, value in given.items() if value is not None})


def _node_script(run: str, argv: list[str], rank: str, nodes: int) -> list[str]:
    """What every node runs: node 0 conducts, the others join it."""
    if nodes == 1:
        return [f"exec {shlex.join(argv)}"]
    return [
        f'if [ "${rank}" = 0 ]; then',
        f"  exec {shlex.join(argv)}",
        "fi",
        f"exec picollm launch --join --run {run}",
    ]


def slurm_script(
    run: str, argv: list[str], nodes: int, gpus: int, gpu: str, time: str, partition: str, account: str
) -> str:
    """A script for `sbatch`. One task a node; torchrun starts the ranks. The runs folder and the cache are those of
    here, which every node must see."""
    options = {
        "job-name": f"picollm-{run}",
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": f"{gpu}:{gpus}" if gpu else gpus,
        "cpus-per-task": CPUS_PER_GPU * gpus,
        "time": time,
        "partition": partition,
        "account": account,
        "output": f"picollm-{run}-%j.log",
        "open-mode": "append",
        "signal": f"TERM@{SAVE_BEFORE_S}",
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={value}" for key, value in options.items() if value != ""),
        "",
        f"# {SAVE_BEFORE_S} s before the time is up picollm saves and stops; submit this file again to go on.",
        "# The folders must be on a file system that all nodes mount.",
        "set -euo pipefail",
        f"export PICOLLM_RUNS={shlex.quote(str(runs_folder()))}",
        f"export PICOLLM_HOME={shlex.quote(str(picollm_home()))}",
        "# srun does not take over --cpus-per-task by itself since Slurm 22.05.",
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        "",
        "every_node=$(cat <<'END'",
        *_node_script(run, argv, "SLURM_NODEID", nodes),
        "END",
        ")",
        'srun bash -c "$every_node"',
    ]
    return "\n".join(lines) + "\n"


def skypilot_yaml(run: str, argv: list[str], nodes: int, gpus: int, gpu: str, volume: str) -> str:
    """A task for `sky launch`, to be started from a checkout. Raises `UserError` for several nodes without a volume,
    since by themselves they share no disk."""
    if nodes > 1 and not volume:
        raise UserError(
            "SkyPilot's nodes share no disk, and the run folder must be shared: make a volume that all may write "
            "(sky volumes apply, access mode ReadWriteMany) and give its name with --volume"
        )
    folder = SHARED if volume else "~/picollm"
    lines = [
        f"name: picollm-{run.lower().replace('_', '-').replace('.', '-')}",
        f"num_nodes: {nodes}",
        "workdir: .",
        "resources:",
        f"  accelerators: {gpu}:{gpus}",
        "  disk_size: 512",
        *([f"volumes:\n  {SHARED}: {volume}"] if volume else []),
        "setup: |",
        "  pip install .",
        "run: |",
        f"  export PICOLLM_RUNS={folder}/runs PICOLLM_HOME={folder}/cache",
        *(f"  {line}" for line in _node_script(run, argv, "SKYPILOT_NODE_RANK", nodes)),
    ]
    return "\n".join(lines) + "\n"
