"""The system calls that a confined kernel is refused, each with its reason, and the filter made from that table.

Knows no process: it turns the table into the bytes of a classic BPF program, which `inside/seal.py` installs.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "REFUSED", "REFUSED_SAME_USER", "REFUSED_UNFENCED", "RefusedCall", "filter_for"]


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """One system call that is refused."""

    name: str
    x86_64: int | None  # its number there; None: the architecture has no such call
    aarch64: int | None
    error: int  # what the caller gets
    reason: str


def _group(reason: str, calls: str, *, error: int = errno.EPERM) -> list[RefusedCall]:
    """Calls with one reason, each as its name and its numbers on x86_64 and aarch64; -: it does not exist there."""
    rows = (call.split() for call in calls.split(", "))
    return [RefusedCall(name, _number(x86_64), _number(aarch64), error, reason) for name, x86_64, aarch64 in rows]


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)


REFUSED: Sequence[RefusedCall] = (
    *_group(
        "reads or changes the memory, registers or descriptors of other processes",
        "ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, "
        "process_mrelease 448 448, kcmp 312 272, pidfd_getfd 438 438",
    ),
    *_group(
        "a large attack surface in the operating system that plain Python never needs",
        "bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, lookup_dcookie 212 18, fanotify_init 300 262, "
        "fanotify_mark 301 263, vmsplice 278 75, remap_file_pages 216 234, personality 135 92, modify_ldt 154 -, "
        "seccomp 317 277",
    ),
    *_group(
        "asynchronous I/O that goes past this filter; programs fall back to the ordinary calls",
        "io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427",
        error=errno.ENOSYS,
    ),
    *_group(
        "its queues are counted for the whole machine; programs fall back to the ordinary calls",
        "io_setup 206 0, io_destroy 207 1, io_getevents 208 4, io_pgetevents 333 292, io_submit 209 2, "
        "io_cancel 210 3",
        error=errno.ENOSYS,
    ),
    *_group(
        "its instances are counted for the whole user, and it reports file names and times from directories of the "
        "host, for which Landlock has no rule",
        "inotify_init 253 -, inotify_init1 294 26, inotify_add_watch 254 27",
    ),
    *_group(
        "flushes the whole machine's writes to disk, and blocks everyone else meanwhile",
        "sync 162 81, syncfs 306 267",
    ),
    *_group(
        "takes disk space at once, past the limit of a file's size; programs fall back to writing",
        "fallocate 285 47",
        error=errno.EOPNOTSUPP,
    ),
    *_group(
        "file attributes take space that no limit counts; programs see a file system without attributes",
        "setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7",
        error=errno.EOPNOTSUPP,
    ),
    *_group(
        "rule sets take memory that no limit counts, and a kernel is confined already",
        "landlock_create_ruleset 444 444, landlock_add_rule 445 445, landlock_restrict_self 446 446",
        error=errno.ENOSYS,
    ),
    *_group(
        "the keyring holds secrets of the user and is shared between processes",
        "keyctl 250 219, add_key 248 217, request_key 249 218",
    ),
    *_group(
        "new namespaces give powers inside them that open further attack surface",
        "unshare 272 97, setns 308 268",
    ),
    *_group(
        "its arguments lie in memory, where a filter cannot see new-namespace flags; glibc falls back to clone",
        "clone3 435 435",
        error=errno.ENOSYS,
    ),
    *_group(
        "changes what is mounted where",
        "mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, move_mount 429 429, open_tree 428 428, "
        "fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442",
    ),
    *_group(
        "opens files by handle, past every path rule",
        "open_by_handle_at 304 265, name_to_handle_at 303 264",
    ),
    *_group(
        "for administrators of the machine",
        "kexec_load 246 104, kexec_file_load 320 294, init_module 175 105, finit_module 313 273, "
        "delete_module 176 106, reboot 169 142, swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60, "
        "quotactl_fd 443 443, settimeofday 164 170, clock_settime 227 112, clock_adjtime 305 266, adjtimex 159 171, "
        "sethostname 170 161, setdomainname 171 162, syslog 103 116, vhangup 153 58, iopl 172 -, ioperm 173 -",
    ),
    *_group(
        "memory that no resource limit of a process counts",
        "memfd_create 319 279, memfd_secret 447 447, shmget 29 194, shmat 30 196, shmctl 31 195, shmdt 67 197",
    ),
    *_group(
        "queues and semaphores that outlive the process and are shared with the user's others",
        "semget 64 190, semop 65 193, semctl 66 191, semtimedop 220 192, msgget 68 186, msgsnd 69 189, "
        "msgrcv 70 188, msgctl 71 187, mq_open 240 180, mq_unlink 241 181",
    ),
    *_group(
        "moves memory between NUMA nodes, also of other processes",
        "move_pages 279 239, migrate_pages 256 238",
    ),
)
"""Every call that is refused whatever its arguments; `filter_for` adds the few that depend on them."""

REFUSED_UNFENCED: Sequence[RefusedCall] = _group(
    "can send descriptors, and nobody can find a nameless file on its way through a socket",
    "sendmsg 46 211, sendmmsg 307 269",
)
"""What is refused besides, where the kernel writes to the host's file system."""

