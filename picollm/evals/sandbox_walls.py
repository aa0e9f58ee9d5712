"""The walls around generated code, built from inside the process that is to be walled in. Linux only, no dependency.

    namespaces   user, mount, pid, net, ipc and uts namespaces; a root of its own that holds the interpreter's
                 libraries read-only and an empty /tmp of bounded size
    landlock     where namespaces are not allowed: Landlock leaves the libraries to read and one empty folder to write
    both         no capability, an unprivileged uid if it was root, resource limits, and a seccomp filter that leaves
                 a program its memory, its clock and the files it may open: no socket, no process or thread, no
                 execve, no signal to others, no ptrace, no mount, no change of owner, mode or times

A wall that cannot be built raises OSError, and nothing is run without it.
Sources: namespaces(7), pivot_root(2), landlock(7), seccomp(2), and the kernel's tables of system calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys

NAMESPACES, LANDLOCK = "namespaces", "landlock"
NOBODY = 65534
OPEN_FILES = 32

_CLONE_NEWUSER = 0x10000000
_NEW = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # mount, pid, net, ipc, uts
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_KEPT_FLAGS = {os.ST_NOEXEC: _NOEXEC, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}
_MNT_DETACH = 2
_CHANGE_UID = 1 << 0 | 1 << 6 | 1 << 7  # CAP_CHOWN, CAP_SETGID, CAP_SETUID
_PDEATHSIG, _SECCOMP, _NO_NEW_PRIVS = 1, 22, 38  # prctl

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # rights on files that each version of Landlock knows; 16 from the fifth
_READ = 1 << 2 | 1 << 3  # READ_FILE, READ_DIR
_WRITE = 1 << 1 | 1 << 5 | 1 << 8 | 1 << 14  # WRITE_FILE, REMOVE_FILE, MAKE_REG, TRUNCATE: files, no folders or links

# machine: (name of the architecture in seccomp, pivot_root, the column of the table below)
_MACHINES = {"x86_64": (0xC000003E, 155, 0), "aarch64": (0xC00000B7, 41, 1)}
# What a program may ask the kernel for: numbers on x86_64 and aarch64, "-" where there is none.
_ALLOWED = """
read 0 63, write 1 64, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, poll 7 -,
ppoll 271 73, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, mremap 25 216, madvise 28 233,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132, pread64 17 67, pwrite64 18 68,
readv 19 65, writev 20 66, access 21 -, faccessat 269 48, faccessat2 439 439, pipe 22 -, pipe2 293 59, select 23 -,
pselect6 270 72, sched_yield 24 124, dup 32 23, dup2 33 -, dup3 292 24, nanosleep 35 101, clock_nanosleep 230 115,
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getpid 39 172,
gettid 186 178, getppid 110 173, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158,
getrandom 318 278, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, renameat 264 38, renameat2 316 276,
mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, readlink 89 -, readlinkat 267 78,
ftruncate 77 46, getdents64 217 61, fsync 74 82, fdatasync 75 83, umask 95 166, futex 202 98, set_robust_list 273 99,
rseq 334 293, exit 60 93, exit_group 231 94, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, uname 63 160,
sched_getaffinity 204 123, setitimer 38 103, getitimer 36 102, alarm 37 -, fadvise64 221 223, restart_syscall 219 128,
close_range 436 436, statfs 137 43, fstatfs 138 44
"""
_OPEN, _OPENAT, _FCNTL, _PRLIMIT, _CLONE3 = (2, None), (257, 56), (72, 25), (302, 261), (435, 435)
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
_O_TRUNC_MASK = os.O_ACCMODE | os.O_TRUNC


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *values: object) -> None:
    words = [value if isinstance(value, int) else ctypes.cast(value, ctypes.c_void_p).value for value in values]  # type: ignore[arg-type]
    words += [0] * (4 - len(words))
    _checked(_libc().prctl(option, *map(ctypes.c_ulong, words)), f"prctl {option}")  # type: ignore[arg-type]


def machine() -> tuple[int, int, int]:
    """Numbers of this machine's kernel interface. OSError for a machine whose table is not written here."""
    name = os.uname().machine
    if name not in _MACHINES or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"no table of system calls for {name}")
    return _MACHINES[name]


