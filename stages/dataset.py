"""Dataset: gather the raw text, drop duplicates, set validation documents aside; or name and download the Hub's.

The published rows that the run's tasks need, and the bundle of CORE, are fetched and read here, too: what cannot be had
is known now, and not when hours of training are done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from picollm.data import hub, hub_shards, hub_text, own_text, pydocs
from picollm.data.documents import Document
from picollm.data.shards import write_text
from picollm.evals import core_bundle
from picollm.run.folder import picollm_home
from picollm.run.stage import Outcome, StageContext, main, watched
from picollm.tasks import TASKS, Task, make, names_of
from picollm.tasks.hub_task import HubTask

MEGABYTE = 1_000_000


def work(ctx: StageContext) -> Outcome:
    source = ctx.config.data.source
    tasks = _tasks(ctx)
    fetched = _fetch(ctx, tasks)
    outcome = _from_hub(ctx, hub.SOURCES[source]) if source in hub.SOURCES else _from_here(ctx, source)
    _check(ctx, tasks)
    core_bundle.bundle_of(ctx)
    if fetched:
        outcome.summary["tasks"] = fetched
    return outcome


def _tasks(ctx: StageContext) -> dict[str, Task]:
    """Those of the run that are made from published rows, by name with their settings."""
    names = names_of(ctx.config)
    published = [name for name in names if issubclass(TASKS.get(name.partition(":")[0], type), HubTask)]  # type: ignore[arg-type]
    return {name: make(name, seed=ctx.config.run.seed) for name in published}


def _fetch(ctx: StageContext, tasks: dict[str, Task]) -> dict[str, Any]:
    """By task, where its rows are from: address, commit, licence, files with their sha256."""

    def look(got: int, everything: int) -> None:
        ctx.progress(got // MEGABYTE, max(1, everything // MEGABYTE))
        ctx.raise_if_stopped()

    if tasks:
        ctx.phase("tasks")
    return {name: task.fetch(ctx.config.data.mirrors, ctx.message, look) for name, task in tasks.items()}


def _check(ctx: StageContext, tasks: dict[str, Task]) -> None:
    """Read every row of the tasks once, and warn of those that cannot be used."""

    def look(done: int, rows: int) -> None:
        ctx.progress(done, rows)
        ctx.raise_if_stopped()

    if tasks:
        ctx.phase("check tasks")
    for problem in dict.fromkeys(line for task in tasks.values() for line in task.problems(look)):
        ctx.warning(problem)


def _from_here(ctx: StageContext, source: str) -> Outcome:
    """The documentation on this machine, or the person's own files."""

    def look(done: int, files: int) -> None:
        ctx.progress(done, files)
        ctx.raise_if_stopped()

    ctx.phase("read")
    counts = own_text.Counts()
    documents: Iterable[Document]
    if source == "pydocs":
        found = pydocs.documents()
        documents = watched(ctx, found, len(found))
    else:
        documents = own_text.read_source(Path(source).expanduser(), counts, look)

    def provenance() -> dict[str, Any]:
        if source == "pydocs":
            return pydocs.provenance()
        return {"source": str(Path(source).expanduser().absolute()), **counts.as_dict()}

    text = write_text(documents, picollm_home(), provenance, ctx.config.data.val_share)
    for problem in counts.problems:
        ctx.warning(problem)
    ctx.message(f"{text.manifest['documents']:,} documents, {text.manifest['bytes']:,} bytes of text")
    return Outcome(
        paths={"text": str(text.folder)},
        artifacts={"text": text.hash},
        summary={key: value for key, value in text.manifest.items() if not isinstance(value, dict | list)}
        | provenance(),
    )


def _from_hub(ctx: StageContext, source: hub.Source) -> Outcome:
    """Name the text, download what no run has encoded yet, and let the tokenizer begin with the first files."""
    settings, home = ctx.config.data, picollm_home()

    def wait(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ctx.raise_if_stopped()
            time.sleep(min(0.2, seconds))

    ctx.phase("list")
    names = hub_text.wanted(source, settings.shards)
    found = hub.listing(source, names, home, settings.mirrors, ctx.message, wait)
    text = hub_text.write_hub_text(source, found, settings.shards, home)
    paths, artifacts = {"text": str(text.folder)}, {"text": text.hash}
    store = hub.Store(text.repo, text.revision, home, settings.mirrors, settings.keep_text)
    tokenizer = hub_shards.known_tokenizer(text, ctx.config.tokenizer.vocab_size, home)
    encoded = set(text.files) - set(hub_shards.missing(text, tokenizer.hash, home)) if tokenizer else set()
    todo = [file for file in text.files if file not in encoded and store.local(file) is None]
    if len(todo) < len(text.files):
        ctx.message(f"{len(text.files) - len(todo)} of {len(text.files)} files are here already")

    ctx.phase("download")
    everything = sum(file.bytes for file in todo)
    awaited = {file.name for file in todo} & {file.name for file in (*text.val, *text.train[: settings.first_shards])}
    said = False

    def look(got: int) -> None:
        ctx.progress(got // MEGABYTE, max(1, everything // MEGABYTE))
        ctx.raise_if_stopped()

    begun = time.monotonic()
    done = len(text.files) - len(todo)
    fetched = hub_text.downloads(store, todo, look, ctx.message)
    if not awaited:
        ctx.ready(paths, artifacts)
        said = True
    for file in fetched:
        done += 1
        ctx.message(f"{file.name}: {file.bytes / MEGABYTE:.1f} MB, checked ({done} of {len(text.files)})")
        awaited.discard(file.name)
        if not awaited and not said:
            ctx.ready(paths, artifacts)
            said = True
    seconds = time.monotonic() - begun
    summary: dict[str, Any] = {key: value for key, value in text.manifest.items() if not isinstance(value, dict | list)}
    figures = {"downloaded_files": len(todo), "downloaded_bytes": everything, "download_s": round(seconds, 3)}
    return Outcome(paths=paths, artifacts=artifacts, summary=summary | figures | text.manifest["provenance"])


if __name__ == "__main__":
    main("dataset", work)
