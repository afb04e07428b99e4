"""What the agent is told of the place where its code runs is so, sentence by sentence, in every tier."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from rig import CellError, Tier

LIMITED = """
limits=Limits(cell_seconds=3.5),
confinement=Confinement(memory_bytes=400 * 2**20, scratch_bytes=32 * 2**20, processes=40, cpu_seconds=60,
                        read_only=(facts["files"]["home_file"],), writable=(facts["base"] + "/shared",),
                        environment={"GIVEN": "yes"})
"""
OPTIONS = {
    "default": "",
    "limited": LIMITED,
    "no second kernel": "restarts=0",
    "no checkpoint": "checkpoint=False",
    "off": "confinement='off'",
}


def told(tier: Tier, options: str) -> str:
    tier.host("p = Path(facts['base'], 'shared')\np.mkdir(exist_ok=True)\nos.chmod(p, 0o777)")
    return tier.host(f"result = KernelInterpreter.factory(**dict({options})).execution_instructions")


# What each sentence says, tried. Every one gets the tier, the session and the sentence.


def basics(tier: Tier, session: str, sentence: str) -> None:
    assert tier.run("os.getpid()", session=session) != str(tier.facts["host_pid"])
    tier.run("before = 1\ndef one(): return before", session=session)
    assert tier.run("one()", session=session) == "1"
    assert tier.run("import asyncio\nawait asyncio.sleep(0)\n6 * 7", session=session) == "42"


def long_output(tier: Tier, session: str, sentence: str) -> None:
    text = tier.run("print('a' * 3_000_000 + 'z')", session=session)
    assert len(text) < 1_100_000
    assert text[0] == "a"
    assert text.rstrip()[-1] == "z"


def tools(tier: Tier, session: str, sentence: str) -> None:
    assert "echo(value" in tier.run("help(echo)", session=session)
    code = "from concurrent.futures import ThreadPoolExecutor as P\nwith P(4) as p: print([*p.map(echo, range(4))])"
    code += "\ndel p"  # which no checkpoint can have: the next cell would be told
    assert tier.run(code, session=session) == "[0, 1, 2, 3]"
    assert tier.run("try:\n    fail('no')\nexcept ValueError as e:\n    print(e)", session=session) == "no"


def plain_data(tier: Tier, session: str, sentence: str) -> None:
    assert tier.run("v = [None, True, 1, 1.5, 'a', b'b', {'k': []}]\necho(v) == v", session=session) == "True"
    assert tier.run("attempt(echo, object())", session=session) == "NotSendable"


def cell_time(tier: Tier, session: str, sentence: str) -> None:
    limit = float(re.findall(r"longer than (\S+) s,", sentence)[0])
    assert tier.host(f"result = sessions[{session!r}]._session.options.limits.cell_seconds") == limit
    if limit < 10:
        with pytest.raises(CellError, match=f"longer than {limit:g} s"):
            tier.run("kept = 'state'\nwhile True: time.sleep(0.01)", session=session)
        assert tier.run("kept", session=session) == "state"


def crash(tier: Tier, session: str, sentence: str) -> None:
    tier.run("counted = 1", session=session)
    with pytest.raises(CellError) as died:
        tier.run("import os\nos._exit(3)", session=session)
    if "session is over" in sentence:
        assert died.value.kind == "CodeInterpreterError"
        return
    assert died.value.kind == "CodeExecutionError"
    kept = "with the variables" in sentence
    assert ("counted" in died.value.message) is kept
    assert tier.run("'counted' in globals()", session=session) == str(kept)


def scratch(tier: Tier, session: str, sentence: str) -> None:
    assert tier.run("[n for n in os.listdir() if not n.startswith('.')]", session=session) == "[]"
    assert tier.run("write('mine', b'x')", session=session) == "1"


def environment(tier: Tier, session: str, sentence: str) -> None:
    found = tier.look("found = dict(os.environ)", session=session)
    tier.assert_secret(str(found))
    assert "PATH" in found
    assert ("GIVEN" in sentence) is (found.get("GIVEN") == "yes")


def network(tier: Tier, session: str, sentence: str) -> None:
    code = "attempt(lambda: socket.create_connection(('127.0.0.1', 9), 5))"
    assert "done" not in tier.run(code, session=session)
    assert "done" not in tier.run("attempt(lambda: socket.getaddrinfo('localhost.invalid', 80))", session=session)


def installing(tier: Tier, session: str, sentence: str) -> None:
    """A wish, not a fact."""


def writing(tier: Tier, session: str, sentence: str) -> None:
    places = re.findall(r"/[^\s,]+", sentence.rstrip("."))
    found = tier.look(
        "for place in [os.getcwd(), *places]:\n"
        "    found[place] = attempt(write, os.path.join(place, 'written-here'), b'x')\n"
        "for place in ['/', '/usr', '/etc', '/var/tmp', '/root', '/home', *([] if '/tmp' in places else ['/tmp'])]:\n"
        "    found['outside ' + place] = attempt(write, os.path.join(place, 'written-here'), b'x')\n",
        session=session,
        places=places,
    )
    assert {result for place, result in found.items() if not place.startswith("outside")} == {"done: 1"}, found
    assert [place for place, result in found.items() if place.startswith("outside") and "done" in result] == []


def reading(tier: Tier, session: str, sentence: str) -> None:
    paths = re.findall(r"/[^\s,]+", sentence)
    found = tier.look(
        "for path in paths:\n"
        "    found[path] = attempt(os.listdir if os.path.isdir(path) else read, path)\n"
        "found['others'] = [attempt(read, path) for path in others]\n"
        "import json as library\nfound['library'] = attempt(read, library.__file__, 5)\n",
        session=session,
        paths=paths,
        others=[path for path in tier.facts["files"].values() if path not in paths],
    )
    others = found.pop("others")
    assert others
    assert [result for result in others if "done" in result] == []
    assert all("done" in result for result in found.values()), found


def shared_memory(tier: Tier, session: str, sentence: str) -> None:
    code = "import multiprocessing\nattempt(multiprocessing.Lock)"
    assert "done" not in tier.run(code, session=session)
    code = "subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True, text=True).stdout"
    assert tier.run(code, session=session) == "1"


def bounds(tier: Tier, session: str, sentence: str) -> None:
    parts = {what: much for much, what in re.findall(r"([\d.]+ (?:GiB|MiB|s)) of (memory|files|CPU time)", sentence)}
    asked = tier.host(
        "from kernel_bridge.confine import limits_asked\n"
        f"c = limits_asked(sessions[{session!r}]._session.options.confinement)\n"
        "result = [c.memory_bytes, c.scratch_bytes, c.cpu_seconds, c.processes]"
    )
    sizes = {"GiB": 2**30, "MiB": 2**20}
    said = [int(float(n) * sizes[unit]) for n, unit in (parts[what].split() for what in ("memory", "files"))]
    cpu = int(parts["CPU time"].split()[0]) if "CPU time" in parts else None
    processes = int(re.findall(r"(\d+) processes", sentence)[0])
    assert [*said, cpu, processes] == asked
    if asked[0] < 2**30:
        assert tier.run("attempt(lambda: len(bytearray(500 * 2**20)))", session=session) == "MemoryError"
        code = "try:\n    write('big', bytes(48 * 2**20))\nexcept OSError as e: print('refused', e)"
        died = tier.run_or_die(code, session=session)
        assert "refused" in died or "died" in died


SENTENCES: dict[str, Callable[[Tier, str, str], None]] = {
    "Code runs as Python cells": basics,
    "Variables, imports, functions": basics,
    "Output is what is printed": long_output,
    "Host tools and SUBMIT": tools,
    "Only plain data crosses": plain_data,
    "The working directory is": scratch,
    "Of the host's environment": environment,
    "There is no network": network,
    "Do not install packages": installing,
    "Nothing can be written": writing,
    "Files of the host other": reading,
    "There is no shared memory": shared_memory,
    "A cell that runs longer": cell_time,
    "If a cell crashes": crash,
    "The kernel may use at most": bounds,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_sentence_that_the_agent_is_told_is_true(tier: Tier, name: str) -> None:
    options = OPTIONS[name]
    text = told(tier, options)
    assert told(tier, options) == text
    assert len(text) < 2500
    sentences = re.split(r"(?<=\.) (?=[A-Z])", text)
    known = {sentence: next((s for s in SENTENCES if sentence.startswith(s)), None) for sentence in sentences}
    assert [sentence for sentence, start in known.items() if start is None] == []
    # In the order of the table: the last ones end kernels.
    ordered = sorted(sentences, key=lambda sentence: list(SENTENCES).index(known[sentence] or ""))
    with tier.session(options) as session:
        for sentence in dict.fromkeys(ordered):
            SENTENCES[str(known[sentence])](tier, session, sentence)


def test_what_is_not_in_force_is_not_told(tier: Tier) -> None:
    text = tier.host("result = KernelInterpreter.factory(confinement='off').execution_instructions")
    for word in ("network", "memory", "written", "cannot be read", "at most"):
        assert word not in text
    unbounded = "Confinement(memory_bytes=None, processes=None, scratch_bytes=None)"
    text = tier.host(f"result = KernelInterpreter.factory(confinement={unbounded}).execution_instructions")
    assert "at most" not in text
    assert "no network" in text
