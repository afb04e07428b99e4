"""Attacks by files: writing where nothing may be written, and traps in the directories that the host looks into."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rig import PRELUDE, CellError, Tier
from victim import Victim, at_every_tier

WRITE = """
def ways_to_write(path):
    "Every way to change a file or what stands beside it."
    import shutil
    folder = os.path.dirname(path)
    yield "write", lambda: write(path)
    yield "append", lambda: open(path, "ab").write(b"x")
    yield "update", lambda: open(path, "r+b").write(b"x")
    yield "by root", lambda: write("/proc/self/root" + path)
    yield "truncate", lambda: os.truncate(path, 0)
    yield "unlink", lambda: os.unlink(path)
    yield "rename away", lambda: os.rename(path, "taken")
    yield "rename over", lambda: (write("new"), os.rename("new", path))
    yield "rename beside", lambda: os.rename(path, path + ".old")
    yield "hard link", lambda: os.link(path, "linked")
    yield "hard link there", lambda: (write("mine"), os.link("mine", path + ".link"))
    yield "symlink there", lambda: os.symlink("/etc/passwd", path + ".symlink")
    yield "new file", lambda: write(path + ".new")
    yield "new directory", lambda: os.mkdir(path + ".d")
    yield "fifo", lambda: os.mkfifo(path + ".fifo")
    yield "socket", lambda: socket.socket(socket.AF_UNIX).bind(path + ".sock")
    yield "device", lambda: os.mknod(path + ".device", 0o20666, os.makedev(1, 3))
    yield "nameless file", lambda: os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    def through_a_link():
        if not os.path.lexists("way"):
            os.symlink(path, "way")
        try:
            write("way")
        finally:
            os.unlink("way")
    yield "symlink here", through_a_link
    yield "copy", lambda: shutil.copyfile("/etc/passwd", path)
    yield "shell", lambda: subprocess.run(["sh", "-c", f"echo x >> {path}"], check=True, capture_output=True)
    def reopen():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with open(f"/proc/self/fd/{descriptor}", "r+b") as file:
                file.write(b"x")
        finally:
            os.close(descriptor)
    yield "open again", reopen
    def mapped():
        with open(path, "rb") as file:
            view = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            view[0] = 120
    yield "map", mapped

def ways_to_mark(path):
    "Every way to change what a file is said to be."
    yield "chmod", lambda: os.chmod(path, 0o777)
    yield "chmod 0", lambda: os.chmod(path, 0)
    yield "chown", lambda: os.chown(path, os.getuid(), os.getgid())
    yield "lchown", lambda: os.lchown(path, os.getuid(), os.getgid())
    yield "utime", lambda: os.utime(path, (1, 1))
    yield "touch", lambda: os.utime(path)
    yield "attribute", lambda: os.setxattr(path, "user.redteam", b"x")
    yield "no attribute", lambda: os.removexattr(path, "user.planted")
    yield "folder's mode", lambda: os.chmod(os.path.dirname(path), 0o777)
    def by_descriptor(flags):
        descriptor = os.open(path, flags)
        try:
            yield_ = attempt(os.fchmod, descriptor, 0o777), attempt(os.chmod, f"/proc/self/fd/{descriptor}", 0o777)
            yield_ += attempt(os.fchown, descriptor, os.getuid(), -1), attempt(os.utime, descriptor)
            return [came for came in yield_ if came.startswith("done")] or (_ for _ in ()).throw(PermissionError(1, ""))
        finally:
            os.close(descriptor)
    yield "descriptor", lambda: by_descriptor(os.O_RDONLY)
    yield "path descriptor", lambda: by_descriptor(os.O_PATH)
    yield "chattr", lambda: subprocess.run(["chattr", "+d", path], check=True, capture_output=True)
    yield "shell", lambda: subprocess.run(["chmod", "777", path], check=True, capture_output=True)
