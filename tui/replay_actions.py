"""The keys of a replay: pause, back, forward. They rest while a run is watched as it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tui.replay import Player


class ReplayActions:
    """Mixed into the app. `player` is there while a recorded run is played."""

    player: Player | None = None

    def action_replay_pause(self: Any) -> None:
        if self._replays():
            self.player.pause()
            self.reader.poke()

    def action_replay_on(self: Any) -> None:
        self._move(1)

    def action_replay_back(self: Any) -> None:
        self._move(-1)

    def _move(self: Any, steps: int) -> None:
        if self._replays():
            self.work(lambda: self.player.seek(steps), self.read_anew if steps < 0 else None)

    def _replays(self: Any) -> bool:
        if self.player is None:
            self.notify("this is no replay; start one with: picollm-tui --replay RUN", timeout=5, markup=False)
        return self.player is not None
