"""Attacks by system calls: on other processes, on the operating system, on the fence itself."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
from rig import Tier

from kernel_bridge.confine.seccomp import REFUSED, REFUSED_SAME_USER

MACHINE = platform.machine()
NUMBERS = {call.name: getattr(call, MACHINE, None) for call in (*REFUSED, *REFUSED_SAME_USER)}


def refused(found: Any) -> bool:
    """Whether nothing in it was done: every leaf is the name of an error, or C's -1."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        return all(refused(one) for one in found)
    return found == -1 or (isinstance(found, str) and not found.startswith("done"))


def done(found: dict[str, Any]) -> dict[str, Any]:
    """What of it was done."""
    return {name: said for name, said in found.items() if not refused(said)}


def others(tier: Tier) -> list[int]:
    """Processes of the host that a kernel may not touch, by their number there."""
    return tier.host("result = [facts['host_pid'], guardian_pid(sessions['shared'])]")


def test_every_call_of_the_table_is_refused_with_its_error(tier: Tier) -> None:
    calls = {call.name: getattr(call, MACHINE) for call in REFUSED if getattr(call, MACHINE) is not None}
    found = tier.look("found = {name: syscall(n, 0, 0, 0, 0, 0, 0) for name, n in calls.items()}", calls=calls)
    assert found == {call.name: errno.errorcode[call.error] for call in REFUSED if call.name in calls}


def test_calls_that_are_newer_than_the_table(tier: Tier) -> None:
    found = tier.look("found = {n: syscall(n, 0, 0, 0, 0, 0, 0) for n in [*range(457, 520), 1000, 2**31 - 1]}")
    assert set(found.values()) == {"ENOSYS"}


@pytest.mark.skipif(MACHINE != "x86_64", reason="x32 is an ABI of x86_64")
def test_calls_of_the_x32_abi(tier: Tier) -> None:
    found = tier.look(
        "bit = 0x40000000\n"
        "found = {number: syscall(bit | number, 0, 0, 0, 0, 0, 0) for number in [*range(0, 560), 39, 101, 310, 425]}\n"
        "found['negative'] = syscall(-1)"
    )
    assert set(found.values()) == {"ENOSYS"}


@pytest.mark.skipif(MACHINE != "x86_64", reason="int 0x80 is of x86")
def test_calls_of_the_32_bit_abi(tier: Tier) -> None:
    with tier.session("restarts=5") as own:
        said = tier.run_or_die(
            "page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
            "page.write(bytes.fromhex('b814000000' 'cd80' 'c3'))  # getpid, the 32-bit way\n"
            "address = ctypes.addressof(ctypes.c_char.from_buffer(page))\n"
            "print('came back', ctypes.CFUNCTYPE(ctypes.c_int)(address)())",
            session=own,
        )
        assert "came back" not in said
        assert "The kernel died" in said
        assert tier.works(own)


def test_tracing_processes(tier: Tier) -> None:
    found = tier.look(
        "ATTACH, SEIZE, TRACEME, PEEK = 16, 0x4206, 0, 1\n"
        "for pid in [*pids, os.getppid(), os.getpid(), 1]:\n"
        "    found[pid] = {how: syscall(ptrace, how, pid, 0, 0) for how in (ATTACH, SEIZE, PEEK)}\n"
        "found['me'] = syscall(ptrace, TRACEME, 0, 0, 0)\n"
        "child = subprocess.Popen(['sleep', '5'])\n"
        "found['child'] = syscall(ptrace, ATTACH, child.pid, 0, 0); child.kill(); child.wait()",
        pids=others(tier),
        ptrace=NUMBERS["ptrace"],
    )
    said = [said for group in found.values() for said in (group.values() if isinstance(group, dict) else [group])]
    assert set(said) == {"EPERM"}


def test_reading_and_writing_memory_of_processes(tier: Tier) -> None:
    found = tier.look(
        "buffer = ctypes.create_string_buffer(64)\n"
        "local = struct.pack('QQ', ctypes.addressof(buffer), 64); remote = struct.pack('QQ', "
        "ctypes.addressof(buffer), 64)\n"
        "for pid in [*pids, os.getppid(), 1, os.getpid()]:\n"
        "    found[f'{pid} read'] = syscall(readv, pid, local, 1, remote, 1, 0)\n"
        "    found[f'{pid} write'] = syscall(writev, pid, local, 1, remote, 1, 0)\n"
        "    if pid != os.getpid():\n"
        "        found[f'{pid} mem'] = attempt(open, f'/proc/{pid}/mem', 'r+b')\n"
        "        found[f'{pid} maps'] = attempt(read, f'/proc/{pid}/maps')",
        pids=others(tier),
        readv=NUMBERS["process_vm_readv"],
        writev=NUMBERS["process_vm_writev"],
    )
    assert done(found) == {}


