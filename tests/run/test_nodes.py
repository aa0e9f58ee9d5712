"""Several machines in one stage: who they are, and how they meet. Here all of them are this one."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from picollm.run import config as settings
from picollm.run import event_file, launch, nodes
from picollm.run import events as ev
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import Run
from tests.run.conftest import script, state, until

SLURM = {"SLURM_NODEID": "2", "SLURM_JOB_NODELIST": "gpu[03-06,09]", "SLURM_JOB_ID": "5001"}
SKYPILOT = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.7"}


def wishes(**launching: Any) -> settings.Config:
    return settings.load(sets=[f"launch.{key}={value}" for key, value in launching.items()], environ={})


def free_port() -> int:
    """With the one after it: torchrun's, and ours. Below those that the kernel hands out to whoever asks meanwhile."""
    while True:
        port = random.randrange(12000, 32000, 2)
        with contextlib.suppress(OSError), socket.create_server(("", port)), socket.create_server(("", port + 1)):
            return port


# who and where --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compressed, first",
    [
        ("gpu01", "gpu01"),
        ("gpu[03-06,09],cpu3", "gpu03"),
        ("gpu03,gpu[05-06]", "gpu03"),
        ("r[1-2]n[2,5]", "r1n2"),
        ("node-a[7]-ib.local", "node-a7-ib.local"),
    ],
)
def test_the_first_host_of_slurm(compressed: str, first: str) -> None:
    assert nodes.first_host(compressed) == first


def test_the_scheduler_says_who_and_where() -> None:
    found = nodes.place(wishes(nnodes=4), SLURM, joining=True)
    assert found[:3] == (4, 2, "gpu03") and found == nodes.place(wishes(nnodes=4), SLURM, joining=True)
    assert nodes.place(wishes(nnodes=2), SKYPILOT, joining=True) == (2, 1, "10.0.0.4", nodes.PORT)
    assert nodes.place(wishes(nnodes=2), SKYPILOT | {"SKYPILOT_NODE_RANK": "0"}).rank == 0


def test_settings_win_and_node_0_needs_no_scheduler() -> None:
    assert nodes.place(wishes(nnodes=3, node_rank=1, rendezvous="a:4000"), SLURM, joining=True) == (3, 1, "a", 4000)
    assert nodes.place(wishes(nnodes=2, rendezvous="gpu01"), {}) == (2, 0, "gpu01", nodes.PORT)
    assert nodes.place(wishes(nnodes=2, rendezvous="[fe80::1]:4000"), {}).host == "fe80::1"


@pytest.mark.parametrize(
    "launching, environ, joining, says",
    [
        ({"nnodes": 2, "rendezvous": "a:1"}, {}, True, "which node is this"),
        ({"nnodes": 2}, {}, False, "launch.rendezvous to node 0's host:port"),
        ({"nnodes": 2, "rendezvous": "a:b"}, {}, False, "expected host:port"),
        ({"nnodes": 2, "rendezvous": "a:1", "node_rank": 2}, {}, True, "counts from 0"),
        ({"nnodes": 2, "rendezvous": "a:1", "node_rank": 0}, {}, True, "runs the stages itself"),
        ({"nnodes": 4}, SLURM, False, "picollm launch --join"),
    ],
)
def test_what_is_not_said_is_asked_for(launching: dict, environ: dict, joining: bool, says: str) -> None:
    with pytest.raises(UserError, match=says):
        nodes.place(wishes(**launching), environ, joining)


# meeting --------------------------------------------------------------------------------------------------------------


class Meeting(threading.Thread):
    """Node 0's side, waiting for `count` - 1 others."""

    def __init__(self, run: Run, port: int, count: int = 2, patience: float = 120.0) -> None:
        super().__init__(daemon=True)
        self.run_, self.place = run, nodes.Place(count, 0, "127.0.0.1", port)
        self.task = nodes.task(run, "pretrain", 1, nproc=3, fresh=False)
        self.task.patience = patience
        self.missing: list[list[int]] = []
        self.result: Any = None
        self.start()

    def run(self) -> None:
        stop = self.run_.stop_file("pretrain").exists
        try:
            self.result = nodes.gather(self.place, self.run_, self.task, self.missing.append, stop)
        except (UserError, StopRequested) as error:
            self.result = error

    def ended(self) -> Any:
        self.join(150)
        return self.result


