"""Checks of the doctor made again, all or some, beside the pipeline: `python -m picollm.run.recheck --run DIR NAMES…`.

A job: its events lie in `jobs/doctor/` of the run, or in the cache folder while there is no run yet, and no stage's
state depends on them. `newest` puts them together with what the doctor's stage found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from picollm.run import config as settings
from picollm.run import event_file, launch, lease
from picollm.run import events as ev
from picollm.run.checks import CHECKS, run_checks
from picollm.run.errors import UserError
from picollm.run.folder import Run, picollm_home, runs_folder

LIMIT_BYTES = 1 << 20


def folder(run_dir: Path) -> Path:
    """Where the events of checks made again are."""
    return run_dir / "jobs" / "doctor" if (run_dir / "config.toml").exists() else picollm_home() / "doctor"


def start(run_dir: Path, names: Sequence[str] = (), profile: str = "") -> subprocess.Popen[bytes]:
    """Begin `names`, or all, in a process. Raises `UserError` for an unknown one, or while some are being made."""
    known(names)
    place = folder(run_dir)
    if lease.is_held(place / "lock"):
        raise UserError("checks are being made already")
    argv = [sys.executable, "-m", "picollm.run.recheck", "--run", str(run_dir), "--profile", profile, "--", *names]
    return launch.spawn_detached(argv, place / "console.log")


def known(names: Sequence[str]) -> None:
    """Raises `UserError` for a name that is no check."""
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        raise UserError(f"unknown check '{unknown[0]}': expected one of {', '.join(CHECKS)}")


def make(run_dir: Path, names: Sequence[str], profile: str = "") -> Iterator[ev.Check]:
    """Make the checks here and now, one event each, which is given as soon as it is written. Raises `UserError`."""
    known(names)
    place = folder(run_dir)
    lock = lease.Lock(place / "lock")
    if not lock.exclusive(patience=1.0):
        raise UserError("checks are being made already")
    file, begun = place / "events.jsonl", time.monotonic()
    try:
        if file.exists() and file.stat().st_size > LIMIT_BYTES:
            file.unlink()
        run = Run(run_dir)
        event_file.append(file, ev.Phase(name=",".join(names or CHECKS)))
        if run.exists():
            config = run.config()
        else:
            run, config = Run(runs_folder()), settings.load(profile or None)
        for verdict in run_checks(run, config, names):
            made = ev.Check(**msgspec.structs.asdict(verdict))
            event_file.append(file, made)
            yield made
        event_file.append(file, ev.Finished(seconds=round(time.monotonic() - begun, 3)))
    except UserError as error:
        event_file.append(file, ev.Failed(error=str(error), code=2))
        raise
    finally:
        lock.release()


def check(run_dir: Path, names: Sequence[str], profile: str) -> int:
    """Make the checks for the app. Returns the exit code: 1 when one fails."""
    try:
        return int(any([made.status == "fail" for made in make(run_dir, names, profile)]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class Found(msgspec.Struct, frozen=True):
    """The newest of each check, which are still to come, and why the last ones could not be made."""

    checks: tuple[ev.Check, ...] = ()
    awaited: tuple[str, ...] = ()
    problem: str = ""


def newest(of_stage: Iterable[ev.Check], again: Iterable[ev.AnyEvent], alive: bool) -> Found:
    """Of each check the later one, in the doctor's order. `again`: the events of this job; `alive`: it goes on."""
    found = {one.name: one for one in of_stage}
    awaited: tuple[str, ...] = ()
    problem = ""
    for event in again:
        if isinstance(event, ev.Phase):
            awaited, problem = tuple(event.name.split(",")), ""
        elif isinstance(event, ev.Check):
            awaited = tuple(name for name in awaited if name != event.name)
            if event.name not in found or found[event.name].time <= event.time:
                found[event.name] = event
        elif isinstance(event, ev.Failed):
            awaited, problem = (), event.error
    if awaited and not alive:
        problem = f"the checks ended before {awaited[0]} was looked at"
        awaited = ()
    order = {name: place for place, name in enumerate(CHECKS)}
    checks = sorted(found.values(), key=lambda one: order.get(one.name, len(order)))
    return Found(tuple(checks), awaited, problem)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m picollm.run.recheck", description="Checks of this machine.")
    parser.add_argument("--run", required=True, type=Path, help="the run folder, which need not be there yet")
    parser.add_argument("--profile", default="", help="of a run that is not there yet")
    parser.add_argument("names", nargs="*", choices=[*CHECKS, []], help="which; without any, all")
    given = parser.parse_args()
    sys.exit(check(given.run.absolute(), given.names, given.profile))


if __name__ == "__main__":
    main()
