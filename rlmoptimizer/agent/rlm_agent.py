"""The agent: its signature and prompt, the `dspy.RLM` that it is, and what it leaves behind.

`dspy.RLM` is extended at the few places where it lets one in: how sub-LM prompts are counted, what a request holds,
and what happens between turns. A test holds each of them against the installed DSPy.
"""

# DSPy ships no type information; what is used of it here is cast where it enters.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnknownParameterType=false

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import dspy
from dspy.primitives.code_interpreter import CodeInterpreterError, FinalOutput
from dspy.primitives.repl_types import REPLHistory, REPLVariable
from dspy.utils.exceptions import AdapterParseError

from kernel_bridge import KernelInterpreter
from kernel_bridge.text import printable, printable_line
from rlmoptimizer.agent.agent_signature import agent_signature
from rlmoptimizer.agent.kernels import kernel_started
from rlmoptimizer.agent.llm_tools import Paid, checked_llm_tools
from rlmoptimizer.agent.no_sub_agents import refuse_sub_agents
from rlmoptimizer.agent.person_requests import PersonRequests
from rlmoptimizer.agent.root_request import action_instructions, bare_signature, tools_text, variables_shown
from rlmoptimizer.agent.stopping import Ending, StopReason
from rlmoptimizer.agent.submission import SUBMISSION_FIELD
from rlmoptimizer.agent.workbench import Workbench
from rlmoptimizer.errors import AgentError
from rlmoptimizer.evaluation.step_recorder import describe_error
from rlmoptimizer.events import KernelDied, TurnFinished, TurnStarted
from rlmoptimizer.lms.failures import failure_kind
from rlmoptimizer.lms.history_trim import TURNS_VARIABLE
from rlmoptimizer.lms.sub_lm import SubLM
from rlmoptimizer.outcome.ending import AgentOutcome
from rlmoptimizer.outcome.turn_rows import PAGES_OF_TURNS, TURNS_LEFT_OUT, GivenTurns
from rlmoptimizer.records import LM_FAILURES
from rlmoptimizer.settings import Settings
from rlmoptimizer.store.calls import CellEnd

__all__ = ["Agent"]

logger = logging.getLogger(__name__)

_ERROR_CHARS = 1000  # of an error in a log line
_WHOLE_CHARS = 500_000  # of earlier turns that are sent with a cell as they are
_UNREADABLE = 3  # turns in a row whose answer could not be read, after which the run ends with the LM's own error


