"""Who gets an answer from the live page: only who knows its secret, at an address of this machine, on our own page.

Other users of the machine can connect to the port, other sites' pages can send requests to it from the person's own
browser, and a name that such a site owns can be made to mean 127.0.0.1. The secret stops the first two, and the check
of the Host header the third. The secret is a part of the path. A cookie would go to every port of 127.0.0.1, so also
to the servers of other users.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Access", "new_secret"]

_HOST: Final = re.compile(rb"(127\.0\.0\.1|localhost)(:[0-9]{1,5})?")  # at any port: `ssh -L` may forward another one
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"frame-ancestors 'none'"),  # beside the page's own policy
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),  # the address holds the secret
    (b"x-content-type-options", b"nosniff"),
)
_REFUSAL: Final = b"Forbidden\n"


def new_secret() -> str:
    """256 random bits, as text that may stand in a path."""
    return secrets.token_urlsafe(32)


class Access:
    """An ASGI application around another one, which sees the path without the secret.

    Whoever may not get in is answered 403, always in the same words.
    """

    def __init__(self, app: ASGIApp, secret: str) -> None:
        self._app = app
        self._secret = secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        inner = self._inner_path(scope["path"])
        if inner is None or not _comes_from_here(scope):
            await _refuse(send_safely)
        else:
            await self._app({**scope, "path": inner, "raw_path": inner.encode()}, receive, send_safely)

    def _inner_path(self, path: str) -> str | None:
        """What follows the secret; None: it is not there."""
        _, _, rest = path.partition("/")
        given, _, inner = rest.partition("/")
        known = hmac.compare_digest(given.encode(errors="replace"), self._secret)
        return f"/{inner}" if known else None


def _comes_from_here(scope: Scope) -> bool:
    """Whether the request was sent to this machine by name, and by no page but ours."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    origins = [value for name, value in scope["headers"] if name == b"origin"]
    if len(hosts) != 1:
        return False
    # A request that no page made has no Origin; that of a sandboxed page or a file is "null".
    return bool(_HOST.fullmatch(hosts[0])) and all(origin == b"http://" + hosts[0] for origin in origins)


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(_REFUSAL)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": _REFUSAL})
