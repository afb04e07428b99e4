"""One call of a Responses LM that continues a stored response."""

# DSPy ships no type information; what is used of it here is cast where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, cast

import dspy
from dspy.lm15 import Message, Request, Response, UnsupportedFeatureError, request_from_openai_chat

from rlmoptimizer.lms.preflight import calls_as_dspy_does

__all__ = ["ChainedLM", "ParentIgnored", "StoredResponse", "why_stateless"]

# What dspy.LM reads from its keyword arguments to reach the provider. For an explicit request it applies them itself.
_CONNECTION = {
    *("api_key", "api_base", "base_url", "headers", "extra_headers", "timeout", "api_version"),
    *("azure_ad_token_provider", "organization", "project", "extra_query", "custom_llm_provider"),
}
# What it reads to decide how often to ask, and whether to ask at all.
_EXECUTION = {"cache", "rollout_id", "n", "num_generations", "prompt_cache"}


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response that the provider keeps."""

    id: str
    input_tokens: int | None  # what it cost to read all that led to it; None: not reported


class ParentIgnored(Exception):
    """The provider took the request, but not the conversation that it continues."""


class ChainedLM(dspy.BaseLM):
    """The root LM for one attempt: what the adapter sends goes out as a canonical request that names its parent.

    The request is sent by the root LM itself, so its cache (whose key is the request, parent included), retries,
    callbacks, usage and history are what they are for any other call.
    """

    def __init__(self, lm: dspy.LM, parent: StoredResponse | None, repeated: int) -> None:
        super().__init__(model=lm.model, model_type=lm.model_type, cache=lm.cache)
        self.kwargs = dict(lm.kwargs)
        self.response: Response | None = None
        self._lm = lm
        self._parent = parent
        self._repeated = repeated  # how often this very request has been sent before

    def __call__(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> list[dict[str, Any]]:
        request = self._request(messages, options)
        return self._received(cast("Response", self._lm(request, **self._execution())))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> list[dict[str, Any]]:
        request = self._request(messages, options)
        return self._received(cast("Response", await self._lm.acall(request, **self._execution())))

    def _request(self, messages: Sequence[dict[str, Any]], options: Mapping[str, Any]) -> Request:
        return _request(self._lm, messages, options, self._parent.id if self._parent else None)

    def _execution(self) -> dict[str, Any]:
        rollout = self.kwargs.get("rollout_id")
        # Another rollout is another cache entry: the answer that did not parse is not served again.
        rollout = f"{rollout}, again {self._repeated}" if self._repeated else rollout
        return {} if rollout is None else {"rollout_id": rollout}

    def _received(self, response: Response) -> list[dict[str, Any]]:
        if self._parent is not None and _ignores(response, self._parent):
            raise ParentIgnored
        self.response = response
        texts = [part.text for part in response.message.parts if part.type == "text"]
        return [{"text": "".join(texts) if texts else None}]

    # Adapters choose their output format by these.
    supports_function_calling = property(attrgetter("_lm.supports_function_calling"))
    supports_reasoning = property(attrgetter("_lm.supports_reasoning"))
    supports_response_schema = property(attrgetter("_lm.supports_response_schema"))
    supported_params = property(attrgetter("_lm.supported_params"))


def why_stateless(lm: dspy.BaseLM) -> str | None:
    """Why `lm` cannot be sent a chain of responses; None when it can."""
    if lm.model_type != "responses":
        return f"{lm.model} is not a Responses LM (model_type is {lm.model_type!r})"
    if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return f"{lm.model} is answered by an engine of its own"
    if not calls_as_dspy_does(lm):
        return f"{type(lm).__name__} makes its calls in its own way"
    if lm.kwargs.get("store") is False:
        return "store=False keeps the provider from storing the responses that a chain is made of"
    if lm.kwargs.get("conversation") is not None:
        return "conversation= already says where the provider keeps the state"
    if (lm.kwargs.get("n") or lm.kwargs.get("num_generations") or 1) != 1:
        return "a chain continues one answer, and the LM is set to give several"
    return None


def _ignores(response: Response, parent: StoredResponse) -> bool:
    """Whether the provider plainly answered without the parent: it names another one, and it read less than before."""
    named = (response.provider_data or {}).get("previous_response_id", parent.id)
    read = response.usage.input_tokens
    return named != parent.id and read is not None and read < (parent.input_tokens or 0)


def _request(
    lm: dspy.LM, messages: Sequence[dict[str, Any]], options: Mapping[str, Any], parent: str | None
) -> Request:
    """The canonical request for `messages` with the LM's own options, continuing the response `parent`.

    The instructions go out as a message. Where DSPy would put them, in the request's `instructions`, they are not part
    of the conversation that the provider keeps, and would be missing from the second turn on.
    """
    merged = {name: value for name, value in {**lm.kwargs, **options}.items() if value is not None}
    prompt_cache = merged.get("prompt_cache")
    extensions: dict[str, Any] = dict(merged.pop("extra_body", {}))
    body: dict[str, Any] = {}
    for name, value in merged.items():
        if name in _CONNECTION or name in _EXECUTION:
            continue
        if name == "response_format":
            body[name] = _json_format(value)
        elif _is_canonical(name, value):
            body[name] = value
        else:
            extensions[name] = value  # a field of the Responses API itself, sent as it stands
    if parent is not None:
        extensions["previous_response_id"] = parent
    leading = 1 if messages[0]["role"] == "system" else 0
    request = request_from_openai_chat({"model": lm.model, "messages": list(messages[leading:]), **body})
    config = replace(request.config, extensions={**(request.config.extensions or {}), **extensions} or None)
    if prompt_cache is not None:
        config = replace(config, cache=prompt_cache)
    instructions = tuple(Message.developer(message["content"]) for message in messages[:leading])
    return replace(request, messages=(*instructions, *request.messages), config=config)


def _is_canonical(name: str, value: Any) -> bool:
    probe: dict[str, Any] = {"model": "probe", "messages": [{"role": "user", "content": "probe"}], name: value}
    try:
        request_from_openai_chat(probe)
    except UnsupportedFeatureError:
        return False
    except (TypeError, ValueError):
        return True  # it is known, and wrong or incomplete on its own: the whole request tells
    return True


def _json_format(value: Any) -> Any:
    """JSONAdapter hands over a pydantic class, whose schema it has made strict."""
    if not isinstance(value, type):
        return value
    schema = cast("Any", value).model_json_schema()
    return {"type": "json_schema", "json_schema": {"name": value.__name__, "schema": schema, "strict": True}}
