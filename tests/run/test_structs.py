"""Threads that are the first to read a type, all at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIRST = """
import sys, threading
sys.setswitchinterval(1e-6)
import msgspec
from {module} import {name} as kind
barrier = threading.Barrier(4)
def first():
    barrier.wait()
    try:
        msgspec.convert({{}}, kind)
    except msgspec.ValidationError:
        return  # some of its fields must be given
threads = [threading.Thread(target=first) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize(
    "module, name",
    [("picollm.run.schema", "Config"), ("picollm.run.planned", "Plan"), ("picollm.run.votes", "Vote"),
     ("picollm.run.serving", "Address"), ("tui.conversations", "Conversation")],
)  # fmt: skip
def test_a_type_may_be_read_first_by_many_threads_at_once(module: str, name: str) -> None:
    for _ in range(5 if name == "Config" else 2):  # without `complete`, more than every second Config crashes
        subprocess.run([sys.executable, "-c", FIRST.format(module=module, name=name)], check=True, timeout=60)
