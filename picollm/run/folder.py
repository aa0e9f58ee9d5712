"""The run folder: where things are, and its settings. What state its stages are in is derived in `status`.

Nothing here writes anything but the configuration, a request to stop, and what `create` lays out.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from picollm.run import config as settings
from picollm.run import event_file, lease
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.planned import Inherited, Origin, Plan, apply_plan, inputs_of, with_whole_paths
from picollm.run.status import ACTIVE, STATES, StageStatus, status_of, statuses_of

__all__ = [
    "ACTIVE", "STATES", "Plan", "Run", "StageStatus", "picollm_home", "runs_folder", "write_atomic",
]  # fmt: skip

FORMAT = 1
CREATE_PATIENCE_S = 20.0  # for who makes the same run; it is there at once, on most days


def picollm_home() -> Path:
    """Shared between runs: texts, token shards, the compile cache. `$PICOLLM_HOME`, else the user's cache folder."""
    return Path(os.environ.get("PICOLLM_HOME") or platformdirs.user_cache_dir("picollm")).expanduser().absolute()


_Stamp = tuple[int, int, int]
"""When a file was written, its size, and which file it is."""


def runs_folder() -> Path:
    """`$PICOLLM_RUNS`, else `./runs`."""
    return Path(os.environ.get("PICOLLM_RUNS") or "runs").expanduser().absolute()


def folder_of(name: str) -> Path:
    """The folder of the run of that name, or at that path; there or not."""
    return Path(os.path.abspath(Path(name).expanduser())) if os.sep in name else runs_folder() / name


def new_name(name: str) -> str:
    """The name of a run yet to be made, given as such or as a path into the runs folder. Raises `UserError`."""
    folder = folder_of(name)
    if os.sep in name and not _in_runs_folder(folder):
        raise UserError(
            f"run name '{name}': a name has no slash; runs are made in {runs_folder()}, or where PICOLLM_RUNS says"
        )
    plain = folder.name if os.sep in name else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", plain):
        raise UserError(f"run name '{plain}': expected letters, digits, dot, dash or underscore, at most 64")
    return plain


def _in_runs_folder(folder: Path) -> bool:
    return folder.parent.resolve() == runs_folder().resolve()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside and rename: a reader sees the old file or the new one. Raises `UserError` where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from None


