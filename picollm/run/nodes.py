"""Several machines in one stage: which of them we are, and how they meet before their torchruns do.

Node 0 runs the conductor; the others run `join`. For every stage under torchrun node 0's launcher waits for the others
at the port after the rendezvous port (one JSON line at a time): each says who it is, is told the attempt and what a
probe file in the run folder holds, and answers whether it reads the same there. So an unreachable machine, a run folder
that is not shared and a machine that nobody started are told apart before anything is loaded.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import msgspec
import psutil

from picollm.run.config import Config
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import Run, write_atomic

PORT = 29500  # torchrun's own default
LOOK_EVERY_S = 0.5
PROBE_PATIENCE_S = 30.0  # network file systems show a new file late
ANSWER_PATIENCE_S = PROBE_PATIENCE_S + 15.0
HELLO_PATIENCE_S = 5.0  # a stranger who connects and is silent keeps the others waiting
STOPPED = "stopped before it began"
LONGEST_LINE = 64 << 10

Message = TypeVar("Message", bound=msgspec.Struct)


class Place(NamedTuple):
    """One machine among those of a stage; they meet at `host`:`port`, which is node 0's."""

    nodes: int
    rank: int
    host: str
    port: int


class Hello(msgspec.Struct, kw_only=True):
    """A node to node 0."""

    node: int
    host: str


class Task(msgspec.Struct, kw_only=True):
    """Node 0 to a node: the attempt to join. `probe` is a file in the stage's folder that holds `nonce`; `patience` is
    how many seconds node 0 waits for the last of all."""

    folder: str
    stage: str
    attempt: int
    nproc: int
    fresh: bool
    probe: str
    nonce: str
    patience: float


class Answer(msgspec.Struct, kw_only=True):
    """A node to node 0: whether it can take part; `problem` says why not."""

    problem: str = ""


class Go(msgspec.Struct, kw_only=True):
    """Node 0 to a node, last: start, on these machines (in order of their ranks), or why not."""

    hosts: list[str] = []
    problem: str = ""


class Met(NamedTuple):
    """What a node knows after the meeting: everybody's host name, and its own address that reached the others."""

    hosts: list[str]
    address: str


def place(config: Config, environ: Mapping[str, str], joining: bool = False) -> Place:
    """Which machine this is and where all meet: as set in `[launch]`, else as Slurm or SkyPilot say in `environ`.

    Raises `UserError` naming what has to be set, or when this is not the machine for what was asked.
    """
    wish = config.launch
    rank = wish.node_rank if isinstance(wish.node_rank, int) else 0
    if wish.node_rank == "auto":
        said = environ.get("SLURM_NODEID") or environ.get("SKYPILOT_NODE_RANK") or ("" if joining else "0")
        if not said.isdigit():
            raise UserError("which node is this? Set launch.node_rank (picollm launch --join --node-rank 1)")
        rank = int(said)
    if rank >= wish.nnodes:
        raise UserError(f"node {rank} of {wish.nnodes}: launch.node_rank counts from 0; raise launch.nnodes")
    if (rank == 0) == joining:
        raise UserError(
            "this is node 0, which runs the stages itself: picollm run"
            if joining
            else f"this is node {rank}, which joins node 0: picollm launch --join --run NAME"
        )
    host, port = _rendezvous(wish.rendezvous, environ)
    return Place(wish.nnodes, rank, host, port)


def _rendezvous(wish: str, environ: Mapping[str, str]) -> tuple[str, int]:
    if wish:
        host, colon, port = wish.rpartition(":")
        if not colon:
            return wish, PORT
        if not (host and port.isdigit() and 0 < int(port) < 65535):
            raise UserError(f"launch.rendezvous is '{wish}': expected host:port of node 0, as gpu01:{PORT}")
        return host.strip("[]"), int(port)
    if nodes := environ.get("SLURM_JOB_NODELIST"):
        job = environ.get("SLURM_JOB_ID", "")
        # Two jobs may share a machine; below the ports that the kernel hands out.
        return first_host(nodes), 20000 + int(job) % 5000 * 2 if job.isdigit() else PORT
    if addresses := environ.get("SKYPILOT_NODE_IPS", "").split():
        return addresses[0], PORT
    raise UserError(f"where do the nodes meet? Set launch.rendezvous to node 0's host:port, as gpu01:{PORT}")


