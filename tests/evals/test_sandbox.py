"""Generated code does what it can only inside the sandbox, and passes only by answering right. At each level."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

if sys.platform != "linux":
    pytest.skip("the sandbox needs Linux", allow_module_level=True)

from picollm.evals import sandbox
from picollm.evals.sandbox_child import decode, encode
from picollm.run.errors import UserError
from tests.evals.programs import PROBLEMS, Problem

SLOW = 60.0  # seconds: a limit that a right program never meets, however busy the machine
NEXT = "def check(f):\n    assert f(1) == 2\n    assert f(5) == 6\n"


def works(level: str) -> bool:
    try:
        program = "def f(x):\n    return x + 1\n"
        return sandbox.run(program, tests=NEXT, entry_point="f", level=level, timeout=SLOW).passed
    except UserError:
        return False


@pytest.fixture(params=sandbox.LEVELS, scope="module")
def level(request: pytest.FixtureRequest) -> str:
    if not works(request.param):
        pytest.skip(f"{request.param} cannot be established on this machine")
    return request.param


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    """No process and no folder of a run outlives it."""
    before = set(psutil.Process().children(recursive=True))  # other tests' helpers, where they ran in this process
    yield
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not [p for p in Path(tempfile.gettempdir()).glob("picollm-sandbox-*") if p.stat().st_uid == os.getuid()]


@pytest.fixture(scope="module", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
        yield


# -------------------------------------------------------------------------------------------- right and wrong programs


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.entry_point)
def test_canonical_passes_and_mutated_fails(level: str, problem: Problem) -> None:
    def judged(body: str) -> sandbox.Outcome:
        return sandbox.run(
            problem.prompt + body,
            tests=problem.test,
            entry_point=problem.entry_point,
            prelude=problem.prompt,
            level=level,
            timeout=SLOW,
        )

    right, wrong = judged(problem.canonical), judged(problem.mutated)
    assert right.passed and right.reason == ""
    assert not wrong.passed and "assert" in wrong.reason


def test_the_reason_names_what_went_wrong(level: str) -> None:
    def reason(program: str) -> str:
        return sandbox.run(program, tests=NEXT, entry_point="f", level=level, timeout=SLOW).reason

    assert reason("def f(x):\n    return 2\n") == "AssertionError: assert f(5) == 6"
    assert reason("def f(x):\n    return 1 / 0\n") == "ZeroDivisionError: division by zero: assert f(1) == 2"
    assert reason("def f(x:\n").startswith("SyntaxError")
    assert "'f'" in reason("def g(x):\n    return x\n")
    assert "ended before" in reason("import os\nos._exit(0)\n")


def test_output_is_kept(level: str) -> None:
    program = "import sys\nprint('one')\ndef f(x):\n    sys.stderr.write('two')\n    return x + 1\n"
    outcome = sandbox.run(program, tests=NEXT, entry_point="f", level=level, timeout=SLOW)
    assert outcome.passed and outcome.output == "one\ntwotwo"


def test_sets_are_walked_in_the_same_order_every_time(level: str) -> None:
    program = "def f(x):\n    return x + 1\nprint(list({'a', 'b', 'c', 'd', 'e'}))\n"
    outputs = {sandbox.run(program, tests=NEXT, entry_point="f", level=level, timeout=SLOW).output for _ in range(3)}
    assert len(outputs) == 1


def test_many_at_the_same_time(level: str) -> None:
    def judged(number: int) -> bool:
        program = f"def f(x):\n    return x + {number % 2}\n"
        return sandbox.run(program, tests=NEXT, entry_point="f", level=level, timeout=SLOW).passed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(judged, range(24))) == [False, True] * 12


# ------------------------------------------------------------------------------------------------------------ cheating

CHEATS = {
    "sys.exit": "import sys\nsys.exit(0)\n",
    "os._exit": "import os\nos._exit(0)\n",
    "sys.exit when asked": "import sys\ndef f(x):\n    sys.exit(0)\n",
    "os._exit when asked": "import os\ndef f(x):\n    os._exit(0)\n",
    "kill itself": "import os\ndef f(x):\n    os.kill(os.getpid(), 9)\n    os.abort()\n",
    "fake word": 'print(\'passed\')\nprint(\'{"passed": true, "reason": ""}\')\ndef f(x):\n    return 0\n',
    "fake verdict on every file": (
        'import os\nfor n in range(100):\n    try:\n        os.write(n, b\'{"passed": true, "reason": ""}\\n\')\n'
        "    except OSError:\n        pass\ndef f(x):\n    return 0\n"
    ),
    "equals everything": "class E:\n    def __eq__(self, o):\n        return True\ndef f(x):\n    return E()\n",
    "a number that equals everything": (
        "class E(int):\n    def __eq__(self, o):\n        return True\n    __hash__ = None\n"
        "    def __index__(self):\n        return 2\ndef f(x):\n    return E(9)\n"
    ),
    "patched assert": (
        "import builtins, sys\nbuiltins.AssertionError = type('A', (BaseException,), {})\nbuiltins.assert_ = None\n"
        "sys.modules['builtins'].__dict__['__debug__x'] = False\nsys.excepthook = lambda *a: None\n"
        "def f(x):\n    raise AssertionError\n"
    ),
    "patched builtins": (
        "import builtins\nbuiltins.exec = builtins.compile = builtins.abs = lambda *a, **k: None\n"
        "builtins.isinstance = lambda *a: True\ndef f(x):\n    return 0\n"
    ),
    "patched modules": (
        "import json, os, sys\nfrom picollm.evals import sandbox_child as c\n"
        "c._reason = lambda *a: ''\nc._judge = c._say = lambda *a: None\n"
        'json.dumps = lambda m: \'{"passed": true, "reason": ""}\'\ndef f(x):\n    return 0\n'
    ),
    "patched frames": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        frame.f_globals['check'] = frame.f_builtins['check'] = lambda c: None\n        frame = frame.f_back\n"
        "    return 0\n"
    ),
    "pickle": "import pickle\ndef f(x):\n    return pickle.dumps(2)\n",
    "an answer for every call": (
        "import os\nfor n in range(3, 100):\n    try:\n        os.write(n, b'{\"value\": true}\\n' * 50)\n"
        "    except OSError:\n        pass\ndef f(x):\n    return 0\n"
    ),
    "an unknown kind": (
        'import os\nfor n in range(3, 100):\n    try:\n        os.write(n, b\'{"value": ["__import__", "os"]}\\n\')\n'
        "    except OSError:\n        pass\ndef f(x):\n    return 0\n"
    ),
    "a bomb for the reader": (
        "import os\nfor n in range(3, 100):\n    try:\n        os.write(n, b'[' * 60000 + b'\\n')\n"
        "    except OSError:\n        pass\ndef f(x):\n    return 0\n"
    ),
    "an exception the tests may expect": "def f(x):\n    raise SystemExit(0)\n",
    "crash": "import ctypes\ndef f(x):\n    ctypes.string_at(0)\n",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x)\n",
    "deep answer": "def f(x):\n    a = []\n    for _ in range(10**5):\n        a = [a]\n    return a\n",
    "endless answer": "import itertools\ndef f(x):\n    return itertools.count()\n",
    "kill the others": (
        "import os, signal\nfor p in (1, 2, os.getppid(), 0, -1):\n    for kill in (os.kill, os.killpg):\n"
        "        try:\n            kill(p, signal.SIGKILL)\n        except OSError:\n            pass\n"
        "def f(x):\n    return 0\n"
    ),
    "poisoned import": (
        "import os, sys\nfor p in ['.', *sys.path, os.path.dirname(os.__file__)]:\n    try:\n"
        "        open(p + '/random.py', 'w').write('import os; os._exit(0)')\n    except OSError:\n        pass\n"
        "def f(x):\n    return 0\n"
    ),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_do_not_pass(level: str, cheat: str) -> None:
    tests = "def check(f):\n    import random\n    assert f(1) == 2\n    assert f(5) == 6\n"
    outcome = sandbox.run(
        CHEATS[cheat], tests=tests, entry_point="f", level=level, timeout=SLOW, memory_bytes=100 * 2**20
    )
    assert not outcome.passed and outcome.reason


def test_a_test_that_swallows_errors_is_not_passed_by_ending(level: str) -> None:
    tests = "def check(f):\n    try:\n        f(1)\n    except BaseException:\n        pass\n"
    outcome = sandbox.run(
        "import os\ndef f(x):\n    os._exit(0)\n", tests=tests, entry_point="f", level=level, timeout=SLOW
    )
    assert not outcome.passed and "ended before" in outcome.reason


def test_the_tests_cannot_be_read(level: str) -> None:
    program = """
