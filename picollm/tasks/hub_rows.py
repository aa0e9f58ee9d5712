"""The rows of a published data set: which files, at which commit, and any row of them without holding them all.

    $PICOLLM_HOME/hub/pinned/<owner>--<name>.json     the commit all runs on this machine use, fixed when first seen
    $PICOLLM_HOME/hub/checked/<sha256>-<reader>.json  which rows of a file cannot be used, and why

The files come through `picollm.data.hub` (retries, rate limits, mirrors, offline, checksums) and lie in the Hub's own
cache. A pinned commit never moves by itself: two runs on one machine learn from and are asked the same rows. A task's
setting `revision` names another one.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from picollm.data import hub, hub_text
from picollm.run.errors import UserError
from picollm.run.folder import write_atomic
from picollm.run.structs import complete

DECODED_BYTES = 256_000_000  # of row groups kept decoded; a single larger one is kept alone
SHOWN = 3
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")

Say = Callable[[str], None]
Look = Callable[[int, int], None]


class HubSplit(msgspec.Struct, frozen=True):
    """One split of a data set: the files that match `pattern`, of which `columns` are read. `most`: files; 0: all."""

    repo: hub.Repo
    pattern: str
    columns: tuple[str, ...]
    most: int = 0


@complete
class Pinned(msgspec.Struct):
    """A commit of a repository with its files, and the endpoints it was found at (`data.mirrors`)."""

    listing: hub.Listing
    mirrors: str = ""


@complete
class Checked(msgspec.Struct):
    """Rows of a file, and those that cannot be used: (number from 1, why)."""

    rows: int
    bad: list[tuple[int, str]]


def pin(
    split: HubSplit, home: Path, revision: str = "", mirrors: str = "", say: Say = lambda text: None
) -> tuple[Pinned, list[hub.HubFile]]:
    """The commit in use and the files of the split. UserError when the Hub has them not, or cannot be asked."""
    name = split.repo.repo.replace("/", "--")
    file = home / "hub" / "pinned" / f"{name}{'@' if revision else ''}{revision}.json"
    try:
        pinned = msgspec.json.decode(file.read_bytes(), type=Pinned)
    except FileNotFoundError:
        pinned = None
    except msgspec.DecodeError as error:
        raise UserError(f"{file} is unreadable ({error}); delete it and resume") from None
    if pinned is None or not hub.matching(pinned.listing, split.pattern):
        wanted = pinned.listing.revision if pinned else revision
        mirrors = mirrors or (pinned.mirrors if pinned else "")
        found = hub.listing(split.repo, [split.pattern], home, mirrors, say, revision=wanted)
        if pinned is not None:
            found.files = pinned.listing.files | found.files
        pinned = Pinned(found, mirrors)
        write_atomic(file, msgspec.json.encode(pinned))
    files = hub.matching(pinned.listing, split.pattern)
    parts = [_PART.search(found.name) for found in files]
    if all(parts):
        numbers, total = {int(part[1]) for part in parts if part}, int(parts[0][2])  # type: ignore[index]
        if numbers != set(range(total)):
            raise UserError(f"{split.repo.repo}: {len(numbers)} of the {total} files {split.pattern} are known here; "
                            f"delete {file} and resume with the network")  # fmt: skip
    return pinned, files[: split.most or None]


def fetch(
    split: HubSplit,
    home: Path,
    revision: str = "",
    mirrors: str = "",
    say: Say = lambda text: None,
    look: Look = lambda got, everything: None,
) -> list[tuple[hub.HubFile, Path]]:
    """The files of a split, downloaded where they are not here. `look`: (bytes here, bytes); may raise to leave."""
    pinned, files = pin(split, home, revision, mirrors, say)
    store = hub.Store(split.repo.repo, pinned.listing.revision, home, mirrors or pinned.mirrors)
    todo = [file for file in files if store.local(file) is None]
    everything = sum(file.bytes for file in todo)
    for file in hub_text.downloads(store, todo, lambda got: look(got, everything), say):
        say(f"{split.repo.repo} {file.name}: {file.bytes / 1e6:.1f} MB, checked")
    return [(file, store.fetch(file)) for file in files]


class Rows:
    """Rows of parquet files as mappings, by number over all files; row groups are decoded when asked for.

    Memory: the row groups used last, up to 256 MB (or one group). Reading in order decodes each group once; reading
    at random costs a group for nearly every row where the files are larger than that: visit them in order.
    """

    def __init__(self, files: list[tuple[str, Path]], columns: Iterable[str]) -> None:
        import pyarrow.parquet

        self.columns = list(columns)
        self._files = files
        self._tables = []
        self._starts, self._groups = [0], []  # of row groups: the first row, (file, group)
        self._decoded: OrderedDict[int, Any] = OrderedDict()
        self.first = [0]  # of files: the first row
        for number, (name, path) in enumerate(files):
            with _readable(name, path):
                table = pyarrow.parquet.ParquetFile(path, memory_map=True)
            missing = [column for column in self.columns if column not in table.schema_arrow.names]
            if missing:
                raise UserError(f"{name} has no column {', '.join(missing)} (it has "
                                f"{', '.join(table.schema_arrow.names)}); name an older revision")  # fmt: skip
            self._tables.append(table)
            for group in range(table.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(self._starts[-1] + table.metadata.row_group(group).num_rows)
            self.first.append(self._starts[-1])

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._bounds, row, side="right")) - 1
        return self._table(group).slice(row - self._starts[group], 1).to_pylist()[0]

    def where(self, row: int) -> str:
        """As a person finds it: file and number of the row from 1."""
        file = int(np.searchsorted(np.array(self.first), row, side="right")) - 1
        return f"{self._files[file][0]} row {row - self.first[file] + 1}"

    @cached_property
    def _bounds(self) -> np.ndarray:
        return np.array(self._starts)

    def _table(self, group: int) -> Any:
        if group not in self._decoded:
            file, within = self._groups[group]
            with _readable(*self._files[file]):
                self._decoded[group] = self._tables[file].read_row_group(within, columns=self.columns)
            while len(self._decoded) > 1 and sum(t.nbytes for t in self._decoded.values()) > DECODED_BYTES:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(group)
        return self._decoded[group]


def check(
    files: list[tuple[hub.HubFile, Path]],
    columns: Iterable[str],
    reader: str,
    read: Callable[[dict[str, Any]], object],
    home: Path,
    look: Look = lambda done, rows: None,
) -> list[Checked]:
    """Which rows `read` takes: it raises ValueError, saying why, for a row that cannot be used.

    Every row is read once on this machine; `reader` names the rule, so that another rule looks again.
    """
    found = []
    for file, path in files:
        kept = home / "hub" / "checked" / f"{file.sha256}-{reader}.json"
        try:
            found.append(msgspec.json.decode(kept.read_bytes(), type=Checked))
            continue
        except (FileNotFoundError, msgspec.DecodeError):
            rows = Rows([(file.name, path)], columns)
        checked = Checked(len(rows), [])
        for number in range(len(rows)):
            if number % 256 == 0:
                look(number, len(rows))
            try:
                read(rows[number])
            except ValueError as error:
                checked.bad.append((number + 1, str(error)))
        write_atomic(kept, msgspec.json.encode(checked))
        found.append(checked)
    return found


def complaint(files: list[tuple[hub.HubFile, Path]], found: list[Checked]) -> str:
    """One line about the rows that cannot be used, the first three named; empty when there are none.

    UserError when no row is left.
    """
    bad = [f"{file.name} row {row}: {why}" for (file, _), one in zip(files, found, strict=True) for row, why in one.bad]
    rows = sum(one.rows for one in found)
    shown = "; ".join(bad[:SHOWN]) + (" …" if len(bad) > SHOWN else "")
    if rows == len(bad):
        names = ", ".join(file.name for file, _ in files)
        raise UserError(f"{names}: none of the {rows} rows can be used{f' ({shown})' if bad else ''}; "
                        "name another revision")  # fmt: skip
    return f"{len(bad):,} of {rows:,} rows cannot be used: {shown}" if bad else ""


class _readable:
    """What pyarrow says of a file that it cannot read, in one line."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import pyarrow

        if isinstance(error, FileNotFoundError):
            raise UserError(f"{self.path} was removed while it was wanted; resume") from None
        if isinstance(error, pyarrow.ArrowException | OSError):
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{self.path} is not a whole parquet file ({reason}); delete it and resume") from None


def usable(found: list[Checked]) -> Iterator[int]:
    """Numbers, over all files, of the rows that can be used."""
    first = 0
    for one in found:
        bad = {row - 1 for row, _ in one.bad}
        yield from (first + row for row in range(one.rows) if row not in bad)
        first += one.rows