def knock(run: Run, port: int, node: int, count: int = 2) -> Any:
    """As node `node` does, until node 0 opens."""
    place = nodes.Place(count, node, "127.0.0.1", port)
    return until(lambda: nodes.knock(place, run), what=f"nobody listens at {port + 1}")


def test_all_are_told_the_attempt_and_go_together(run: Run) -> None:
    port = free_port()
    meeting = Meeting(run, port, count=3)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(knock, run, port, 1, 3)
        until(lambda: [2] in meeting.missing)
        knock(run, port, 2, 3)
        task, met = first.result(60)
    assert (task.stage, task.attempt, task.nproc) == ("pretrain", 1, 3)
    assert met.hosts == meeting.ended().hosts == [socket.gethostname()] * 3 and met.address == "127.0.0.1"
    assert [1, 2] in meeting.missing and [2] in meeting.missing
    assert not list(run.dir.glob("stages/pretrain/*.probe"))


def test_a_run_folder_that_is_not_shared_is_refused_on_both_sides(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "PROBE_PATIENCE_S", 0.5)
    port = free_port()
    meeting = Meeting(run, port)
    with pytest.raises(UserError, match=r"the run folder is not shared: .*attempt-001\.probe, which node 0 wrote as"):
        knock(Run(tmp_path / "elsewhere"), port, 1)
    assert "node 1 on" in str(meeting.ended()) and "is not shared" in str(meeting.ended())


def test_who_does_not_come_is_named_to_those_who_came(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    later = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later, sleep=time.sleep)
    monkeypatch.setattr(nodes, "time", clock)
    port = free_port()
    meeting = Meeting(run, port, count=3)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(knock, run, port, 1, 3)
        until(lambda: [2] in meeting.missing)
        later = meeting.task.patience
        with pytest.raises(UserError, match=r"node 0: node 2 of 3 did not come to 127\.0\.0\.1"):
            first.result(60)
    assert "start picollm launch --join --run r there" in str(meeting.ended())


def test_who_goes_away_meanwhile_is_awaited_again(run: Run) -> None:
    port = free_port()
    meeting = Meeting(run, port, count=3)
    until(lambda: meeting.missing)
    leaving = threading.Event()
    place = nodes.Place(3, 1, "127.0.0.1", port)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(until, lambda: nodes.knock(place, run, leaving.is_set))
        until(lambda: [2] in meeting.missing)
        leaving.set()  # as by a signal, while it waits for the third
        assert isinstance(first.exception(timeout=60), StopRequested)
        until(lambda: meeting.missing[-1] == [1, 2])
        again, other = (pool.submit(knock, run, port, node, 3) for node in (1, 2))
        assert again.result(60)[1].hosts == other.result(60)[1].hosts == meeting.ended().hosts


def test_a_stop_at_node_0_is_a_stop_for_those_who_came(run: Run) -> None:
    port = free_port()
    meeting = Meeting(run, port, count=3)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(knock, run, port, 1, 3)
        until(lambda: [2] in meeting.missing)
        run.request_stop("pretrain")
        assert isinstance(first.exception(timeout=60), StopRequested)
    assert isinstance(meeting.ended(), StopRequested)


def test_a_silent_stranger_keeps_no_stop_from_being_heard(run: Run) -> None:
    port = free_port()
    meeting = Meeting(run, port)
    until(lambda: meeting.missing)
    with socket.create_connection(("127.0.0.1", port + 1)):
        run.request_stop("pretrain")
        assert isinstance(meeting.ended(), StopRequested)


def test_a_name_service_that_is_away_for_a_moment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "create_connection", away)
    assert nodes.knock(nodes.Place(2, 1, "gpu01", 29500), run) is None


def test_strangers_at_the_door_and_a_stop_meanwhile(run: Run) -> None:
    port = free_port()
    meeting = Meeting(run, port)
    until(lambda: meeting.missing)
    with socket.create_connection(("127.0.0.1", port + 1)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    run.request_stop("pretrain")
    assert isinstance(meeting.ended(), StopRequested)


def test_a_taken_port_is_one_line(run: Run) -> None:
    port = free_port()
    with socket.create_server(("", port + 1)):
        assert f"port {port + 1} cannot be opened" in str(Meeting(run, port).ended())


def test_a_host_that_nobody_knows_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"'no-such-host\.invalid' is not known here"):
        nodes.knock(nodes.Place(2, 1, "no-such-host.invalid", 29500), run)