"""

STATE = """
import hashlib, stat
def state(path):
    if not os.path.lexists(path): return None
    s = os.lstat(path)
    text = sorted(os.listdir(path)) if stat.S_ISDIR(s.st_mode) else hashlib.sha256(open(path, 'rb').read()).hexdigest()
    marks = {n: os.getxattr(path, n).hex() for n in os.listxattr(path) if n.startswith('user.')}
    return [s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns, s.st_nlink, s.st_ino, text, marks]
result = {path: state(path) for path in paths}
"""


def places(tier: Tier) -> list[str]:
    """Files of the host, and the directories that they are in, which no kernel may change."""
    return [path for file in tier.facts["files"].values() for path in (file, file.rpartition("/")[0])]


def test_writing_to_files_of_the_host(tier: Tier) -> None:
    before = tier.host(STATE, paths=places(tier))
    found = tier.look(
        f"{WRITE}\nfor path in paths:\n    for way, action in ways_to_write(path): found[f'{{path}} {{way}}'] = "
        f"attempt(action)",
        paths=list(tier.facts["files"].values()),
    )
    assert {name for name, said in found.items() if said.startswith("done")} == set()
    after = tier.host(STATE, paths=places(tier))
    assert {p: after[p] for p in after if p != tier.facts["runtime_root"]} == {
        p: before[p] for p in before if p != tier.facts["runtime_root"]
    }


def test_changing_modes_owners_and_times_of_files_of_the_host(tier: Tier) -> None:
    with_attribute = "import contextlib\nwith contextlib.suppress(OSError): os.setxattr(path, 'user.planted', b'x')"
    tier.host(with_attribute, path=tier.facts["files"]["home_file"])
    before = tier.host(STATE, paths=places(tier))
    found = tier.look(
        f"{WRITE}\nfor path in paths:\n    for way, action in ways_to_mark(path): found[f'{{path}} {{way}}'] = "
        f"attempt(action)",
        paths=places(tier),
    )
    assert {name for name, said in found.items() if said.startswith("done")} == set()
    assert tier.host(STATE, paths=places(tier)) == before


def test_writing_all_over_the_system(tier: Tier) -> None:
    found = tier.look(
        "import glob\n"
        "folders = ['/', '/etc', '/usr', '/usr/bin', '/usr/lib', '/usr/local', '/bin', '/lib', '/var', "
        "'/var/tmp', '/root', '/home', '/opt',\n"
        "           '/run', '/dev', '/proc', '/sys', '/sys/devices/system/cpu', '/srv', '/run/lib', '/boot']\n"
        "for folder in folders:\n"
        "    found[folder] = [attempt(write, f'{folder}/redteam'), attempt(os.mkdir, f'{folder}/redteam.d'),\n"
        "                     attempt(os.symlink, 'x', f'{folder}/redteam.link'), attempt(os.chmod, folder, 0o777)]"
    )
    assert [folder for folder, said in found.items() if any(came.startswith("done") for came in said)] == []


def test_writing_where_others_have_their_temporary_files(tier: Tier) -> None:
    name = f"redteam-{tier.facts['host_pid']}"
    folders = ["/tmp", "/var/tmp", "/dev/shm", tier.facts["runtime_root"]]
    found = tier.look("found = {f: attempt(write, f'{f}/{name}') for f in folders}", folders=folders, name=name)
    there = "result = [f for f in folders if os.path.exists(f'{f}/{name}')]"
    assert tier.host(there, folders=folders, name=name) == []
    if tier.letter == "L":
        assert not any(said.startswith("done") for said in found.values()), found


def test_writing_into_the_interpreter_and_its_packages(tier: Tier) -> None:
    text = tier.run(
        "import site, sysconfig, json, importlib.util\n"
        "files = [sys.executable, os.path.realpath(sys.executable), json.__file__, os.__file__, ctypes.__file__,\n"
        "         importlib.util.find_spec('ipykernel').origin, importlib.util.find_spec('zmq').origin,\n"
        "         *(sys.modules[name].__file__ for name in sys.modules if name.startswith('kernel_bridge.'))]\n"
        "files += [os.path.join(path, 'redteam.pth') for path in site.getsitepackages() + "
        "[site.getusersitepackages()]]\n"
        "files += [os.path.join(sys.prefix, 'pyvenv.cfg'), os.path.join(sys.base_prefix, 'lib', 'redteam')]\n"
        "files = [file for file in files if file]\n"
        "print(json.dumps(files))"
    )
    files = json.loads(text)
    assert sum("kernel_bridge" in file for file in files) >= 5
    before = tier.host(STATE, paths=[file for file in files if not file.startswith("/run/")])
    found = tier.look(
        f"{WRITE}\n"
        "for path in files:\n"
        "    for way, action in (*ways_to_write(path), *ways_to_mark(path)): found[f'{path} {way}'] = attempt(action)",
        files=files,
    )
    done = {name for name, said in found.items() if said.startswith("done")}
    private = ("/scratch", "/tmp/") if tier.letter == "N" else ("/nowhere",)  # its own, under whatever name
    assert {name for name in done if not name.startswith(private)} == set()
    assert tier.host(STATE, paths=[file for file in files if not file.startswith("/run/")]) == before
    with tier.session() as own:
        assert tier.works(own)


def test_core_pattern_and_other_settings_of_the_system(tier: Tier) -> None:
    found = tier.look(
        "paths = ['/proc/sys/kernel/core_pattern', '/proc/sys/kernel/modprobe', '/proc/sys/kernel/hotplug', "
        "'/proc/sys/vm/overcommit_memory',\n"
        "  '/proc/sys/fs/binfmt_misc/register', '/proc/sys/kernel/hostname', '/proc/sys/kernel/ns_last_pid', "
        "'/proc/sys/net/ipv4/ip_forward',\n"
        "  '/proc/sysrq-trigger', '/proc/self/oom_score_adj', '/proc/self/loginuid', '/proc/self/uid_map', "
        "'/proc/self/setgroups',\n"
        "  '/proc/self/coredump_filter', '/proc/self/attr/current', '/proc/1/oom_score_adj', '/proc/bus', "
        "'/proc/irq/default_smp_affinity',\n"
        "  '/sys/kernel/uevent_helper', '/sys/power/state', '/sys/fs/cgroup/cgroup.procs', "
        "'/sys/fs/cgroup/release_agent',\n"
        "  '/sys/devices/system/cpu/cpu0/online', '/sys/kernel/mm/ksm/run', '/sys/class/net', "
        "'/sys/kernel/security/x',\n"
        "  '/sys/module/x', '/proc/timer_list', '/proc/mtrr', '/proc/asound', '/proc/self/timerslack_ns', "
        "'/proc/self/clear_refs']\n"
        "for path in paths:\n"
        "    for mode in ('wb', 'r+b', 'ab'):\n"
        "        found[f'{path} {mode}'] = attempt(lambda: open(path, mode, 0).close())"
    )
    assert {name for name, said in found.items() if said.startswith("done")} == set()


def test_reaching_the_files_of_others_by_moving_its_own_directories(tier: Tier) -> None:
    found = tier.look(
        "import shutil\n"
        "home = os.getcwd(); keep = keep or home + '/../keep'; sockets = sockets or home + '/../k1'\n"
        "for name, folder in (('scratch', home), ('keep', keep), ('sockets', sockets)):\n"
        "    found[f'{name} away'] = attempt(os.rename, folder, folder + '.moved')\n"
        "    found[f'{name} over'] = attempt(os.rename, os.path.join(folder, '..'), home + '/up')\n"
        "    found[f'{name} remove'] = attempt(os.rmdir, folder)\n"
        "    found[f'{name} beside'] = attempt(write, os.path.join(folder, '../beside'))\n"
        "    found[f'{name} list'] = attempt(os.listdir, os.path.join(folder, '..')) if name == 'sockets' and "
        "not in_n else 'EACCES'\n"
        "    found[f'{name} other kernel'] = attempt(os.mkdir, os.path.join(folder, '../k2'))",
        keep="/run/keep" if tier.letter == "N" else None,
        sockets="/run/kernel" if tier.letter == "N" else None,
        in_n=tier.letter == "N",
    )
    assert {name for name, said in found.items() if said.startswith("done")} == set()


# -- traps for the host ------------------------------------------------------------------------------------------------

FIND = """
def own(name):
    "The kernel's directory of sockets, or the one that outlives it."
    if os.path.isdir("/run/kernel"):
        return {"sockets": "/run/kernel", "keep": "/run/keep"}[name]
    folder = os.path.dirname(os.getcwd())
    if name == "keep":
        return os.path.join(folder, "keep")
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    found = [os.readlink(link) for link in links if os.path.exists(link)]
    return next(os.path.dirname(path) for path in found if path.endswith("/transcript"))

