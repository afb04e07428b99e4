"""Who gets something from the live page: nobody without its secret, no other site's page, no odd request."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from live_pages import client_of, serving, statuses
from stored_optimization import write_small

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.show.live_page.application import MOST_BODY_BYTES
from rlmoptimizer.show.live_page.browser import opened
from rlmoptimizer.show.live_page.optimizations import Optimizations
from rlmoptimizer.show.live_page.server import LiveServer
from rlmoptimizer.steering.requests import MOST_NOTE_CHARS, Requests

GETS = ("", "document", "examples/0", "changes")
POSTS = ("pause", "unpause", "note", "stop", "branch")


@dataclass(frozen=True, slots=True)
class Served:
    server: LiveServer
    path: Path
    client: httpx.Client

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def secret(self) -> str:
        return self.server.address.split("/")[3]

    @property
    def requests(self) -> Requests:
        return Requests(self.path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running optimization."""
    directory = tmp_path_factory.mktemp("kept")
    with write_small(directory, ends=False) as store, serving(store.path) as server, client_of(server) as client:
        yield Served(server, store.path, client)


def is_refused(response: httpx.Response) -> bool:
    return (response.status_code, response.text) == (403, "Forbidden\n")


def test_without_the_secret_nothing_is_told(served: Served) -> None:
    right = served.secret
    with httpx.Client(base_url=f"http://{served.host}", trust_env=False) as client:
        for path in GETS:
            for wrong in ("", "1", right[:-1], f"{right}x", right.swapcase(), f"%20{right}", "é", "%00", "%ff"):
                assert is_refused(client.get(f"/{wrong}/1/{path}")), (wrong, path)
            assert is_refused(client.get(f"/1/{path}", params={"secret": right}))
            assert is_refused(client.get(f"/1/{path}", headers={"cookie": right, "authorization": right}))


def test_without_the_secret_nothing_can_be_asked(served: Served) -> None:
    with httpx.Client(base_url=f"http://{served.host}", trust_env=False) as client:
        for path in POSTS:
            assert is_refused(client.post(f"/wrong/1/{path}", json={"text": "hello"}))
            assert is_refused(client.post(f"/1/{path}", json={"text": "hello"}))
    asked = served.requests
    assert (asked.pausing, asked.stopping, asked.notes()) == (False, False, [])


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "[::1", "127.0.0.2", "a@127.0.0.1", ""]
)
def test_a_name_that_means_this_machine_only_for_now_gets_nothing(served: Served, host: str) -> None:
    headers = {"host": host.format(port=served.server.port)}
    assert is_refused(served.client.get("document", headers=headers))
    assert is_refused(served.client.post("stop", json={}, headers=headers))


def test_a_forwarded_port_may_have_another_number(served: Served) -> None:
    headers = {"host": "localhost:8000", "origin": "http://localhost:8000"}
    assert served.client.get("document", headers=headers).status_code == 200
    assert served.client.post("unpause", json={}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "http://127.0.0.1:1",  # another user's server
        "http://localhost:{port}",  # ours, but by another name than the request
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "",
    ],
)
def test_pages_of_others_get_nothing_even_with_the_secret(served: Served, origin: str) -> None:
    headers = {"origin": origin.format(port=served.server.port)}
    for path in GETS:
        assert is_refused(served.client.get(path, headers=headers)), path
    assert is_refused(served.client.post("stop", json={}, headers=headers))
    assert not served.requests.stopping


def test_its_own_page_gets_all(served: Served) -> None:
    headers = {"origin": f"http://{served.host}"}
    assert served.client.get("document", headers=headers).json()["format"] == 1
    assert served.client.post("pause", json={}, headers=headers).status_code == 200
    assert served.requests.pausing
    assert served.client.post("unpause", json={}, headers=headers).status_code == 200
    assert not served.requests.pausing


def test_no_answer_may_be_framed_or_kept_or_tell_its_address(served: Served) -> None:
    for address in (served.server.address, f"{served.server.address}document", f"http://{served.host}/"):
        headers = httpx.get(address, trust_env=False).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert not [name for name in headers if name.startswith("access-control-") or name in ("set-cookie", "server")]


def test_a_preflight_of_another_sites_page_is_refused(served: Served) -> None:
    asking = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert is_refused(served.client.options("stop", headers=asking))