import gc, os
def f(_):
    found = []
    def holds(text):
        return ('SECRET' + '_MARK') in text
    for thing in gc.get_objects():
        for part in (thing, *(thing.values() if isinstance(thing, dict) else ())):
            if isinstance(part, str) and holds(part):
                found.append('memory')
    for number in range(100):
        try:
            os.lseek(number, 0, 0)
            if holds(os.read(number, 10**6).decode()):
                found.append('file')
        except OSError:
            pass
    return found
"""
    tests = "# SECRET_MARK\ndef check(f):\n    assert f(0) == [], f(0)\n"
    outcome = sandbox.run(program, tests=tests, entry_point="f", level=level, timeout=SLOW)
    assert outcome.passed, outcome.reason


# ---------------------------------------------------------------------------------------------------------------- harm

# Every deed of this table must be refused; what gets through is the answer.
HARM = """
import ctypes, fcntl, os, resource, signal, socket, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)

def call(*args):
    if libc.syscall(*args) < 0:
        raise OSError(ctypes.get_errno(), 'refused')

def write(path, flags=os.O_WRONLY | os.O_CREAT):
    os.write(os.open(path, flags), b'harm')

def f(victim, folder, pid, port):
    pipe = os.pipe()[0]
    deeds = {
        'read the environment': lambda: os.environ['PICOLLM_HOME'],
        'read its environment from the kernel': lambda: open('/proc/self/environ').read(),
        "read another's environment": lambda: open(f'/proc/{pid}/environ').read(),
        'read a file': lambda: open(victim).read(),
        'list a folder': lambda: os.listdir(folder),
        'list the home': lambda: os.listdir('/root') + os.listdir('/home') or 1 / 0,
        'read passwords': lambda: open('/etc/passwd').read(),
        'overwrite a file': lambda: write(victim),
        'empty a file': lambda: os.truncate(victim, 0),
        'empty a file while reading': lambda: os.open(victim, os.O_RDONLY | os.O_TRUNC),
        'empty a library': lambda: os.open(os.__file__, os.O_RDONLY | os.O_TRUNC),
        'overwrite a library': lambda: write(os.__file__),
        'add a library': lambda: write(os.path.dirname(os.__file__) + '/harm.py'),
        'remove a file': lambda: os.unlink(victim),
        'remove a file by number': lambda: call(UNLINK, victim.encode()) if UNLINK else 1 / 0,
        'rename a file': lambda: os.rename(victim, 'mine'),
        'rename over a file': lambda: (write('mine'), os.rename('mine', victim)),
        'change a mode': lambda: os.chmod(victim, 0o777),
        'change an owner': lambda: os.chown(victim, 1, 1),
        'change times': lambda: os.utime(victim),
        'link a file': lambda: os.link(victim, 'linked'),
        'link to a file': lambda: os.symlink(victim, 'link'),
        'make a device': lambda: os.mknod('device', 0o20666, os.makedev(1, 1)),
        'make a fifo': lambda: os.mkfifo('fifo'),
        'set an attribute': lambda: os.setxattr(victim, 'user.a', b'1'),
        'connect': lambda: socket.create_connection(('127.0.0.1', port), 1),
        'listen': lambda: socket.create_server(('127.0.0.1', 0)),
        'unix socket': lambda: socket.socket(socket.AF_UNIX),
        'packet socket': lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        'netlink': lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        'socket pair': lambda: socket.socketpair(),
        'socket by number': lambda: call(SOCKET, 2, 1, 0),
        'fork': lambda: os.fork() or os._exit(0),
        'fork in C': lambda: libc.fork() == 0 and libc._exit(0) or libc.fork() > 0 or 1 / 0,
        'clone by number': lambda: call(CLONE, 17, 0, 0, 0, 0) or os._exit(0),
        'spawn': lambda: os.posix_spawn('/bin/true', ['true'], {}),
        'run a program': lambda: subprocess.run(['/bin/true']),
        'become a program': lambda: os.execv('/bin/true', ['true']),
        'thread': lambda: threading.Thread(target=print).start(),
        'signal the maker': lambda: os.kill(pid, signal.SIGTERM),
        'signal all': lambda: os.kill(-1, signal.SIGTERM),
        'signal the parent': lambda: os.kill(os.getppid(), signal.SIGTERM),
        'signal by a pipe': lambda: fcntl.fcntl(pipe, fcntl.F_SETOWN, pid),
        'trace': lambda: call(PTRACE, 16, pid, 0, 0),
        "another's limits": lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, 1)),
        'its own limits': lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
        'slow the others': lambda: os.setpriority(os.PRIO_USER, 0, 19),
        'pin the others': lambda: os.sched_setaffinity(pid, [0]),
        'become root': lambda: os.setuid(0),
        'change the root': lambda: os.chroot('.'),
        'mount': lambda: call(MOUNT, b'tmpfs', b'.', b'tmpfs', 0, 0),
        'new namespaces': lambda: call(UNSHARE, 0x10000000),
        'leave the session': lambda: os.setsid(),
        'memory without limit': lambda: os.memfd_create('more'),
        'memory that stays': lambda: call(SHMGET, 0, 4096, 0o1600),
        'io_uring': lambda: call(425, 8, ctypes.create_string_buffer(256)),
        'bpf': lambda: call(BPF, 0, 0, 0),
        'keys': lambda: call(KEYCTL, 0, -3, 1),
        'outlive the keeper': lambda: call(PRCTL, 1, 0, 0, 0, 0),
        'open by handle': lambda: call(HANDLE, 0, 0, 0),
    }
    through = []
    for name, deed in deeds.items():
        try:
            deed()
        except (OSError, KeyError, ZeroDivisionError, RuntimeError, ValueError):
            continue
        through.append(name)
    return through