def test_taking_descriptors_of_processes(tier: Tier) -> None:
    found = tier.look(
        "for pid in [*pids, os.getppid(), os.getpid()]:\n"
        "    descriptor = syscall(434, pid, 0)\n"
        "    found[pid] = [syscall(getfd, descriptor if isinstance(descriptor, int) else 0, n, 0) for n in range(12)]\n"
        "    found[f'{pid} by name'] = [attempt(os.open, f'/proc/{pid}/fd/{n}', os.O_RDONLY) for n in range(12)\n"
        "                               if pid != os.getpid()]\n"
        "    found[f'{pid} namespaces'] = syscall(setns, descriptor if isinstance(descriptor, int) else 0, "
        "0x7e020000)\n"
        "    if isinstance(descriptor, int): os.close(descriptor)",
        pids=others(tier),
        getfd=NUMBERS["pidfd_getfd"],
        setns=NUMBERS["setns"],
    )
    assert done(found) == {}


def test_signals_to_the_host_its_parent_and_its_guardian(tier: Tier) -> None:
    found = tier.look(
        "for pid in pids:\n"
        "    for number in (signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, 0):\n"
        "        found[f'{pid} {number}'] = attempt(os.kill, pid, number)\n"
        "        found[f'{pid} group {number}'] = attempt(os.killpg, pid, number)\n"
        "        found[f'{pid} thread {number}'] = syscall(tgkill, pid, pid, number)\n"
        "        found[f'{pid} queue {number}'] = syscall(sigqueue, pid, number, bytes(128))\n"
        "        descriptor = syscall(434, pid, 0)\n"
        "        if isinstance(descriptor, int):\n"
        "            found[f'{pid} pidfd {number}'] = syscall(424, descriptor, number, None, 0)\n"
        "            os.close(descriptor)\n",
        pids=others(tier),
        tgkill={"x86_64": 234, "aarch64": 131}[MACHINE],
        sigqueue={"x86_64": 129, "aarch64": 138}[MACHINE],
    )
    assert done(found) == {}
    above = tier.host("result = os.getppid()")  # to whom nothing is sent that does harm
    assert done(tier.look("found = {n: attempt(os.kill, pid, n) for n in (0, signal.SIGCONT)}", pid=above)) == {}


def test_a_signal_to_everybody(tier: Tier) -> None:
    tier.host(
        "import subprocess\n"
        "watch = 'import signal, sys; signal.signal(signal.SIGURG, lambda *_: print(\"hit\", flush=True));'\n"
        "watch += 'print(\"ready\", flush=True); sys.stdin.read()'\n"
        "facts['watcher'] = subprocess.Popen([sys.executable, '-c', watch], stdin=-1, stdout=-1, text=True)\n"
        "facts['watcher'].stdout.readline()"
    )
    # The call says that all is well when it was allowed to signal nobody. SIGURG, because it harms nobody either.
    tier.run("attempt(os.kill, -1, signal.SIGURG)")
    assert tier.host("result = facts.pop('watcher').communicate(timeout=20)[0]") == ""


def test_signals_that_the_system_sends_for_it(tier: Tier) -> None:
    tier.run(
        "import fcntl\n"
        "for pid in pids:\n"
        "    for owner in (pid, -pid):\n"
        "        for number in (0, signal.SIGKILL, signal.SIGTERM):\n"
        "            reading, writing = os.pipe()\n"
        "            print(attempt(fcntl.fcntl, reading, 10, number), attempt(fcntl.fcntl, reading, "
        "fcntl.F_SETOWN, owner))\n"
        "            fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)\n"
        "            os.write(writing, b'x'); os.close(reading); os.close(writing)",
        pids=others(tier),
    )
    alive = "import os, signal\nfor pid in pids: os.kill(pid, 0)\nresult = True"
    assert tier.host(alive, pids=others(tier))


def test_signals_to_kernels_of_other_sessions(tier: Tier) -> None:
    with tier.session(name="other") as other:
        found = tier.look(
            "for pid in pids:\n"
            "    for number in (signal.SIGSTOP, signal.SIGKILL):\n"
            "        found[f'{pid} {number}'] = attempt(os.kill, pid, number)\n"
            "        found[f'{pid} group {number}'] = attempt(os.killpg, pid, number)",
            pids=[pid for pid in tier.host("result = kernel_pids(sessions['other'])") if pid > 100],
        )
        assert done(found) == {}
        assert tier.works(other)


