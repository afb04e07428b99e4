"""The live page's server, in a thread of the test, and clients that talk to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from rlmoptimizer.show.live_page.optimizations import Optimizations
from rlmoptimizer.show.live_page.server import LiveServer


@contextmanager
def serving(path: Path) -> Generator[LiveServer]:
    """The live page of a store file, for as long as the block lasts."""
    with LiveServer(Optimizations(path)) as server:
        thread = threading.Thread(target=server.run, name="live page")
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive()


@contextmanager
def client_of(server: LiveServer, **options: Any) -> Generator[httpx.Client]:
    """A client whose paths are relative to the page."""
    with httpx.Client(base_url=server.address, timeout=60, trust_env=False, **options) as client:
        yield client


@contextmanager
def statuses(client: httpx.Client) -> Generator[Iterator[dict[str, Any]]]:
    """What the stream of changes tells, as it comes."""
    with client.stream("GET", "changes") as response:
        assert response.status_code == 200
        yield (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: "))
