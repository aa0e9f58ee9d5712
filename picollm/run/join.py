"""`picollm launch --join`: what every machine but node 0 runs: its part of each stage, until the run ends.

Node 0 conducts. We knock at its door (`nodes.knock`), start our torchrun when it has a stage for us, and knock again.
What becomes of the run we read in the shared folder: the conductor's last word, and its readings of the machine as a
sign that it lives (locks need not reach across machines).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from types import FrameType
from typing import Any

from picollm.run import config as settings
from picollm.run import event_file, launch, lease, nodes
from picollm.run import events as ev
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import Run

LOOK_EVERY_S = 0.5
FAREWELL_S = 3.0
"""So long a last word must stay the last one: a run that goes on says so at once."""
LEFT_BEHIND_S = 20.0
"""So long our ranks may take to end after node 0's part of the stage did; torchrun itself needs a while."""
LEFT_TO_NODE_0_S = 5.0
"""A scheduler signals all machines at once, and a stop asked for twice kills: node 0 asks, we only if it does not."""
ENDS = {"finished": 0, "failed": 1, "stopped": 3}


class Joiner:
    """One machine's part in one run; `join()` returns 0 when the run finished, 1 when it failed, 3 when it stopped."""

    def __init__(self, run: Run, place: nodes.Place, patience: float) -> None:
        """`patience`: seconds without a sign of life of node 0 after which we give up."""
        self.run, self.place, self.patience = run, place, patience
        self.stops = 0
        self.ask_at = 0.0
        self.stage = ""
        self.child: subprocess.Popen[bytes] | None = None
        self._conductor = event_file.EventReader(run.conductor_events)
        self._conductor.poll()  # what was said before we came is history
        self._exited: set[tuple[str, int]] = set()
        self._last: tuple[str, float] = "", 0.0
        self._sign: tuple[object, float] = None, time.monotonic()

    def join(self) -> int:
        """Raises `UserError` when this machine cannot take part or node 0 is gone."""
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            where = f"{self.place.host}:{self.place.port + 1}"
            self._say(f"node {self.place.rank} of {self.place.nodes} waits for node 0 at {where}")
            while True:
                if self.stops:
                    return ENDS["stopped"]
                self._listen()
                what, when = self._last
                if what in ENDS and time.monotonic() - when > FAREWELL_S:
                    self._say(f"the run {what}")
                    return ENDS[what]
                found = nodes.knock(self.place, self.run, lambda: self.stops > 0)
                if found:
                    self._take_part(*found)
                    self._sign = None, time.monotonic()
                elif time.monotonic() - self._sign[1] > self.patience:
                    raise UserError(
                        f"no sign of node 0 at {where} for {self.patience:.0f} s (launch.timeout): start it there with "
                        f"picollm run --run {self.run.name}, and see that {self.run.dir} is shared"
                    )
                time.sleep(LOOK_EVERY_S)
        except StopRequested:
            return ENDS["stopped"]
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _take_part(self, task: nodes.Task, met: nodes.Met) -> None:
        run, self.stage = self.run, task.stage
        hosts = ",".join(met.hosts)
        argv = launch.stage_command(run, task.stage, task.attempt, task.nproc, task.fresh, self.place, hosts)
        console = run.stage_dir(task.stage) / f"attempt-{task.attempt:03d}.node-{self.place.rank}.console.log"
        self._say(f"{task.stage}: attempt {task.attempt}, {task.nproc} ranks here; console in {console.name}")
        self.child = launch.spawn_detached(argv, console, nodes.environment(met.address))
        if not lease.is_held(run.lock_file(task.stage)):
            self._say(
                "warning: file locks do not reach this machine; mount the file system with them (Lustre: -o flock)"
            )
        left = 0.0
        while self.child.poll() is None:
            self._listen()
            if self.stops and time.monotonic() > self.ask_at and not run.stop_file(self.stage).exists():
                with contextlib.suppress(UserError):
                    run.request_stop(self.stage)
            if (task.stage, task.attempt) in self._exited:
                left = left or time.monotonic() + LEFT_BEHIND_S
                if time.monotonic() > left:
                    self._kill()
            time.sleep(LOOK_EVERY_S)
        code, self.child = self.child.returncode, None
        self._say(f"{task.stage}: our part ended{f' with code {code}' if code else ''}")

    def _listen(self) -> None:
        for event in self._conductor.poll():
            if isinstance(event, ev.Conductor):
                self._last = event.what, time.monotonic()
            elif isinstance(event, ev.Exited):
                self._exited.add((event.stage, event.attempt))
        try:
            stamp = self.run.machine_file.stat().st_mtime_ns
        except OSError:
            return
        if stamp != self._sign[0]:
            # A reading from before we came is no sign of life.
            self._sign = stamp, self._sign[1] if self._sign[0] is None else time.monotonic()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Once: ask the stage to save and stop. Twice: kill our part of it."""
        self.stops += 1
        if self.stops == 1:
            self.ask_at = time.monotonic() + LEFT_TO_NODE_0_S
        else:
            self._kill()

    def _kill(self) -> None:
        if self.child is not None and self.child.poll() is None:
            lease.kill_tree(lease.identify(self.child.pid))

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def join(run: Run, own: dict[str, Any], patience: float = 600.0) -> int:
    """Take part in `run` as the machine that `own` settings, the run's and the job scheduler say we are.

    `patience`: seconds to wait for the run's folder. Raises `UserError` when it does not appear, or as `Joiner.join`.
    """
    end = time.monotonic() + patience
    while not run.exists():
        if time.monotonic() > end:
            raise UserError(
                f"no run '{run.name}' in {run.dir.parent} after {patience:.0f} s: start it on node 0 with picollm run, "
                "and put PICOLLM_RUNS on a file system that all nodes mount"
            )
        time.sleep(LOOK_EVERY_S)
    values = settings.flat(run.config())
    config = settings.build(values | {key: settings.check(key, value, "picollm launch") for key, value in own.items()})
    place = nodes.place(config, os.environ, joining=True)
    return Joiner(run, place, 60 * config.launch.timeout).join()
