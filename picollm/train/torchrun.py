"""`python -m picollm.train.torchrun RUN STAGE ATTEMPT HOSTS NODE -- …`: torchrun, with one line instead of a table.

Starts this node's ranks exactly as `torchrun …` would. When they fail it leaves a word for each that died without one
(a killed process cannot), and node 0 makes the attempt's one `Failed` event of all words (`picollm.run.failure`).
HOSTS: the nodes' host names, comma-separated.
"""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from picollm.run import events as ev
from picollm.run import failure
from picollm.run.folder import Run
from picollm.run.status import signal_name

SAME_MOMENT_S = 2
"""torchrun ends the other ranks after the first one failed: who dies later than this was ended by it."""


def main(argv: list[str]) -> int:
    """Returns 0, or the code of the failure."""
    cut = argv.index("--")
    folder, name, attempt, hosts, node = argv[:cut]
    run, arguments = Run(Path(folder)), torchrun.parse_args(argv[cut + 1 :])
    per_node = int(arguments.nproc_per_node)
    world = per_node * len(hosts.split(","))
    try:
        torchrun.run(arguments)
        return 0
    except ChildFailedError as error:
        _leave_words(run, name, int(attempt), world, error.failures)
    except SignalException as error:
        print(f"torchrun: {error}", file=sys.stderr)
        return 128 + int(error.sigval)
    except Exception as error:
        traceback.print_exc()
        text = f"torchrun: {type(error).__name__}: {error}".splitlines()[0][:400]
        word = failure.Word(rank=int(node) * per_node, world=world, error=text, echo=failure.is_echo(error))
        failure.leave(run, name, int(attempt), word)
    if node != "0":
        return 1
    found = failure.gather(run, name, int(attempt), world)
    by_rank = [host for host in hosts.split(",") for _ in range(per_node)]
    failed = failure.verdict(found, by_rank, run.config().launch.timeout)
    if failed.code != 2:
        failed.hint = f"see {run.console_file(name, int(attempt)).name}"
    file = run.events_file(name, int(attempt))
    ends = [said for said in ev.tail_events(file) if isinstance(said, ev.TERMINAL)]
    # torchrun asks rank 0 to end when another one failed, and it may say that it stopped.
    if not ends or (isinstance(ends[-1], ev.Stopped) and not all(word.echo for word in found)):
        ev.append(file, failed)
    print(f"error: {failed.error}", file=sys.stderr)
    return failed.code


def _leave_words(run: Run, name: str, attempt: int, world: int, failures: dict[int, ProcessFailure]) -> None:
    """For the ranks that failed first and may have left no word themselves (`leave` keeps the first)."""
    first = min(found.timestamp for found in failures.values())
    for rank, found in failures.items():
        if found.timestamp > first + SAME_MOMENT_S or found.exitcode in (0, -signal.SIGTERM):
            continue
        text = f"exit code {found.exitcode} without a last word"
        if found.exitcode < 0:
            text = f"killed by {signal_name(-found.exitcode)}"
        # nccl's watchdog aborts its process when a collective was not answered in time.
        aborted = found.exitcode == -signal.SIGABRT
        if aborted:
            text += " (a collective timed out, if it ran on GPUs)"
        failure.leave(run, name, attempt, failure.Word(rank=rank, world=world, error=text, echo=aborted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
