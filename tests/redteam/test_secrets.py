"""Attacks on secrets: keys, files of the host, other sessions, and what the host's processes hold."""

from __future__ import annotations

import json

from rig import CellError, Tier

ROADS = """
def roads(path):
    "Every road to a file's content."
    import shutil
    here = os.getcwd()
    yield "open", lambda: read(path)
    yield "root", lambda: read("/proc/self/root" + path)
    yield "cwd", lambda: read("/proc/self/cwd/" + os.path.relpath(path, here))
    yield "thread", lambda: read("/proc/thread-self/root" + path)
    yield "dots", lambda: read("/usr/lib/../.." + path)
    yield "copy", lambda: shutil.copyfile(path, "copied")
    def sendfile():
        with open(path, "rb") as source, open("sent", "wb") as target:
            return os.sendfile(target.fileno(), source.fileno(), 0, 1000)
    yield "sendfile", sendfile
    yield "cat", lambda: subprocess.run(["cat", path], capture_output=True, check=True).stdout
    yield "shell", lambda: subprocess.run(["sh", "-c", f"while read line; do echo $line; done < {path}"],
                                          capture_output=True, check=True).stdout
    def by_descriptor():
        descriptor = os.open(path, os.O_PATH)
        try:
            return read(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    yield "descriptor without rights", by_descriptor
    yield "chdir", lambda: (os.chdir(os.path.dirname(path)), read(os.path.basename(path)))
    yield "execute", lambda: subprocess.run([path], check=True)
    yield "import", lambda: __import__("runpy").run_path(path)
    def link(make, name):
        if os.path.lexists(name):
            os.unlink(name)
        make(path, name)
        return read(name)
    yield "symlink", lambda: link(os.symlink, "a_symlink")
    yield "hard link", lambda: link(os.link, "a_link")
    yield "rename", lambda: link(os.rename, "renamed")
    def openat2():
        how = struct.pack("=QQQ", os.O_RDONLY, 0, 0)
        found = syscall(437, -100, path.encode() + b"\\0", how, 24)
        return os.read(found, 1000) if isinstance(found, int) else bad(found)
    def bad(why):
        raise OSError(getattr(errno, why), why)
    yield "openat2", openat2
    yield "ctypes", lambda: ctypes.CDLL(path)

def all_roads(path):
    here = os.getcwd()
    came_of_it = {}
    for name, road in roads(path):
        came_of_it[name] = attempt(road)
        os.chdir(here)
    return came_of_it
"""


def test_reading_environment_keys(tier: Tier) -> None:
    text = tier.run(
        "print(dict(os.environ)); print(read('/proc/self/environ'))\n"
        "print(subprocess.run(['env'], capture_output=True).stdout)\n"
        "environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\n"
        "print([environ[i] for i in range(12) if all(environ[:i + 1])])"
    )
    tier.assert_secret(text)
    assert "API_KEY" not in text


def test_reading_what_processes_of_the_host_show(tier: Tier) -> None:
    pids = tier.host("result = [facts['host_pid'], os.getppid(), guardian_pid(sessions['shared'])]")
    names = ["environ", "cmdline", "maps", "mem", "stack", "auxv", "io", "root/etc/passwd", "cwd", "fd", "exe"]
    found = tier.look(
        "found = {f'{pid}/{name}': attempt(read, f'/proc/{pid}/{name}') for pid in pids for name in names}\n"
        "found.update({f'{pid}/{name} link': attempt(os.readlink, f'/proc/{pid}/{name}') for pid in pids\n"
        "              for name in ('exe', 'cwd', 'root', 'fd/0', 'fd/1')})\n"
        "found.update({f'{pid}/{name} list': attempt(os.listdir, f'/proc/{pid}/{name}') for pid in pids\n"
        "              for name in ('fd', 'task', 'cwd/', 'root/', 'map_files')})",
        pids=pids,
        names=names,
    )
    tier.assert_secret(json.dumps(found))
    assert [name for name, said in found.items() if said.startswith("done")] == []


def test_looking_through_all_of_proc(tier: Tier) -> None:
    text = tier.run(
        "seen = {}\n"
        "numbers = [n for n in range(1, 4000)] + pids\n"
        "for pid in numbers:\n"
        "    if not os.path.exists(f'/proc/{pid}'): continue\n"
        "    for name in ('environ', 'cmdline', 'maps'):\n"
        "        came = attempt(read, f'/proc/{pid}/{name}')\n"
        "        if came.startswith('done'): seen[f'{pid}/{name}'] = came\n"
        "print(seen)",
        pids=[tier.facts["host_pid"]],
    )
    tier.assert_secret(text)


def test_seeing_processes_of_the_host(tier: Tier) -> None:
    text = tier.run("print(sorted(int(name) for name in os.listdir('/proc') if name.isdigit()))"
                    if tier.letter == "N" else "print(attempt(os.listdir, '/proc'))")  # fmt: skip
    if tier.letter == "N":
        assert set(json.loads(text)) <= set(range(1, 50))
        pids = tier.host("result = [facts['host_pid'], guardian_pid(sessions['shared'])]")
        signals = "print({pid: attempt(os.kill, pid, 0) for pid in pids if pid > 200})"
        assert "done" not in tier.run(signals, pids=pids)
    else:
        assert text == "EACCES"