def test_changing_limits_and_priorities_of_others(tier: Tier) -> None:
    with tier.session(name="other"):
        mine = others(tier)
        pids = [*mine, *tier.host("result = kernel_pids(sessions['other'])[-1:]")]
        state = (
            "import resource\n"
            "result = [[os.getpriority(0, p), sorted(os.sched_getaffinity(p)), os.sched_getscheduler(p),\n"
            "           [resource.prlimit(p, r) for r in (0, 1, 4, 7)]] for p in pids]"
        )
        before = tier.host(state, pids=mine)
        found = tier.look(
            "import resource\n"
            "for pid in pids:\n"
            "    for which in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, "
            "resource.RLIMIT_CORE):\n"
            "        found[f'{pid} limit {which}'] = attempt(resource.prlimit, pid, which, (0, 0))\n"
            "        found[f'{pid} look {which}'] = attempt(resource.prlimit, pid, which)\n"
            "    found[f'{pid} nice'] = attempt(os.setpriority, os.PRIO_PROCESS, pid, 19)\n"
            "    found[f'{pid} group'] = attempt(os.setpriority, os.PRIO_PGRP, pid, 19)\n"
            "    found[f'{pid} affinity'] = attempt(os.sched_setaffinity, pid, {0})\n"
            "    found[f'{pid} idle'] = attempt(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))\n"
            "    found[f'{pid} batch'] = attempt(os.sched_setscheduler, pid, os.SCHED_BATCH, os.sched_param(0))\n"
            "    found[f'{pid} attributes'] = syscall(setattr_, pid, struct.pack('IIQiIQQQ', 48, 5, 0, 0, 0, 0, "
            "0, 0), 0)\n"
            "    found[f'{pid} disk'] = syscall(ioprio, 1, pid, 3 << 13)\n"
            "    found[f'{pid} disk group'] = syscall(ioprio, 2, pid, 3 << 13)\n",
            pids=[pid for pid in pids if pid > 100],
            setattr_={"x86_64": 314, "aarch64": 274}[MACHINE],
            ioprio={"x86_64": 251, "aarch64": 30}[MACHINE],
        )
        assert done(found) == {}
        # Of all processes of a user: the kernel's own alone may follow.
        tier.run(
            "attempt(os.setpriority, os.PRIO_USER, os.getuid(), 1), syscall(ioprio, 3, os.getuid(), 3 << 13)",
            ioprio={"x86_64": 251, "aarch64": 30}[MACHINE],
        )
        assert tier.host(state, pids=mine) == before


def test_new_namespaces(tier: Tier) -> None:
    found = tier.look(
        "flags = {'mount': 0x20000, 'cgroup': 0x2000000, 'uts': 0x4000000, 'ipc': 0x8000000, 'user': 0x10000000,\n"
        "         'pid': 0x20000000, 'net': 0x40000000, 'time': 0x80}\n"
        "for name, flag in flags.items():\n"
        "    found[f'unshare {name}'] = syscall(unshare, flag)\n"
        "    found[f'setns {name}'] = syscall(setns, 0, flag)\n"
        "    if name == 'time': continue\n"
        "    for extra in (0, 0x10000000):\n"
        "        child = syscall(clone, flag | extra | signal.SIGCHLD, 0, 0, 0, 0)\n"
        "        if child == 0: os._exit(0)\n"
        "        found[f'clone {name} {extra}'] = child\n"
        "arguments = struct.pack('8Q', 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)\n"
        "child = syscall(435, arguments, 64)\n"
        "if child == 0: os._exit(0)\n"
        "found['clone3'] = child\n"
        "for words in (['unshare', '-r', 'id'], ['unshare', '-n', 'id'], ['nsenter', '-t', '1', '-a', 'id'], "
        "['bwrap', '--version'],\n"
        "              ['bwrap', '--ro-bind', '/', '/', 'id']):\n"
        "    if words[1] != '--version':\n"
        "        found[' '.join(words)] = attempt(lambda: subprocess.run(words, check=True, capture_output=True))",
        unshare=NUMBERS["unshare"],
        setns=NUMBERS["setns"],
        clone={"x86_64": 56, "aarch64": 220}[MACHINE],
    )
    assert done(found) == {}
    assert found["clone user 0"] == "EPERM"
    assert found["clone3"] == "ENOSYS"