REFUSED_SAME_USER: Sequence[RefusedCall] = _group(
    "changes modes, owners, times and attributes of any of the user's files; Landlock has no rule for it",
    "chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, lchown 94 -, fchown 93 55, "
    "fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, removexattr 197 14, "
    "lremovexattr 198 15, fremovexattr 199 16",
)
"""What is refused besides, where the kernel moreover runs as the host's own user."""

NEWEST = 456  # calls newer than futex_requeue did not exist, as far as programs here know: they get ENOSYS


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int  # AUDIT_ARCH_*
    socket: int
    socketpair: int
    connect: int
    clone: int
    ioctl: int
    fcntl: int
    mmap: int
    setsockopt: int
    x32_bit: int | None
    by_pid: tuple[int, ...]  # prlimit64, sched_setaffinity, sched_setattr, sched_setparam: whom comes first
    sched_setscheduler: int
    setpriority: int
    ioprio_set: int


ARCHITECTURES: Mapping[str, _Architecture] = {
    "x86_64": _Architecture(0xC000003E, 41, 53, 42, 56, 16, 72, 9, 54, 0x40000000, (302, 203, 314, 142), 144, 141, 251),
    "aarch64": _Architecture(
        0xC00000B7, 198, 199, 203, 220, 29, 25, 222, 208, None, (261, 122, 274, 118), 119, 140, 30
    ),
}
"""The machines a filter can be made for, by `platform.machine()`; the first argument of their `clone` is its flags."""

_LOAD, _JEQ, _JGE, _JSET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; arguments are 8 bytes, low half first
_AF_UNIX, _AF_NETLINK, _SOCK_STREAM, _SOCK_MASK = 1, 16, 1, 0xF
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET, and TIME as CLONE_NEWTIME
# Requests of ioctl: TIOCSTI and TIOCLINUX type into terminals; FS_IOC_RESVSP, RESVSP64 and ZERO_RANGE are as fallocate.
_REQUESTS = (0x5412, 0x541C, 0x40305828, 0x4030582A, 0x40305839)
# Commands of fcntl: F_OFD_SETLK and SETLKW, locks that no count sees; F_SETLEASE and NOTIFY, which tell when the host
# opens what; F_SETPIPE_SZ, by which pipes grow unaccounted.
_COMMANDS = (37, 38, 1024, 1026, 1031)
_MAP_HUGETLB = 0x40000  # from a pool of the machine, and counted nowhere
_SOL_SOCKET = 1
# SO_SNDBUF and SNDBUFFORCE, by which a socket holds more than it is taken to hold, and the four SO_ATTACH: filters.
_SOCKET_OPTIONS = (7, 32, 26, 50, 51, 52)
_FILE_ATTRIBUTES = (0x40086602, 0x40046602, 0x401C5820, 0x40806685)  # FS_IOC_SETFLAGS (two), FSSETXATTR, ENABLE_VERITY
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS, _SCHED_OTHER = 0, 1, 0