def replace(path, make):
    if os.path.isdir(path) and not os.path.islink(path):
        os.rmdir(path)
    elif os.path.lexists(path):
        os.unlink(path)
    make(path)
"""


def die(tier: Tier, code: str, *, session: str = "own", **variables: Any) -> str:
    """Set a trap and die; what the session says of it."""
    with pytest.raises(CellError) as caught:
        tier.run(f"{PRELUDE}\n{FIND}\n{code}\nos._exit(3)", session=session, **variables)
    assert caught.value.kind == "CodeExecutionError", caught.value
    assert "The kernel died while this cell ran" in caught.value.message
    tier.assert_secret(caught.value.message)
    return caught.value.message


TRAPS = {
    "symlink to a secret": "os.symlink(secret, path)",
    "symlink to a file of the host": "os.symlink(victim, path)",
    "symlink to a device that never ends": "os.symlink('/dev/zero', path)",
    "fifo": "os.mkfifo(path)",
    "directory": "os.mkdir(path)",
    "sparse file": "open(path, 'wb').truncate(2**29)",
    "foreign pickle": 'open(path, \'wb\').write(b\'{"python": "cpython-3.11", "names": {}, "lost": {}}\\n\' + evil)',
    "well-formed pickle": "from kernel_bridge.inside.checkpoint_slots import SlotWriter\n"
                          "    with SlotWriter(path[:-2]) as file:\n"
                          "        file.write(evil)\n"
                          "        file.finish(head)",
    "bare pickle": "open(path, 'wb').write(evil)",
    "unreadable file": "write(path); os.chmod(path, 0)",
    "deep JSON": "open(path, 'wb').write(b'[' * 100000)",
}

# Writes a file on whichever side loads it.
EVIL = """
import pickle
class Evil:
    def __reduce__(self):
        return exec, (f'open({mark!r}, "w").write("unpickled")',)