def die_with_parent() -> None:
    """SIGKILL when the parent ends. To be called after the last change of uid, which clears it."""
    _prctl(_PDEATHSIG, 9)


def enclose(level: str, folder: str, file_bytes: int, max_files: int) -> None:
    """Shut this process off from the machine; its current folder is then the only place to write.

    folder      an empty folder: the mount point of the new root, or (landlock) the writable folder itself
    file_bytes  room in the writable folder, for `max_files` files (namespaces; landlock leaves both to a watcher)

    The modules of the interpreter stay importable, by other paths if they must. Child processes made from here on
    are inside the new pid namespace.
    """
    places = _places()
    becomes_nobody = _can_become_nobody()
    if level == NAMESPACES:
        becomes_nobody &= not _namespaces(folder, places, file_bytes, max_files)
        _relocate({place: place for place in places})
    else:
        os.chdir(folder)
        if becomes_nobody:
            os.chown(".", NOBODY, NOBODY)
            # The interpreter may lie where only root can go; a held folder is reached without its ancestors.
            _relocate({place: f"/proc/self/fd/{os.open(place, os.O_PATH | os.O_DIRECTORY)}" for place in places})
        _prctl(_NO_NEW_PRIVS, 1)
        _landlock(places)
    if becomes_nobody:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _checked(_libc().capset(header, nothing), "capset")
    _prctl(_NO_NEW_PRIVS, 1)


