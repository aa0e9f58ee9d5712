"""The evaluation bundle of CORE (Li et al. 2024, DataComp-LM, arXiv 2406.11794): a folder or a zip file with

    core.yaml            icl_tasks: label, icl_task_type, dataset_uri, num_fewshot, continuation_delimiter
    eval_meta_data.csv   columns "Eval Task" and "Random baseline" (percent), among others
    eval_data/...        one JSON object a line: what `dataset_uri` names

A zip file is read where it lies. A bundle is a yardstick: a row that cannot be used is not passed over, it is an error.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from picollm.run.errors import UserError
from picollm.run.folder import picollm_home
from picollm.run.stage import StageContext

CONFIG_FILE, BASELINE_FILE, DATA_FOLDER = "core.yaml", "eval_meta_data.csv", "eval_data"
FIELDS: dict[str, dict[str, type]] = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
OPTIONS = {"multiple_choice": "choices", "schema": "context_options"}

MEGABYTE = 1_000_000
ATTEMPTS = 4
BACKOFF_S = 1.0
TIMEOUT_S = 30.0
LARGEST_BYTES = 4 << 30


class CoreTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task of the bundle. `baseline`: accuracy of blind guessing, 0 to 1; `shots`: solved examples shown before."""

    label: str
    kind: str
    file: str
    shots: int
    delimiter: str
    baseline: float


class Bundle:
    """An opened bundle.

    Attributes:
        tasks: in the order of core.yaml.
        about: where it lies, and the names and sha256 of the files that say what is measured and against what.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError when `path` is no bundle, or its tasks cannot be understood."""
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        try:
            if path.is_dir():
                self._root = str(next((p for p in (path, path / "eval_bundle") if (p / CONFIG_FILE).is_file()), path))
            else:
                self._zip = zipfile.ZipFile(path)
                names = [name for name in self._zip.namelist() if name.split("/")[-1] == CONFIG_FILE]
                self._root = min(names, key=len, default=CONFIG_FILE).rpartition("/")[0]
        except FileNotFoundError:
            raise UserError(
                f"{path} is not there; base_eval.core names the CORE bundle, a folder or zip file"
            ) from None
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"cannot open the CORE bundle {path}: {error}; delete it and get it again") from None
        config, baselines = self._read(CONFIG_FILE), self._read(BASELINE_FILE)
        self.tasks = _tasks(config, _baselines(baselines, self._name(BASELINE_FILE)), self._name(CONFIG_FILE))
        self.about = {
            "path": str(path),
            "tasks": {"file": CONFIG_FILE, "sha256": hashlib.sha256(config).hexdigest()},
            "baselines": {"file": BASELINE_FILE, "sha256": hashlib.sha256(baselines).hexdigest()},
        }

    def rows(self, task: CoreTask) -> tuple[list[dict[str, Any]], str]:
        """The rows of a task as they lie in its file, and the file's sha256.

        Raises UserError with file and line for a row that is not what its kind of task needs, and for a file of none.
        """
        name = f"{DATA_FOLDER}/{task.file}"
        data = self._read(name)
        rows = []
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{self._name(name)}, line {number}: not JSON ({error}); get the bundle again"
                ) from None
            if problem := _problem(row, task.kind):
                raise UserError(f"{self._name(name)}, line {number}: {problem}; get the bundle again")
            rows.append(row)
        if not rows:
            raise UserError(f"{self._name(name)} holds no rows; get the bundle again")
        return rows, hashlib.sha256(data).hexdigest()

    def _name(self, name: str) -> str:
        """As a person finds it."""
        inside = "/".join(part for part in (self._root, name) if part)
        return f"{self.path}: {inside}" if self._zip else inside

    def _read(self, name: str) -> bytes:
        inside = "/".join(part for part in (self._root, name) if part)
        try:
            return self._zip.read(inside) if self._zip else Path(inside).read_bytes()
        except (FileNotFoundError, KeyError):
            raise UserError(f"{self._name(name)} is missing; base_eval.core must name a whole CORE bundle") from None
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"cannot read {self._name(name)}: {error}; get the bundle again") from None