evil = pickle.dumps(Evil())
head = f'{{"python": "{{sys.implementation.name}}-{{sys.version_info[0]}}.{{sys.version_info[1]}}"'.encode()
head += b', "names": {"a": 99}, "lost": {}, "modules": {}, "sources": {}}\\n'
"""


@pytest.mark.timeout(900)  # twelve starts in every tier
@at_every_tier
def test_traps_in_the_place_of_files_that_the_host_or_the_next_kernel_reads(bounded: Victim) -> None:
    tier = bounded.tier
    victim, mark = str(tier.base / "home" / "victim"), str(tier.base / "home" / "mark")
    tier.host("open(victim, 'w').write('as it was')", victim=victim)
    before = tier.host(STATE, paths=[victim])
    with tier.session(f"restarts={len(TRAPS) + 2}, limits=Limits(start_seconds=20)") as own:
        for name, trap in TRAPS.items():
            said = die(
                tier,
                f"{EVIL}\nprint('before the end', flush=True)\n"
                f"def make(path):\n    {trap}\n"
                "places = [os.path.join(own('keep'), f'checkpoint.{number}') for number in (0, 1)]\n"
                "for path in (os.path.join(own('sockets'), 'transcript'), *places):\n"
                "    if path in places: attempt(make, path)\n"  # as it is, for it can hardly be replaced
                "    attempt(replace, path, make)",
                victim=victim,
                secret=tier.facts["files"]["ssh_key"],
                mark=mark,
            )
            assert "before the end" in said, name  # the host reads what it made itself
            assert "as it was" not in said, name
            assert tier.works(own), name
    assert tier.host(STATE, paths=[victim, mark]) == {**before, mark: None}


def test_a_transcript_without_end(tier: Tier) -> None:
    with tier.session("limits=Limits(output_bytes=20_000), confinement=Confinement(scratch_bytes=32 * 2**20)") as own:
        said = die(
            tier,
            "path = os.path.join(own('sockets'), 'transcript')\n"
            "with open(path, 'ab') as file:\n"
            "    for _ in range(16): file.write(b'x' * 2**20)\n"
            "with open(path, 'ab') as file: file.truncate(2**24 + 2**23)",
        )
        assert len(said) < 25_000
        assert tier.works(own)


SOCKETS = ("s-1", "s-2", "s-3", "s-4", "s-5", "c", "r")


def test_sockets_replaced_by_links_to_a_listener_of_the_host(tier: Tier) -> None:
    taken = tier.host("result = dict(listeners.taken)")
    with tier.session("limits=Limits(cell_seconds=3)") as own:
        for name in SOCKETS:
            tier.run(f"{FIND}\npath = os.path.join(own('sockets'), '{name}')\n"
                     "attempt(replace, path, lambda path: os.symlink(listener, path))",
                     session=own, listener=tier.facts["listeners"]["unix"])  # fmt: skip
        assert tier.works(own)  # the connections are there already
        said = die(tier, "")
        assert "status 3" in said
        assert tier.works(own)
    assert tier.host("result = dict(listeners.taken)") == taken


def test_sockets_removed_and_the_directory_filled(tier: Tier) -> None:
    with tier.session() as own:
        tier.run(f"{FIND}\nhome = os.getcwd(); os.chdir(own('sockets'))\n"
                 "for name in os.listdir(): attempt(os.unlink, name)\n"
                 "for name in range(300): attempt(write, f'{name:0200}')\n"
                 "for name in range(300): socket.socket(socket.AF_UNIX).bind(f'{name:080}')\n"
                 "os.chdir(home)", session=own)  # fmt: skip
        assert tier.works(own)
        die(tier, "")
        assert tier.works(own)


@at_every_tier
def test_directories_that_the_host_may_not_open(bounded: Victim) -> None:
    tier = bounded.tier
    victim = str(tier.base / "home" / "victim")
    tier.host("open(victim, 'w').write('as it was'); os.chmod(victim, 0o644)", victim=victim)
    before = tier.host(STATE, paths=[victim])
    with tier.session("restarts=6") as own:
        for folder, mode in (("own('sockets')", 0), ("own('keep')", 0o500), ("os.getcwd()", 0o300), ("own('keep')", 0)):
            die(
                tier,
                "import contextlib\n"
                f"folder = {folder}\n"
                "with contextlib.suppress(OSError):\n"
                "    os.makedirs(f'{folder}/in/side'); os.symlink(victim, f'{folder}/a-link'); os.symlink(victim, "
                "f'{folder}/in/a-link')\n"
                "for path in (f'{folder}/in/side', f'{folder}/in', folder):\n"
                f"    with contextlib.suppress(OSError): os.chmod(path, {mode})",
                victim=victim,
            )
            assert tier.works(own)
        path = tier.host("result = directory(sessions['own'])")
    assert tier.host("result = os.path.exists(path)", path=path) is False
    assert tier.host(STATE, paths=[victim]) == before


@at_every_tier
def test_names_that_are_hard_to_remove(bounded: Victim) -> None:
    tier = bounded.tier
    with tier.session() as own:
        said = tier.run_or_die(
            f"{FIND}\n"
            "found = [attempt(os.mkdir, f'{own(name)}/x') for name in ('sockets', 'keep')]\n"
            "assert set(found) <= {'EACCES', 'EROFS'}, found\n"
            "for folder in (os.getcwd(),):\n"
            "    here = os.getcwd(); os.chdir(folder)\n"
            "    for name in (b'\\xff\\xfe', b'a\\nb', b'-rf', b' ', b'\\x1b]0;title\\x07', b'x' * 255, b'~', b'*'):\n"
            "        open(name, 'wb').close()\n"
            "    os.symlink('/', 'root'); os.symlink('..', 'up'); os.mkfifo('pipe')\n"
            "    for depth in range(1500):\n"
            "        os.mkdir('d' * 100); os.chdir('d' * 100)\n"
            "    os.chdir(here)\n"
            # Where these are on a disk of the host's, the watchdog comes.
            f"time.sleep({100 if tier.letter == 'L' else 0})",
            session=own,
        )
        assert "deep" in said or tier.letter == "N"
        assert tier.works(own)
        path = tier.host("result = directory(sessions['own'])")
    assert tier.host("result = os.path.exists(path)", path=path) is False
    assert tier.host("result = os.path.exists('/etc/passwd')")


def test_modules_left_in_scratch_for_the_next_kernel(tier: Tier) -> None:
    mark = str(tier.base / "home" / "mark")
    names = ["resource", "base64", "struct", "json", "ctypes", "os", "site", "sitecustomize", "usercustomize", "gc",
             "encodings", "ipykernel", "zmq", "msgspec", "tornado", "kernel_bridge", "IPython", "io"]  # fmt: skip
    with tier.session() as own:
        die(
            tier,
            "code = f'try: open({mark!r}, \"a\").write(__name__ + chr(10))\\nexcept OSError: pass\\n'\n"
            "here = os.getcwd()\n"
            "packages = [here, f'{here}/.local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages']\n"
            "for folder in packages:\n"
            "    os.makedirs(folder, exist_ok=True)\n"
            "    for name in names: open(f'{folder}/{name}.py', 'w').write(code)\n"
            "    open(f'{folder}/redteam.pth', 'w').write(f'import os; open({mark!r}, \"a\")' + chr(10))\n"
            "os.makedirs('.ipython/profile_default/startup', exist_ok=True)\n"
            "open('.ipython/profile_default/startup/00.py', 'w').write(code)\n"
            "for name in ('libc.so.6', 'libz.so.1'): write(name)",
            mark=mark,
            names=names,
        )
        assert tier.works(own)
    assert tier.host("result = os.path.exists(mark)", mark=mark) is False


def test_environment_of_the_host_that_names_the_working_directory(tier: Tier) -> None:
    mark = str(tier.base / "home" / "mark")
    lists = ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH")
    before = tier.host("result = {n: os.environ.get(n) for n in names}", names=lists)
    tier.host("for n in names: os.environ[n] = ':.:' + os.environ.get(n, '') + ':relative/place:'", names=lists)
    try:
        with tier.session() as own:
            found = tier.look("found = {n: os.environ.get(n, '') for n in names}", session=own, names=lists)
            assert all(part.startswith("/") for value in found.values() for part in value.split(":") if value), found
            die(tier, "open('sitecustomize.py', 'w').write(f'open({mark!r}, \"w\")')", mark=mark)
            assert tier.works(own)
    finally:
        tier.host(
            "for n, v in before.items():\n    if v is None: os.environ.pop(n, None)\n    else: os.environ[n] = v",
            before=before,
        )
    assert tier.host("result = os.path.exists(mark)", mark=mark) is False


def test_hard_links_and_renames_across_its_own_directories(tier: Tier) -> None:
    found = tier.look(
        f"{FIND}\nwrite('mine')\n"
        "here = os.getcwd()\n"
        "for name, target in (('sockets', own('sockets')), ('keep', own('keep'))):\n"
        "    found[name] = attempt(os.link, 'mine', f'{target}/linked')\n"
        "for path in ('/usr/bin/env', sys.executable, os.path.realpath(sys.executable), '/etc/passwd'):\n"
        "    found[path] = attempt(os.link, path, f'{here}/linked-{os.path.basename(path)}')\n"
        "    found[f'{path} rename'] = attempt(os.rename, path, f'{here}/renamed-{os.path.basename(path)}')"
    )
    assert not any(said.startswith("done") for name, said in found.items() if name.startswith("/")), found