class Agent(dspy.RLM):  # pyright: ignore[reportGeneralTypeIssues] # DSPy's decorator hides that it is a class
    """`dspy.RLM` with the workbench's tools, its meter, and turns that are seen.

    Args:
        turns: that are left.
        person: may pause it between turns, leave it notes and end its work.
        interpreter_factory: tells how the agent's interpreter is described to it; the interpreter itself is passed
            when the agent is run.
        earlier: the turns of earlier processes, as `reasoning`, `code` and `output`.
        resumable: an LM that cannot be reached for the conclusion may be asked again by another process.
    """

    def __init__(
        self,
        bench: Workbench,
        settings: Settings,
        turns: int,
        *,
        person: PersonRequests,
        interpreter_factory: Callable[[], Any],
        earlier: Sequence[Mapping[str, Any]] = (),
        resumable: bool = False,
    ) -> None:
        # Set first: DSPy asks for the tools' descriptions while it is being constructed.
        self._bench = bench
        self._meter = bench.meter
        self._person = person
        self._earlier = earlier
        self._resumable = resumable
        self._sub_agents = settings.sub_agents
        self._lost: CodeInterpreterError | None = None
        self._unreadable = 0
        self._history = REPLHistory()  # before the turn that is under way
        self._given = GivenTurns({"turn": number, **turn} for number, turn in enumerate(earlier, 1))
        self._problem: str | None = None
        self._stop_reason: StopReason = "submitted"
        super().__init__(
            agent_signature(sub_agents=settings.sub_agents, share_source=settings.share_source),
            max_iters=turns,
            max_llm_calls=settings.rlm_max_llm_calls,
            max_output_chars=settings.rlm_max_output_chars,
            tools=[_tool(function) for function in bench.tools.all],
            sub_lm=cast("Any", SubLM(settings.sub_or_root_lm, self._meter.asking)),
            interpreter_factory=interpreter_factory,
        )

    def work(self, *, interpreter_factory: Callable[[], Any], **inputs: Any) -> AgentOutcome:
        """Run the agent to its end. Raises what the root LM raised, or what stopped the workbench."""
        tools = {tool.name: tool.func for tool in self.tools.values()} | checked_llm_tools(str, lambda count: None)
        self._bench.calls.agent_began(inputs, tools, self._get_output_fields_info())
        return self._outcome_of(self(interpreter_factory=interpreter_factory, **inputs))

    def conclude(self, **inputs: Any) -> AgentOutcome:
        """Ask for a conclusion from the earlier turns alone: there are none left. Raises as `work` does."""
        nothing = REPLHistory(max_output_chars=self.max_output_chars)
        return self._outcome_of(self._extract_fallback(self._build_variables(**inputs), nothing, [SUBMISSION_FIELD]))

    def _outcome_of(self, result: Any) -> AgentOutcome:
        prompts: dict[str, str] | None = None
        if self._problem is None:
            try:
                prompts = self._bench.submission.prompts_in({SUBMISSION_FIELD: result[SUBMISSION_FIELD]})
            except AgentError as refused:
                self._problem = f"the prompts taken from the agent's trajectory are not valid: {refused}"
        return AgentOutcome(prompts, self._problem, str(result.final_reasoning), self._stop_reason)

    # one meter for every road to the sub-LM

    def _prepare_execution_tools(self, budget: Any = None) -> dict[str, Callable[..., Any]]:
        tools = super()._prepare_execution_tools(cast("Any", Paid()))
        tools |= checked_llm_tools(tools["llm_query"], self._meter.reserve, self._bench.gate.turn)
        return {name: self._bench.calls.recorded(name, tool) for name, tool in tools.items()}

    def _setup_facade(self, repl: Any, budget: Any, interpreter_factory: Any) -> str:
        if not self._sub_agents:
            refuse_sub_agents(repl)
            return ""
        return super()._setup_facade(repl, cast("Any", self._meter), interpreter_factory)

    # what a request holds

    def _build_signatures(self) -> tuple[Any, Any]:
        """DSPy's, but each turn's instructions say everything once: DSPy's own text on the REPL repeats the task's."""
        action, extract = super()._build_signatures()
        tools = {tool.name: tool.func for tool in self.tools.values()}
        described = tools_text({**tools, **checked_llm_tools(str, lambda count: None)})
        task = self.signature.instructions
        return action.with_instructions(action_instructions(task, described, self._initial_interpreter_rules)), extract

    def _build_variables(self, **inputs: Any) -> list[REPLVariable]:
        return variables_shown(super()._build_variables(**inputs), inputs)

    def _make_interpreter_tool(self, tool: Any) -> Callable[..., Any]:
        """A tool that takes positional arguments too, and says its own name when they do not fit."""
        function = tool.func
        signature = bare_signature(function)

        @functools.wraps(function)
        def invoke(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{error}; call it as {tool.name}{signature}") from None
            return tool(**bound.arguments)

        invoke.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        return invoke

    # the turns

    def _execute_iteration(
        self, repl: Any, variables: Any, history: REPLHistory, iteration: int, *args: Any, **kwargs: Any
    ) -> Any:
        if (ending := self._ending_before(history)) is not None:
            return self._ended_by(ending, history)
        self._history = history
        started = time.monotonic()
        self._bench.turns.count += 1
        try:
            result = super()._execute_iteration(repl, variables, history, iteration, *args, **kwargs)
            self._unreadable = 0
        except AdapterParseError as error:
            self._unreadable += 1
            if self._unreadable >= _UNREADABLE:
                return self._ended_unreadable(history, error)
            result = self._unreadable_turn(history)
        except BaseException:
            # Before the interpreter is shut down, which may wait for tools under way.
            self._bench.gate.close()
            raise
        self._raise_failure()
        ended = isinstance(result, dspy.Prediction)
        entry = result.trajectory[-1] if ended else result.entries[-1].model_dump()
        submission = {SUBMISSION_FIELD: result[SUBMISSION_FIELD]} if ended else None
        self._saw_turn(iteration, entry, time.monotonic() - started, submission)
        if ended:
            # What the agent's threads have left running in the tools ends here; a run on val comes to its end.
            self._bench.gate.close()
        if self._lost is not None:
            return self._extract_fallback(variables, result, [SUBMISSION_FIELD])
        return result

    def _ending_before(self, history: REPLHistory) -> Ending | None:
        """Before every request: wait while a person wants a pause, then why there is to be no further one, or None."""
        turn, stop = self._bench.turns.count + 1, self._bench.stop
        self._person.wait_while_paused(turn, stop)
        self._raise_failure()
        if (ending := stop.look_before_root_call()) is None:
            self._person.begin_turn(turn, len(history.entries))
        return ending

    def _unreadable_turn(self, history: REPLHistory) -> REPLHistory:
        # A turn is lost, not the run: what was evaluated so far has been paid for.
        logger.warning(
            "The root LM's answer could not be read (%d in a row; the work ends at %d)", self._unreadable, _UNREADABLE
        )
        output = "[Error] Your answer could not be read, nothing was run. Give the fields `reasoning` and `code`."
        return history.append(code="", output=output)

    def _ended_unreadable(self, history: REPLHistory, error: AdapterParseError) -> dspy.Prediction:
        """The end where no answer can be read any more. Where none ever could, it is the caller who must know."""
        self._bench.gate.close()
        if not any(turn["code"] for turn in (*self._earlier, *(entry.model_dump() for entry in history))):
            logger.warning(
                "None of the root LM's answers could be read; another root_lm or root_adapter may do better. "
                "The error below shows the last one"
            )
            raise error
        said = f"{self._unreadable} answers of the root LM in a row could not be read"
        return self._ended_by(Ending("unreadable", said), history)

    def _saw_turn(
        self, iteration: int, entry: Mapping[str, str], seconds: float, submission: Mapping[str, Any] | None
    ) -> None:
        reasoning, code, output = entry["reasoning"], entry["code"], entry["output"]
        self._bench.turns.record(reasoning, code, output, seconds, submission)
        before = len(self._earlier)
        number, limit, left = before + iteration + 1, before + self.max_iters, self._bench.accounts.ledger.left
        finished = TurnFinished(number, limit, reasoning, code, output, left, seconds, submission is not None)
        self._bench.accounts.emitter.emit(finished)

    def _execute_code(self, repl: Any, code: str, input_args: dict[str, Any]) -> Any:
        if (ending := self._bench.stop.look()) is not None:  # while the root LM thought
            return f"[Error] This was not run: {ending.said}"
        self._bench.accounts.store.begin_iteration(code)
        self._begin_turn(code)
        if isinstance(repl, KernelInterpreter):  # label the kept namespace with its turn
            repl.checkpoint_label = str(self._bench.turns.count)
        self._bench.tools.answer_to(repl)
        calls = self._bench.calls
        try:
            with calls.cell():
                result = super()._execute_code(repl, code, self._with_turns(repl, input_args))
            calls.cell_ended(_end_of(result, died=self._bench.turns.has_died))
            return result
        except CodeInterpreterError as lost:
            calls.cell_ended("died")
            # The session is over, not the compile: the runs are stored, and the history is enough to conclude from.
            self._raise_failure()
            self._lost = lost
            logger.warning("The agent's interpreter is lost, so the agent ends here: %s", printable(str(lost)))
            return f"[Error] The REPL has ended and cannot be used any more: {lost}"
        finally:
            self._tell_of_death(repl)

    def _with_turns(self, repl: Any, variables: dict[str, Any]) -> dict[str, Any]:
        """The variables of a cell, with the turns of which the last request had not all: in pages, where they are long.

        A list in pages is read from the store, which has every turn that the agent is asked after.
        """
        left_out: int = getattr(self.generate_action, "turns_left_out", 0)
        given = self._given
        if (count := len(self._earlier) + left_out) > len(given.rows):
            given.add(self._history.entries[len(given.rows) - len(self._earlier) : left_out])
            self._bench.accounts.store.record_event(TURNS_LEFT_OUT, {"turn": self._bench.turns.count, "count": count})
        if PAGES_OF_TURNS in getattr(repl, "page_sources", ()) and given.chars > _WHOLE_CHARS:
            return {**variables, TURNS_VARIABLE: self._bench.tools.turns.paged(count)}
        return {**variables, TURNS_VARIABLE: given.rows}

    def _tell_of_death(self, repl: Any) -> None:
        """Of a kernel that died in this turn, and of its successor."""
        if (death := self._bench.turns.death_of(repl)) is None:
            return
        emitter = self._bench.accounts.emitter
        emitter.emit(KernelDied(self._bench.turns.count, death.reason))
        if repl.connection_file is not None:
            emitter.emit(kernel_started(repl))

    def _begin_turn(self, code: str) -> None:
        number, limit = self._bench.turns.count, len(self._earlier) + self.max_iters
        answer: Any = getattr(self.generate_action, "answer", None)  # of the session that DSPy's predictor is behind
        reasoning = str(getattr(answer, "reasoning", ""))
        self._bench.accounts.emitter.emit(TurnStarted(number, limit, reasoning, code))

    def _raise_failure(self) -> None:
        if (failure := self._bench.gate.failure) is not None:
            raise failure

    # the submission

    def _process_final_output(
        self, result: FinalOutput, output_field_names: list[str]
    ) -> tuple[dict[str, Any] | None, str | None]:
        # An interpreter with a submit_validator has asked already, in the cell; any other asks here.
        outputs, error = super()._process_final_output(result, output_field_names)
        if outputs is None:
            return outputs, error
        try:
            return {SUBMISSION_FIELD: self._bench.submission.prompts_in(outputs)}, None
        except AgentError as refused:
            return None, f"[Error] {type(refused).__name__}: {refused}"

    def _extract_fallback(
        self, variables: Any, history: REPLHistory, output_field_names: list[str]
    ) -> dspy.Prediction:
        """DSPy's extract step. Its failure is kept for the caller, who takes the best run then.

        An LM that could not be reached is worth asking again: that is raised where the compile can be resumed.
        """
        if (ending := self._ending_before(history)) is not None:
            return self._ended_by(ending, history)
        self._bench.gate.close()
        self._stop_reason = "turns" if self._lost is None else "kernel_lost"
        try:
            return super()._extract_fallback(variables, _after(self._earlier, history), output_field_names)
        except Exception as error:
            if self._resumable and failure_kind(error) in LM_FAILURES:
                raise
            said = printable_line(describe_error(error), _ERROR_CHARS)
            logger.warning("No prompts could be taken from the agent's trajectory: %s", said)
            reason = f"the agent did not submit, and asking for its conclusion failed: {type(error).__name__}"
            return self._ended_without_outputs(history, reason)

    def _ended_by(self, ending: Ending, history: REPLHistory) -> dspy.Prediction:
        self._stop_reason = ending.reason
        return self._ended_without_outputs(history, f"the root LM is not asked again: {ending.said}")

    def _ended_without_outputs(self, history: REPLHistory, problem: str) -> dspy.Prediction:
        self._bench.gate.close()
        self._problem = problem
        trajectory = [entry.model_dump() for entry in history]
        return dspy.Prediction(trajectory=trajectory, final_reasoning="", **{SUBMISSION_FIELD: None})


def _end_of(result: Any, *, died: bool) -> CellEnd:
    """How a cell ended, from what DSPy makes of it: the text of an error begins as it does there."""
    if died:
        return "died"
    if isinstance(result, FinalOutput):
        return "submitted"
    return "error" if isinstance(result, str) and result.startswith("[Error]") else "ok"


def _after(earlier: Sequence[Mapping[str, Any]], history: REPLHistory) -> REPLHistory:
    """The history with the turns of earlier processes in front."""
    if not earlier:
        return history
    whole = REPLHistory(max_output_chars=history.max_output_chars)
    for turn in (*earlier, *(entry.model_dump() for entry in history)):
        whole = whole.append(reasoning=turn["reasoning"], code=turn["code"], output=turn["output"])
    return whole


def _tool(function: Callable[..., Any]) -> dspy.Tool:
    """`function` as a DSPy tool that leaves the checking of arguments to the function."""
    args = dspy.Tool(function).args or {}
    # A schema with a plain "type" makes DSPy refuse values before the function sees them, with a message of its own.
    loose = {name: {"anyOf": [schema]} if "type" in schema else schema for name, schema in args.items()}
    return dspy.Tool(function, args=loose, arg_types=dict.fromkeys(args, Any))