class Run:
    """One run folder. `Run.create`, `Run.open` and `Run.all` are the ways in."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        self.name = folder.name
        # What a look at the run needs again and again, kept as long as its file stays as it was.
        self._settings: tuple[object, dict[str, Any]] | None = None
        self._origin: tuple[object, Origin] | None = None
        self._ends: dict[Path, tuple[_Stamp | None, list[ev.AnyEvent], list[ev.AnyEvent]]] = {}

    @classmethod
    def create(cls, name: str, config: settings.Config) -> Run:
        """Lay out a new run. Raises `UserError` for a bad name, an existing run or a folder that cannot be written."""
        run = cls(name_of_new(name))
        known = UserError(f"run '{run.name}' exists already in {run.dir.parent}; resume it or choose another name")
        write_atomic(run.dir / "format", f"{FORMAT}\n")
        alone = lease.Lock(run.conductor_lock)
        try:
            # Of two who make the same run at once, the first one's settings count.
            end = time.monotonic() + CREATE_PATIENCE_S
            while not (free := alone.exclusive()) and not run.exists() and time.monotonic() < end:
                time.sleep(0.02)
            if not free or run.exists():
                raise known
            write_atomic(run.dir / "prompts.txt", "\n".join(DEFAULT_PROMPTS) + "\n")
            run.save_config(config)
        except OSError as error:
            raise UserError(f"cannot write {run.dir}: {error.strerror}; choose another folder") from None
        finally:
            alone.release()
        return run

    @classmethod
    def open(cls, name: str) -> Run:
        """Raises `UserError` when there is no such run, its settings are broken or its format is newer than ours."""
        folder = folder_of(name)
        run = cls(folder)
        if not run.exists() and not _in_runs_folder(folder):
            raise UserError(f"no run in {folder} (no config.toml); runs lie in {runs_folder()}, or set PICOLLM_RUNS")
        if not run.exists():
            known = ", ".join(r.name for r in cls.all()) or "none yet"
            raise UserError(
                f"no run '{name}' in {folder.parent} (runs there: {known}); "
                f"start it with: picollm run --run {folder.name}"
            )
        format_file = folder / "format"
        if format_file.exists():
            text = format_file.read_bytes().decode(errors="replace").strip()
            if not text.isdigit() or int(text) > FORMAT:
                raise UserError(
                    f"{format_file}: run format {text!r} is newer than this picollm ({FORMAT}); update picollm"
                )
        return run

    @classmethod
    def all(cls) -> list[Run]:
        """Every run in the runs folder, newest activity first."""
        try:
            folders = list(runs_folder().iterdir())
        except OSError:
            return []
        found = [(_last_touched(path), path) for path in folders if os.path.isfile(path / "config.toml")]
        return [cls(path) for _, path in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]

    def exists(self) -> bool:
        return (self.dir / "config.toml").is_file()

    def require(self) -> None:
        """For who writes into a run's folder and must not make it anew. Raises `UserError` where there is no run."""
        if not self.exists():
            raise UserError(f"no run in {self.dir} (no config.toml); was it renamed, archived or deleted?")

    # settings -------------------------------------------------------------------------------------------------------

    def save_config(self, config: settings.Config) -> None:
        """Write `config.toml`; what it replaces is kept in `revisions/`. New values name their files with whole paths:
        who resumes may be in another folder."""
        file = self.dir / "config.toml"
        before = settings.flat(self.wishes()) if file.exists() else {}
        values = settings.flat(config)
        changed = {key: value for key, value in values.items() if key not in before or before[key] != value}
        config = settings.build(values | with_whole_paths(changed))
        if file.exists():
            old = file.read_text(encoding="utf-8")
            if old == settings.dump(config):
                return
            revisions = self.dir / "revisions"
            number = len(list(revisions.glob("*.toml"))) + 1
            write_atomic(revisions / f"{number:03d}.toml", old)
        write_atomic(file, settings.dump(config))

    def wishes(self) -> settings.Config:
        """`config.toml` as the person wrote it, with 0 where preflight plans. Raises `UserError` with file and line."""
        file = self.dir / "config.toml"
        stamp = _stamp(file)
        if self._settings is None or stamp is None or self._settings[0] != stamp:
            self._settings = stamp, settings.file_values(file)
        return settings.build(self._settings[1])

    def plan(self) -> Plan | None:
        """What preflight wrote; None before it."""
        try:
            return msgspec.json.decode((self.dir / "plan.json").read_bytes(), type=Plan)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(f"{self.dir / 'plan.json'}: {error}; delete it and run preflight again") from None

    def config(self) -> settings.Config:
        """The wishes with every planned value filled in."""
        return apply_plan(self.wishes(), self.plan())

    def set(self, sets: list[str]) -> None:
        """`--set` on an existing run: a new revision of its settings."""
        if sets:
            old = settings.flat(self.wishes())
            new = settings.parse_sets(sets)
            if new.get("run.profile", old["run.profile"]) != old["run.profile"]:
                raise UserError(
                    f"run '{self.name}' was made with profile '{old['run.profile']}', which cannot change; "
                    f"choose another --run name for profile '{new['run.profile']}'"
                )
            self.save_config(settings.build(old | new))

    # places ---------------------------------------------------------------------------------------------------------

    def stage_dir(self, name: str) -> Path:
        return self.dir / "stages" / name

    def lock_file(self, name: str) -> Path:
        return self.stage_dir(name) / "lock"

    def stop_file(self, name: str) -> Path:
        return self.stage_dir(name) / "stop"

    def attempts(self, name: str) -> list[int]:
        """Attempt numbers that left anything, ascending."""
        numbers = {
            int(match[1])
            for path in self.stage_dir(name).glob("attempt-*")
            if (match := re.match(r"attempt-(\d+)\.", path.name))
        }
        return sorted(numbers)

    def events_file(self, name: str, attempt: int) -> Path:
        return self.stage_dir(name) / f"attempt-{attempt:03d}.events.jsonl"

    def console_file(self, name: str, attempt: int) -> Path:
        return self.stage_dir(name) / f"attempt-{attempt:03d}.console.log"

    def ranks_folder(self, name: str, attempt: int, node: int = 0) -> Path:
        """Where torchrun keeps what each further rank of a machine printed."""
        return self.stage_dir(name) / f"attempt-{attempt:03d}{f'.node-{node}' if node else ''}.ranks"

    def ready_file(self, name: str, attempt: int) -> Path:
        """The attempt's `Ready`, where it said so: in a long event file nobody would find it."""
        return self.stage_dir(name) / f"attempt-{attempt:03d}.ready.json"

    def config_file(self, name: str, attempt: int) -> Path:
        return self.stage_dir(name) / f"attempt-{attempt:03d}.config.toml"

    @property
    def conductor_events(self) -> Path:
        return self.dir / "conductor" / "events.jsonl"

    @property
    def conductor_lock(self) -> Path:
        return self.dir / "conductor" / "lock"

    @property
    def machine_file(self) -> Path:
        return self.dir / "conductor" / "machine.jsonl"

    def prompts(self) -> list[str]:
        """The comparison prompts: the file the person edits, blank lines and # comments left out."""
        own = self.wishes().chat.prompts
        file = Path(own).expanduser() if own else self.dir / "prompts.txt"
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            if own:
                raise UserError(f"prompts file {file} does not exist; create it or unset chat.prompts") from None
            return list(DEFAULT_PROMPTS)
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]

    # what happened --------------------------------------------------------------------------------------------------

    def finished(self, name: str) -> ev.Finished | None:
        """The newest attempt that finished, if any: its artifacts are what later stages read."""
        found = self._finished(name)
        return found[1] if found else None

    def finished_attempt(self, name: str) -> int | None:
        """The number of the newest attempt that finished, if any."""
        found = self._finished(name)
        return found[0] if found else None

    def started_with(self, name: str, attempt: int) -> str:
        """The fingerprint with which an attempt started; "" when its first event is lost."""
        head = self.ends(name, attempt)[0]
        return next((event.fingerprint for event in head if isinstance(event, ev.Started)), "")

    def origin(self) -> Origin | None:
        """The run that this one was branched from; None for a run of its own."""
        file = self.dir / "base.json"
        stamp = _stamp(file)
        if stamp is None:
            return None
        if self._origin is None or self._origin[0] != stamp:
            try:
                self._origin = stamp, msgspec.json.decode(file.read_bytes(), type=Origin)
            except (OSError, msgspec.DecodeError) as error:
                raise UserError(f"{file}: {error}; it says where the run's first stages come from") from None
        return self._origin[1]

    def inherited(self, name: str) -> Inherited | None:
        """Where a stage comes from that another run made; None when it was made here, at first or again."""
        origin = self.origin()
        found = origin.stages.get(name) if origin else None
        done = self._finished(name) if found else None
        return found if found and done and done[0] == found.attempt else None

    def made(self, name: str) -> ev.Finished | ev.Ready | None:
        """What the newest attempt that finished, or said `Ready` before it did, makes: places and content hashes.

        They stay true when a stage that said `Ready` is stopped, since resumed it makes the same.
        """
        for attempt in reversed(self.attempts(name)):
            for event in (*reversed(self.ends(name, attempt)[1]), self.ready(name, attempt)):
                if isinstance(event, (ev.Finished, ev.Ready)):
                    return event
        return None

    def ready(self, name: str, attempt: int) -> ev.Ready | None:
        """What an attempt said could be used while it went on; None when it said nothing of the kind."""
        try:
            event = event_file.decode(self.ready_file(name, attempt).read_bytes())
        except OSError:
            return None
        return event if isinstance(event, ev.Ready) else None

    def _finished(self, name: str) -> tuple[int, ev.Finished] | None:
        for attempt in reversed(self.attempts(name)):
            for event in reversed(self.ends(name, attempt)[1]):
                if isinstance(event, ev.Finished):
                    return attempt, event
        return None

    def ends(self, name: str, attempt: int) -> tuple[list[ev.AnyEvent], list[ev.AnyEvent]]:
        """The first and the last events of an attempt; they overlap in a short one. Read them only."""
        file = self.events_file(name, attempt)
        stamp = _stamp(file)
        kept = self._ends.get(file)
        if kept is None or stamp is None or kept[0] != stamp:
            begun = kept is not None and _grew(kept[0], stamp, event_file.HEAD_BYTES)
            head = kept[1] if kept is not None and begun else event_file.head_events(file)
            kept = self._ends[file] = stamp, head, event_file.tail_events(file)
        return kept[1], kept[2]

    def output(self, name: str, key: str) -> Path:
        """Where a stage put `key`, one that is done or said that it can be used (`Ready`). Raises `UserError` when it
        is neither or its artifact is gone."""
        done = self.made(name)
        if done is None or key not in done.paths:
            raise UserError(f"{self.name}: '{name}' has not finished, and this needs its {key}; run it first")
        path = self.dir / done.paths[key]
        if not path.exists():
            raise UserError(
                f"{path} is gone, and this needs it; run '{name}' again (picollm run --run {self.name} --from {name})"
            )
        return path

    def inputs(self, name: str, config: settings.Config | None = None) -> dict[str, Any]:
        """Everything that decides a stage's result: its settings, the seed, what it is fed, its version."""
        return inputs_of(self, name, config)

    def status(self, name: str, now: float | None = None, config: settings.Config | None = None) -> StageStatus:
        """The state of one stage, from the tail of its newest attempt and its lock."""
        return status_of(self, name, now, config)

    def statuses(self, now: float | None = None) -> list[StageStatus]:
        """Every stage in pipeline order; done stages downstream of a stale or unfinished one are stale too."""
        return statuses_of(self, now)

    # requests -------------------------------------------------------------------------------------------------------

    def request_stop(self, name: str) -> None:
        """Ask a running stage to save and stop."""
        write_atomic(self.stop_file(name), f"{time.time():.3f}\n")