def test_mounting_and_changing_the_root(tier: Tier) -> None:
    found = tier.look(
        "os.makedirs('place', exist_ok=True)\n"
        "text = lambda word: ctypes.c_char_p(word.encode())\n"
        "_libc.mount.restype = ctypes.c_int\n"
        "for kind, source, target in (('tmpfs', 'none', 'place'), ('proc', 'none', 'place'), (None, '/', "
        "'place'), ('overlay', 'x', 'place')):\n"
        "    found[f'mount {kind}'] = _libc.mount(text(source), text(target), kind and text(kind), "
        "ctypes.c_ulong(0 if kind else 4096), None)\n"
        "found['remount'] = _libc.mount(text('none'), text('/'), None, ctypes.c_ulong(32), None)\n"
        "found['umount'] = min(_libc.umount2(text(path), 2) for path in ('/proc', '/proc/sys', '/usr', '/tmp', "
        "'/run/kernel'))\n"
        "found['chroot'] = attempt(os.chroot, '.')\n"
        "found['pivot'] = syscall(pivot, b'.\\0', b'place\\0')\n"
        "found['program'] = attempt(lambda: subprocess.run(['mount', '-t', 'tmpfs', 'none', 'place'], "
        "check=True, capture_output=True))",
        pivot=NUMBERS["pivot_root"],
    )
    assert done(found) == {}


def test_attack_surface_of_the_operating_system(tier: Tier) -> None:
    found = tier.look(
        "parameters = ctypes.create_string_buffer(256)\n"
        "found['io_uring'] = syscall(numbers['io_uring_setup'], 8, parameters)\n"
        "found['bpf'] = syscall(numbers['bpf'], 0, struct.pack('IIIIII', 1, 4, 4, 1, 0, 0) + bytes(100), 72)\n"
        "found['perf'] = syscall(numbers['perf_event_open'], struct.pack('IIQ', 1, 128, 0) + bytes(120), 0, -1, "
        "-1, 0)\n"
        "found['userfaultfd'] = [syscall(numbers['userfaultfd'], flags) for flags in (0, 1)]\n"
        "found['userfaultfd device'] = attempt(open, '/dev/userfaultfd', 'r+b')\n"
        "found['personality'] = syscall(numbers['personality'], 0x0040000)\n"
        "found['modify_ldt'] = syscall(numbers['modify_ldt'] or numbers['bpf'], 1, bytes(16), 16)\n"
        "found['seccomp'] = syscall(numbers['seccomp'], 2, 0, None)\n"
        "found['fanotify'] = syscall(numbers['fanotify_init'], 0, 0)\n"
        "found['handles'] = syscall(numbers['name_to_handle_at'], -100, b'/\\0', bytes(200), bytes(8), 0)\n"
        "found['by handle'] = syscall(numbers['open_by_handle_at'], -100, struct.pack('Ii', 8, 1) + bytes(8), 0)\n"
        "found['devices'] = [attempt(open, f'/dev/{name}', 'r+b') for name in\n"
        "    ('kvm', 'fuse', 'net/tun', 'loop-control', 'uinput', 'vhost-net', 'mem', 'snapshot', 'dri/card0', "
        "'vsock')]",
        numbers=NUMBERS,
    )
    assert done(found) == {}


def test_keyrings(tier: Tier) -> None:
    found = tier.look(
        "found = {ring: syscall(numbers['keyctl'], 0, ring, 1) for ring in (-1, -2, -3, -4, -5)}\n"
        "found['join'] = syscall(numbers['keyctl'], 1, None)\n"
        "found['read'] = syscall(numbers['keyctl'], 11, -4, ctypes.create_string_buffer(100), 100)\n"
        "found['add'] = syscall(numbers['add_key'], b'user\\0', b'redteam\\0', b'x', 1, -4)\n"
        "found['request'] = syscall(numbers['request_key'], b'user\\0', b'redteam\\0', None, -4)\n"
        "found['listing'] = attempt(read, '/proc/keys')",
        numbers=NUMBERS,
    )
    if tier.letter == "N":
        found.pop("listing")  # shows the keys of its own user, which has none
    assert done(found) == {}


