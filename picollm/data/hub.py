"""Text from the Hugging Face Hub: which files there are, what they hold, and one way to get one.

What a file holds is known before it is downloaded: the Hub gives the sha256 of each. So a text has its identity at
once, whatever arrives later is compared with it, and nothing is fetched that is here already.

    $PICOLLM_HOME/hub/<owner>--<name>.json    the last listing seen: what is used when the Hub cannot be reached
    $PICOLLM_HOME/hub/verified/<sha256>.json  where a file lies whose content was compared with its checksum
    $PICOLLM_HOME/hub/cache/                  files that are dropped once encoded (`data.keep_text = false`)

All others lie in the Hub's own cache (`HF_HOME`), where every program finds them. `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
`HF_TOKEN` and the timeouts `HF_HUB_ETAG_TIMEOUT`, `HF_HUB_DOWNLOAD_TIMEOUT` are huggingface_hub's and count here too.
The downloads themselves are `huggingface_hub.hf_hub_download`: it goes on after a cut connection, honours Retry-After
and locks against a second process.
"""

from __future__ import annotations

import errno
import fnmatch
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from picollm.data.publish import sha256
from picollm.run.errors import UserError
from picollm.run.folder import write_atomic
from picollm.run.plan import HUB_SHARDS
from picollm.run.structs import complete

ATTEMPTS = 4  # rounds over all endpoints, each with huggingface_hub's own retries inside
BACKOFF_S = 1.0  # before the second round; doubled from then on
INFO_TIMEOUT_S = 30.0
STALE_PART_S = 24 * 3600.0  # what a killed download left behind is removed after this

Wait = Callable[[float], object]


class Repo(msgspec.Struct, frozen=True, kw_only=True):
    """A data set on the Hub: its name there, its licence and what it is."""

    repo: str
    licence: str
    about: str


class Source(Repo, frozen=True, kw_only=True):
    """A data set on the Hub in numbered parquet files; the last one by name is for validation, always."""

    shards: int
    column: str = "text"

    def name(self, number: int) -> str:
        return f"shard_{number:05d}.parquet"

    @property
    def val(self) -> str:
        """The validation file: pinned by name, so that it is the same however many others are used."""
        return self.name(self.shards - 1)


SOURCES: dict[str, Source] = {
    "climbmix": Source(
        repo="karpathy/climbmix-400b-shuffle",
        shards=HUB_SHARDS["climbmix"],
        licence="CC BY-NC 4.0: research and development, not for commercial use",
        about="NVIDIA ClimbMix (Diao et al., arXiv 2504.13161), as text, shuffled",
    ),
    "fineweb-edu": Source(
        repo="karpathy/fineweb-edu-100b-shuffle",
        shards=HUB_SHARDS["fineweb-edu"],
        licence="ODC-By 1.0; the Common Crawl terms of use apply too",
        about="Hugging Face FineWeb-Edu (Penedo et al., arXiv 2406.17557), 100B sample, shuffled",
    ),
}


@complete
class HubFile(msgspec.Struct, frozen=True):
    """A file as the Hub describes it."""

    name: str
    sha256: str
    bytes: int


@complete
class Listing(msgspec.Struct):
    """The files of a repository at one commit. `licence`: as its card has it; `seen`: unix seconds."""

    repo: str
    revision: str
    files: dict[str, HubFile]
    licence: str = ""
    seen: float = 0.0


def listing(
    source: Repo,
    names: Sequence[str],
    home: Path,
    mirrors: str = "",
    say: Callable[[str], None] = lambda text: None,
    wait: Wait = time.sleep,
    revision: str = "",
) -> Listing:
    """What the Hub has under `names`, which may hold `*`; at least one file for each, or UserError.

    `revision`: a commit; empty: the newest.

    Offline, or with the Hub out of reach, it is the last listing seen here, or what the Hub's cache holds. `say` is
    told what went wrong on the way, `wait` does the pauses and may raise to leave.
    """
    from huggingface_hub import HfApi, constants

    known = home / "hub" / f"{source.repo.replace('/', '--')}.json"
    reasons: dict[str, str] = {}
    left = [] if constants.HF_HUB_OFFLINE else endpoints(mirrors)
    for attempt in range(ATTEMPTS):
        pause = BACKOFF_S * 2**attempt
        for endpoint in list(left):
            try:
                api = HfApi(endpoint=endpoint, token=_token(endpoint))
                info = api.dataset_info(
                    source.repo, revision=revision or None, files_metadata=True, timeout=INFO_TIMEOUT_S
                )
            except _failures() as error:
                reason, again, asked = explain(error)
                reasons[_host(endpoint)] = reason
                pause = max(pause, asked or 0.0)
                if not again:
                    left.remove(endpoint)
                continue
            found = _from_info(source, info)
            write_atomic(known, msgspec.json.encode(found))
            return _complete(found, names, source)
        if not left or attempt + 1 == ATTEMPTS:
            break
        say(f"{source.repo}: {_said(reasons)}; trying again in {pause:.0f} s")
        wait(pause)
    why = _said(reasons) if reasons else "HF_HUB_OFFLINE is set"
    try:
        found = msgspec.json.decode(known.read_bytes(), type=Listing)
        if revision not in ("", found.revision):
            raise FileNotFoundError(revision)
    except FileNotFoundError:
        cached = _from_cache(source, names, revision)
        if cached is None:
            raise UserError(
                f"cannot list {source.repo} ({why}) and it was never seen here; "
                "check the network, HF_TOKEN or data.mirrors, then resume"
            ) from None
        found = cached
    except msgspec.DecodeError as error:
        raise UserError(f"{known} is unreadable ({error}); delete it and resume") from None
    if reasons:
        day = time.strftime("what was seen of it on %d %b %Y", time.localtime(found.seen))
        say(f"{source.repo}: {why}; going by {day if found.seen else 'what the cache holds'}")
    return _complete(found, names, source)


