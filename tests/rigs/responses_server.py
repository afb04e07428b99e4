"""A provider on loopback: OpenAI's Responses API with state, and its chat completions. Knows no client library.

with ResponsesServer([turn("look first", "print(1)"), turn("done", "SUBMIT(answer='1')")]) as server:
    lm = dspy.LM("openai/root", model_type="responses", api_base=server.url, api_key="none", cache=False)
    ...
    assert server.calls[1].parent == server.calls[0].id
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Call", "ResponsesServer", "as_json", "turn"]

Said = tuple[str, str]  # role and text


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came in, and what the server made of it."""

    path: str  # "/v1/responses" or "/v1/chat/completions"
    body: dict[str, Any]
    headers: dict[str, str]  # names in lower case
    status: int
    new: tuple[Said, ...]  # what this request said
    context: tuple[Said, ...]  # all that the model read: the stored conversation, then what is new
    id: str | None  # of the response; None: refused
    answer: str | None  # None: refused

    @property
    def parent(self) -> str | None:
        return self.body.get("previous_response_id")

    @property
    def roles(self) -> list[str]:
        return [role for role, _ in self.new]


def turn(reasoning: str, code: str) -> str:
    """One action of a ``dspy.RLM`` in the format of ``dspy.ChatAdapter``."""
    return f"[[ ## reasoning ## ]]\n{reasoning}\n\n[[ ## code ## ]]\n```python\n{code}\n```\n\n[[ ## completed ## ]]"


def as_json(**fields: Any) -> str:
    """An answer in the format of ``dspy.JSONAdapter``."""
    return json.dumps(fields)


class ResponsesServer:
    """Answers from a script: texts in order, or a function of the conversation that the model would read.

    `stores`: whether responses are kept, as the provider decides it (and says in `store`).
    `heeds_parents`: when false, `previous_response_id` is taken and has no effect, as with providers without state.
    `unknown_status`: how an unknown parent is refused (OpenAI: 400; some compatible servers: 404).
    `longest`: characters after which an answer is cut, as by `max_tokens`; None: it never is.
    """

    def __init__(
        self,
        answers: Iterable[str] | Callable[[tuple[Said, ...]], str],
        *,
        stores: bool = True,
        heeds_parents: bool = True,
        unknown_status: int = 400,
        longest: int | None = None,
    ) -> None:
        self.longest = longest
        self.stores = stores
        self.heeds_parents = heeds_parents
        self.unknown_status = unknown_status
        self.calls: list[Call] = []
        self._lock = threading.RLock()  # an answer may call `fail_next` or `forget`
        self._stored: dict[str, tuple[Said, ...]] = {}
        self._failures: deque[tuple[int, str]] = deque()
        self._answer = answers if callable(answers) else _Script(answers)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), name="responses-server")

    def __enter__(self) -> ResponsesServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def answered(self) -> list[Call]:
        return [call for call in self.calls if call.status == 200]

    def forget(self) -> None:
        """Lose all stored responses, as a restarted server does."""
        with self._lock:
            self._stored.clear()

    def fail_next(self, *statuses: int, code: str = "server_error") -> None:
        """Refuse the next requests with these statuses, one each; the client may try again at once."""
        with self._lock:
            self._failures.extend((status, code) for status in statuses)

    def respond(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            new = _said(body)
            status, reply, context = self._reply(path, body, new)
            good = status == 200
            self.calls.append(
                Call(path, body, headers, status, new, context, reply["id"] if good else None, context[-1][1])
                if good
                else Call(path, body, headers, status, new, new, None, None)
            )
            return status, reply

    def _reply(
        self, path: str, body: dict[str, Any], new: tuple[Said, ...]
    ) -> tuple[int, dict[str, Any], tuple[Said, ...]]:
        if self._failures:
            status, code = self._failures.popleft()
            return status, _error(f"scripted failure {status}", code=code, kind=code), ()
        if path.endswith("/chat/completions"):
            text, cut = self._cut(self._answer(new))
            return 200, _completion(body, new, text, cut), (*new, ("assistant", text))
        if not path.endswith("/responses"):
            return 404, _error(f"Invalid URL (POST {path})"), ()
        parent = body.get("previous_response_id")
        before: tuple[Said, ...] = ()
        if parent is not None and self.heeds_parents:
            if parent not in self._stored:
                message = f"Previous response with id '{parent}' not found."
                error = _error(message, code="previous_response_not_found", param="previous_response_id")
                return self.unknown_status, error, ()
            before = self._stored[parent]
        # Instructions are read first and are not part of what is stored.
        instructions = (("system", body["instructions"]),) if body.get("instructions") else ()
        text, cut = self._cut(self._answer((*instructions, *before, *new)))
        response_id = f"resp_{uuid.uuid4().hex}"
        stored = self.stores and body.get("store") is not False
        if stored:
            self._stored[response_id] = (*before, *new, ("assistant", text))
        context = (*instructions, *before, *new)
        reply = _response(body, response_id, text, context, stored, parent if self.heeds_parents else None)
        if cut:
            reply |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        return 200, reply, (*context, ("assistant", text))

    def _cut(self, text: str) -> tuple[str, bool]:
        return text[: self.longest], self.longest is not None and len(text) > self.longest


class _Script:
    def __init__(self, answers: Iterable[str]) -> None:
        self._answers = iter(answers)

    def __call__(self, context: tuple[Said, ...]) -> str:
        return next(self._answers)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _said(body: dict[str, Any]) -> tuple[Said, ...]:
    items = body.get("input", body.get("messages", []))
    if isinstance(items, str):
        return (("user", items),)
    return tuple((item["role"], _text(item["content"])) for item in items)


def _tokens(said: Iterable[Said]) -> int:
    return sum(len(text) // 4 + 4 for _, text in said)


def _error(message: str, **more: Any) -> dict[str, Any]:
    kind = more.pop("kind", "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None, **more}}


def _response(
    body: dict[str, Any], response_id: str, text: str, context: tuple[Said, ...], stored: bool, parent: str | None
) -> dict[str, Any]:
    read, written = _tokens(context), _tokens([("assistant", text)])
    return {
        "id": response_id,
        "object": "response",
        "created_at": 1_760_000_000,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": {},
        "model": body["model"],
        "output": [
            {
                "id": f"msg_{uuid.uuid4().hex}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
        ],
        "parallel_tool_calls": True,
        "previous_response_id": parent,
        "store": stored,
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        },
    }


def _completion(body: dict[str, Any], new: tuple[Said, ...], text: str, cut: bool) -> dict[str, Any]:
    read, written = _tokens(new), _tokens([("assistant", text)])
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "length" if cut else "stop",
            }
        ],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


def _handler(server: ResponsesServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, reply = server.respond(self.path, body, headers)
            payload = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            if status != 200:
                self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