def test_reading_files_of_the_host_by_every_road(tier: Tier) -> None:
    paths = [*tier.facts["files"].values(), "/etc/shadow", "/etc/hostname", "/var/lib/dpkg/status", "/boot/x"]
    found = tier.look(f"{ROADS}\nfound = {{path: all_roads(path) for path in paths}}", paths=paths)
    tier.assert_secret(json.dumps(found))
    done = {f"{path}: {road}" for path, tried in found.items() for road, came in tried.items() if came[:4] == "done"}
    assert done == set()


def test_listing_the_home_of_the_hosts_user(tier: Tier) -> None:
    home = str(tier.base / "home")
    found = tier.look(
        "found = {path: attempt(os.listdir, path) for path in paths}\n"
        "found['~'] = os.path.expanduser('~')\n"
        "found['by number'] = attempt(lambda: __import__('pwd').getpwuid(os.getuid()).pw_dir)",
        paths=[home, f"{home}/.ssh", "/root", "/home", "/var", "/mnt", "/media", "/srv", "/boot", str(tier.base)],
    )
    assert found["~"].endswith("scratch")
    tier.assert_secret(json.dumps(found))
    listed = {path for path, came in found.items() if path.startswith("/") and came.startswith("done")}
    told = {path: found[path] for path in listed}
    if tier.letter == "L":
        assert told == {}
    # With namespaces a directory may be there, holding nothing but the way to the interpreter.
    assert all(".ssh" not in came and "notes" not in came for came in told.values()), told


def test_the_hosts_tmp(tier: Tier) -> None:
    host_tmp = tier.facts["runtime_root"]
    with tier.session() as own:
        found = tier.look(
            "found = {path: attempt(os.listdir, path) for path in ('/tmp', '/var/tmp', '/dev/shm', '/run', host_tmp)}\n"
            "found['marker'] = attempt(read, marker)",
            session=own,
            host_tmp=host_tmp,
            marker=tier.facts["files"]["host_tmp"],
        )
    assert not found["marker"].startswith("done")
    assert not found[host_tmp].startswith("done")
    if tier.letter == "L":
        assert {found[path] for path in ("/tmp", "/dev/shm", "/run")} == {"EACCES"}
    else:
        assert found["/dev/shm"] == "done: []"
        assert "marker" not in found["/tmp"]
        assert sorted(json.loads(found["/run"][6:].replace("'", '"'))) == ["keep", "kernel", "launch.json", "lib"]


def test_watching_directories_of_the_host(tier: Tier) -> None:
    folder = tier.facts["runtime_root"]
    found = tier.look(
        "_libc.inotify_init1.restype = _libc.inotify_add_watch.restype = ctypes.c_int\n"
        "watch = _libc.inotify_init1(os.O_NONBLOCK)\n"
        "found['watches'] = {path: _libc.inotify_add_watch(watch, path.encode(), 0xfff) for path in paths}",
        paths=[folder, str(tier.base / "home"), str(tier.base / "runs")],
    )
    assert set(found["watches"].values()) == {-1}


def test_reading_another_session(tier: Tier) -> None:
    with tier.session(name="other") as other:
        tier.run("secret_of_the_other = 'planted-in-the-other'; print(secret_of_the_other, flush=True)", session=other)
        folder = tier.host("result = directory(sessions['other'])")
        walk = "result = [os.path.join(d, n) for d, _, names in os.walk(folder) for n in names]"
        files = tier.host(walk, folder=folder)
        assert any(name.endswith("kernel.json") for name in files)
        found = tier.look(
            f"{ROADS}\nfound = {{path: attempt(read, path) for path in files}}\n"
            "found['transcript'] = all_roads(transcript)\n"
            "found['folders'] = {p: attempt(os.listdir, p) for p in (folder, os.path.dirname(folder), folder + "
            "'/scratch')}",
            files=files,
            folder=folder,
            transcript=f"{folder}/k1/transcript",
        )
        text = json.dumps(found)
        assert "planted-in-the-other" not in text
        assert "done" not in text
        assert tier.works(other)


def test_the_hosts_own_connection_file(tier: Tier) -> None:
    path = tier.host("result = str(sessions['shared'].connection_file)")
    folder = tier.host("result = directory(sessions['shared'])")
    found = tier.look(
        f"{ROADS}\nfound = {{'read': all_roads(path), 'write': attempt(write, path), 'remove': attempt(os.unlink, "
        f"path),\n"
        "'others': {name: attempt(read, f'{folder}/{name}') for name in\n"
        "           ('session.json', 'guard.json', 'launch.json', 'path')}}",
        path=path,
        folder=folder,
    )
    assert "done" not in json.dumps(found)
    assert tier.host("result = os.path.exists(path)", path=path)