def lock(memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    """The last step before untrusted code: resource limits, then the filter of system calls."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    _seccomp()


def _can_become_nobody() -> bool:
    """Whether this is a root that may change its uid: a container may know root alone, or take its capabilities."""
    with open("/proc/self/status") as rows:
        capabilities = next(int(row.split()[1], 16) for row in rows if row.startswith("CapEff:"))
    if os.geteuid() != 0 or ~capabilities & _CHANGE_UID:
        return False
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as rows:
            ranges = [tuple(map(int, row.split())) for row in rows]
        if not any(start <= NOBODY < start + count for start, _, count in ranges):
            return False
    return True


def _places() -> list[str]:
    """Folders that hold the interpreter's modules and the shared libraries they load, none inside another."""
    wanted = [os.path.join(sys.base_prefix, "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", *sys.path]
    real = sorted({os.path.realpath(place) for place in wanted if os.path.isdir(place)})
    return [place for place in real if not any(place.startswith(other + "/") for other in real)]


def _relocate(moved: dict[str, str]) -> None:
    """Point the import system at the places' new paths; entries that are nowhere inside them go."""

    def new(path: str) -> str | None:
        path = os.path.realpath(path)
        for place, target in moved.items():
            if path == place or path.startswith(place + "/"):
                return target + path[len(place) :]
        return None

    sys.path[:] = [path for path in map(new, sys.path) if path]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        if isinstance(getattr(module, "__path__", None), list):
            module.__path__ = [path for path in map(new, module.__path__) if path]


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encode = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    result = _libc().mount(encode[0], encode[1], encode[2], ctypes.c_ulong(flags), encode[3])
    _checked(result, f"mount {target}")


def _namespaces(root: str, places: list[str], file_bytes: int, max_files: int) -> bool:
    """Build the root and go there; whether it took a user namespace, which knows this uid alone."""
    uid, gid = os.geteuid(), os.getegid()
    libc = _libc()
    unprivileged = libc.unshare(_NEW) < 0  # not root, or a root without the capability
    if unprivileged:
        _checked(libc.unshare(_NEW | _CLONE_NEWUSER), "unshare")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=1k,mode=755")
    for place in places:
        os.makedirs(root + place, exist_ok=True)
        _mount(place, root + place, None, _BIND | _REC)
    for link in ("/lib", "/lib64"):  # the loader's names for /usr/lib where the two are one
        if os.path.islink(link):
            os.symlink(os.readlink(link), root + link)
    with open("/proc/self/mountinfo", "rb") as rows:  # spaces are written as \\040, all else as the bytes they are
        points = [os.fsdecode(row.split()[4].decode("unicode_escape").encode("latin-1")) for row in rows]
    inside = [point for point in points if point.startswith(root + "/")]
    if not {root + place for place in places} <= set(inside):
        raise OSError(errno.ENOENT, "mount: the libraries are not where they were put")
    os.mkdir(root + "/tmp")
    for point in [*inside, root]:
        has = os.statvfs(point).f_flag
        kept = sum(flag for bit, flag in _KEPT_FLAGS.items() if has & bit)
        _mount(None, point, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | kept)
    room = f"size={file_bytes},nr_inodes={max_files + 1},mode=1777"
    _mount("tmpfs", root + "/tmp", "tmpfs", _NOSUID | _NODEV | _NOEXEC, room)
    os.chdir(root)
    _checked(libc.syscall(machine()[1], b".", b"."), "pivot_root")
    _checked(libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/tmp")
    return unprivileged


def _landlock(places: list[str]) -> None:
    """Files beneath `places` can be read, those in the current folder written too, all else is refused."""
    libc = _libc()
    version = _checked(libc.syscall(_LANDLOCK_CREATE, None, 0, 1), "Landlock")
    rights = (1 << _FS_RIGHTS.get(version, 16)) - 1
    network = 0b11 if version >= 4 else 0  # bind and connect TCP
    scopes = 0b11 if version >= 6 else 0  # abstract sockets and signals
    attributes = struct.pack("=QQQ", rights, network, scopes)
    rules = _checked(libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0), "Landlock")
    for place, allowed in [*((place, _READ) for place in places), (".", _READ | _WRITE)]:
        folder = os.open(place, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed & rights, folder)
        _checked(libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0), f"Landlock {place}")
        os.close(folder)
    _checked(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)


def _seccomp() -> None:
    """Install the filter: classic BPF over struct seccomp_data (number at 0, architecture at 4, arguments from 16)."""
    architecture, _, column = machine()
    load, equal, at_least, give, mask = 0x20, 0x15, 0x35, 0x06, 0x54
    kill, allow, refuse, unknown = 0x80000000, 0x7FFF0000, 0x50000 | errno.EACCES, 0x50000 | errno.ENOSYS
    # One instruction is (what, jump if true, jump if false, value).
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    if column == 0:  # the x32 numbers, a second door to the same calls
        code += [(at_least, 0, 1, 0x40000000), (give, 0, 0, kill)]

    def when(numbers: tuple[int | None, ...], *then: tuple[int, int, int, int]) -> None:
        if (number := numbers[column]) is not None:
            code.extend([(equal, 0, len(then), number), *then])

    for row in _ALLOWED.replace("\n", " ").split(","):
        numbers = tuple(None if word == "-" else int(word) for word in row.split()[1:])
        when(numbers, (give, 0, 0, allow))
    when(_CLONE3, (give, 0, 0, unknown))  # "not in this kernel": the C library then asks for clone, which is refused
    for numbers, argument in ((_OPEN, 1), (_OPENAT, 2)):
        # Read-only with O_TRUNC empties a file that Landlock only let be read, before its third version.
        test = [(load, 0, 0, 16 + 8 * argument), (mask, 0, 0, _O_TRUNC_MASK), (equal, 0, 1, os.O_TRUNC)]
        when(numbers, *test, (give, 0, 0, refuse), (give, 0, 0, allow))
    # F_SETOWN and F_SETSIG would send signals to any process of the same uid.
    commands = [line for command in _FCNTL_COMMANDS for line in ((equal, 0, 1, command), (give, 0, 0, allow))]
    when(_FCNTL, (load, 0, 0, 24), *commands, (give, 0, 0, refuse))
    # One's own limits only (pid 0); those of other processes of the same uid would be open, too.
    when(_PRLIMIT, (load, 0, 0, 16), (equal, 0, 1, 0), (give, 0, 0, allow), (give, 0, 0, refuse))
    code.append((give, 0, 0, refuse))

    program = b"".join(struct.pack("=HBBI", *line) for line in code)
    held = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(held)))
    _prctl(_SECCOMP, 2, header)