def test_memory_that_no_limit_counts(tier: Tier) -> None:
    found = tier.look(
        "found['memfd'] = attempt(os.memfd_create, 'x')\n"
        "found['secret'] = syscall(numbers['memfd_secret'], 0)\n"
        "found['shm'] = syscall(numbers['shmget'], 0, 2**20, 0o1600)\n"
        "found['attach'] = [syscall(numbers['shmat'], id, None, 0) for id in range(4)]\n"
        "found['control'] = [syscall(numbers['shmctl'], id, 13, bytes(200)) for id in range(4)]\n"
        "found['messages'] = syscall(numbers['msgget'], 0, 0o1600)\n"
        "found['semaphores'] = syscall(numbers['semget'], 0, 1, 0o1600)\n"
        "found['queue'] = syscall(numbers['mq_open'], b'redteam\\0', 0o102, 0o600, None)",
        numbers=NUMBERS,
    )
    assert done(found) == {}


def test_what_is_counted_for_the_machine_or_the_user_or_not_at_all(tier: Tier) -> None:
    found = tier.look("""
import fcntl
path = os.path.join(os.getcwd(), "counted")
file, folder = os.open(path, os.O_RDWR | os.O_CREAT), os.open("/usr/lib", os.O_RDONLY)
reading, writing = os.pipe()
one, other = socket.socketpair()
room = struct.pack("=hhiqqiI4i", 0, 0, 0, 0, 2**30, 0, 0, 0, 0, 0, 0)
found["lease"] = attempt(fcntl.fcntl, file, 1024, fcntl.F_WRLCK)
found["watch"] = attempt(fcntl.fcntl, folder, 1026, 0x8000001F)
found["pipe"] = attempt(fcntl.fcntl, writing, 1031, 2**20)
found["lock"] = attempt(fcntl.fcntl, file, 37, struct.pack("=hhiqqii", fcntl.F_WRLCK, 0, 0, 0, 10, 0, 0))
found["huge"] = attempt(mmap.mmap, -1, 2**21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
found["buffer"] = attempt(one.setsockopt, socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
found["filter"] = attempt(one.setsockopt, socket.SOL_SOCKET, 26, struct.pack("@HP", 0, 0))
found["room"] = attempt(fcntl.ioctl, file, 0x40305828, room)
found["attribute"] = attempt(os.setxattr, path, "user.x", b"x" * 1000)
for fd in (file, folder, reading, writing): os.close(fd)
one.close(), other.close()
import resource
limits = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in ("RTPRIO", "NICE")}
found["limits"] = "EPERM" if set(limits.values()) == {(0, 0)} else f"done: {limits}"
""")
    assert done(found) == {}


def test_becoming_another_user(tier: Tier) -> None:
    found = tier.look(
        "mine = os.getuid()\n"
        "for user in {0, 1, 65534, host} - {mine}:\n"
        "    found[f'setuid {user}'] = attempt(os.setuid, user)\n"
        "    found[f'setresuid {user}'] = attempt(os.setresuid, user, user, user)\n"
        "    found[f'setgid {user}'] = attempt(os.setgid, user)\n"
        "    found[f'setfsuid {user}'] = (_libc.setfsuid(user), _libc.setfsuid(-1))[1]\n"
        "found['groups'] = attempt(os.setgroups, [0])\n"
        "header = struct.pack('=Ii', 0x20080522, 0)\n"
        "found['capabilities'] = _libc.capset(header, struct.pack('6I', *[0xffffffff] * 6))\n"
        "found['inherited'] = _libc.capset(header, struct.pack('6I', 0, 0, 0xffffffff, 0, 0, 0xffffffff))\n"
        "found['ambient'] = _libc.prctl(47, 2, 21, 0, 0)\n"
        "found['securebits'] = _libc.prctl(28, 0x2f, 0, 0, 0)\n"
        "found['privileges'] = _libc.prctl(38, 0, 0, 0, 0)",
        host=tier.facts["uid"],
    )
    users = {name: said for name, said in found.items() if name.startswith("setfsuid")}
    assert all(said == tier.look("found['uid'] = os.getuid()")["uid"] for said in users.values()), found
    rest = {name: said for name, said in found.items() if name not in users}
    assert done(rest) == {}
    lines = tier.run("print(read('/proc/self/status').decode())").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    # Where its own user could not reach Python it may pass and read, within Landlock: CAP_DAC_READ_SEARCH alone.
    held = 1 << 2 if tier.kind.keep_root else 0
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {held}


