"""Real providers, as far as a test can tell: `dspy.LM`s of any name that reach a server on loopback over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import dspy
from dspy import lm15
from responses_server import ResponsesServer, Said

__all__ = ["Model", "answers_of", "providers"]


class Model(Protocol):
    """What answers: an engine for `dspy.LM`, as in `offline.py` or in the example."""

    def complete(self, request: lm15.Request) -> lm15.Response: ...


def answers_of(model: Model) -> Callable[[tuple[Said, ...]], str]:
    def answer(said: tuple[Said, ...]) -> str:
        system = "\n\n".join(text for role, text in said if role in ("system", "developer"))
        question = [text for role, text in said if role == "user"][-1]
        request = lm15.Request(model="model", messages=(lm15.Message.user(question),), system=system or None)
        return model.complete(request).text or ""

    return answer


@contextmanager
def providers(models: Mapping[str, Model]) -> Iterator[type[dspy.LM]]:
    """A class for the place of `dspy.LM`, under which each of these model names is served on loopback.

    Only the address and the key are this environment's; the client, the request and the way back are DSPy's own. A name
    that is not served is refused, so that nothing ever asks a provider out there.
    """
    with ExitStack() as stack:
        urls = {name: stack.enter_context(ResponsesServer(answers_of(model))).url for name, model in models.items()}

        class LoopbackLM(dspy.LM):
            def __init__(self, model: str, *args: Any, **options: Any) -> None:
                if "engine" not in options:  # an engine reaches its own provider, or none
                    options |= {"api_base": urls[model], "api_key": "none", "cache": False}
                super().__init__(model, *args, **options)

        yield LoopbackLM
