"""How the live page follows an optimization: what it is told, how seldom it is read, and what a client cannot break."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from live_pages import client_of, serving, statuses
from stored_optimization import AFTER, add_run, finish, setup_of, write_small
from stored_runs import copy_as_killed, result

from rlmoptimizer.outcome.ending import AgentOutcome
from rlmoptimizer.show.live_page import changes as changes_module
from rlmoptimizer.show.live_page.changes import Changes
from rlmoptimizer.show.live_page.optimizations import Optimizations
from rlmoptimizer.show.live_page.server import LiveServer
from rlmoptimizer.show.report.document import DocumentReader
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.file_lock import FileLock, lock_path
from rlmoptimizer.store.run_store import RunStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with write_small(tmp_path, ends=False) as opened:
        yield opened


def until(told: Iterator[dict[str, object]], **wanted: object) -> dict[str, object]:
    """The first status that says so."""
    return next(status for status in told if all(status[name] == value for name, value in wanted.items()))


def test_a_page_is_told_the_status_at_once_and_each_change_of_it(store: RunStore) -> None:
    with serving(store.path) as server, client_of(server) as client, statuses(client) as told:
        first = next(told)
        assert (first["state"], first["newest"], first["pausing"], first["problem"]) == ("running", 1, False, None)
        Requests(store.path).pause()
        assert until(told, pausing=True)["state"] == "running"
        add_run(store, "train", [1.0], AFTER)
        assert next(told)["revision"] != first["revision"]
        finish(store)
        until(told, state="finished")


def test_the_end_of_a_process_is_told_even_where_it_leaves_no_mark(store: RunStore, tmp_path: Path) -> None:
    path = copy_as_killed(store, tmp_path / "killed")
    lock = FileLock(lock_path(path))
    with serving(path) as server, client_of(server) as client, statuses(client) as told:
        assert next(told)["state"] == "running"
        os.close(lock._fd)  # as the system does with a process that is killed
        lock._fd = -1
        until(told, state="interrupted")
        with RunStore.open(path) as resumed:
            until(told, state="running")
            finish(resumed)
            until(told, state="finished")


def test_a_new_optimization_in_the_directory_is_offered_and_can_be_followed(store: RunStore, tmp_path: Path) -> None:
    with serving(store.path) as server, client_of(server) as client, statuses(client) as told:
        assert next(told)["newest"] == 1
        assert client.get("../2/document").status_code == 404
        with RunStore.create_in(tmp_path) as second:
            second.record_setup(setup_of(6, 4))
            until(told, newest=2)
            assert client.get("../2/document").json()["store"]["number"] == 2
            with httpx.Client(base_url=f"{server.address}../2/", trust_env=False) as other, statuses(other) as its:
                assert next(its)["newest"] == 2
                assert other.post("pause", json={}).status_code == 200
            assert (Requests(second.path).pausing, Requests(store.path).pausing) == (True, False)


def test_a_file_with_a_name_of_its_own_is_shown_alone(store: RunStore, tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "mine.sqlite") as mine, serving(mine.path) as server, client_of(server) as client:
        mine.record_setup(setup_of(6, 4))
        with statuses(client) as told:
            assert next(told)["newest"] == 1
        assert client.get("document").json()["store"]["name"] == "mine.sqlite"
        assert client.get("../2/document").status_code == 404


def test_a_store_that_goes_away_is_told_and_shown_again_when_it_is_back(store: RunStore, tmp_path: Path) -> None:
    path = copy_as_killed(store, tmp_path / "moved")
    with serving(path) as server, client_of(server) as client, statuses(client) as told:
        next(told)
        path.rename(tmp_path / "elsewhere")
        assert "there is no run store" in str(until(told, state=None)["problem"])
        assert "there is no run store" in client.get("document").json()["error"]
        assert "there is no run store" in client.post("pause", json={}).json()["error"]
        (tmp_path / "elsewhere").rename(path)
        until(told, state="interrupted")
        assert client.get("document").status_code == 200


def test_the_document_is_read_once_for_all_until_something_changes(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = DocumentReader.read
    monkeypatch.setattr(DocumentReader, "read", lambda self: (reads.append(1), read(self))[1])
    with serving(store.path) as server, client_of(server) as client, client_of(server) as other:
        client.get("document")
        for path in store.path.parent.iterdir():  # a file that has just changed may change again within the same tick
            os.utime(path, (1_000_000_000, 1_000_000_000))
        first = client.get("document")
        for one in (client, other, client):
            again = one.get("document", headers={"if-none-match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert client.get("examples/0", headers={"if-none-match": first.headers["etag"]}).status_code == 304
        before = len(reads)
        add_run(store, "train", [1.0], AFTER)
        changed = client.get("document", headers={"if-none-match": first.headers["etag"]})
        assert changed.status_code == 200
        assert len(changed.json()["runs"]) == len(first.json()["runs"]) + 1
        assert len(reads) == before + 1


def test_answers_are_compressed_for_those_who_understand_it(store: RunStore) -> None:
    with serving(store.path) as server, client_of(server) as client:
        assert client.get("document").headers["content-encoding"] == "gzip"
        plain = client.get("document", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.json()["format"] == 1
        assert client.get("examples/0").json()[0]["inputs"] == {"question": "q0"}


def test_nothing_of_val_is_served(store: RunStore) -> None:
    with serving(store.path) as server, client_of(server) as client:
        for path in ("", "document", "examples/0"):
            assert "quokka" not in client.get(path).text


def test_where_nothing_can_be_written_the_page_says_why(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # modes of files are nothing to root
    with serving(store.path) as server, client_of(server) as client, statuses(client) as told:
        assert "cannot be written to" in str(next(told)["refusal"])


def test_what_was_asked_is_done_and_said(store: RunStore) -> None:
    requests = Requests(store.path)
    with serving(store.path) as server, client_of(server) as client:
        said = client.post("pause", json={}).json()
        assert said["said"] == "The agent will wait before its next turn. Evaluations that are under way finish."
        assert said["status"]["pausing"]
        assert "with its next turn" in client.post("note", json={"text": "Look at “refunds”."}).json()["said"]
        assert [note.text for note in requests.notes()] == ["Look at “refunds”."]
        client.post("unpause", json={})
        assert not requests.pausing
        client.post("stop", json={})
        assert requests.stopping
        AgentOutcome(dict(AFTER), None, "It is better.", "stopped_by_person").record(store)
        assert "only its result is being measured" in client.post("pause", json={}).json()["error"]
        finish(store)
        for action in ("pause", "unpause", "note", "stop"):
            assert "has finished" in client.post(action, json={"text": "late"}).json()["error"]


# Clients that are slow, or gone.


def test_a_page_that_leaves_frees_what_it_had_and_no_store_is_watched_then(
    store: RunStore, wait_until: Callable[..., None]
) -> None:
    with serving(store.path) as server, client_of(server) as client, client_of(server) as other:
        with statuses(client) as told, statuses(other) as its:
            next(told)
            next(its)
            changes = server._application._changes[1]
            assert (changes._listeners, changes._watching is None) == (2, False)
        wait_until(lambda: (changes._listeners, changes._watching) == (0, None), "the pages' streams end")


def test_a_client_that_does_not_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    large = [result(str(i), 1.0, inputs={"text": os.urandom(300_000).hex()}) for i in range(4)]
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(4, 0))
        add_run(store, "train", large, setup_of(4, 0)["student"]["steps"], baseline=True)
        with serving(store.path) as server, client_of(server) as client, ExitStack() as stack:
            for path in ("examples/0", "changes", "document"):
                stack.enter_context(_connected(server, path))
            assert len(client.get("examples/0").json()) == 4
            assert client.post("pause", json={}).status_code == 200


def test_the_server_ends_however_many_pages_are_open(store: RunStore) -> None:
    with httpx.Client(timeout=60, trust_env=False) as client, ExitStack() as stack:
        server = stack.enter_context(serving(store.path))
        with client.stream("GET", f"{server.address}changes") as response:
            lines = response.iter_lines()
            next(line for line in lines if line.startswith("data: "))
            stack.close()  # waits for the server's end
            assert [line for line in lines if line.startswith("data: ")] == []  # whole, and not cut


def test_a_connection_that_comes_as_the_server_ends_is_ended_too(store: RunStore) -> None:
    with LiveServer(Optimizations(store.path)) as server, ExitStack() as stack:

        async def connect_and_stop() -> socket.socket:
            serving = asyncio.ensure_future(server._server.serve(sockets=[server._socket]))
            while not server._server.started:
                await asyncio.sleep(0)
            # The event loop finds both at its next look: a connection to take, and that it is time to end.
            connection = stack.enter_context(_connected(server, "changes"))
            server.stop()
            time.sleep(0.2)  # twice the time after which the server looks whether it is to end
            await serving
            return connection

        connection = asyncio.run(connect_and_stop())
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass


def _connected(server: LiveServer, path: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), 60)
    address = server.address.removeprefix(f"http://127.0.0.1:{server.port}")
    connection.sendall(f"GET {address}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return connection


# The watching itself.


def test_one_look_serves_all_and_nobody_looks_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "LOOK_SECONDS", 0.0)
    looks: list[str] = []
    now = ["a"]

    def look() -> tuple[str, float]:
        looks.append(now[0])
        return now[0], 0.0

    async def watch() -> None:
        changes = Changes(look)
        with changes.listening(), changes.listening():
            assert await asyncio.gather(changes.after(None), changes.after(None)) == ["a", "a"]
            waiting = [asyncio.ensure_future(changes.after("a")) for _ in range(2)]
            count = len(looks)
            while len(looks) < count + 5:
                await asyncio.sleep(0)
            assert not any(one.done() for one in waiting)
            now[0] = "b"
            assert await asyncio.gather(*waiting) == ["b", "b"]
        current = asyncio.current_task()
        _, looking = await asyncio.wait([task for task in asyncio.all_tasks() if task is not current], timeout=60)
        assert not looking
        now[0] = "c"
        with changes.listening():
            assert await changes.after(None) == "c"  # not what was new before
            waiting = [asyncio.ensure_future(changes.after("c"))]
            await asyncio.sleep(0)
            changes.close()
            assert await waiting[0] is None
            assert await changes.after(None) is None

    asyncio.run(watch())


def test_a_look_that_fails_is_told_to_all_and_the_next_listener_has_another() -> None:
    looks = iter([KeyError("broken"), "good"])

    def look() -> tuple[str, float]:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found, 0.0

    async def watch() -> None:
        changes = Changes(look)
        with changes.listening():
            waiting = await asyncio.gather(changes.after(None), changes.after(None), return_exceptions=True)
            assert [type(one) for one in waiting] == [KeyError, KeyError]
            with changes.listening():
                assert await changes.after(None) == "good"

    asyncio.run(watch())


def test_who_is_expensive_to_tell_is_told_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "LOOK_SECONDS", 0.001)
    slept: list[float] = []
    sleep = asyncio.sleep

    async def short_sleep(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", short_sleep)
    seconds = iter(range(1, 1000))

    async def watch() -> None:
        changes = Changes(lambda: (min(next(seconds), 3), 2.0))
        with changes.listening():
            seen = None
            while (seen := await changes.after(seen)) != 3:
                pass
            while len(slept) < 5:
                await sleep(0)

    asyncio.run(watch())
    assert slept[:5] == [8.0, 8.0, 8.0, 0.001, 0.001]
