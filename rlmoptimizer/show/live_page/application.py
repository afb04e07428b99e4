"""The live page's addresses and what stands there. Who may come in is not decided here, see `access`."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kernel_bridge.text import error_text
from rlmoptimizer.errors import OptimizerError
from rlmoptimizer.show.live_page.actions import ACTIONS, act
from rlmoptimizer.show.live_page.changes import Changes
from rlmoptimizer.show.live_page.event_stream import EventStream
from rlmoptimizer.show.live_page.optimizations import Optimizations
from rlmoptimizer.show.live_page.shown_optimization import Body, ShownOptimization, Status
from rlmoptimizer.show.report.page import live_page_html

__all__ = ["MOST_BODY_BYTES", "Application"]

logger = logging.getLogger(__name__)

MOST_BODY_BYTES: Final = 100_000  # of a request; the longest note is shorter
_BODY_SECONDS: Final = 10.0  # in which it has to come
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


class Application:
    """The ASGI application. Belongs to one event loop."""

    def __init__(self, optimizations: Optimizations) -> None:
        self._optimizations = optimizations
        self._changes: dict[int, Changes[Status]] = {}
        self._closed = False
        self._app = Starlette(
            routes=[
                Route("/", self._first),
                Route("/{number}/", self._page),
                Route("/{number}/document", self._document),
                Route("/{number}/examples/{chunk}", self._examples),
                Route("/{number}/changes", self._stream),
                Route("/{number}/{action}", self._act, methods=["POST"]),
            ],
            exception_handlers={
                OptimizerError: _cannot,
                HTTPException: _refused,
                ClientDisconnect: _left,
                Exception: _failed,
            },
        )
        self._app.router.redirect_slashes = False  # it would lead to an address without the secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def close(self) -> None:
        """End all streams of changes. Idempotent."""
        self._closed = True
        for changes in self._changes.values():
            changes.close()

    async def _first(self, request: Request) -> Response:
        return RedirectResponse(f"{self._optimizations.first}/")

    async def _page(self, request: Request) -> Response:
        self._shown(request)
        return HTMLResponse(await asyncio.to_thread(live_page_html))

    async def _document(self, request: Request) -> Response:
        return _json(request, await asyncio.to_thread(self._shown(request).document))

    async def _examples(self, request: Request) -> Response:
        shown, chunk = self._shown(request), _number(request, "chunk")
        try:
            return _json(request, await asyncio.to_thread(shown.examples, chunk))
        except IndexError:
            raise HTTPException(404) from None

    async def _stream(self, request: Request) -> Response:
        shown = self._shown(request)
        changes = self._changes.get(shown.number)
        if changes is None:
            changes = self._changes[shown.number] = Changes(shown.look)
            if self._closed:
                changes.close()
        return EventStream(changes)

    async def _act(self, request: Request) -> Response:
        shown, action = self._shown(request), request.path_params["action"]
        if action not in (*ACTIONS, "branch"):
            raise HTTPException(404)
        given = await _given(request)

        def done() -> dict[str, Any]:
            try:
                answer = {"said": act(shown.path, action, given)}
            except OptimizerError as error:  # no error of HTTP's, which a browser would log
                answer = {"error": error_text(error)}
            return {**answer, "status": shown.look()[0].to_dict()}

        return JSONResponse(await asyncio.to_thread(done))

    def _shown(self, request: Request) -> ShownOptimization:
        shown = self._optimizations.get(_number(request, "number"))
        if shown is None:
            raise HTTPException(404)
        return shown


def _number(request: Request, name: str) -> int:
    text: str = request.path_params[name]
    if not _NUMBER.fullmatch(text):
        raise HTTPException(404)
    return int(text)


async def _given(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings. Raises `HTTPException` for anything else."""
    # A form of another site's page can send no JSON type.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send application/json")
    try:
        data = await asyncio.wait_for(_read(request), _BODY_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, "the request did not come to its end") from None
    try:
        given: Any = json.loads(data)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise HTTPException(400, "send one JSON object")
    return cast("dict[str, Any]", given)


async def _read(request: Request) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MOST_BODY_BYTES:
            raise HTTPException(413, f"send at most {MOST_BODY_BYTES:,} bytes")
    return bytes(data)


def _json(request: Request, body: Body) -> Response:
    headers = {"etag": f'"{body.etag}"', "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    data = body.data
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
    else:
        data = gzip.decompress(data)
    return Response(data, media_type="application/json", headers=headers)


# Answers to what went wrong: a JSON object whose `error` is for the person.


async def _cannot(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": error_text(error)}, status_code=409)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _failed(request: Request, error: Exception) -> Response:
    logger.error("The live page could not answer", exc_info=error)
    return JSONResponse({"error": "the page's server has made a mistake; see its log"}, status_code=500)
