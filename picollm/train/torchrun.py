"""`python -m picollm.train.torchrun RUN STAGE ATTEMPT HOSTS NODE -- …`: torchrun, with one line instead of a table.

Starts this node's ranks exactly as `torchrun …` would. When they fail it leaves a word for each that died without one
(a killed process cannot), and node 0 makes the attempt's one `Failed` event of all words (`picollm.run.failure`). When
ranks of another node fail ours are ended: they may wait for an answer for long. HOSTS: the nodes' names,
comma-separated.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import psutil
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from picollm.run import event_file, failure
from picollm.run import events as ev
from picollm.run.folder import Run
from picollm.run.status import signal_name

SAME_MOMENT_S = 2
"""torchrun ends the other ranks after the first one failed: who dies later than this was ended by it."""
LOOK_EVERY_S = 1.0
NOTICE_S = 5.0
"""So long our ranks may take to notice by themselves that another node's have failed."""


class Node:
    """This machine's ranks of one attempt."""

    def __init__(self, run: Run, stage: str, attempt: int, hosts: list[str], node: int, per_node: int) -> None:
        self.run, self.stage, self.attempt = run, stage, attempt
        self.hosts = [host for host in hosts for _ in range(per_node)]
        self.own = range(node * per_node, (node + 1) * per_node)
        self.others_failed = False

    def attend(self, arguments: list[str]) -> int:
        """Returns 0, or the code of the failure."""
        if len(self.own) < len(self.hosts):
            threading.Thread(target=self._watch_others, daemon=True).start()
        try:
            torchrun.run(torchrun.parse_args(arguments))
            return 0
        except ChildFailedError as error:
            if not self.others_failed:
                self._leave_words(error.failures)
        except SignalException as error:
            print(f"torchrun: {error}", file=sys.stderr)
            return 128 + int(error.sigval)
        except Exception as error:
            traceback.print_exc()
            text = f"torchrun: {type(error).__name__}: {error}".splitlines()[0][:400]
            self._leave(self.own[0], text, echo=failure.is_echo(error))
        return self._conclude()

    def _conclude(self) -> int:
        """On node 0: the one line. Returns the exit code."""
        run, file = self.run, self.run.events_file(self.stage, self.attempt)
        if self.own[0] != 0:
            return 1
        found = failure.gather(run, self.stage, self.attempt, len(self.hosts))
        failed = failure.verdict(found, self.hosts, run.config().launch.timeout)
        if failed.code != 2:
            failed.hint = f"see {run.console_file(self.stage, self.attempt).name}"
        ends = [said for said in event_file.tail_events(file) if isinstance(said, ev.TERMINAL)]
        # torchrun asks rank 0 to end when another one failed, and it may say that it stopped.
        if not ends or (isinstance(ends[-1], ev.Stopped) and not all(word.echo for word in found)):
            event_file.append(file, failed)
        print(f"error: {failed.error}", file=sys.stderr, flush=True)
        return failed.code

    def _watch_others(self) -> None:
        """torchrun knows nothing of other nodes' failures: its ranks, or itself at the end, would wait for them."""
        while not any(
            word.rank not in self.own and not word.echo for word in failure.words(self.run, self.stage, self.attempt)
        ):
            time.sleep(LOOK_EVERY_S)
        time.sleep(NOTICE_S)
        self.others_failed = True
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(NOTICE_S)  # enough for the main thread, unless it waits for the other nodes
        os._exit(self._conclude())

    def _leave_words(self, failures: dict[int, ProcessFailure]) -> None:
        """For the ranks that failed first and may have left no word themselves (the first one is kept)."""
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
            self._leave(rank, text, echo=aborted)

    def _leave(self, rank: int, text: str, echo: bool) -> None:
        word = failure.Word(rank=rank, world=len(self.hosts), error=text, echo=echo)
        failure.leave(self.run, self.stage, self.attempt, word)


def main(argv: list[str]) -> int:
    """See the head of this file."""
    cut = argv.index("--")
    folder, stage, attempt, hosts, node = argv[:cut]
    per_node = next(int(word.partition("=")[2]) for word in argv if word.startswith("--nproc-per-node="))
    return Node(Run(Path(folder)), stage, int(attempt), hosts.split(","), int(node), per_node).attend(argv[cut + 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