"""
NAMES = "UNLINK, SOCKET, CLONE, PTRACE, MOUNT, UNSHARE, SHMGET, BPF, KEYCTL, PRCTL, HANDLE = "
NUMBERS = {
    "x86_64": "87, 41, 56, 101, 165, 272, 29, 321, 250, 157, 304",
    "aarch64": "0, 198, 220, 117, 40, 97, 194, 280, 219, 167, 265",
}


def test_harm_is_refused(level: str, tmp_path: Path) -> None:
    """Deeds by Python's names and by the kernel's numbers, against a file, a folder and a process of this machine."""
    tmp_path.chmod(0o777)  # what the walls refuse is not refused by modes
    for parent in tmp_path.parents[:2]:  # pytest's own
        parent.chmod(0o755)
    victim = tmp_path / "victim"
    victim.write_text("dear")
    victim.chmod(0o666)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        asked = f"f({str(victim)!r}, {str(tmp_path)!r}, {other.pid}, 80)"
        tests = f"def check(f):\n    through = {asked}\n    assert not through, through\n"
        program = NAMES + NUMBERS[os.uname().machine] + HARM
        outcome = sandbox.run(program, tests=tests, entry_point="f", level=level, timeout=SLOW)
        alive = other.poll() is None
        other.kill()
    assert outcome.passed, outcome.reason
    assert alive and victim.read_text() == "dear" and victim.stat().st_mode & 0o777 == 0o666
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


def test_files_of_its_own(level: str) -> None:
    """What a program may: files in its current folder, from the empty folder of each run."""
    program = """
