"""The command that serves the live page: from its address to its end."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import httpx
import pytest
from child_process import Child, fresh
from command import Command
from stored_optimization import write_small

CALL = "import sys; from rlmoptimizer.command_line.app import main; sys.argv[0] = 'rlmoptimizer'; main()"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept")
    for _ in range(2):
        write_small(path).close()
    return path


def address_of(child: Child) -> str:
    assert child.line().startswith("The page of ")
    address = child.line().strip()
    assert address.startswith("http://127.0.0.1:")
    return address


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_prints_an_address_serves_the_page_and_ends_cleanly(directory: Path, number: int) -> None:
    variables = {"BROWSER": f"{sys.executable} -c pass %s", "TMPDIR": str(directory)}
    with fresh(CALL, "view", directory, variables=variables) as child:
        address = address_of(child)
        assert address.endswith("/2/")
        assert "<!doctype html>" in httpx.get(address, trust_env=False).text
        assert httpx.get(f"{address}document", trust_env=False).json()["store"]["number"] == 2
        with httpx.stream("GET", f"{address}changes", trust_env=False) as response:
            assert next(response.iter_lines())
            child.send_signal(number)
            ended = child.ended()
    assert (ended.status, ended.err) == (0, "")
    assert "Ctrl-C" in ended.out
    assert [path.name for path in directory.iterdir() if path.is_dir()] == []


def test_the_optimization_and_the_port_can_be_named(directory: Path) -> None:
    with fresh(CALL, "view", directory, "--number", 1, "--no-browser") as child:
        address = address_of(child)
        assert httpx.get(f"{address}document", trust_env=False).json()["store"]["number"] == 1
        port = address.split(":")[2].partition("/")[0]
        with fresh(CALL, "view", directory, "--port", port, "--no-browser") as second:
            ended = second.ended()
        assert (ended.status, ended.out) == (1, "")
        assert ended.err.startswith(f"rlmoptimizer: port {port} cannot be listened on")
        assert ended.err.count("\n") == 1
        child.send_signal(signal.SIGINT)
        assert child.ended().status == 0


def test_without_the_extra_it_says_what_to_install(
    command: Command, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "rlmoptimizer.show.live_page.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install starlette uvicorn" in command("view", directory).refused(1)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no-such-directory"], 1, "there is nothing at"),
        ([".", "--port", "70000"], 2, "--port"),
        ([".", "--number", "0"], 2, "--number"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(
    command: Command, arguments: list[str], code: int, words: str
) -> None:
    assert words in command("view", *arguments).refused(code)
