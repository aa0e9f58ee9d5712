"""The text of a Hub source: named by the checksums of its files, and read straight from their parquet.

    $PICOLLM_HOME/text/<hash>/manifest.json    which files, at which commit, under which licence

Nothing is copied: the files lie where `hub.Store` has them. So the folder is whole before the first of them is here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from picollm.data.hub import HubFile, Listing, Source, Store, plain
from picollm.data.publish import problem_with, publish, read_manifest
from picollm.data.shards import TextSet
from picollm.run.errors import UserError

FORMAT = 1
PARALLEL = 8  # downloads at a time
LOOK_S = 0.2
PATIENCE_S = 2.0  # for downloads to notice that they are not wanted any more


class HubText:
    """`train` and `val`: files. `hash` names their content, `manifest["provenance"]` says where it is from."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.hash: str = manifest["hash"]
        self.repo: str = manifest["repo"]
        self.revision: str = manifest["revision"]
        self.column: str = manifest["column"]
        self.train = msgspec.convert(manifest["train"], list[HubFile])
        self.val = msgspec.convert(manifest["val"], list[HubFile])

    @property
    def files(self) -> list[HubFile]:
        """In the order in which they are wanted: validation first."""
        return [*self.val, *self.train]


def open_text(folder: Path) -> TextSet | HubText:
    """What the dataset stage made. UserError when the folder is missing, torn or of another format."""
    if problem_with(folder) is None:
        manifest = read_manifest(folder)
        if (manifest.get("kind"), manifest.get("format")) == ("hub text", FORMAT):
            return HubText(folder, manifest)
    return TextSet.open(folder)


def write_hub_text(source: Source, found: Listing, shards: int, home: Path) -> HubText:
    """Name the text of the first `shards` files, and of the validation file, under `home`/text."""
    train = [found.files[source.name(number)] for number in range(shards)]
    val = [found.files[source.val]]
    digest = hashlib.sha256(f"hub text {FORMAT} {source.repo} {source.column}".encode())
    for part in (train, val):
        digest.update("".join(file.sha256 for file in part).encode() + b"|")
    name = digest.hexdigest()[:32]
    folder = home / "text" / name
    manifest = {
        "kind": "hub text",
        "format": FORMAT,
        "hash": name,
        "repo": source.repo,
        "revision": found.revision,
        "column": source.column,
        "train": msgspec.to_builtins(train),
        "val": msgspec.to_builtins(val),
        "train_files": len(train),
        "val_file": val[0].name,
        "download_bytes": sum(file.bytes for file in (*train, *val)),
        "provenance": {
            "source": f"https://huggingface.co/datasets/{source.repo}",
            "about": source.about,
            "revision": found.revision,
            "licence": source.licence,
            "licence on its card": found.licence or "none given",
        },
    }
    if problem_with(folder):
        publish(folder, lambda _: manifest)
    return HubText(folder, read_manifest(folder))


def wanted(source: Source, shards: int) -> list[str]:
    """Names of the files that `shards` means. UserError when there are not so many beside the validation file."""
    if shards > source.shards - 1:
        raise UserError(f"data.shards = {shards}: {source.repo} has {source.shards - 1} files to train on; set fewer")
    return [*(source.name(number) for number in range(shards)), source.val]


def documents(path: Path, column: str, look: Callable[[int, int], None] = lambda done, rows: None) -> Iterator[str]:
    """The texts of a parquet file in order, empty ones left out; bounded memory.

    `look` is told (rows read, rows) now and then. UserError when it is no parquet or has no such column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise UserError(
                    f"{path.name} has no column {column} (it has {', '.join(names)}); choose another source"
                )
            done, rows = 0, table.metadata.num_rows
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                look(done, rows)
                for text in batch.column(0).to_pylist():
                    done += 1
                    if text and not text.isspace():
                        yield text
            look(done, rows)
    except FileNotFoundError:
        raise UserError(f"{path.name} was removed while it was wanted (by another run?); resume") from None
    except (pyarrow.ArrowException, OSError) as error:  # pyarrow says OSError of pages that it cannot unpack
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is not a whole parquet file ({reason}); delete it and resume") from None


def downloads(
    store: Store, files: Sequence[HubFile], look: Callable[[int], None], say: Callable[[str], None] = lambda text: None
) -> Iterator[HubFile]:
    """Fetch `files`, several at a time, the first ones first; yields each when it is whole and checked.

    `look` is called a few times a second with the bytes that are here, and may raise to leave. `say` is told what
    huggingface_hub has to say (rate limits, cut connections). Raises the UserError of the first file that fails.
    """
    todo: queue.SimpleQueue[HubFile] = queue.SimpleQueue()
    news: queue.SimpleQueue[tuple[HubFile, BaseException | None] | str] = queue.SimpleQueue()
    for file in files:
        todo.put(file)
    got = dict.fromkeys((file.name for file in files), 0)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                file = todo.get_nowait()
            except queue.Empty:
                return

            def count(bytes_here: int, name: str = file.name) -> None:
                got[name] = max(got[name], bytes_here)  # Xet counts twice: what came, and what is put together
                if over.is_set():
                    raise _NotWanted()

            def pause(seconds: float) -> None:
                if over.wait(seconds):
                    raise _NotWanted()

            try:
                store.fetch(file, count, pause)
                got[file.name] = file.bytes
                news.put((file, None))
            except BaseException as error:  # whatever it is, it is raised where somebody waits for the file
                news.put((file, error))

    # Daemons: one that sleeps until a rate limit is over must not keep a stopped stage alive.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(PARALLEL, len(files)))]
    with _heard(news.put):
        try:
            for thread in threads:
                thread.start()
            left = len(files)
            while left:
                look(sum(got.values()))
                try:
                    item = news.get(timeout=LOOK_S)
                except queue.Empty:
                    continue
                if isinstance(item, str):
                    say(item)
                    continue
                file, error = item
                if error is not None:
                    raise error
                left -= 1
                yield file
            look(sum(got.values()))
        finally:
            over.set()
            for thread in threads:
                thread.join(timeout=PATIENCE_S / len(threads))


class _NotWanted(Exception):
    """Leaves a download that nobody waits for any more."""


@contextlib.contextmanager
def _heard(say: Callable[[str], None]) -> Iterator[None]:
    """What huggingface_hub logs goes to `say` and not to the console, without tokens and signed addresses."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(plain(" ".join(record.getMessage().split()))[:300])

    logger = logging.getLogger("huggingface_hub")
    before = logger.handlers[:]
    logger.handlers = [Listener(level=logging.WARNING)]
    try:
        yield
    finally:
        logger.handlers = before
