"""A busy machine, made to order: `pytest -p tests.naps` has threads, pools and event loops rest at random moments.

Whatever a test finds only because somebody else was quick is found out. `NAPS=7` chooses other moments; the same
number gives each test the same ones, as far as its threads come by in the same order.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread as pool
import functools
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

SEED = os.environ.get("NAPS", "0")
LONGEST_S = (0.05, 0.3, 0.8)
"""Of a nap, one for all of a test's."""
_dice = random.Random()
_longest_s = 0.0


def _nap(odds: float) -> None:
    if _dice.random() < odds:
        time.sleep(_dice.random() * _longest_s)


def _resting(owner: Any, name: str, before: float, after: float = 0.0) -> None:
    """`owner.name`, with naps around it at these odds."""
    real: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(real)
    def slow(*arguments: Any, **more: Any) -> Any:
        _nap(before)
        found = real(*arguments, **more)
        _nap(after)
        return found

    setattr(owner, name, slow)


def pytest_configure(config: pytest.Config) -> None:
    _resting(threading.Thread, "run", 0.5)
    _resting(threading.Event, "wait", 0, 0.5)  # what most loops of threads stand in
    _resting(pool._WorkItem, "run", 0.5, 0.2)
    _resting(asyncio.BaseEventLoop, "_run_once", 0.01)


def pytest_report_header(config: pytest.Config) -> str:
    return f"naps: NAPS={SEED}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _longest_s
    _dice.seed(SEED + item.nodeid)
    _longest_s = _dice.choice(LONGEST_S)
