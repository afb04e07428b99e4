"""The root LM's turns: one chained conversation where the provider keeps state, plain calls where it does not."""

# DSPy ships no type information; what is used of it here is cast where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import dspy
from dspy.lm15 import Response
from dspy.primitives.repl_types import REPLEntry, REPLHistory

from rlmoptimizer.lms.attachment_marks import TurnText
from rlmoptimizer.lms.chained_lm import ChainedLM, ParentIgnored, StoredResponse, why_stateless
from rlmoptimizer.lms.history_trim import Cut, HistoryTrim, TrimmedHistory
from rlmoptimizer.lms.person_notes import PersonNote, with_notes
from rlmoptimizer.lms.turn_messages import ConversationSoFar, TurnFormat, history_field

__all__ = ["RootSession"]

logger = logging.getLogger(__name__)

_ANSWERS = 3  # how often one turn is asked before an answer that does not parse ends the run
_LOSSES = 2  # parents refused in a row, after which the provider is taken to keep no state


@dataclass(frozen=True, slots=True)
class _Link:
    """One link of the chain: an answer that the provider keeps, and the conversation up to it."""

    stored: StoredResponse
    so_far: ConversationSoFar
    entries: tuple[REPLEntry, ...]  # the history it was given
    cut: Cut  # what was left out of that
    reasoning: str
    code: str

    def begins(self, history: REPLHistory) -> bool:
        """Whether `history` begins as this conversation does: what the answer was given, then the answer, executed."""
        *given, answer = history.entries[: len(self.entries) + 1]
        # RLM records the code without its fences.
        return tuple(given) == self.entries and answer.reasoning == self.reasoning and answer.code in self.code


class RootSession:
    """How one ``dspy.RLM`` talks to its root LM; it lets go of the RLM at the end of its block.

        with RootSession(root_lm) as session:
            rlm = dspy.RLM(signature, sub_lm=sub_lm or root_lm, max_output_chars=10_000, ...)
            session.attach(rlm)
            result = rlm(**inputs)  # or: await rlm.acall(**inputs)

    Pass `sub_lm` to the RLM as above: without it `llm_query` and sub-agents fall back to `dspy.settings.lm`, which the
    session leaves alone. `root_lm` itself may be the sub-LM: it is never changed, so such calls are plain ones.

    In every mode an answer that does not parse is asked for again, from the same parent: in the format of
    `dspy.settings.adapter` (default ``dspy.ChatAdapter``), then as JSON, then once more in the first format.
    Used by one RLM call at a time.

    Args:
        stateful: when `root_lm` is a ``dspy.LM(..., model_type="responses")``, a turn sends only what is new and names
            the response it continues. Any other LM runs without, which is logged once.
        multiturn_history: a turn that tells the whole history tells it as user and assistant messages.
        max_output_chars: of one turn's output that the LM sees, head and tail kept; None: as the RLM was told.
        max_history_chars: of the earlier turns that one request tells, the last one aside; see `HistoryTrim`. A chained
            conversation that has grown longer begins anew. None: all of them.
        earlier_turns: of other processes, in the variable `previous_trajectory` of the REPL, which the turns that are
            left out follow there: the RLM's caller sees to that, by `turns_left_out`.
        asking: entered around every request to `root_lm`.
        notes: of a person, that a request is to have.
    """

    def __init__(
        self,
        root_lm: dspy.BaseLM,
        *,
        stateful: bool = True,
        multiturn_history: bool = False,
        max_output_chars: int | None = None,
        max_history_chars: int | None = None,
        earlier_turns: int = 0,
        asking: Callable[[], AbstractContextManager[None]] = nullcontext,
        notes: Callable[[], Sequence[PersonNote]] = tuple[PersonNote, ...],
    ) -> None:
        self.root_lm = root_lm
        self.notes = notes
        self.asking = asking
        self.multiturn_history = multiturn_history
        self.max_output_chars = max_output_chars
        self.max_history_chars = max_history_chars
        self.earlier_turns = earlier_turns
        self.chained = stateful  # whether turns are sent as a chain of stored responses; goes off if it cannot work
        self._links: dict[int, _Link] = {}  # by the number of turns before the answer
        self._losses = 0
        self._attached: list[tuple[Any, Any, Any]] = []  # the RLM, and its own predictors
        self._warned_of_adapter = False
        if stateful and (reason := why_stateless(root_lm)):
            self.stop_chaining(reason)

    def __enter__(self) -> RootSession:
        return self

    def __exit__(self, *_: object) -> None:
        while self._attached:
            rlm, rlm.generate_action, rlm.extract = self._attached.pop()
        self._links.clear()

    def attach(self, rlm: Any) -> None:
        """Send `rlm`'s own turns (its `generate_action` and `extract`) through this session, until it ends.

        Nothing else is touched. `dspy.settings` stays as it is outside of these two calls, so `llm_query`, sub-agents,
        host tools and evaluation have the LM and the adapter that they would have without a session.
        """
        self._attached.append((rlm, rlm.generate_action, rlm.extract))
        most_output = self.max_output_chars or rlm.max_output_chars
        rlm.generate_action = _Predictor(rlm.generate_action, self, most_output, self.earlier_turns)
        rlm.extract = _Predictor(rlm.extract, self, most_output, None)  # no REPL is left to read in

    def parent_of(self, history: TrimmedHistory | None) -> _Link | None:
        """The last stored answer that `history` continues; None when the whole context has to be sent."""
        if not self.chained or not history:
            return None
        turns = range(len(history.entries) - 1, -1, -1)
        known = (self._links[turn] for turn in turns if turn in self._links)
        return next((link for link in known if link.cut == history.cut and link.begins(history)), None)

    def keep(self, link: _Link, parent: _Link | None) -> None:
        """Remember an answer that was parsed, so that the next turn can continue it."""
        turn = len(link.entries)
        self._links = {number: known for number, known in self._links.items() if number < turn}
        self._links[turn] = link
        if parent is not None:
            self._losses = 0

    def lose(self, reason: str) -> None:
        """Forget the chain, because the provider does not know its last answer."""
        self._links.clear()
        self._losses += 1
        if self._losses >= _LOSSES:
            self.stop_chaining(f"the provider refused {self._losses} responses in a row that it had just given")
        else:
            logger.warning("The provider lost the root LM's conversation (%s); sending the whole context anew.", reason)

    def stop_chaining(self, reason: str) -> None:
        """Go on with plain calls."""
        self.chained = False
        self._links.clear()
        logger.warning("The root LM runs without a stateful session: %s.", reason)

    def style(self) -> dspy.ChatAdapter | None:
        """The adapter whose field format the turns are written in; None when it cannot be reshaped."""
        adapter = cast("object", dspy.settings.adapter)
        if adapter is None:
            return dspy.ChatAdapter()
        if isinstance(adapter, dspy.ChatAdapter):
            return adapter
        if not self._warned_of_adapter and (self.chained or self.multiturn_history):
            self._warned_of_adapter = True
            logger.warning(
                "%s formats its own messages; the root LM runs without a stateful session and multi-turn history.",
                type(adapter).__name__,
            )
        return None


