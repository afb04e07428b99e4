"""LMs with prices, for tests: one dollar cent for a thousand tokens, a token being a word. No network, no keys.

DSPy knows no price of a custom engine. `PricedLM` gives it one in the way that the README tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import dspy
from dspy import lm15
from offline import Asked, asked, fields_text

__all__ = ["PricedLM", "WordEngine", "by_call", "by_token", "no_price", "priced", "priced_fields", "priced_text"]

Price: TypeAlias = Callable[[Mapping[str, Any]], float | None]  # from DSPy's usage to dollars


def by_token(usage: Mapping[str, Any]) -> float:
    return 1e-5 * (usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0))


def by_call(usd: float) -> Price:
    return lambda usage: usd


def no_price(usage: Mapping[str, Any]) -> None:
    return None


class WordEngine:
    """An engine that counts words as tokens. `reports=False`: it says nothing of them."""

    def __init__(self, answer: Callable[[lm15.Request], str], *, reports: bool = True) -> None:
        self._answer = answer
        self._reports = reports
        self.requests: list[lm15.Request] = []

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.requests.append(request)
        text = self._answer(request)
        read, written = len(_text_of(request).split()), len(text.split())
        usage = lm15.Usage(input_tokens=read, output_tokens=written, total_tokens=read + written)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text or " "),
            finish_reason="stop",
            usage=usage if self._reports else lm15.Usage(),
        )


class AsyncWordEngine:
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return self._engine.complete(request)


class PricedLM(dspy.LM):
    price: Price = staticmethod(by_token)

    def update_history(self, entry: Mapping[str, Any]) -> None:
        super().update_history({**entry, "cost": self.price(entry["usage"])})


def priced(engine: Any, name: str, *, price: Price = by_token, cache: bool = False) -> PricedLM:
    """An LM with a price around an engine of `offline.py` or of this module."""
    lm = PricedLM(f"offline/{name}", engine=engine, async_engine=AsyncWordEngine(engine), cache=cache, num_retries=0)
    lm.price = price
    return lm


def priced_fields(
    respond: Callable[[Asked], Mapping[str, object]], name: str = "fields", *, reports: bool = True, **options: Any
) -> PricedLM:
    """`offline.field_lm` with a price."""
    return priced(WordEngine(lambda request: fields_text(respond(asked(request))), reports=reports), name, **options)


def priced_text(
    respond: Callable[[str], str], name: str = "text", *, reports: bool = True, **options: Any
) -> PricedLM:
    """`offline.text_lm` with a price."""
    engine = WordEngine(lambda request: respond(request.messages[-1].text or ""), reports=reports)
    return priced(engine, name, **options)


def _text_of(request: lm15.Request) -> str:
    system = request.system if isinstance(request.system, str) else ""
    return " ".join([system, *(message.text or "" for message in request.messages)])