def first_host(nodes: str) -> str:
    """The first of Slurm's compressed host list: `gpu01` of `gpu[01-04,07],cpu3`, `r1n2` of `r[1-2]n[2,5]`."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", found[0]) if found else nodes


def arguments(where: Place, nproc: int, session: str, timeout: float) -> list[str]:
    """torchrun's, for this machine; `timeout` in seconds."""
    return [
        f"--nnodes={where.nodes}",
        f"--node-rank={where.rank}",
        f"--nproc-per-node={nproc}",
        "--rdzv-backend=static",
        f"--rdzv-id={session}",
        f"--rdzv-conf=timeout={max(1, round(timeout))}",
        f"--master-addr={where.host}",
        f"--master-port={where.port}",
        "--max-restarts=0",
    ]


def environment(address: str) -> dict[str, str]:
    """gloo and nccl use the network that the machines met on: by themselves they may take the host name's address,
    which on many systems is the loopback's, or a container's bridge. What the person set stays."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            keys = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
            return {key: name for key in keys if key not in os.environ}
    return {}


# node 0 ---------------------------------------------------------------------------------------------------------------


def gather(where: Place, run: Run, task: Task, look: Callable[[list[int]], None], stopped: Callable[[], bool]) -> Met:
    """Wait for every other machine, tell them the attempt, and let them go together.

    `look(missing)` is called now and then with the nodes still awaited. Raises `UserError` when one does not come
    within the task's patience or cannot take part, `StopRequested` when `stopped()`.
    """
    probe = run.stage_dir(task.stage) / task.probe
    write_atomic(probe, task.nonce)
    there: dict[int, tuple[_Line, str]] = {}
    end = time.monotonic() + task.patience
    problem = STOPPED
    try:
        with _listen(where.port + 1) as server:
            while missing := [node for node in range(1, where.nodes) if node not in there]:
                look(missing)
                if stopped():
                    raise StopRequested()
                for node in [node for node, (line, _) in there.items() if line.gone()]:
                    there.pop(node)[0].close()  # it was ended while it waited: one that comes again is welcome
                if time.monotonic() >= end:
                    raise UserError(_nobody_came(where, missing, task.patience, run))
                with contextlib.suppress(TimeoutError):
                    line = _Line(server.accept()[0])
                    try:
                        hello = line.read(Hello, HELLO_PATIENCE_S, stopped)
                        line.write(task)
                        answer = line.read(Answer, ANSWER_PATIENCE_S, stopped)
                    except (OSError, msgspec.DecodeError):  # not one of ours, or it went away: it will come again
                        line.close()
                        continue
                    if answer.problem:
                        raise UserError(f"node {hello.node} on {hello.host}: {answer.problem}")
                    there[hello.node] = line, hello.host
        hosts = [platform.node(), *(there[node][1] for node in range(1, where.nodes))]
        for node, (line, host) in there.items():
            try:
                line.write(Go(hosts=hosts))
            except OSError:
                raise UserError(f"node {node} on {host} went away as the stage began; resume when it is back") from None
        problem = ""
        return Met(hosts, there[1][0].address)
    except UserError as error:
        problem = str(error)
        raise
    finally:
        for line, _ in there.values():
            if problem:
                with contextlib.suppress(OSError):
                    line.write(Go(problem=problem))
            line.close()
        probe.unlink(missing_ok=True)


def _nobody_came(where: Place, missing: list[int], timeout: float, run: Run) -> str:
    names = ", ".join(str(node) for node in missing[:4]) + (", …" if len(missing) > 4 else "")
    return (
        f"node {names} of {where.nodes} did not come to {where.host}:{where.port + 1} within {timeout:.0f} s "
        f"(launch.timeout): start picollm launch --join --run {run.name} there, and open ports {where.port} and "
        f"{where.port + 1}"
    )


def _listen(port: int) -> socket.socket:
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(f"port {port} cannot be opened: {error.strerror}; set another in launch.rendezvous") from None
    server.settimeout(LOOK_EVERY_S)
    return server


def task(run: Run, stage: str, attempt: int, nproc: int, fresh: bool) -> Task:
    """What node 0 tells the others of an attempt that it is about to start."""
    return Task(
        folder=str(run.dir),
        stage=stage,
        attempt=attempt,
        nproc=nproc,
        fresh=fresh,
        probe=f"attempt-{attempt:03d}.probe",
        nonce=secrets.token_hex(16),
        patience=60 * run.config().launch.timeout,
    )


# the others -----------------------------------------------------------------------------------------------------------


def knock(where: Place, run: Run, stopped: Callable[[], bool] = lambda: False) -> tuple[Task, Met] | None:
    """One try to meet node 0; None when it waits for nobody now. Raises `UserError` when this machine cannot take part,
    or node 0 says that another one cannot, `StopRequested` when `stopped()` or node 0 was asked to stop."""
    try:
        line = _Line(socket.create_connection((where.host, where.port + 1), timeout=5.0))
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:  # the name service cannot be asked just now
            return None
        raise UserError(
            f"launch.rendezvous: the host name '{where.host}' is not known here: {error.strerror}"
        ) from None
    except OSError:
        return None
    with contextlib.closing(line):
        try:
            line.write(Hello(node=where.rank, host=platform.node()))
            found = line.read(Task)
            problem = _shared(run, found)
            line.write(Answer(problem=problem))
            if problem:
                raise UserError(problem)
            go = line.read(Go, found.patience + ANSWER_PATIENCE_S, stopped)  # until the last one has come
        except (OSError, msgspec.DecodeError):
            return None
    if go.problem == STOPPED:
        raise StopRequested()
    if go.problem:
        raise UserError(f"node 0: {go.problem}")
    return found, Met(go.hosts, line.address)


def _shared(run: Run, found: Task) -> str:
    """Why our run folder is not the one of node 0; "" when its probe is there."""
    file = run.stage_dir(found.stage) / found.probe
    end = time.monotonic() + PROBE_PATIENCE_S
    while True:
        with contextlib.suppress(OSError):
            if file.read_text() == found.nonce:
                return ""
        if time.monotonic() >= end:
            return (
                f"the run folder is not shared: {file}, which node 0 wrote as {found.folder}/stages/{found.stage}/"
                f"{found.probe}, is not there; put PICOLLM_RUNS on a file system that all nodes mount"
            )
        time.sleep(0.2)


class _Line:
    """A connection that carries one JSON object a line. `address`: ours, as the other side sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        self.address = str(connection.getsockname()[0]).removeprefix("::ffff:")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def write(self, message: msgspec.Struct) -> None:
        self._socket.settimeout(ANSWER_PATIENCE_S)
        self._socket.sendall(msgspec.json.encode(message) + b"\n")

    def read(
        self, kind: type[Message], patience: float = ANSWER_PATIENCE_S, stopped: Callable[[], bool] = lambda: False
    ) -> Message:
        """Raises `OSError` when the other side is gone or says nothing, `DecodeError` when it is somebody else, and
        `StopRequested`."""
        end = time.monotonic() + patience
        self._socket.settimeout(LOOK_EVERY_S)
        while b"\n" not in self._rest:
            if stopped():
                raise StopRequested()
            try:
                data = self._socket.recv(4096)
            except TimeoutError:
                if time.monotonic() >= end:
                    raise
                continue
            if not data or len(self._rest) > LONGEST_LINE:
                raise ConnectionError("the other side is gone")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return msgspec.json.decode(line, type=kind)

    def gone(self) -> bool:
        """Whether the other side, which has nothing to say now, has closed."""
        self._socket.settimeout(0)
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self._socket.close()
