"""The models of one process, and the one thread that runs them.

All generation happens in a single worker thread that asks each open stream for its next piece in turn. The first one of
a model to be asked has its engine decode a token for all of them, which the others then find ready: streams interleave
fairly, the event loop never waits for a model, and on a CPU two streams do not fight over the same cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from picollm.infer.engine import Engine
from picollm.infer.rows import Chunk
from picollm.run.errors import UserError

_END = object()


class UnknownModel(UserError):
    """No model of that name is served."""


class Unavailable(UserError):
    """The request is sound, and the server cannot answer it: the model does not load, or the server shuts down."""


class ModelHub:
    """Named models, loaded when first asked for.

    `keep`: most models loaded at once, the least recently used goes first (answers under way end undisturbed); None
    keeps all.

    hub = ModelHub()
    hub.add("sft", lambda: load_model(checkpoint, tokenizer), step=400)
    hub.names -> ["sft"]
    """

    def __init__(self, keep: int | None = None) -> None:
        self.worker = Worker()
        self.keep = keep
        self.loads: Counter[str] = Counter()  # by name, how often a model was loaded
        self._loaders: dict[str, Callable[[], Engine]] = {}
        self._engines: dict[str, Engine] = {}
        self._info: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def add(self, name: str, model: Engine | Callable[[], Engine], **info: Any) -> None:
        """Serve an engine, or what a loader returns, under this name; `info` is shown in the list of models."""
        with self._lock:
            self._engines.pop(name, None)
            if isinstance(model, Engine):
                self._engines[name] = model
                self._loaders[name] = lambda: model
            else:
                self._loaders[name] = model
            self._info[name] = {"created": int(time.time()), **info}

    def remove(self, name: str) -> None:
        """Serve it no longer; answers under way end undisturbed."""
        with self._lock:
            for by_name in (self._loaders, self._engines, self._info):
                by_name.pop(name, None)  # type: ignore[attr-defined]

    @property
    def names(self) -> list[str]:
        return list(self._loaders)

    def info(self, name: str) -> dict[str, Any]:
        return {**self._info[name], "loaded": name in self._engines}

    def check(self, name: str | None) -> str:
        """The name itself, or the last one added when none is asked for. Raises UnknownModel (a UserError)."""
        if name is None and self._loaders:
            return self.names[-1]
        if name not in self._loaders:
            raise UnknownModel(f"the model {name!r} does not exist; there is {', '.join(self.names) or 'none yet'}")
        return name

    def engine(self, name: str) -> Engine:
        """The engine, loaded now if need be. May take seconds: call it from the worker. Raises `Unavailable`."""
        with self._lock:
            if name not in self._loaders:
                raise Unavailable(f"the model {name!r} is gone; ask for the list of models again")
            loader, engine = self._loaders[name], self._engines.pop(name, None)
            if engine is not None:
                self._engines[name] = engine  # the last one is the most recently used
                return engine
            while self.keep is not None and self._engines and len(self._engines) >= self.keep:
                del self._engines[next(iter(self._engines))]
        try:
            engine = loader()  # meanwhile the event loop may add models
        except UserError as error:
            raise Unavailable(f"the model {name!r} cannot be loaded: {error}") from None
        with self._lock:
            self.loads[name] += 1
            if self._loaders.get(name) is loader:  # else another has taken its name by now
                self._engines[name] = engine
            return engine

    def unload(self) -> None:
        """Forget loaded engines; the next request loads again."""
        with self._lock:
            self._engines.clear()


Job = Callable[[threading.Event], Iterator[Any]]


class _Task:
    def __init__(self, job: Job, cancel: threading.Event, deliver: Callable[[Any], None]) -> None:
        self.job, self.cancel, self.deliver = job, cancel, deliver
        self.items: Iterator[Any] | None = None

    def step(self) -> bool:
        """Produce one item; False when there is nothing more to do."""
        try:
            if self.cancel.is_set():
                if self.items is not None and hasattr(self.items, "close"):
                    self.items.close()
                return False
            if self.items is None:
                self.items = self.job(self.cancel)
            self.deliver(next(self.items))
            return True
        except StopIteration:
            self.deliver(_END)
        except Exception as error:  # handed to the request that waits for it
            self.deliver(error)
        return False


class _Mail:
    """From the worker's thread to one coroutine; however much comes, the event loop is woken once until it looks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._here = loop, asyncio.Event()
        self._lock = threading.Lock()
        self._items: list[tuple[int, Any]] = []

    def put(self, index: int, item: Any) -> bool:
        """False when the event loop has been closed."""
        with self._lock:
            self._items.append((index, item))
            if len(self._items) > 1:
                return True  # on its way already
        try:
            self._loop.call_soon_threadsafe(self._here.set)
        except RuntimeError:
            return False
        return True

    async def take(self) -> list[tuple[int, Any]]:
        """All that came since, in order, neighbouring chunks of one job joined."""
        await self._here.wait()
        self._here.clear()
        with self._lock:
            items, self._items = self._items, []
        joined: list[tuple[int, Any]] = []
        for index, item in items:
            if isinstance(item, Chunk) and joined and joined[-1][0] == index and isinstance(joined[-1][1], Chunk):
                before = joined[-1][1]
                text, ids, calls = before.text + item.text, before.ids + item.ids, before.calls + item.calls
                joined[-1] = (index, Chunk(text, ids, before.logprobs + item.logprobs, calls))
            else:
                joined.append((index, item))
        return joined


class Worker:
    """One daemon thread that advances jobs in turn, an item each. A job is a function that returns an iterator."""

    def __init__(self) -> None:
        self._tasks: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.last_used = time.monotonic()  # for a process that ends when nobody asks any more

    @property
    def busy(self) -> int:
        """Jobs under way."""
        return len(self._tasks)

    async def run(self, jobs: Sequence[Job]) -> AsyncIterator[tuple[int, Any]]:
        """Run jobs side by side and yield (index of the job, item) as they come.

        Chunks of a job that came since the last look are one chunk: whoever is behind catches up, and does not hold up
        the others. An exception of a job is raised here. Leaving the iteration early, for whatever reason, cancels all
        of them.
        """
        mail, cancel = _Mail(asyncio.get_running_loop()), threading.Event()

        def deliver_to(index: int) -> Callable[[Any], None]:
            def deliver(item: Any) -> None:
                if not mail.put(index, item):
                    cancel.set()  # nobody waits

            return deliver

        self._start([_Task(job, cancel, deliver_to(i)) for i, job in enumerate(jobs)])
        try:
            left = len(jobs)
            while left:
                for index, item in await mail.take():
                    if item is _END:
                        left -= 1
                    elif isinstance(item, Exception):
                        raise item
                    else:
                        yield index, item
        finally:
            cancel.set()

    def _start(self, tasks: list[_Task]) -> None:
        with self._changed:
            if self._closed:
                raise Unavailable("the inference process is shutting down; ask again later")
            self._tasks.extend(tasks)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._tasks and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                task = self._tasks[0]
            more = task.step()
            self.last_used = time.monotonic()
            with self._changed:
                # The task stays at the head while it works, so that `busy` counts it.
                with contextlib.suppress(ValueError):
                    self._tasks.remove(task)
                if more:
                    self._tasks.append(task)

    def close(self) -> None:
        """Cancel everything and let the thread end."""
        with self._changed:
            self._closed = True
            for task in self._tasks:
                task.cancel.set()
                task.deliver(Unavailable("the inference process is shutting down; ask again later"))
            self._tasks.clear()
            self._changed.notify()
