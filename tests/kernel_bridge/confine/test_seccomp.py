"""The system call filter, run by a machine of our own: every number of the table, for every architecture."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import itertools
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system_calls import NUMBERS

from kernel_bridge.confine.seccomp import (
    ARCHITECTURES,
    NEWEST,
    REFUSED,
    REFUSED_SAME_USER,
    REFUSED_UNFENCED,
    RefusedCall,
    filter_for,
)

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED, KILLED = "allowed", "killed"
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK, AF_ALG, AF_PACKET = 1, 2, 10, 16, 40, 38, 17
STREAM, DGRAM, SEQPACKET, CLOEXEC_NONBLOCK = 1, 2, 5, 0o2000000 | 0o4000
NEEDED = ("read", "write", "close", "openat", "mmap", "execve", "exit_group", "futex", "kill", "rt_sigaction", "pipe2",
          "epoll_pwait", "dup3", "getrandom")  # fmt: skip

Kind = tuple[str, bool, bool]
KINDS: list[Kind] = list(itertools.product(AUDIT, (True, False), (True, False)))


def run(program: bytes, number: int, *arguments: int, audit: int) -> str:
    """The verdict of a classic BPF program on one system call: allowed, killed, or the error's name."""
    data = struct.pack("<IIQ6Q", number, audit, 0x7FFF00001234, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    steps = list(struct.iter_unpack("<HBBI", program))
    at = loaded = 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x20:  # load a word
            assert value % 4 == 0
            [loaded] = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            loaded &= value
        elif code in (0x15, 0x35, 0x45):
            holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[code]
            at += if_true if holds else if_false
        elif code == 0x06:
            if value == 0x7FFF0000:
                return ALLOWED
            return KILLED if value == 0x80000000 else errno.errorcode[value - 0x00050000]
        else:
            raise AssertionError(f"an instruction that no filter of ours has: {code:#x}")


def program_of(kind: Kind) -> bytes:
    machine, unix_connect, same_user = kind
    made = filter_for(machine, unix_connect=unix_connect, same_user=same_user)
    assert made is not None
    return made


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{'N' if kind[1] else 'L'}{'-same-user' * kind[2]}")
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def verdict(kind: Kind) -> Any:
    program = program_of(kind)
    return lambda number, *arguments: run(program, number, *arguments, audit=AUDIT[kind[0]])


def refused_by(kind: Kind) -> Iterator[RefusedCall]:
    yield from REFUSED
    if not kind[1]:
        yield from REFUSED_UNFENCED
    if kind[2]:
        yield from REFUSED_SAME_USER


def number_of(call: RefusedCall, machine: str) -> int | None:
    return call.x86_64 if machine == "x86_64" else call.aarch64


@pytest.mark.smoke
@pytest.mark.parametrize("machine", AUDIT)
def test_the_table_has_the_numbers_that_the_system_has(machine: str) -> None:
    table = {call.name: number_of(call, machine) for call in (*REFUSED, *REFUSED_UNFENCED, *REFUSED_SAME_USER)}
    assert table == {name: NUMBERS[machine][name] for name in table}
    known, numbers = ARCHITECTURES[machine], NUMBERS[machine]
    assert known.audit == AUDIT[machine]
    for name in ("socket", "socketpair", "connect", "clone", "ioctl", "fcntl", "mmap", "setsockopt",
                 "sched_setscheduler", "setpriority", "ioprio_set"):  # fmt: skip
        assert getattr(known, name) == numbers[name], name
    by_pid = ("prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam")
    assert known.by_pid == tuple(numbers[name] for name in by_pid)
    assert numbers["futex_requeue"] == NEWEST


def _of_libseccomp(machine: str) -> dict[str, int]:
    library = ctypes.util.find_library("seccomp") or "libseccomp.so.2"
    try:
        resolve = ctypes.CDLL(library).seccomp_syscall_resolve_name_arch
    except OSError:
        return {}
    found = {name: resolve(ctypes.c_uint32(AUDIT[machine]), name.encode()) for name in NUMBERS[machine]}
    return {name: number for name, number in found.items() if number >= 0}


def _of_headers(machine: str) -> dict[str, int]:
    name = "x86_64-linux-gnu/asm/unistd_64.h" if machine == "x86_64" else "asm-generic/unistd.h"
    for path in (Path("/usr/include", name), Path("/usr/include", Path(name).parent.name, Path(name).name)):
        if path.exists():
            found = re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", path.read_text(encoding="utf-8"))
            return {call: int(number) for call, number in found if call in NUMBERS[machine]}
    return {}


@pytest.mark.parametrize("machine", AUDIT)
@pytest.mark.parametrize("source", [_of_libseccomp, _of_headers], ids=["libseccomp", "headers"])
def test_the_numbers_kept_for_tests_are_those_of_this_system(machine: str, source: Any) -> None:
    known = source(machine)
    if not known:
        pytest.skip("this machine has no such source of numbers")
    assert len(known) > 50
    assert known == {name: NUMBERS[machine][name] for name in known}


def test_every_call_of_the_table_is_refused_with_its_error(kind: Kind, verdict: Any) -> None:
    for call in refused_by(kind):
        number = number_of(call, kind[0])
        if number is not None:
            assert verdict(number) == errno.errorcode[call.error], call.name
            assert call.reason


def test_what_python_needs_is_allowed(kind: Kind, verdict: Any) -> None:
    for name in NEEDED:
        assert verdict(NUMBERS[kind[0]][name]) == ALLOWED, name


def test_calls_that_are_not_in_the_table_are_allowed_and_newer_ones_are_unknown(kind: Kind, verdict: Any) -> None:
    refused = {number_of(call, kind[0]) for call in refused_by(kind)}
    special = {"socket", "socketpair", "connect", "clone", "ioctl", "fcntl", "mmap", "setsockopt", "prlimit64",
               "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "setpriority",
               "ioprio_set"}  # fmt: skip
    refused |= {NUMBERS[kind[0]][name] for name in special}
    for number in range(NEWEST + 1):
        if number not in refused:
            assert verdict(number) == ALLOWED, number
    for number in (NEWEST + 1, 500, 1000, 2**29, 2**30 - 1):
        assert verdict(number) == "ENOSYS", number


def test_x32_calls_are_unknown_and_calls_of_other_architectures_end_the_process(kind: Kind, verdict: Any) -> None:
    for number in (0, 59, 101, 515, 520, 0x3FFFFFFF):
        assert verdict(0x40000000 | number) == "ENOSYS"
    assert verdict(0xFFFFFFFF) == "ENOSYS"
    for audit in (0x40000003, 0x40000028, 0, *(set(AUDIT.values()) - {AUDIT[kind[0]]})):
        for number in (0, 1, 11, 59, 101, 102):
            assert run(program_of(kind), number, audit=audit) == KILLED


def test_only_unix_sockets_can_be_made(kind: Kind, verdict: Any) -> None:
    for name in ("socket", "socketpair"):
        number = NUMBERS[kind[0]][name]
        for family in (0, AF_INET, AF_INET6, AF_VSOCK, AF_ALG, AF_PACKET, 44, 0xFFFFFFFF):
            assert verdict(number, family, STREAM) == "EAFNOSUPPORT"
        assert verdict(number, AF_NETLINK, STREAM) == errno.errorcode[errno.EOPNOTSUPP]  # which has two names
        for high in (0, 1 << 32, 0xFFFFFFFF << 32):  # the system looks at the lower half only
            assert verdict(number, high | AF_UNIX, STREAM | CLOEXEC_NONBLOCK) == ALLOWED
            assert verdict(number, high | AF_INET, STREAM) == "EAFNOSUPPORT"
        for sort in (DGRAM, SEQPACKET, DGRAM | CLOEXEC_NONBLOCK):
            assert verdict(number, AF_UNIX, sort) == (ALLOWED if kind[1] else "EPROTONOSUPPORT")
    assert verdict(NUMBERS[kind[0]]["connect"]) == (ALLOWED if kind[1] else "EPERM")


def test_threads_and_processes_can_be_made_and_namespaces_cannot(kind: Kind, verdict: Any) -> None:
    clone = NUMBERS[kind[0]]["clone"]
    assert verdict(clone, 0x003D0F00) == ALLOWED  # a thread of glibc's
    assert verdict(clone, 0x01200011) == ALLOWED  # a fork of glibc's
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
        assert verdict(clone, flag | 17) == "EPERM"


def test_no_key_can_be_put_into_a_terminal(kind: Kind, verdict: Any) -> None:
    ioctl = NUMBERS[kind[0]]["ioctl"]
    for request in (0x5412, 0x541C):
        assert verdict(ioctl, 0, request) == verdict(ioctl, 0, 1 << 32 | request) == "EPERM"
    assert verdict(ioctl, 0, 0x5401) == ALLOWED
    for request in (0x40086602, 0x40046602, 0x401C5820, 0x40806685):
        assert verdict(ioctl, 0, request) == ("EPERM" if kind[2] else ALLOWED)


def test_what_takes_memory_or_disk_that_nobody_counts_is_refused(kind: Kind, verdict: Any) -> None:
    numbers = NUMBERS[kind[0]]
    for high in (0, 1 << 32, 0xFFFFFFFF << 32):  # the system looks at the lower half only
        for command in (37, 38, 1024, 1026, 1031):  # locks of open files, leases, dnotify, larger pipes
            assert verdict(numbers["fcntl"], 3, high | command) == "EPERM"
        for request in (0x40305828, 0x4030582A, 0x40305839):  # room on disk at once
            assert verdict(numbers["ioctl"], 3, high | request) == "EPERM"
        assert verdict(numbers["mmap"], 0, 2**21, 3, high | 0x40022) == "ENOMEM"  # from the pool of huge pages
        for option in (7, 26, 32, 50, 51, 52):
            assert verdict(numbers["setsockopt"], 3, high | 1, high | option) == "EPERM"
    for command in (0, 1, 2, 3, 4, 5, 6, 7, 36, 1030, 1032):  # POSIX locks too, without which there is no SQLite
        assert verdict(numbers["fcntl"], 3, command) == ALLOWED
    for flags in (0x1, 0x2, 0x22, 0x20022, 0x32):
        assert verdict(numbers["mmap"], 0, 2**21, 3, flags) == ALLOWED
    for level, option in ((1, 2), (1, 8), (1, 20), (6, 7), (41, 26)):
        assert verdict(numbers["setsockopt"], 3, level, option) == ALLOWED


def test_a_kernel_of_the_hosts_own_user_changes_only_itself(kind: Kind, verdict: Any) -> None:
    numbers, other = NUMBERS[kind[0]], "EPERM" if kind[2] else ALLOWED
    for name in ("prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam"):
        assert verdict(numbers[name], 0) == ALLOWED
        assert verdict(numbers[name], 1234) == other
    assert verdict(numbers["sched_setscheduler"], 1234, 0) == ALLOWED
    assert verdict(numbers["sched_setscheduler"], 0, 1) == other
    for name, itself in (("setpriority", 0), ("ioprio_set", 1)):
        assert verdict(numbers[name], itself, 0) == ALLOWED
        assert verdict(numbers[name], itself, 77) == verdict(numbers[name], 2, 0) == other


def test_every_way_through_a_filter_ends_within_it(kind: Kind) -> None:
    steps = list(struct.iter_unpack("<HBBI", program_of(kind)))
    assert len(steps) <= 4096
    for place, (code, if_true, if_false, _) in enumerate(steps):
        if code in (0x15, 0x35, 0x45):
            assert place + 1 + max(if_true, if_false) < len(steps)
    assert steps[-1][0] == 0x06


def test_a_machine_that_the_table_does_not_know_gets_no_filter() -> None:
    assert filter_for("riscv64", unix_connect=True) is None