def name_of_new(name: str) -> Path:
    """The folder of a run yet to be made. Raises `UserError` for a bad name or one that is taken."""
    folder = runs_folder() / new_name(name)
    if Run(folder).exists():
        raise UserError(f"run '{folder.name}' exists already in {folder.parent}; resume it or choose another name")
    return folder


def _grew(before: _Stamp | None, after: _Stamp | None, least: int) -> bool:
    """Whether a file that was longer than `least` bytes has only become longer: its first `least` are the same."""
    return before is not None and after is not None and before[2] == after[2] and least < before[1] <= after[1]


def _stamp(file: Path) -> _Stamp | None:
    """Equal when nobody wrote the file in between; None when there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _last_touched(folder: Path) -> float:
    """Unix time of the newest sign of life; a run that is being deleted meanwhile counts as oldest."""
    newest = 0.0
    for name in ("config.toml", "conductor/events.jsonl", "conductor/machine.jsonl"):
        with contextlib.suppress(OSError):
            newest = max(newest, (folder / name).stat().st_mtime)
    return newest


DEFAULT_PROMPTS = (
    "Explain tokenization for a beginner.",
    "Why is the sky blue?",
    "Use one analogy to explain self-attention.",
    "Give me a two-step study plan for learning transformers.",
    "What does str.split do?",
    "What does json.dumps do?",
    "Who are you?",
    "Spell the word harbor.",
    "What is 27 plus 45?",
)