import os
def f(x):
    before = os.listdir('.')
    with open('note', 'w') as file:
        file.write('text')
    os.rename('note', 'kept')
    return before, open('kept').read(), os.listdir('.')
"""
    tests = "def check(f):\n    assert f(0) == ([], 'text', ['kept']), f(0)\n"
    for _ in range(2):
        outcome = sandbox.run(program, tests=tests, entry_point="f", level=level, timeout=SLOW)
        assert outcome.passed, outcome.reason


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(x):\n    while True: pass\n", "no verdict within 1.5 s"),
        ("import time\ndef f(x):\n    time.sleep(1000)\n", "no verdict within 1.5 s"),
        ("while True: pass\n", "no verdict within 1.5 s"),
        (
            "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nfor n in range(1, 65):\n    try:\n"
            "        signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\n"
            "while True: pass\n",
            "no verdict within 1.5 s",
        ),
    ],
)
def test_time_is_limited(level: str, program: str, reason: str) -> None:
    outcome = sandbox.run(program, tests=NEXT, entry_point="f", level=level, timeout=1.5)
    assert not outcome.passed and outcome.reason == reason


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(x):\n    return len(bytearray(2**40))\n", "MemoryError"),
        ("def f(x):\n    a = []\n    while True: a.append(bytes(10**6))\n", "MemoryError"),
        ("a = 'a' * 2**33\ndef f(x):\n    return x + 1\n", "MemoryError"),
        ("import mmap\ndef f(x):\n    return len(mmap.mmap(-1, 2**33))\n", "memory"),
        ("def f(x):\n    while True: print('a' * 10**5)\n", "bytes of output"),
        ("import os\ndef f(x):\n    while True: os.write(2, b'a' * 10**5)\n", "bytes of output"),
        ("print('a' * 10**5)\ndef f(x):\n    return x + 1\n", "bytes of output"),
        ("import os\ndef f(x):\n    while True: os.fork()\n", "PermissionError"),
        (
            "import os\ndef f(x):\n    while True:\n        try:\n            os.fork()\n        except OSError:\n"
            "            os.write(1, b'x')\n",
            "bytes of output",
        ),
        ("def f(x):\n    held = [open('a', 'w') for _ in range(1000)]\n", "Too many open files"),
        ("def f(x):\n    with open('a', 'wb', 0) as file:\n        while True: file.write(bytes(10**6))\n", ""),
        ("def f(x):\n    for n in range(10**4): open(str(n), 'w').close()\n    while True: pass\n", ""),
        (
            "def f(x):\n    for n in range(20):\n"
            "        with open(str(n), 'wb') as file: file.write(bytes(3 * 10**6))\n"
            "    while True: pass\n",
            "",
        ),
    ],
)
def test_memory_output_processes_and_files_are_limited(level: str, program: str, reason: str) -> None:
    outcome = sandbox.run(program, tests=NEXT, entry_point="f", level=level, timeout=SLOW)
    assert not outcome.passed and reason in outcome.reason, outcome
    assert "no verdict" not in outcome.reason
    assert len(outcome.output) <= sandbox.OUTPUT


def test_a_temporary_folder_of_any_name(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ein schöner \\ Ort\n日本"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    program = """
import os
def f(x):
    try:
        os.open(os.path.dirname(os.__file__) + '/harm.py', os.O_WRONLY | os.O_CREAT)
    except OSError as error:
        return error.errno in (13, 30) and open('note', 'w').write('text')
