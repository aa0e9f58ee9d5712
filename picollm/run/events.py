"""Events: what a stage, its launcher and its conductor can say. How they stand in a file: `event_file.py`."""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct, tag_field="type", tag=str.lower, omit_defaults=True, kw_only=True):
    """What every line carries; `time` is unix seconds and is for people, `seq` is for order. All three are stamped
    when the event is written."""

    v: int = 0
    seq: int = 0
    time: float = 0.0


class Started(Event):
    """The first event of an attempt; `age` seconds passed before it, loading Python and torch.

    `machine`: of a training stage, where it works (`machine.described`).
    """

    stage: str
    attempt: int
    pid: int
    host: str
    boot_id: str
    start_ticks: int
    world: int = 1
    age: float = 0.0
    fingerprint: str = ""
    inputs: dict[str, Any] = {}
    predicted_s: float = 0.0
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}


class Resumed(Event):
    """Said once the stage knows where it continues: metrics after `step` of earlier attempts are void."""

    step: int
    path: str = ""


class Phase(Event):
    """What the stage is busy with now ("load", "compile", "train", …); the app shows it."""

    name: str


class Progress(Event, gc=False):
    step: int
    steps: int


class Metrics(Event, gc=False):  # a run has a hundred thousand of these two: none for the garbage collector to walk
    step: int
    values: dict[str, float | None]


class Eval(Event):
    name: str
    step: int
    values: dict[str, float | None]
    n: int | None = None


class Sample(Event):
    prompt: str
    text: str
    step: int
    model: str = ""
    details: dict[str, Any] = {}


class Choice(Event):
    """A decision made by measuring: `figures` are the candidates and what each reached."""

    what: str
    chosen: str
    figures: dict[str, float]


class Check(Event):
    """One doctor or preflight check. `status` is ok, warn or fail."""

    name: str
    status: str
    found: str
    wanted: str = ""
    fix: str = ""


class Checkpoint(Event):
    step: int
    path: str
    bytes: int = 0
    seconds: float = 0.0


class Warning(Event):
    text: str


class Message(Event):
    text: str


class Note(Event):
    """Something worth pointing at on the curves, at a step, with what it means."""

    step: int
    text: str


class Ready(Event):
    """What the stage makes can be used from now on, though the stage goes on making it: the same keys, places and
    hashes as in the later `Finished`. Later stages that can start early do (`pipeline.Stage.early`)."""

    paths: dict[str, str] = {}
    artifacts: dict[str, str] = {}


class Finished(Event):
    """Terminal: done. `artifacts` maps a name to its content hash, `paths` to where it lies (relative to the run
    folder, or absolute in PICOLLM_HOME); `summary` is what the report reads."""

    seconds: float
    paths: dict[str, str] = {}
    artifacts: dict[str, str] = {}
    summary: dict[str, Any] = {}


class Failed(Event):
    """Terminal: one line for the person, `hint` what to try, `code` 2 for the person's mistake and 1 for ours."""

    error: str
    hint: str = ""
    code: int = 1


class Stopped(Event):
    """Terminal: asked to stop, everything up to `step` is saved."""

    step: int = 0


class Launched(Event):
    """Launcher: the stage's process (or its torchrun) was started; enough to signal it before it has said a word."""

    stage: str
    attempt: int
    pid: int = 0
    argv: list[str] = []
    host: str = ""
    boot_id: str = ""
    start_ticks: int = -1


class Exited(Event):
    """Launcher: the stage process is gone. `code` is its exit status, negative for a signal."""

    stage: str
    attempt: int
    code: int


class Conductor(Event):
    """Conductor: `what` is started, adopted, finished, failed or stopped."""

    what: str
    text: str = ""
    pid: int = 0


class Queue(Event):
    """Conductor: the stages that were asked for and are not done, in order; those at work among them."""

    stages: list[str] = []


class Machine(Event):
    """One reading of the machine: percent, bytes, bytes per second, and one record per GPU (`nvml.Gpus.read`).

    `memory_limit`: of the control group, where it is lower than the memory. `disks`: what, path, free, total; the run's
    first. `rates`: received, sent, read, written. `gpu_note`: why there is no GPU. `processes` (`processes.Processes`):
    None where nobody looked.
    """

    cpu: float
    cores: list[float] = []
    memory_used: int = 0
    memory_total: int = 0
    disk_free: int = 0
    gpus: list[dict[str, Any]] = []
    host: str = ""
    load: float | None = None
    swap_used: int = 0
    memory_limit: int = 0
    memory_limit_used: int = 0
    disks: list[dict[str, Any]] = []
    rates: dict[str, int] = {}
    gpu_note: str = ""
    processes: list[dict[str, Any]] | None = None


AnyEvent = (
    Started
    | Resumed
    | Phase
    | Progress
    | Metrics
    | Eval
    | Sample
    | Choice
    | Check
    | Checkpoint
    | Warning
    | Message
    | Note
    | Ready
    | Finished
    | Failed
    | Stopped
    | Launched
    | Exited
    | Conductor
    | Queue
    | Machine
)
TERMINAL = (Finished, Failed, Stopped)