def endpoints(mirrors: str) -> list[str]:
    """`data.mirrors` as a list; without any, huggingface_hub's own endpoint."""
    from huggingface_hub import constants

    return [mirror.strip().rstrip("/") for mirror in mirrors.split(",") if mirror.strip()] or [constants.ENDPOINT]


class Store:
    """Where the files of one listing lie here, and how they come."""

    def __init__(self, repo: str, revision: str, home: Path, mirrors: str = "", keep: bool = True) -> None:
        self.repo, self.revision, self.home, self.mirrors, self.keep = repo, revision, home, mirrors, keep
        self._own = home / "hub" / "cache"

    def local(self, file: HubFile) -> Path | None:
        """Where `file` lies, whole and compared with its checksum; None when it does not."""
        try:
            record = msgspec.json.decode(self._record(file).read_bytes())
            stat = Path(record["path"]).stat()
        except (OSError, msgspec.DecodeError, KeyError, TypeError):
            return None
        same = (stat.st_size, stat.st_mtime_ns) == (file.bytes, record.get("mtime_ns"))
        return Path(record["path"]) if same else None

    def fetch(self, file: HubFile, on_bytes: Callable[[int], None] = lambda got: None, wait: Wait = time.sleep) -> Path:
        """Download `file` unless it is here, and compare its content with its sha256.

        `on_bytes` is told how much of it there is, and may raise to leave. Tries every endpoint, again and again with
        growing pauses, where trying again can help. Raises UserError that says what was the matter.
        """
        if (here := self.local(file)) is not None:
            return here
        left = endpoints(self.mirrors)
        reasons: dict[str, str] = {}
        pause = 0.0
        for attempt in range(ATTEMPTS):
            if attempt:
                wait(pause)
            pause = BACKOFF_S * 2**attempt
            for endpoint in list(left):
                try:
                    path = self._download(file, endpoint, on_bytes)
                except _failures() as error:
                    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                        raise UserError(
                            f"cannot write {file.name}: {error.strerror}; free space there, or set HF_HOME"
                        ) from None
                    reason, again, asked = explain(error)
                    pause = max(pause, asked or 0.0)
                    if not again:
                        left.remove(endpoint)
                else:
                    if path.stat().st_size == file.bytes and sha256(path) == file.sha256:
                        write_atomic(
                            self._record(file),
                            msgspec.json.encode({"path": str(path), "mtime_ns": path.stat().st_mtime_ns}),
                        )
                        return path
                    _remove(path)
                    reason = "its content does not match its checksum"
                reasons[_host(endpoint)] = reason
            if not left:
                break
        raise UserError(
            f"cannot get {file.name} of {self.repo} ({_said(reasons)}); what was downloaded is kept: resume later"
        )

    def evict(self, file: HubFile) -> bool:
        """Remove our own copy of `file`; one in the Hub's cache belongs to all programs and stays."""
        path = self.local(file)
        if path is None or not path.is_relative_to(self._own):
            return False
        self._record(file).unlink(missing_ok=True)
        _remove(path)
        return True

    def _record(self, file: HubFile) -> Path:
        return self.home / "hub" / "verified" / f"{file.sha256}.json"

    def _download(self, file: HubFile, endpoint: str, on_bytes: Callable[[int], None]) -> Path:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        place: dict[str, Any] = {"repo_type": "dataset", "revision": self.revision}
        if not self.keep:
            shared = try_to_load_from_cache(self.repo, file.name, **place)
            if isinstance(shared, str):
                return Path(shared)
            place["cache_dir"] = self._own
            _drop_stale_parts(self._own)
        found = hf_hub_download(
            self.repo, file.name, **place, endpoint=endpoint, token=_token(endpoint), tqdm_class=_bar(on_bytes)
        )
        return Path(found)