"""
    tests = "def check(f):\n    assert f(0) == 4, f(0)\n"
    outcome = sandbox.run(program, tests=tests, entry_point="f", level=level, timeout=SLOW)
    assert outcome.passed, outcome.reason
    assert list(folder.iterdir()) == []


def test_folders_in_folders_are_cleaned_away(level: str) -> None:
    program = """
import os
def f(x):
    try:
        for _ in range(5000):
            os.mkdir('d')
            os.chdir('d')
    except OSError:
        pass
    return x + 1
"""
    assert sandbox.run(program, tests=NEXT, entry_point="f", level=level, timeout=SLOW).passed


KILLED = """
import sys
from picollm.evals import sandbox
program = "import time\\nprint('ready')\\ntime.sleep(1000)\\n"
sandbox.run(program, tests="def check(f): pass", entry_point="f", level=sys.argv[1], timeout=1000)
"""


def test_the_program_dies_with_whoever_started_it(level: str, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, level], env={**os.environ, "TMPDIR": str(tmp_path)}) as maker:
        family: list[psutil.Process] = []
        deadline = time.monotonic() + SLOW
        while len(family) < 3 and time.monotonic() < deadline:  # keeper, judge, solution
            time.sleep(0.05)
            family = psutil.Process(maker.pid).children(recursive=True)
        assert len(family) == 3
        maker.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + SLOW
    while any(lives(process) for process in family):
        assert time.monotonic() < deadline, "a process outlived its maker"
        time.sleep(0.05)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


# -------------------------------------------------------------------------------------------------- what there is here


@pytest.fixture
def fresh_probe() -> object:
    sandbox._established.cache_clear()
    yield
    sandbox._established.cache_clear()


@pytest.mark.usefixtures("fresh_probe", "level")
def test_available_where_a_level_works() -> None:
    assert sandbox.available() == ""


@pytest.mark.usefixtures("fresh_probe")
def test_landlock_where_there_are_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    if not works("landlock"):
        pytest.skip("no Landlock on this machine")
    broken = "def no(*a): raise OSError(1, 'not here')\nsandbox_child.walls._namespaces = no\nsandbox_child.main()"
    monkeypatch.setattr(sandbox, "_START", sandbox._START.replace("sandbox_child.main()", broken))
    assert sandbox._established() == ("landlock", "")


@pytest.mark.usefixtures("fresh_probe")
def test_the_reason_where_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself refuses, as under a container's filter: with our own filter already in force."""
    shut = "sandbox_child.walls._prctl(38, 1)\nsandbox_child.walls._seccomp()\nsandbox_child.main()"
    monkeypatch.setattr(sandbox, "_START", sandbox._START.replace("sandbox_child.main()", shut))
    assert re.fullmatch("namespaces: unshare: Permission denied; landlock: .*Permission denied", sandbox.available())
    with pytest.raises(UserError, match="cannot be run here"):
        sandbox.run("", tests=NEXT, entry_point="f")