class _Predictor:
    """Stands in for one of RLM's predictors. Not a dspy.Module, so callbacks and traces see only the predictor."""

    def __init__(self, predict: Any, session: RootSession, most_output: int, earlier_turns: int | None) -> None:
        self._predict = predict
        self._session = session
        self._earlier_turns = earlier_turns
        self._text = TurnText()
        self._trim = HistoryTrim(session.max_history_chars, most_output)
        self.answer: dspy.Prediction | None = None  # the last one that could be read

    @property
    def signature(self) -> type[dspy.Signature]:
        return cast("type[dspy.Signature]", self._predict.signature)

    @property
    def turns_left_out(self) -> int:
        """How many turns the last request did not tell whole: so many of the first must be readable in the REPL."""
        return self._trim.cut.outputs

    def __call__(self, **inputs: Any) -> dspy.Prediction:
        inputs, turn = self._begun(inputs)
        while turn.prediction is None:
            with turn.attempt() as options, self._session.asking():
                turn.prediction = self._predict(**options, **inputs)
        self.answer = turn.prediction
        return turn.prediction

    async def acall(self, **inputs: Any) -> dspy.Prediction:
        inputs, turn = self._begun(inputs)
        while turn.prediction is None:
            with turn.attempt() as options, self._session.asking():
                turn.prediction = await self._predict.acall(**options, **inputs)
        self.answer = turn.prediction
        return turn.prediction

    def _begun(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], _Turn]:
        """What the predictor gets, and the turn."""
        notes = self._session.notes()
        inputs = with_notes(self._trimmed(self._text.inputs(inputs)), self.signature, notes)
        return inputs, _Turn(self._session, inputs.get("signature", self.signature), inputs, notes)

    def _trimmed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        field = history_field(inputs.get("signature", self.signature))
        history = inputs.get(field) if field is not None else None
        if field is None or not isinstance(history, REPLHistory):
            return inputs
        cut = self._trim.look(history.entries)
        return {**inputs, field: TrimmedHistory.of(history, cut, self._earlier_turns)}


