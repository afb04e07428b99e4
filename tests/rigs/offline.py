"""Language models for tests: real `dspy.LM`s whose engine answers in this process. No network, no keys, no luck.

`field_lm(respond)` answers field by field from what it was asked; `ScriptedRootLM` plays an agent turn by turn. The
code of its turns is really run, and what the kernel showed can be read back from `ScriptedRootLM.seen`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import dspy
from dspy import lm15

__all__ = ["Asked", "Engine", "ScriptedRootLM", "Turn", "asked", "field_lm", "fields_text", "text_lm"]

_MARK = re.compile(r"^\[\[ ## (\w+) ## \]\]\s*$", re.MULTILINE)
_OBJECTIVE = "your objective is:"


def fields_text(fields: Mapping[str, object]) -> str:
    """An answer as DSPy's ChatAdapter wants it."""
    return "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in {**fields, "completed": ""}.items())


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that DSPy's ChatAdapter made, taken apart again."""

    instructions: str  # of the signature, as the LM sees them
    inputs: dict[str, str]  # of the last user message
    outputs: tuple[str, ...]  # fields to answer
    text: str  # everything that was sent


def asked(request: lm15.Request) -> Asked:
    system = request.system if isinstance(request.system, str) else "".join(p.text for p in request.system or ())
    user = request.messages[-1].text or ""
    pieces = _MARK.split(user)
    inputs = {name: value.strip() for name, value in zip(pieces[1::2], pieces[2::2], strict=True)}
    after = system.partition("Your output fields are:")[2].partition("All interactions")[0]
    outputs = tuple(re.findall(r"^\d+\. `(\w+)`", after, re.MULTILINE))
    instructions = system.partition(_OBJECTIVE)[2].strip()
    last = list(inputs)[-1:]
    for name in last:  # the adapter's reminder follows the last input
        inputs[name] = inputs[name].partition("\n\nRespond with the corresponding output fields")[0].strip()
    everything = "\n\n".join([system, *(message.text or "" for message in request.messages)])
    return Asked(instructions, inputs, outputs, everything)


class Engine:
    """A DSPy engine around a function from request to answer text. Counts its calls; thread-safe if the function is."""

    def __init__(self, answer: Callable[[lm15.Request], str]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self.calls = 0

    def complete(self, request: lm15.Request) -> lm15.Response:
        with self._lock:
            self.calls += 1
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(self._answer(request) or " "),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=0, output_tokens=0, total_tokens=0),
        )


class AsyncEngine:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return self._engine.complete(request)


def _lm(name: str, engine: Engine) -> dspy.LM:
    return dspy.LM(f"offline/{name}", engine=engine, async_engine=AsyncEngine(engine), cache=False, num_retries=0)


def field_lm(respond: Callable[[Asked], Mapping[str, object]], name: str = "fields") -> dspy.LM:
    """An LM that answers DSPy predictors: `respond` gets the request taken apart and returns the output fields.

    What it returns may depend on `Asked.instructions`, as with a real model. Calls come from many threads.
    """
    return _lm(name, Engine(lambda request: fields_text(respond(asked(request)))))


def text_lm(respond: Callable[[str], str], name: str = "text") -> dspy.LM:
    """An LM for plain prompts, as `llm_query` sends them."""
    return _lm(name, Engine(lambda request: respond(request.messages[-1].text or "")))


Turn: TypeAlias = "str | BaseException | Callable[[Asked], str]"


class ScriptedRootLM:
    """An agent whose turns are written down. `.lm` is the `dspy.LM` to pass as `root_lm`.

    Args:
        turns: code to run, turn by turn; a callable gets the request and returns the code; an exception is raised.
            After the last one the code of `idle` is answered for ever.
        extract: fields to answer when DSPy asks for the final outputs from the trajectory; an exception is raised.
    """

    def __init__(
        self,
        turns: Sequence[Turn],
        *,
        extract: Mapping[str, object] | BaseException | None = None,
        idle: str = "print('nothing left to do')",
        name: str = "root",
    ) -> None:
        self._turns = list(turns)
        self._extract = extract
        self._idle = idle
        self._lock = threading.Lock()
        self.requests: list[lm15.Request] = []  # every one, in order
        self.seen: list[Asked] = []  # the same, taken apart
        self.extracts = 0
        self.engine = Engine(self._answer)
        self.lm = _lm(name, self.engine)

    def _answer(self, request: lm15.Request) -> str:
        question = asked(request)
        with self._lock:
            self.requests.append(request)
            self.seen.append(question)
            if "code" not in question.outputs:
                self.extracts += 1
                turn: Any = self._extract
                if isinstance(turn, BaseException):
                    raise turn
                return fields_text(turn or {})
            turn = self._turns.pop(0) if self._turns else self._idle
        if isinstance(turn, BaseException):
            raise turn
        code = turn(question) if callable(turn) else turn
        return fields_text({"reasoning": f"turn {len(self.seen)}", "code": f"```python\n{code}\n```"})

    @property
    def history(self) -> str:
        """The REPL history of the last request: everything the agent has seen so far."""
        return self.seen[-1].text
