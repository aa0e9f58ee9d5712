from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from picollm.run import lease
from tests.run.conftest import until


@pytest.fixture
def sleeper():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    yield child
    child.kill()
    child.wait()


def is_zombie(child: subprocess.Popen[bytes]) -> bool:
    return psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE


def test_a_lock_is_held_as_long_as_somebody_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not lease.is_held(path)
    one, two = lease.Lock(path), lease.Lock(path)
    assert one.share() and two.share() and lease.is_held(path)
    assert not lease.Lock(path).exclusive()
    one.release()
    assert lease.is_held(path)
    two.release()
    assert not lease.is_held(path) and lease.Lock(path).exclusive()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"import fcntl, time; f = open({str(path)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_SH); "
    code += "print(1, flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() and lease.is_held(path)
    child.kill()
    until(lambda: is_zombie(child))
    assert not lease.is_held(path)  # nobody has waited for it yet
    child.wait()
    child.stdout.close()


def test_many_who_ask_at_once_never_see_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "ASK_PATIENCE_S", 60.0)  # whoever has the turn may have to wait for a core
    path = tmp_path / "lock"
    path.touch()
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda: answers.extend(lease.is_held(path) for _ in range(300))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 1800 and not any(answers)


def test_places_that_are_none_hold_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not lease.is_held(tmp_path / "file" / "lock") and not lease.is_held(tmp_path / "absent" / "lock")


def test_a_read_only_file_system_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = lease.Lock(tmp_path / "lock")
    assert lock.share()
    real = os.open

    def read_only(path: str, flags: int, *mode: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    assert lease.is_held(tmp_path / "lock")
    lock.release()
    assert not lease.is_held(tmp_path / "lock")


def test_only_the_very_process_is_signalled(sleeper: subprocess.Popen[bytes]) -> None:
    who = lease.identify(sleeper.pid)
    assert lease.is_same(who)
    others = [
        who._replace(start_ticks=who.start_ticks - 1),
        who._replace(start_ticks=-1),
        who._replace(boot_id="another boot"),
        who._replace(host="another-host"),
        lease.Identity(0, who.host, who.boot_id, 0),
        lease.Identity(1, who.host, who.boot_id, lease.start_ticks(1)),
    ]
    for other in others:
        assert not lease.signal_process(other, signal.SIGKILL) and not lease.kill_tree(other)
    assert sleeper.poll() is None
    assert lease.signal_process(who, signal.SIGTERM) and sleeper.wait(60) == -signal.SIGTERM
    assert not lease.is_same(who)


def test_a_zombie_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    who = lease.identify(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGKILL)
    until(lambda: is_zombie(sleeper))
    assert not lease.is_same(who)


def test_a_tree_is_killed_whole_sessions_of_its_own_included() -> None:
    inner = "import subprocess, sys, time; argv = [sys.executable, '-c', 'import time; time.sleep(600)'];"
    inner += "print(subprocess.Popen(argv, start_new_session=True).pid, flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout
    grandchild = lease.identify(int(child.stdout.readline()))
    assert lease.is_same(grandchild)
    assert lease.kill_tree(lease.identify(child.pid))
    child.wait(60)
    until(lambda: not lease.is_same(grandchild))
    child.stdout.close()