def explain(error: Exception) -> tuple[str, bool, float | None]:
    """(what went wrong in the person's words, whether trying again may help, seconds the server asked to wait).

    huggingface_hub calls a file "not in the local cache" whatever kept it from looking on the server; the cause says
    what that was. 429 is never "not found".
    """
    from huggingface_hub import errors

    while isinstance(error, errors.LocalEntryNotFoundError | ValueError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return "HF_HUB_OFFLINE is set, and the file is not in the cache", False, None
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status == 429:
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        after = float(asked) if asked.isdigit() else None
        return "429 too many requests" + (f", retry after {asked} s" if asked else ""), True, after
    if status in (401, 403) or isinstance(error, errors.GatedRepoError):
        return f"{status} not allowed; set HF_TOKEN to a token that may read it", False, None
    if status == 404:
        return "404 not found", False, None
    if status is not None:
        return f"{status} from the server", status >= 500 or status == 408, None
    return plain(f"{type(error).__name__}: {error}".splitlines()[0][:200]), True, None


def plain(text: str) -> str:
    """`text` without what must not be printed: tokens, and of addresses the passwords and signatures."""
    text = re.sub(r"(https?://)[^\s/@'\"]+@", r"\1", text)
    return re.sub(r"\bhf_\w+", "hf_…", re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text))


def _failures() -> tuple[type[Exception], ...]:
    """What a request can fail with. HTTPError: of the HTTP library that huggingface_hub is built on."""
    from huggingface_hub import errors

    return (errors.HTTPError, OSError, RuntimeError, ValueError)


def _from_info(source: Repo, info: Any) -> Listing:
    files = {}
    for sibling in info.siblings or []:
        if sibling.rfilename.endswith(".parquet") and sibling.lfs is not None:
            files[sibling.rfilename] = HubFile(sibling.rfilename, sibling.lfs.sha256, sibling.lfs.size)
    licence = getattr(info.card_data, "license", None) or ""
    return Listing(source.repo, info.sha, files, str(licence), time.time())


def _from_cache(source: Repo, names: Sequence[str], revision: str = "") -> Listing | None:
    """What the Hub's own cache allows to list: its newest snapshot with all `names`; a blob's name is its sha256."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{source.repo.replace('/', '--')}" / "snapshots"
    snapshots = [path for path in folder.glob(revision or "*") if all(any(path.glob(name)) for name in names)]
    if not snapshots:
        return None
    newest = max(snapshots, key=lambda path: path.stat().st_mtime)
    blobs = {str(path.relative_to(newest)): path.resolve() for name in names for path in sorted(newest.glob(name))}
    if not all(re.fullmatch(r"[0-9a-f]{64}", blob.name) for blob in blobs.values()):
        return None
    files = {name: HubFile(name, blob.name, blob.stat().st_size) for name, blob in blobs.items()}
    return Listing(source.repo, newest.name, files)


def _complete(found: Listing, names: Sequence[str], source: Repo) -> Listing:
    missing = [name for name in names if not matching(found, name)]
    if missing:
        advice = "set data.shards to at most what it has" if isinstance(source, Source) else "name an older revision"
        raise UserError(
            f"{source.repo} has no {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''} at commit "
            f"{found.revision[:8]}; {advice}"
        )
    return found


def matching(found: Listing, name: str) -> list[HubFile]:
    """The files under a name, or a pattern with `*`, sorted."""
    if "*" not in name:
        return [found.files[name]] if name in found.files else []
    return [found.files[file] for file in sorted(found.files) if fnmatch.fnmatchcase(file, name)]


def _bar(on_bytes: Callable[[int], None]) -> type:
    """A progress bar that shows nothing and passes on how many bytes of the file there are."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc, type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.got = int(options.get("initial") or 0)
            on_bytes(self.got)

        def update(self, n: float | None = 1) -> bool | None:
            self.got += int(n or 0)
            on_bytes(self.got)
            return None

    return Bar


def _token(endpoint: str) -> bool | None:
    """The person's token goes to their own endpoint only, never to a mirror."""
    from huggingface_hub import constants

    return None if endpoint == constants.ENDPOINT else False


def _host(endpoint: str) -> str:
    """As it may be printed: without the name and password that a mirror's address may hold."""
    return endpoint.partition("://")[2].rpartition("@")[2]


def _said(reasons: dict[str, str]) -> str:
    return "; ".join(f"{host}: {reason}" for host, reason in reasons.items())


def _remove(path: Path) -> None:
    """A file of the Hub's cache: the link of its name, and what it leads to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _drop_stale_parts(cache: Path) -> None:
    for part in cache.glob("*/blobs/*.incomplete"):
        try:
            if time.time() - part.stat().st_mtime > STALE_PART_S:
                part.unlink()
        except FileNotFoundError:
            continue  # its owner finished it meanwhile
