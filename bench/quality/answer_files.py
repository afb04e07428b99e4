"""An LM that is a directory: each request becomes a file, and its answer is awaited as a file.

So a person, or any program, can be the root LM or the reflection LM of every arm. In the directory are, for request 7,
    0007.request.md     the request to read; once it is there it is complete
    0007.request.json   the same as data, with its digest
    0007.answer.md      the answer, word for word what the LM is to have said
    waiting.txt         the numbers that are waited for, one a line; no such file: none
An answer is written under another name (0007.answer.md.part) and renamed, so that half an answer is never read.

A process that starts again finds its answers: a request is the one that is there already when its digest is the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from dspy import lm15

from rlmoptimizer.text import token_estimate

__all__ = ["AnswerDirectory", "AsyncFilesEngine", "FilesEngine"]

_POLL_SECONDS: Final = 0.2


class AnswerDirectory:
    """Requests and answers of one run. Any number of threads ask; one process at a time uses a directory."""

    def __init__(self, directory: Path, *, timeout: float) -> None:
        """`timeout`: seconds that one answer is waited for."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._timeout = timeout
        self._lock = threading.Lock()
        self._waiting: set[int] = set()
        self._earlier: defaultdict[str, list[int]] = defaultdict(list)  # requests of earlier processes, by digest
        numbers = sorted(int(path.name.partition(".")[0]) for path in directory.glob("[0-9]*.request.json"))
        for number in numbers:
            self._earlier[json.loads(self._path(number, "request.json").read_text("utf-8"))["digest"]].append(number)
        self._last = max(numbers, default=0)

    def ask(self, document: dict[str, Any]) -> str:
        """The answer to a request: `document` holds `messages` (`role`, `content`) and what else it says.

        Raises:
            lm15.TimeoutError: there is none within the time limit. The request stays; a later process finds its answer.
        """
        number = self._numbered(document)
        path = self._path(number, "answer.md")
        deadline = time.monotonic() + self._timeout
        with self._awaited(number):
            while not (answer := _text_of(path)).strip():
                if time.monotonic() > deadline:
                    raise lm15.TimeoutError(f"no answer within {self._timeout:g} s; it is waited for as {path}")
                time.sleep(_POLL_SECONDS)
        return answer

    def _numbered(self, document: dict[str, Any]) -> int:
        """The number of the request, which is written unless an earlier process has asked the same."""
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        with self._lock:
            if self._earlier[digest]:
                number = self._earlier[digest].pop(0)
            else:
                self._last += 1
                number = self._last
                written = json.dumps({"number": number, "digest": digest, **document}, indent=1, ensure_ascii=False)
                _write(self._path(number, "request.json"), written + "\n")
            _write(self._path(number, "request.md"), _readable(number, document))
        return number

    @contextmanager
    def _awaited(self, number: int) -> Iterator[None]:
        self._tell(self._waiting.add, number)
        try:
            yield
        finally:
            self._tell(self._waiting.discard, number)

    def _tell(self, change: Any, number: int) -> None:
        with self._lock:
            change(number)
            path = self.directory / "waiting.txt"
            if self._waiting:
                _write(path, "".join(f"{waiting:04}\n" for waiting in sorted(self._waiting)))
            else:
                with suppress(FileNotFoundError):
                    path.unlink()

    def _path(self, number: int, kind: str) -> Path:
        return self.directory / f"{number:04}.{kind}"


class FilesEngine:
    """A DSPy engine that asks a directory. Usage is an estimate: nobody counts the tokens of a person."""

    def __init__(self, answers: AnswerDirectory) -> None:
        self._answers = answers

    def complete(self, request: lm15.Request) -> lm15.Response:
        document = _document(request)
        answer = self._answers.ask(document)
        asked = sum(token_estimate(message["content"]) for message in document["messages"])
        said = token_estimate(answer)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(answer),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=asked, output_tokens=said, total_tokens=asked + said),
        )


class AsyncFilesEngine:
    def __init__(self, engine: FilesEngine) -> None:
        self._engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return await asyncio.to_thread(self._engine.complete, request)


def _document(request: lm15.Request) -> dict[str, Any]:
    """All of a request that an answer may depend on."""
    messages: list[dict[str, str]] = []
    if request.system is not None:
        parts = (request.system,) if isinstance(request.system, str) else request.system
        messages.append({"role": "system", "content": "\n".join(map(_part_text, parts))})
    messages += [
        {"role": message.role, "content": "\n".join(map(_part_text, message.parts))} for message in request.messages
    ]
    document: dict[str, Any] = {"messages": messages}
    for name in ("max_tokens", "temperature", "response_format"):
        if (value := getattr(request.config, name)) is not None:
            document[name] = value
    if request.tools:
        document["tools"] = [str(tool) for tool in request.tools]
    return document


def _part_text(part: Any) -> str:
    text = part if isinstance(part, str) else getattr(part, "text", None)
    return text if text is not None else f"[{type(part).__name__}: cannot be shown as text]"


def _readable(number: int, document: dict[str, Any]) -> str:
    lines = [
        f"# Request {number:04}",
        "",
        "You are the language model that is asked below. Write what it says, word for word and nothing else, into",
        f"`{number:04}.answer.md.part` beside this file, then rename that to `{number:04}.answer.md`.",
    ]
    if "max_tokens" in document:
        lines.append(f"At most {document['max_tokens']} tokens.")
    if "response_format" in document:
        form = json.dumps(document["response_format"])
        lines += ["The answer must be JSON of this form:", "", "```json", form, "```"]
    if "tools" in document:
        lines += ["It may name these tools:", *document["tools"]]
    for message in document["messages"]:
        lines += ["", f"---------------- {message['role']} ----------------", "", message["content"]]
    return "\n".join(lines) + "\n"


def _text_of(path: Path) -> str:
    """ "" when it is not there."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def _write(path: Path, text: str) -> None:
    """Whole or not at all, for who reads it meanwhile."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
