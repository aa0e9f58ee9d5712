"""The machine: GPUs, processor, memory, disks, network, and who uses them. From the run's own record while it goes on,
else read by the app itself; drawn in `machine_blocks`."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any

from textual import on

from tui import state
from tui.sampler import MachineSampled, Sampler
from tui.timeline import SPANS
from tui.widgets import machine_blocks
from tui.widgets.lines import LinesView

if TYPE_CHECKING:
    from tui.app import PicollmApp

FRESH_S = 10.0
KEPT = 1800


class MachinePane(LinesView):
    app: PicollmApp

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.look = machine_blocks.Look()
        self._view = state.empty("", known=False)
        self._recorded: tuple[Any, ...] = ()
        self._sampled: list[Any] = []
        self._sampler: Sampler | None = None

    def on_mount(self) -> None:
        if not self.app.is_headless:
            self.sample()

    def on_unmount(self) -> None:
        if self._sampler is not None:
            self._sampler.close()

    def sample(self) -> None:
        """Read this machine from now on, whenever the pane is looked at and no run records it."""
        if self._sampler is None and self.app.player is None:
            self._sampler = Sampler(self.app.reader.run_folder.dir, self.post_message, self._alone)
            self._sampler.start()

    def _alone(self) -> bool:
        """Whether nobody but us reads the machine. Called from the sampler's thread."""
        recorded = self._recorded
        return bool(self.display) and (not recorded or time.time() - recorded[-1].time > FRESH_S)

    def now(self) -> float:
        return self.app.player.now() if self.app.player is not None else time.time()

    def update_from(self, view: state.RunView, readings: tuple[Any, ...]) -> None:
        self.app.reader.machine_wanted = True
        self._view, self._recorded = view, readings
        if self._sampler is not None:
            self._sampler.poke()
        self._draw()

    @on(MachineSampled)
    def _take(self, message: MachineSampled) -> None:
        message.stop()
        self._sampled = [*self._sampled[-KEPT:], message.reading]
        if self.display:
            self._draw()

    def readings(self) -> tuple[Any, ...]:
        """The run's record, and after it what was read here; of another machine's record nothing, unless asked for."""
        if self.look.recorded:
            return self._recorded
        last = self._recorded[-1].time if self._recorded else 0.0
        later = tuple(reading for reading in self._sampled if reading.time > last)
        if not later:
            return self._recorded
        here = platform.node()
        return (*(reading for reading in self._recorded if reading.host in ("", here)), *later)

    def _draw(self) -> None:
        width = self.scrollable_content_region.width or self.size.width
        readings = self.readings()
        own = bool(readings) and (not self._recorded or readings[-1] is not self._recorded[-1])
        self.show(machine_blocks.blocks(self._view, readings, self.look, max(24, width - 1), self.now(), own,
                                        self._sampler is not None, self.scrollable_content_region.height))  # fmt: skip

    def on_resize(self, event: Any) -> None:
        self._draw()

    # what the keys do -----------------------------------------------------------------------------------------------

    def do_span(self) -> None:
        names = [name for name, _ in SPANS]
        self.look.span = names[(names.index(self.look.span) + 1) % len(names)]
        self._draw()

    def do_cards(self) -> None:
        self.look.cards = {None: True, True: False, False: None}[self.look.cards]
        words = {None: "as many lines per GPU as fit", True: "all of each GPU", False: "one line per GPU"}
        self.app.notify(words[self.look.cards], timeout=2)
        self._draw()

    def do_recorded(self) -> None:
        if not self._recorded:
            self.app.notify("no run was recorded here", timeout=3)
            return
        self.look.recorded = not self.look.recorded
        self._draw()

    def do_everyone(self) -> None:
        self.look.everyone = not self.look.everyone
        self._draw()

    def do_copy_machine(self) -> None:
        self.app.copy(self.plain, "the machine's readings")
