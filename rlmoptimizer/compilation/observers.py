"""The observers of one compile: the run store, the events file beside it, the terminal, and the user's callbacks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

from kernel_bridge.text import printable_line
from rlmoptimizer.event_delivery import EventCallback, EventDelivery
from rlmoptimizer.events import (
    Emitter,
    Event,
    ExamplesScored,
    PromptUpdated,
    SubmissionRefused,
    TurnFinished,
    TurnStarted,
)
from rlmoptimizer.show.terminal.display import Display
from rlmoptimizer.store.events_file import EventsFile, events_path
from rlmoptimizer.store.run_store import RunStore

__all__ = ["make_emitter"]

logger = logging.getLogger(__name__)

_MOST_REFUSALS: Final = 1000  # submissions refused that are kept as events
_CATCH_UP_SECONDS: Final = 10.0  # how long the end of a compile waits for callbacks
_HURRIED_SECONDS: Final = 1.0  # and that of one that was interrupted


def make_emitter(
    store: RunStore, display: Display, callbacks: Sequence[EventCallback], stack: ExitStack, *, kept: bool
) -> Emitter:
    """The emitter with all observers; `stack` ends them. Beside a store that is `kept` there is an events file."""
    emitter = Emitter([_recorder(store), display])
    if kept and (file := _events_file(store, stack)) is not None:
        emitter.add(file)
    if callbacks:
        delivery = EventDelivery(callbacks)
        stack.push(functools.partial(_end_delivery, delivery))
        emitter.add(delivery)
    stack.callback(emitter.close)
    return emitter


def _events_file(store: RunStore, stack: ExitStack) -> EventsFile | None:
    path = events_path(store.path)
    try:
        file = EventsFile(path, new=not store.events("CompileStarted"))
    except OSError as error:
        logger.warning("Events are not written to %s: %s", printable_line(str(path)), printable_line(str(error)))
        return None
    stack.callback(file.close)
    return file


def _end_delivery(delivery: EventDelivery, kind: type[BaseException] | None, *_: object) -> None:
    hurried = kind is not None and issubclass(kind, KeyboardInterrupt)
    delivery.close(_HURRIED_SECONDS if hurried else _CATCH_UP_SECONDS)


def _recorder(store: RunStore) -> Callable[[Event], None]:
    """An observer that keeps what is not kept otherwise: results, prompts and turns have tables of their own."""
    refused = itertools.count(1)

    def record(event: Event) -> None:
        if isinstance(event, (ExamplesScored, TurnStarted, TurnFinished)):
            return
        if isinstance(event, SubmissionRefused) and next(refused) > _MOST_REFUSALS:
            return  # it costs an agent nothing to be refused
        data = {"step": event.step} if isinstance(event, PromptUpdated) else dataclasses.asdict(event)
        store.record_event(type(event).__name__, data)

    return record
