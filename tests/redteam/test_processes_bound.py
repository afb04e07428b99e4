"""The number of processes is bounded by the system itself where the kernel has a user of its own, in every tier."""

from __future__ import annotations

from rig import Tier

FORKS = """
children = []
try:
    while len(children) < 400:
        pid = os.fork()
        if not pid:
            signal.pause()
        children.append(pid)
    found["refused"] = None
except OSError as error:
    found["refused"] = errno.errorcode[error.errno]
finally:
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)
found["made"] = len(children)
"""
WHO = """
found["ids"] = [os.getuid(), os.geteuid(), os.getgid()]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found["capabilities"] = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
run = subprocess.run([sys.executable, "-c", "import os; print(os.getuid())"], capture_output=True, text=True)
found["child"] = run.stdout.strip()
found["again"] = [attempt(os.setuid, 0), attempt(os.setresuid, 0, 0, 0)]
"""


def test_no_kernel_of_a_root_stays_root_and_forks_are_refused_by_its_limit(tier: Tier) -> None:
    with tier.session("confinement=Confinement(processes=60)") as session:
        who = tier.look(WHO, session=session)
        if tier.facts["uid"] == 0:
            assert who["ids"][0] == who["ids"][1] >= 0x70000000
            assert who["again"] == ["EPERM", "EPERM"]
            assert who["child"] == str(who["ids"][0])
        if tier.facts["uid"] != 0:
            del who["capabilities"]["CapBnd"]  # of no use to those who gain nothing by programs
        for name, held in who["capabilities"].items():
            # To pass the directories that bar the way to Python, and nothing else; only where they do.
            assert held == 0 or (tier.kind.keep_root and name != "CapBnd" and held in (1 << 1, 1 << 2)), name
        if tier.facts["uid"] != 0 and tier.letter == "L":
            return  # there it counts all that the user has anywhere, and leaves room for that
        forked = tier.look(FORKS, session=session)
        assert forked["refused"] == "EAGAIN"
        assert forked["made"] < 60


def test_the_power_to_pass_reads_and_writes_no_more_than_landlock_allows(tier: Tier) -> None:
    found = tier.look(
        "for path in paths: found[path] = [attempt(read, path), attempt(write, path), attempt(os.chmod, path, 0o777)]\n"
        "found['/etc/shadow'] = [attempt(read, '/etc/shadow')]",
        paths=list(tier.facts["files"].values()),
    )
    tier.assert_secret(str(found))
    assert [result for results in found.values() for result in results if "done" in result] == []


def test_a_kernel_starts_where_only_its_host_may_pass(tier: Tier) -> None:
    tier.host("Path(facts['base'], 'tmp', 'p').mkdir(mode=0o700, exist_ok=True)")
    with tier.session("runtime_dir=facts['base'] + '/tmp/p/r'") as session:
        assert tier.run("write('here', b'x'); print(echo(7))", session=session) == "7"
        uid = int(tier.run("os.getuid()", session=session))
        assert uid == tier.facts["uid"] or uid >= 0x70000000 or tier.letter == "N"