def test_gloo_uses_the_network_they_met_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "mine")
    loopback = nodes.environment("127.0.0.1")
    assert set(loopback) == {"GLOO_SOCKET_IFNAME"} and loopback["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert nodes.environment("192.0.2.1") == {}


# two launchers on this machine ----------------------------------------------------------------------------------------


def joined(run: Run, node: int = 1) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "picollm.cli", "launch", "--join", "--run", str(run.dir), "--node-rank", str(node)]
    return subprocess.Popen(
        argv, env=launch.child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def two_nodes(run: Run) -> None:
    run.set(["launch.nnodes=2", f"launch.rendezvous=127.0.0.1:{free_port()}", "launch.nproc=1", "launch.timeout=2"])


def conductor_says(run: Run, what: str) -> None:
    event_file.append(run.conductor_events, ev.Conductor(what=what))


@pytest.mark.slow
def test_a_stage_on_two_nodes_from_meeting_to_done(run: Run) -> None:
    pytest.importorskip("torch")
    two_nodes(run)
    run.set(["launch.nproc=2"])
    script(run, pretrain={"steps": 20, "sleep": 0.05})
    other = joined(run)
    assert launch.start_launcher(run, "pretrain").wait(240) == 0 and state(run, "pretrain") == "done"
    first = next(e for e in event_file.read_events(run.events_file("pretrain", 1)) if isinstance(e, ev.Started))
    assert first.world == 4
    assert launch.start_launcher(run, "doctor").wait(60) == 0  # runs on node 0 alone
    conductor_says(run, "finished")
    said = other.communicate(timeout=60)[0]
    assert other.returncode == 0 and "pretrain: attempt 1, 2 ranks here" in said and "the run finished" in said
    assert "console line of pretrain" in (run.stage_dir("pretrain") / "attempt-001.node-1.console.log").read_text()


@pytest.mark.slow
def test_a_rank_that_fails_on_the_other_machine_is_named(run: Run) -> None:
    pytest.importorskip("torch")
    two_nodes(run)
    script(run, pretrain={"ranks": {"0": {"hold": True}, "1": {"last": {"bug": "boom"}}}})
    other = joined(run)
    child = launch.start_launcher(run, "pretrain")
    assert child.wait(240) == 1  # the fakes exchange nothing: without a word about it rank 0 would go on
    conductor_says(run, "failed")
    assert other.wait(90) == 1
    found = run.status("pretrain")
    assert (
        found.state == "failed" and found.reason.startswith("rank 1 of 2 on ") and "RuntimeError: boom" in found.reason
    )


@pytest.mark.slow
def test_a_signal_to_the_other_machine_saves_and_stops_on_both(run: Run) -> None:
    pytest.importorskip("torch")
    two_nodes(run)
    script(run, pretrain={"steps": 100_000, "sleep": 0.02})
    other, child = joined(run), launch.start_launcher(run, "pretrain")
    until(lambda: run.status("pretrain").step, seconds=60)
    other.terminate()
    assert child.wait(120) == 0 and state(run, "pretrain") == "stopped"
    said = other.communicate(timeout=60)[0]
    assert other.returncode == 3 and "warning" not in said


def test_a_launcher_whose_nodes_do_not_come_fails_in_one_line(run: Run) -> None:
    two_nodes(run)
    run.set(["launch.timeout=0.02"])
    assert launch.start_launcher(run, "pretrain").wait(60) == 2
    found = run.status("pretrain")
    assert found.state == "failed" and found.reason.startswith("node 1 of 2 did not come to 127.0.0.1")
    assert found.phase == "wait for node 1"


def test_without_a_sign_of_node_0_the_others_give_up(run: Run) -> None:
    two_nodes(run)
    run.set(["launch.timeout=0.03"])
    other = joined(run)
    said = other.communicate(timeout=60)[0]
    assert other.returncode == 2 and "no sign of node 0 at 127.0.0.1" in said


def test_a_signal_ends_the_waiting(run: Run) -> None:
    two_nodes(run)
    other = joined(run)
    assert other.stdout is not None and "waits for node 0" in other.stdout.readline()
    other.terminate()
    assert other.wait(60) == 3