class _Turn:
    """One turn: asked until an answer parses. All its attempts continue the same parent."""

    def __init__(
        self,
        session: RootSession,
        signature: type[dspy.Signature],
        inputs: Mapping[str, Any],
        notes: Sequence[PersonNote],
    ) -> None:
        field = history_field(signature)
        self.prediction: dspy.Prediction | None = None
        self._instructions = signature.instructions
        self._session = session
        self._history = cast("TrimmedHistory | None", inputs.get(field) if field is not None else None)
        self._inputs = {name: inputs[name] for name in signature.input_fields if name != field and name in inputs}
        self._notes = notes
        self._parent = session.parent_of(self._history)
        self._unparsed = 0

    @contextmanager
    def attempt(self) -> Generator[dict[str, Any]]:
        """Yield the options for one call of the predictor. An end that can be mended is swallowed: attempt again."""
        session, parent, repeated = self._session, self._parent, self._unparsed
        style = session.style()
        if style is None:
            with self._parsing():
                yield self._plain(repeated)
            return
        if style.use_json_adapter_fallback and not isinstance(style, dspy.JSONAdapter):
            repeated, as_json = divmod(self._unparsed, 2)
            style = _json(style) if as_json else style
        format_ = TurnFormat(
            style,
            conversation=session.multiturn_history,
            continued=session.chained,
            so_far=parent.so_far if parent else None,
            max_output_chars=session.max_output_chars,
            notes=self._notes,
        )
        lm = None
        if session.chained:
            lm = ChainedLM(cast("dspy.LM", session.root_lm), parent.stored if parent else None, repeated)
        with self._parsing(), self._recovering():
            with dspy.context(adapter=format_.adapter()):
                yield self._plain(repeated) if lm is None else {"lm": lm}
            if lm is not None:
                self._keep(lm.response)

    def _plain(self, repeated: int) -> dict[str, Any]:
        lm = self._session.root_lm
        # The cache holds the very answer that did not parse. Another kind of LM might send the option to its provider.
        uncached = repeated and isinstance(lm, dspy.LM)
        return {"lm": lm, "config": {"cache": False}} if uncached else {"lm": lm}

    @contextmanager
    def _parsing(self) -> Generator[None]:
        try:
            yield
        except dspy.AdapterParseError as error:
            self._unparsed += 1
            # What was streamed to a listener cannot be taken back.
            if self._unparsed >= _ANSWERS or dspy.settings.send_stream is not None:
                raise
            logger.info("The root LM's answer does not parse, asking again: %s", error)

    @contextmanager
    def _recovering(self) -> Generator[None]:
        try:
            yield
        except ParentIgnored:
            self._parent = None
            self._session.stop_chaining("the provider answered without the conversation that it was to continue")
        except dspy.LMError as error:
            # Which code a server uses for an unknown parent differs; when it was something else, the one attempt with
            # the whole context brings the true error.
            lost = error.status in (400, 404) and not isinstance(error, dspy.ContextWindowExceededError)
            if self._parent is None or not lost:
                raise
            self._parent = None
            self._session.lose(str(error))

    def _keep(self, response: Response | None) -> None:
        prediction = self.prediction
        if response is None or prediction is None or self._history is None or "code" not in prediction:
            return
        if response.id is None:
            self._session.stop_chaining("the provider gives its responses no id")
        elif (response.provider_data or {}).get("store") is False:
            self._session.stop_chaining("the provider does not store its responses (it says store: false)")
        else:
            link = _Link(
                stored=StoredResponse(response.id, response.usage.input_tokens),
                so_far=ConversationSoFar(self._instructions, self._inputs, len(self._history.entries) + 1),
                entries=tuple(self._history.entries),
                cut=self._history.cut,
                reasoning=str(prediction.reasoning),
                code=str(prediction.code),
            )
            self._session.keep(link, self._parent)


def _json(style: dspy.ChatAdapter) -> dspy.JSONAdapter:
    return dspy.JSONAdapter(
        use_native_function_calling=style.use_native_function_calling, parallel_tool_calls=style.parallel_tool_calls
    )
