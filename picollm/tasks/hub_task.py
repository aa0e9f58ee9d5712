"""A task whose rows are published on the Hub: the splits it has, and how one row becomes an example.

A subclass names its splits and fills in `read`. Examples are read from the files when they are asked for, so a data
set of a gigabyte costs its largest few row groups of memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, overload

import msgspec
import numpy as np

from picollm.run.folder import picollm_home
from picollm.tasks import hub_rows
from picollm.tasks.base import BaseTask, Example, Split, TaskSettings
from picollm.tasks.hub_rows import HubSplit, Look, Rows, Say


class HubTaskSettings(TaskSettings, frozen=True, kw_only=True):
    """`revision`: a commit of the data set; empty: the one this machine saw first."""

    revision: str = ""


class Examples(Sequence[Example]):
    """Examples read when asked for: place i is row `order[i]`."""

    def __init__(self, rows: Rows, order: np.ndarray, read: Callable[[dict[str, Any]], Example]) -> None:
        self._rows, self._order, self._read = rows, order, read

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            found = dict(self.visit(range(len(self))[place]))
            return [found[i] for i in range(len(self))[place]]
        return self._read(self._rows[int(self._order[place])])

    def in_file_order(self, places: Sequence[int]) -> list[int]:
        """The same places as their rows lie in the files."""
        wanted = np.asarray(places, dtype=np.int64)
        return wanted[np.argsort(self._order[wanted], kind="stable")].tolist()

    def visit(self, places: Sequence[int]) -> Iterator[tuple[int, Example]]:
        """(place, example) in the order of the files, each row group decoded once."""
        for place in self.in_file_order(places):
            yield place, self[place]


class HubTask(BaseTask):
    """`published`: the splits there are; `version` is raised when `read` changes what it takes or makes."""

    published: ClassVar[dict[Split, HubSplit]]
    version: ClassVar[int] = 1
    Settings = HubTaskSettings
    settings: HubTaskSettings

    def read(self, row: dict[str, Any], split: Split) -> Example:
        """The example a row makes. ValueError, saying what is wrong, when the row cannot be used."""
        raise NotImplementedError

    def splits(self) -> dict[Split, HubSplit]:
        """The splits with this task's settings."""
        return self.published

    def train(self) -> Sequence[Example]:
        return self._examples("train", self.settings.rows)

    def heldout(self) -> Sequence[Example]:
        return self._examples("heldout", self.settings.heldout_rows)

    def fetch(
        self, mirrors: str = "", say: Say = lambda text: None, look: Look = lambda got, everything: None
    ) -> dict[str, Any]:
        """Download what is not here; returns where it is from, as a manifest has it."""
        files: dict[str, str] = {}
        repo, revision = "", ""
        for split in self.splits().values():
            pinned, _ = hub_rows.pin(split, picollm_home(), self.settings.revision, mirrors, say)
            found = hub_rows.fetch(split, picollm_home(), self.settings.revision, mirrors, say, look)
            files |= {file.name: file.sha256 for file, _ in found}
            repo, revision = split.repo.repo, pinned.listing.revision
            about, licence, card = split.repo.about, split.repo.licence, pinned.listing.licence
        return {
            "source": f"https://huggingface.co/datasets/{repo}",
            "about": about,
            "revision": revision,
            "licence": licence,
            "licence on its card": card or "none given",
            "sha256": files,
        }

    def problems(self, look: Look = lambda done, rows: None) -> list[str]:
        """Rows that cannot be used, one line for each split that has any. Reads every row once on this machine.

        UserError when a split has no usable row.
        """
        lines = [hub_rows.complaint(*self._checked(split, look)) for split in self.splits()]
        return [f"{self.name}: {line}" for line in lines if line]

    def fingerprint(self) -> str:
        """Names what the training examples are made from: the same name, the same examples."""
        split = self.splits().get("train")
        if split is None:
            return ""
        _, files = hub_rows.pin(split, picollm_home(), self.settings.revision)
        parts = [self.name, self.version, msgspec.json.encode(self.settings).decode(), *(f.sha256 for f in files)]
        return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()

    def _examples(self, split: Split, most: int) -> Sequence[Example]:
        if split not in self.splits():
            return []
        files, found = self._checked(split)
        hub_rows.complaint(files, found)
        order = list(hub_rows.usable(found))
        self.random("order", split).shuffle(order)
        rows = Rows([(file.name, path) for file, path in files], self.splits()[split].columns)
        return Examples(rows, np.array(order[: most or None], dtype=np.int64), lambda row: self.read(row, split))

    def _checked(
        self, split: Split, look: Look = lambda done, rows: None
    ) -> tuple[list[tuple[Any, Path]], list[hub_rows.Checked]]:
        one, home = self.splits()[split], picollm_home()
        files = hub_rows.fetch(one, home, self.settings.revision)
        reader = f"{self.name}-{split}-{self.version}"
        return files, hub_rows.check(files, one.columns, reader, lambda row: self.read(row, split), home, look)
