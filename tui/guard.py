"""A bug in one widget does not end the app: its tab shows what went wrong, and the rest lives on.

Textual brings every exception of a handler, a timer, a callback or a drawing to `App._handle_exception`, which ends the
app. `GuardedApp` finds the pane that the exception came through and has it replaced by `widgets.failed.FailedPane`.
What belongs to no pane is said once; when it happens again and again, the app ends: terminal restored, one sentence,
the details in a file.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from textual.message import Message
from textual.message_pump import MessagePump
from textual.widget import Widget
from textual.worker import WorkerFailed

from picollm.run.folder import picollm_home

FORBEARANCE, WITHIN_S = 3, 10.0
PANE = "pane-"


class Guarded:
    """For the app and its main screen: a handler that raises does not end the loop that calls handlers."""

    if TYPE_CHECKING:
        app: Any

    async def _dispatch_message(self, message: Message) -> None:
        try:
            await super()._dispatch_message(message)  # type: ignore[misc]
        except Exception as error:
            self.app._handle_exception(error)


class GuardedApp(Guarded):
    """Mixed into the app, which has `main` (panes by tab, `show_failure`) and `complain`."""

    if TYPE_CHECKING:
        main: Any
        call_next: Any
        complain: Any
        farewell: str

    failures: list[Exception]
    """The newest bugs that were survived, oldest first."""

    def _handle_exception(self, error: Exception) -> None:
        this: Any = self
        if this._exit:  # its widgets are being taken away, from under whatever was at work: nothing to tell anybody
            record(error)
            return
        now = time.monotonic()
        if isinstance(error, WorkerFailed):
            error = error.error if isinstance(error.error, Exception) else error
        tab = self._tab_of(error)
        if tab:
            if not getattr(self.main.panes[tab], "failing", False):
                self.main.panes[tab].failing = True
                self.note_failure(error)
                self.main.call_next(self.main.show_failure, tab, error)
            return
        known = any(type(other) is type(error) and str(other) == str(error) for other in self.failures)
        times = self.__dict__.setdefault("_misses", [])
        times.append(now)
        if len([at for at in times if now - at < WITHIN_S]) > FORBEARANCE or not self.main.is_mounted:
            self._give_up(error)
        elif not known:
            self.note_failure(error)
            self.complain(f"a bug in the app: {summary(error)}; it goes on without that. Details: {crash_file()}")

    async def _shutdown(self) -> None:
        this: Any = self
        this._exit = True  # whatever ends it, not only who asked for it
        await super()._shutdown()  # type: ignore[misc]

    def note_failure(self, error: Exception) -> None:
        """Keep an error that is survived, and its traceback on disk."""
        self.failures = [*self.failures[-19:], error]
        record(error)

    def _tab_of(self, error: Exception) -> str:
        """The tab whose pane, or a widget inside it, was at work when this was raised; also one that is being replaced
        and drawn once more."""
        found = ""
        for owner in owners(error.__traceback__):
            for node in owner.ancestors_with_self:
                identity = getattr(node, "id", None) or ""
                tab = identity.removeprefix(PANE)
                if identity.startswith(PANE) and tab in self.main.panes:
                    found = tab
        return found

    def _give_up(self, error: Exception) -> None:
        """Textual's own ending, which restores the terminal; `start` says the sentence when that is done."""
        record(error)
        self.farewell = f"picollm-tui hit a bug of its own and ended: {summary(error)}; the run was not touched.\n" \
                        f"Details: {crash_file()}"  # fmt: skip
        this: Any = self
        if this._exception is None:  # what a test sees
            this._exception = error
            this._exception_event.set()
        this._return_code = 1
        this._close_messages_no_wait()


def owners(trace: TracebackType | None) -> list[Widget]:
    """The widgets whose methods an exception passed through, outermost first; not screens and not the app."""
    found: list[Widget] = []
    while trace is not None:
        this = trace.tb_frame.f_locals.get("self")
        if isinstance(this, Widget) and isinstance(this, MessagePump) and not this.is_modal:
            found.append(this)
        trace = trace.tb_next
    return found


def summary(error: BaseException) -> str:
    """`KeyError: 'x' (tui/widgets/train.py, line 80)`: what, and the last line of ours it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tui/" in frame.filename or "/picollm/" in frame.filename] or frames
    place = ""
    if ours:
        path = Path(ours[-1].filename)
        place = f" ({path.parent.name}/{path.name}, line {ours[-1].lineno})"
    words = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}{': ' if words else ''}{words}{place}"


def crash_file() -> Path:
    return picollm_home() / "tui-crash.log"


def record(error: BaseException) -> None:
    """Append the traceback to the crash file. A disk that refuses changes nothing about what the screen says."""
    path = crash_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n{''.join(traceback.format_exception(error))}\n")
    except OSError as refused:
        print(f"{path}: {refused.strerror}", file=sys.stderr)