def test_set_uid_programs(tier: Tier) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make one for the test")
    folder = Path(tier.base) / "set-uid"
    folder.mkdir(exist_ok=True)
    for program in ("id", "cat"):
        shutil.copyfile(shutil.which(program) or f"/usr/bin/{program}", folder / program)
        os.chown(folder / program, 0, 0)
        os.chmod(folder / program, 0o6755)
    with tier.session(f"confinement=Confinement(read_only=({str(folder)!r},))") as own:
        found = tier.look(
            "found['id'] = subprocess.run([folder + '/id', '-u'], capture_output=True, text=True).stdout\n"
            "found['gid'] = subprocess.run([folder + '/id', '-g'], capture_output=True, text=True).stdout\n"
            "found['me'] = [os.getuid(), os.getgid()]\n"
            "found['shadow'] = subprocess.run([folder + '/cat', '/etc/shadow'], capture_output=True, "
            "text=True).stdout\n"
            "found['su'] = attempt(lambda: subprocess.run(['su', '-c', 'id'], check=True, capture_output=True,\n"
            "                                             stdin=subprocess.DEVNULL, timeout=10))",
            session=own,
            folder=str(folder),
        )
        assert [int(found["id"]), int(found["gid"])] == found["me"]
        assert found["shadow"] == ""
        if found["me"][0] != 0:
            assert not found["su"].startswith("done")


def test_typing_into_a_terminal(tier: Tier) -> None:
    found = tier.look(
        "import fcntl\n"
        "for request in (0x5412, 0x541C, 0x5412 | 1 << 32, -(1 << 32) + 0x5412):\n"
        "    found[request] = _libc.ioctl(0, ctypes.c_ulong(request & 2**64 - 1), b'x'), ctypes.get_errno()\n"
        "found['tty'] = attempt(open, '/dev/tty', 'r+b', 0)\n"
        "def own_terminal():\n"
        "    ours, theirs = os.openpty()\n"
        "    try: return fcntl.ioctl(theirs, 0x5412, b'x')\n"
        "    finally: os.close(ours); os.close(theirs)\n"
        "found['own'] = attempt(own_terminal)\n"
        "found['terminal'] = os.isatty(0) or os.isatty(1) or os.isatty(2)"
    )
    assert all(said == [-1, 1] for request, said in found.items() if request.lstrip("-").isdigit()), found
    assert not found["tty"].startswith("done")
    assert not found["own"].startswith("done")
    assert found["terminal"] is False


def test_raising_its_own_limits(tier: Tier) -> None:
    with tier.session("confinement=Confinement(cpu_seconds=60, open_files=200, memory_bytes=600 * 2**20)") as own:
        found = tier.look(
            "import resource\n"
            "for name in ('AS', 'DATA', 'NOFILE', 'CPU', 'FSIZE', 'CORE', 'NPROC'):\n"
            "    which = getattr(resource, 'RLIMIT_' + name)\n"
            "    soft, hard = resource.getrlimit(which)\n"
            "    if hard == resource.RLIM_INFINITY: continue\n"
            "    try: resource.setrlimit(which, (hard, hard + 1)); found[name] = 'raised'\n"
            "    except (ValueError, OSError) as error: found[name] = type(error).__name__\n"
            "    found[name + ' by number'] = attempt(resource.prlimit, os.getpid(), which, (hard, hard + 1))",
            session=own,
        )
        assert {"AS", "DATA", "NOFILE", "CPU", "FSIZE", "CORE"} <= set(found)
        assert "raised" not in found.values()
        assert not any(said.startswith("done") for said in found.values())


def test_loosening_the_fence_from_inside(tier: Tier) -> None:
    found = tier.look(
        "found['landlock'] = syscall(444, struct.pack('QQQ', 1, 0, 0), 24, 0)\n"
        "made = -1\n"
        "def allow_all():\n"
        "    root = os.open('/', os.O_PATH)\n"
        "    rule = struct.pack('=Qi', 1, root)\n"
        "    return syscall(445, made, 1, rule, 0), syscall(446, made, 0)\n"
        "beside = threading.Thread(target=lambda: found.update(rule=allow_all(), after=attempt(read, '/etc/shadow')))\n"
        "beside.start(); beside.join()\n"
        "found['strict'] = _libc.prctl(22, 0, 0, 0, 0)\n"
        "found['filter'] = _libc.prctl(22, 2, 0, 0, 0)\n"
        "found['speculation'] = _libc.prctl(53, 0, 2, 0, 0)\n"
        "found['shadow'] = attempt(read, '/etc/shadow')"
    )
    assert found["landlock"] == "ENOSYS"
    assert not str(found["after"]).startswith("done")
    assert not found["shadow"].startswith("done")
    assert found["strict"] == found["filter"] == -1