@pytest.mark.usefixtures("fresh_probe")
def test_walls_with_a_hole_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the filter of system calls the probe gets through, and says what did."""
    leaky = "sandbox_child.walls._seccomp = lambda: None\nsandbox_child.main()"
    monkeypatch.setattr(sandbox, "_START", sandbox._START.replace("sandbox_child.main()", leaky))
    assert "sockets" in sandbox.available()


@pytest.mark.usefixtures("fresh_probe")
def test_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sandbox.available() == "the sandbox needs Linux"


def test_the_sandbox_does_without_torch() -> None:
    code = "import sys; from picollm.evals import sandbox; sandbox.available(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------------------------------------------- values

keys = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.floats(allow_nan=False))
values = st.recursive(
    st.one_of(
        keys, st.complex_numbers(allow_nan=False), st.frozensets(keys), st.sets(keys), st.binary().map(bytearray)
    ),
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(keys, inner), st.tuples(keys, keys)
    ),
    max_leaves=20,
)


@given(values)
def test_values_come_back_as_they_were(value: object) -> None:
    again = decode(encode(value))
    assert again == value and repr(type(again)) == repr(type(value))


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(st.text(), inner),
        st.tuples(st.sampled_from(["int", "float", "list", "dict", "set", "bytes", "range", "iterator"]), inner).map(
            list
        ),
    ),
)


@given(junk)
def test_what_is_no_value_is_refused(coded: object) -> None:
    with contextlib.suppress(ValueError, TypeError, LookupError, OverflowError):  # and nothing else
        decode(coded)


def test_other_objects_equal_nothing() -> None:
    unknown = decode(encode(object()))
    assert unknown != unknown and unknown != 0
    assert list(decode(encode(x for x in (1, 2)))) == [1, 2]
    assert decode(encode(range(1, 9, 2))) == range(1, 9, 2)
