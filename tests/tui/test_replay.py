"""A recorded run played again: the same states in the same order, on every screen, at any speed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from picollm.run import event_file, serving
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from tests.run.conftest import until as eventually
from tests.tui.conftest import WIDE, shown, until
from tui import asks
from tui.app import PicollmApp
from tui.replay import SEEK_S, Player


def states(player: Player) -> dict[str, str]:
    return {status.name: status.state for status in player.run.statuses(player.now())}


@pytest.fixture
def player(a_run):
    found = Player(a_run("stopped"), speed=4.0)
    found.pause()
    yield found
    found.close()
    assert not found.run.dir.exists()


def test_it_passes_through_what_the_run_was(player) -> None:
    assert set(states(player).values()) == {"ready", "waiting"}
    seen = []
    while player.now() < player.end:
        player.seek(1)
        seen.append(states(player))
    running = [name for state in seen for name, word in state.items() if word == "running"]
    assert list(dict.fromkeys(running))[-3:] == ["midtrain", "sft", "rl"], "each in its turn"
    assert running.count("pretrain") >= 2
    assert seen[-1] == {status.name: status.state for status in player.source.statuses()}
    assert "paused" in player.words()


def test_back_is_what_it_was_then_and_the_end_is_the_recording(player) -> None:
    for _ in range(3):
        player.seek(1)
    then, step = states(player), player.run.status("pretrain", player.now()).step
    for _ in range(4):
        player.seek(1)
    player.seek(-4)
    assert states(player) == then and player.run.status("pretrain", player.now()).step == step
    player.seek(1000)
    for name in ("pretrain", "rl"):
        again, recorded = StageHistory(player.run, name).read_all(), StageHistory(player.source, name).read_all()
        assert list(again.series["loss"].values) == list(recorded.series["loss"].values)
        console = player.source.console_file(name, 1).read_bytes()
        assert player.run.console_file(name, 1).read_bytes() == console


def test_half_of_an_attempt_has_said_half(player) -> None:
    pretrain = next(status for status in player.source.statuses() if status.name == "pretrain")
    steps = round((pretrain.started + 48 - player.begin) / (SEEK_S * player.speed))
    player.seek(steps)
    loss = StageHistory(player.run, "pretrain").read_all().series["loss"]
    said = player.run.console_file("pretrain", 1).read_bytes()
    whole = player.source.console_file("pretrain", 1).read_bytes()
    assert 50 < len(loss.steps) < 350
    assert whole.startswith(said) and 0.1 < len(said) / len(whole) < 0.9 and said.endswith(b"\n")


def test_hours_in_which_nothing_ran_are_passed_over(a_run, monkeypatch) -> None:
    run = a_run("stopped")
    file = run.events_file("rl", 1)
    later = [event_file.decode(line) for line in file.read_bytes().splitlines()]
    with open(run.events_file("rl", 2), "wb") as out:
        for event in later:
            out.write(event_file.encode(event, event.seq).replace(b'"time":', b'"time":9'))  # some centuries on
    player = Player(run, speed=1000.0)
    player.start()
    try:
        player.seek(1)
        eventually(lambda: player.run.attempts("rl")[-1:] == [2])
    finally:
        player.close()


def test_nothing_recorded_and_no_speed_are_refused(a_run) -> None:
    with pytest.raises(UserError, match="no recorded events"):
        Player(a_run("empty"))
    with pytest.raises(UserError, match="--speed -1"):
        Player(a_run("finished"), speed=-1)


JOB = """
import sys, time
from picollm.run import lease, serving
from picollm.run.folder import Run, write_atomic
import msgspec
folder = serving.serve_folder(Run(__import__("pathlib").Path(sys.argv[1])))
lock = lease.Lock(folder / "lock"); lock.share()
me = lease.identify()
write_atomic(folder / "address.json", msgspec.json.encode(serving.Address(uds="x", pid=me.pid, host=me.host,
             boot_id=me.boot_id, start_ticks=me.start_ticks)).decode())
print("here", flush=True); time.sleep(3600)
"""


def test_who_was_asked_during_a_replay_leaves_with_it_and_nobody_else(a_run) -> None:
    run = a_run("finished")
    children = [subprocess.Popen([sys.executable, "-c", JOB, str(run.dir)], stdout=subprocess.PIPE)]
    try:
        assert children[0].stdout is not None and children[0].stdout.readline() == b"here\n"
        player = Player(run)
        children.append(subprocess.Popen([sys.executable, "-c", JOB, str(player.run.dir)], stdout=subprocess.PIPE))
        assert children[1].stdout is not None and children[1].stdout.readline() == b"here\n"
        player.seek(3)
        player.seek(-1)
        assert serving.serving(player.run) is not None
        player.close()
        assert children[1].wait(60) != 0 and children[0].poll() is None
        assert not player.run.dir.exists() and serving.serving(run) is not None
    finally:
        for child in children:
            child.kill()
            child.communicate()


async def test_the_app_shows_it_and_changes_nothing(player) -> None:
    before = sorted(path.name for path in player.source.dir.rglob("*"))
    player.start()
    app = PicollmApp(asks.Options(run=str(player.run.dir), readonly=True), player)
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "replay ×4" in shown(app).splitlines()[0])
        await pilot.press("f8")
        await until(pilot, lambda: "paused" not in shown(app).splitlines()[0])
        await pilot.press("f8")
        player.seek(-1000)
        player.seek(3)
        await until(pilot, lambda: app.main.view.stage("pretrain").state == "running")
        await until(pilot, lambda: "paused" in shown(app).splitlines()[0])
        await pilot.press("2")
        await until(pilot, lambda: "Loss" in app.main.plain)
        await pilot.press("f9", "f9", "f9")
        await until(pilot, lambda: app.main.view.stage("pretrain").state == "done")
        await pilot.press("f7", "f7", "f7")
        await until(pilot, lambda: app.main.view.stage("pretrain").state == "running")
        await pilot.press("g")
        await until(pilot, lambda: "F8 Pause" in shown(app))
    assert sorted(path.name for path in player.source.dir.rglob("*")) == before
    assert Run(player.source.dir).status("rl").state == "stopped"