def test_only_an_object_of_json_is_taken(served: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", ""):
        assert served.client.post("stop", content=b"{}", headers={"content-type": kind}).status_code == 415, kind
    for content in (b"", b"[]", b"1", b"{", b"[" * 50_000, b"\xff"):
        response = served.client.post("stop", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400, content[:9]
    assert not served.requests.stopping


def test_what_is_too_large_is_refused(served: Served) -> None:
    assert MOST_BODY_BYTES > 6 * MOST_NOTE_CHARS  # JSON may write a character as \uXXXX
    assert served.client.post("note", json={"text": "x" * MOST_BODY_BYTES}).status_code == 413
    with socket.create_connection(("127.0.0.1", served.server.port), 60) as connection:
        connection.sendall(b"GET /" + b"x" * 100_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_connections_that_say_nothing_keep_nobody_out(served: Served) -> None:
    with contextlib.ExitStack() as stack, statuses(served.client) as followed:
        next(followed)
        quiet = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.server.port), 60)) for _ in range(300)
        ]
        assert httpx.get(f"{served.server.address}document", trust_env=False, timeout=60).status_code == 200
        with contextlib.suppress(ConnectionResetError):
            assert quiet[0].recv(1) == b""  # the oldest were ended
        served.requests.pause()  # and who had asked for something was not
        assert any(status["pausing"] for status in followed)
        served.requests.unpause()


def test_what_is_no_note_is_refused_with_words(served: Served) -> None:
    for text in (None, 1, ["a"], " ", "x" * (MOST_NOTE_CHARS + 1), "\ud800"):
        content = json.dumps({"text": text})
        response = served.client.post("note", content=content, headers={"content-type": "application/json"})
        assert response.json()["error"], text
    assert served.requests.notes() == []


@pytest.mark.parametrize(
    "chunk", ["1e3", "-1", "+1", "1.0", "٣", "99999", "9" * 5000, "..%2f..%2fetc%2fpasswd", "%2e%2e"]
)
def test_a_chunk_is_a_number_and_nothing_else(served: Served, chunk: str) -> None:
    assert served.client.get(f"examples/{chunk}").status_code == 404


@pytest.mark.parametrize("number", ["2", "0", "01x", "%2e%2e%2f1", "runs-0001.sqlite", "9" * 30, "-1"])
def test_an_optimization_that_is_not_there_is_not_found(served: Served, number: str) -> None:
    base = served.server.address.removesuffix("1/")
    assert httpx.get(f"{base}{number}/document", trust_env=False).status_code == 404
    assert httpx.post(f"{base}{number}/pause", json={}, trust_env=False).status_code == 404


def test_what_is_not_there_is_refused(served: Served) -> None:
    assert served.client.put("pause", json={}).status_code == 405
    assert served.client.delete("document").status_code == 405
    assert served.client.get("pause").status_code == 405
    assert served.client.post("__class__", json={}).status_code == 404
    assert served.client.get("document/").status_code == 404


def test_the_secret_alone_leads_to_the_optimization(served: Served) -> None:
    response = httpx.get(served.server.address.removesuffix("1/"), follow_redirects=True, trust_env=False)
    assert (response.status_code, str(response.url)) == (200, served.server.address)


def test_neither_addresses_nor_secrets_are_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    served.client.get("document")
    served.client.post("note", content=b"{")
    httpx.get(f"http://{served.host}/wrong", trust_env=False)
    ours = [one.getMessage() for one in caplog.records if not one.name.startswith(("httpx", "httpcore"))]
    assert not [text for text in ours if served.secret in text or "wrong" in text]


def test_each_server_has_a_secret_of_its_own_and_a_port_is_had_once(served: Served) -> None:
    with LiveServer(Optimizations(served.path)) as other:
        secret = other.address.split("/")[3]
        assert secret != served.secret
        assert len(secret) >= 43  # 256 bits
    with pytest.raises(InvalidSetup, match=f"port {served.server.port} cannot be listened on"):
        LiveServer(Optimizations(served.path), port=served.server.port)


@pytest.mark.skipif(os.name != "posix", reason="the modes of files are those of POSIX")
def test_the_file_that_leads_a_browser_to_the_page_is_its_owners_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    began = threading.Event()

    def browse(address: str) -> None:
        asked.append(address)
        began.set()

    monkeypatch.setattr(webbrowser, "open", browse)
    with opened("http://127.0.0.1:1/secret/1/"):
        assert began.wait(60)
        assert "secret" not in asked[0]  # other users see the arguments of a process
        page = Path(asked[0].removeprefix("file://"))
        assert (page.stat().st_mode & 0o777, page.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert "url=http://127.0.0.1:1/secret/1/" in page.read_text("utf-8")
    assert not page.exists()