def test_descriptors_inherited_from_the_host(tier: Tier) -> None:
    with tier.session() as own:
        found = tier.look(
            "found = {n: attempt(os.readlink, f'/proc/self/fd/{n}')[7:-1] for n in os.listdir('/proc/self/fd')}",
            session=own,
        )
        files = {name for name in found.values() if name.startswith("/") and not name.startswith("/proc/")}
        made_for_it = {"transcript", "interrupt", "progress"}
        assert {name.rpartition("/")[2] for name in files} <= {"null", *made_for_it}, files
        held = tier.host(
            "def name(fd):\n"
            "    with contextlib.suppress(OSError): return os.readlink(f'/proc/self/fd/{fd}')\n"
            "result = [name(fd) for fd in os.listdir('/proc/self/fd')]"
        )
        shared = {name for name in found.values() if name.startswith(("pipe", "socket")) and name in held}
        assert len(shared) <= 1  # the pipe for its last words


def test_dumping_core(tier: Tier) -> None:
    import_ = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))"
    assert tier.run(import_) == "(0, 0)"


def test_devices_that_hold_everything(tier: Tier) -> None:
    found = tier.look(
        "found = {path: attempt(read, path, 16) for path in paths}\n"
        "found.update({f'node {kind}': attempt(os.mknod, f'node{kind}', mode, device) for kind, mode, device in\n"
        "    (('disk', 0o60600, os.makedev(254, 0)), ('mem', 0o20600, os.makedev(1, 1)))})",
        paths=["/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/proc/kcore", "/proc/kmsg", "/dev/vda", "/dev/sda",
               "/dev/nvme0n1", "/sys/kernel/debug/x", "/sys/firmware/x", "/proc/sysrq-trigger"],
    )  # fmt: skip
    assert "done" not in json.dumps(found)


def test_what_errors_of_tools_tell(tier: Tier) -> None:
    text = tier.run(
        "import traceback\n"
        "for call in (lambda: fail('plain'), lambda: echo(), lambda: echo(1, 2, 3), lambda: fail()):\n"
        "    try: call()\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error); traceback.print_exc()\n"
        "        print(error.__traceback__.tb_frame.f_back, error.__cause__, error.__context__, vars(error))"
    )
    assert "ValueError plain" in text
    assert "driver.py" not in text
    assert "dispatch" not in text
    tier.assert_secret(text)


def test_what_an_error_of_the_session_tells(tier: Tier) -> None:
    with tier.session("restarts=9") as own:
        for code in ("os._exit(7)", "raise MemoryError", "1/0", "os.kill(os.getpid(), 11)"):
            try:
                text = tier.run(code, session=own)
            except CellError as error:
                text = error.message
            tier.assert_secret(text)
            assert str(tier.base) not in text
        assert tier.works(own)


def test_a_project_whose_virtual_environment_is_its_own_directory(tier: Tier) -> None:
    project = f"{tier.base}/home/project"
    secret = tier.secrets["run_store"]
    tier.host(
        "import subprocess, site\n"
        "subprocess.run([sys.executable, '-m', 'venv', '--without-pip', project], check=True)\n"
        "packages = Path(project, 'lib', f'python{sys.version_info[0]}.{sys.version_info[1]}', 'site-packages')\n"
        "(packages / 'ours.pth').write_text('\\n'.join(p for p in sys.path if p.endswith('-packages')))\n"
        "for name in ('.env', 'val.jsonl', 'runs/store.sqlite3'):\n"
        "    path = Path(project, name); path.parent.mkdir(exist_ok=True); path.write_text(secret)",
        project=project,
        secret=secret,
    )
    with tier.session(f"python={project + '/bin/python'!r}") as own:
        found = tier.look(
            "found = {name: attempt(read, f'{project}/{name}') for name in ('.env', 'val.jsonl', "
            "'runs/store.sqlite3')}\n"
            "found['prefix'] = sys.prefix",
            session=own,
            project=project,
        )
    assert found.pop("prefix") == project
    tier.assert_secret(json.dumps(found))
    assert "done" not in json.dumps(found)


def test_places_where_a_project_or_a_key_may_lie(tier: Tier) -> None:
    found = tier.look(
        "found = {path: attempt(os.listdir, path) for path in paths}",
        paths=["/usr/src", "/usr/local/src", "/usr/local/etc", "/usr/games", "/etc/ssl/private", "/etc/pki/tls/private",
               "/app", "/workspace", "/data", "/mnt", "/srv", "/var/lib", "/etc/ssh", "/etc/apt"],
    )  # fmt: skip
    assert {path for path, said in found.items() if said.startswith("done")} == set()


def test_sockets_that_the_system_lists(tier: Tier) -> None:
    found = tier.look("found = {p: attempt(read, p) for p in paths}", paths=[
        "/proc/net/unix", "/proc/self/net/unix", "/proc/thread-self/net/unix", "/proc/self/task/self/net/tcp",
        "/proc/self/net/tcp", "/proc/net/arp", "/proc/net/route"])  # fmt: skip
    assert str(tier.base) not in json.dumps(found)
    assert "redteam-" not in json.dumps(found)