def bundle_of(ctx: StageContext) -> Bundle | None:
    """The bundle that `base_eval.core` asks for, all of it read once, so that what is damaged shows before anything is
    measured; None without one.

    What 'auto' cannot get is a warning, for nothing later needs CORE. Raises UserError for a path that is wrong.
    """
    settings = ctx.config.base_eval
    automatic = settings.core == "auto"

    def downloaded(got: int, total: int) -> None:
        ctx.progress(got // MEGABYTE, max(1, total // MEGABYTE))
        ctx.raise_if_stopped()

    def wait(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ctx.raise_if_stopped()
            time.sleep(min(0.2, seconds))

    if not settings.core:
        return None
    ctx.phase("CORE bundle")
    try:
        path = Path(settings.core).expanduser()
        if automatic:
            path = fetched(settings.core_url, picollm_home(), ctx.message, downloaded, wait)
        bundle = Bundle(path)
        counts = {}
        for task in bundle.tasks:
            counts[task] = len(bundle.rows(task)[0])
            ctx.raise_if_stopped()
    except UserError as error:
        if not automatic:
            raise
        ctx.warning(f"CORE cannot be measured: {error}; once that is mended: picollm run --only base_eval --fresh")
        return None
    for task, count in counts.items():
        refuse_few(task, min(count, settings.core_items or count))
    return bundle


def refuse_few(task: CoreTask, items: int) -> None:
    """Raises UserError for fewer items than the solved examples and one more."""
    if items <= task.shots:
        raise UserError(
            f"CORE: {task.label} shows {task.shots} solved examples and has {items} items; raise base_eval.core_items"
        )


def _tasks(config: bytes, baselines: dict[str, float], where: str) -> list[CoreTask]:
    import yaml

    try:
        entries = yaml.safe_load(config)["icl_tasks"]
        found = []
        for entry in entries:
            shots = entry["num_fewshot"]
            label = str(entry["label"])
            if label not in baselines:
                raise UserError(f"{BASELINE_FILE} has no baseline for '{label}', which {where} asks for")
            found.append(
                CoreTask(
                    label=label,
                    kind=str(entry["icl_task_type"]),
                    file=str(entry["dataset_uri"]),
                    shots=int(shots[0] if isinstance(shots, list) else shots),
                    delimiter=str(entry.get("continuation_delimiter", " ")),
                    baseline=baselines[label],
                )
            )
    except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{where} is not a list of CORE tasks: {type(error).__name__} {error}".split("\n")[0]) from None
    for task in found:
        if task.kind not in FIELDS:
            raise UserError(f"{where}: '{task.label}' is of type '{task.kind}'; expected one of {', '.join(FIELDS)}")
    if not found:
        raise UserError(f"{where} names no tasks")
    return found


def _baselines(data: bytes, where: str) -> dict[str, float]:
    """{task: share} from percent."""
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        found = {row["Eval Task"].strip(): float(row["Random baseline"] or 0) / 100 for row in rows if row["Eval Task"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where} has no usable columns 'Eval Task' and 'Random baseline': {error!r}") from None
    if wrong := [name for name, share in found.items() if not 0 <= share < 1]:
        raise UserError(f"{where}: the baseline of '{wrong[0]}' is not a percentage below 100")
    return found


def _problem(row: Any, kind: str) -> str:
    """What keeps a row from being used; "" if nothing does."""
    if not isinstance(row, dict):
        return "not a JSON object"
    for key, type_ in FIELDS[kind].items():
        if not isinstance(row.get(key), type_) or isinstance(row.get(key), bool):
            return f"'{key}' is missing" if key not in row else f"'{key}' is not a {type_.__name__}"
    options = row.get(OPTIONS.get(kind, ""), [])
    if not all(isinstance(option, str) for option in options):
        return f"'{OPTIONS[kind]}' holds something else than text"
    if kind in OPTIONS and not 0 <= row["gold"] < len(options):
        return f"'gold' is {row['gold']} of {len(options)} options"
    return ""


def fetched(
    url: str,
    home: Path,
    say: Callable[[str], None] = lambda text: None,
    on_bytes: Callable[[int, int], None] = lambda got, total: None,
    wait: Callable[[float], object] = time.sleep,
) -> Path:
    """The bundle behind a web address, downloaded once into `home`/core; what was cut off or killed goes on there.

    `on_bytes` is told how many of how many bytes there are (total 0: unknown), and may raise to leave, as may `wait`.

    Raises:
        UserError: it cannot be had, in one line that says why.
    """
    import httpx

    target = home / "core" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.zip"
    if target.is_file():
        return target
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError(f"the CORE bundle is not here and HF_HUB_OFFLINE is set; put it at {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    reason = ""
    with open(target.with_suffix(".lock"), "w") as lock:
        while not _taken(lock):
            wait(0.5)
        if target.is_file():
            return target
        for attempt in range(ATTEMPTS):
            if attempt:
                pause = BACKOFF_S * 2 ** (attempt - 1)
                say(f"the CORE bundle: {reason}; trying again in {pause:.0f} s")
                wait(pause)
            try:
                reason, again = _download(url, part, on_bytes)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                reason, again = f"{type(error).__name__}: {error}".split("\n")[0][:200], True
            if not reason:
                os.replace(part, target)
                return target
            if not again:
                break
    host = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    raise UserError(
        f"cannot get the CORE bundle from {host}: {reason}; set base_eval.core to a copy, or base_eval.core_url"
    )


def _taken(lock: IO[str]) -> bool:
    """Whether this process may download now; another one that does has the lock until it is done or dead."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _download(url: str, part: Path, on_bytes: Callable[[int, int], None]) -> tuple[str, bool]:
    """("", False) when `part` is whole; else what went wrong and whether trying again may help."""
    import httpx

    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
        status = answer.status_code
        if status == 416:  # what is here is whole already, or of another file: the next attempt begins anew
            part.unlink(missing_ok=True)
        if status not in (200, 206):
            return f"{status} {answer.reason_phrase}".strip(), status >= 500 or status in (408, 416, 429)
        if status == 200:
            have = 0
        total = have + int(answer.headers.get("content-length") or 0)
        if total > LARGEST_BYTES:
            return f"{total:,} bytes are too many", False
        with open(part, "ab" if have else "wb") as file:
            for piece in answer.iter_raw():
                file.write(piece)
                have += len(piece)
                if have > LARGEST_BYTES:
                    return f"it does not end after {have:,} bytes", False
                on_bytes(have, total)
    try:
        with zipfile.ZipFile(part) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile:
        broken = "it"
    if broken:
        part.unlink()
        return f"{broken} is damaged, or no zip file", True
    return "", False