class _Program:
    """Instructions of a classic BPF program, in order."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int, int, int]] = []

    def load(self, offset: int) -> None:
        self.made.append((_LOAD, 0, 0, offset))

    def load_argument(self, place: int) -> None:
        self.load(_ARGUMENTS + 8 * place)

    def end_unless(self, value: int, verdict: int) -> None:
        """End unless this value is loaded."""
        self.made.append((_JEQ, 1, 0, value))
        self.end(verdict)

    def refuse_if(self, test: int, value: int, error: int = errno.EPERM) -> None:
        """Refuse when the test holds for what is loaded."""
        self.made.append((test, 0, 1, value))
        self.end(_ERRNO | error)

    def end(self, verdict: int) -> None:
        self.made.append((_RETURN, 0, 0, verdict))

    def when(self, number: int, body: _Program) -> None:
        """Run the body, and end, for one system call; the number stays loaded for what follows."""
        body.end(_ALLOW)
        self.made += [(_JEQ, 0, len(body.made), number), *body.made]

    def packed(self) -> bytes:
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in self.made)


def filter_for(
    machine: str, *, unix_connect: bool, same_user: bool = False, send_descriptors: bool | None = None
) -> bytes | None:
    """The filter as the bytes of `struct sock_filter[]`, or None for a machine that the table does not know.

    Args:
        machine: `platform.machine()`.
        unix_connect: allow connections to unix sockets, and datagrams on them. Only where no socket of the host is in
            reach: Landlock does not keep a process from the sockets of others that have a path.
        send_descriptors: allow descriptors to be sent. Only where there is no directory on a disk of the host's in
            which the kernel can make files. None: as `unix_connect`.
        same_user: the kernel sees the host's processes and files and runs as the host's own user, so that every call
            must be refused by which it could change them.
    """
    known = ARCHITECTURES.get(machine)
    if known is None:
        return None
    sends = unix_connect if send_descriptors is None else send_descriptors
    program = _Program()
    program.load(_ARCH)
    program.end_unless(known.audit, _KILL)
    program.load(_NUMBER)
    if known.x32_bit is not None:
        program.refuse_if(_JGE, known.x32_bit, errno.ENOSYS)
    program.refuse_if(_JGE, NEWEST + 1, errno.ENOSYS)
    for call in (*REFUSED, *(() if sends else REFUSED_UNFENCED), *(REFUSED_SAME_USER if same_user else ())):
        number = call.x86_64 if machine == "x86_64" else call.aarch64
        if number is not None:
            program.refuse_if(_JEQ, number, call.error)
    if not unix_connect:
        program.refuse_if(_JEQ, known.connect)
    for number in (known.socket, known.socketpair):
        program.when(number, _only_unix_sockets(any_kind=unix_connect))
    program.when(known.clone, _refused_values(0, _NEW_NAMESPACES, test=_JSET))
    program.when(known.ioctl, _refused_values(1, *_REQUESTS, *(_FILE_ATTRIBUTES if same_user else ())))
    program.when(known.fcntl, _refused_values(1, *_COMMANDS))
    program.when(known.mmap, _refused_values(3, _MAP_HUGETLB, test=_JSET, error=errno.ENOMEM))
    program.when(known.setsockopt, _refused_socket_options())
    if same_user:
        for number in known.by_pid:
            program.when(number, _only_arguments((0, 0)))
        # By its argument 1, the policy: libzmq gives its threads, by their numbers, the ordinary one and must succeed.
        program.when(known.sched_setscheduler, _only_arguments((1, _SCHED_OTHER)))
        program.when(known.setpriority, _only_arguments((0, _PRIO_PROCESS), (1, 0)))
        program.when(known.ioprio_set, _only_arguments((0, _IOPRIO_WHO_PROCESS), (1, 0)))
    program.end(_ALLOW)
    return program.packed()


def _only_unix_sockets(*, any_kind: bool) -> _Program:
    body = _Program()
    body.load_argument(0)
    # libzmq aborts when netlink answers that the family is unknown, and goes on when it is not supported.
    body.refuse_if(_JEQ, _AF_NETLINK, errno.EOPNOTSUPP)
    body.end_unless(_AF_UNIX, _ERRNO | errno.EAFNOSUPPORT)
    if not any_kind:
        body.load_argument(1)
        body.made.append((_AND, 0, 0, _SOCK_MASK))
        body.end_unless(_SOCK_STREAM, _ERRNO | errno.EPROTONOSUPPORT)
    return body


def _refused_values(place: int, *values: int, test: int = _JEQ, error: int = errno.EPERM) -> _Program:
    """Refuse a call when the test holds for its argument at this place and one of these values."""
    body = _Program()
    body.load_argument(place)
    for value in values:
        body.refuse_if(test, value, error)
    return body


def _refused_socket_options() -> _Program:
    body = _Program()
    body.load_argument(1)
    body.end_unless(_SOL_SOCKET, _ALLOW)
    body.load_argument(2)
    for option in _SOCKET_OPTIONS:
        body.refuse_if(_JEQ, option)
    return body


def _only_arguments(*expected: tuple[int, int]) -> _Program:
    """Refuse a call unless its arguments at these places are these; a process number of 0 is the caller itself."""
    body = _Program()
    for place, value in expected:
        body.load_argument(place)
        body.end_unless(value, _ERRNO | errno.EPERM)
    return body
