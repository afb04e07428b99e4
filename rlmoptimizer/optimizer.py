"""`RLMDocstringOptimizer`: the public class."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar

import dspy
from dspy.primitives.code_interpreter import CodeInterpreter
from dspy.teleprompt import Teleprompter

from rlmoptimizer.compilation.result import stored_best_program
from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.compilation.stored_compile import compiled_in_stores
from rlmoptimizer.errors import InvalidSetup, InvalidSetupType
from rlmoptimizer.event_delivery import EventCallback
from rlmoptimizer.lms.failures import failure_line, without_traceback
from rlmoptimizer.mlflow_runs import join_autologging, log_result
from rlmoptimizer.other_optimizers import advice_on, unknown_keywords_text
from rlmoptimizer.settings import Settings, a_bool, a_directory
from rlmoptimizer.show.terminal.log_lines import printable_logs
from rlmoptimizer.task.program import check_program

if TYPE_CHECKING:
    from rlmoptimizer.check.report import CheckReport

__all__ = ["RLMDocstringOptimizer"]

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_COMPILE_NAMES: Final = ("student", "trainset", "valset", "testset", "teacher", "resume")  # no constructor has them


def _refuses_unknown(elsewhere: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A method that says what to use in the place of keywords that it does not have.

    `elsewhere`: where the keywords of the other decorated method belong.
    """

    def decorate(method: Callable[_P, _R]) -> Callable[_P, _R]:
        constructs = method.__name__ == "__init__"
        parameters = inspect.signature(method).parameters
        named = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]

        @functools.wraps(method)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            called = type(args[0]).__name__ + ("" if constructs else f".{method.__name__}")
            if len(args) + len(named) > len(parameters):
                raise TypeError(f"{called} takes parameters by name: {named[0]}=..., {named[1]}=..., and so on")
            if unknown := [name for name in kwargs if name not in parameters]:
                others = _COMPILE_NAMES if constructs else Settings.__slots__
                raise TypeError(unknown_keywords_text(called, unknown, named, others, elsewhere))
            return method(*args, **kwargs)

        return call

    return decorate


class RLMDocstringOptimizer(Teleprompter):
    """Improves the instructions of a DSPy program with an LLM agent that works in a Jupyter kernel of its own.

    Args:
        metric: scores a prediction; described at `compile`, which may be given another one.
        max_iterations: the budget is this times len(trainset), plus len(valset), in units. One evaluated example costs
            one unit, one prompt to the sub-LM costs one; the baseline and the agent's own turns are free. None: what
            `auto` says.
        auto: "light", "medium" or "heavy" is a `max_iterations` of 2, 5 or 12. None: 5.
        root_lm: the agent.
        sub_lm: answers `llm_query`, `llm_query_batched` and sub-agents. None: `root_lm`.
        eval_lm: runs the program, as `dspy.settings.lm`; predictors that have an LM of their own keep it. None:
            `dspy.settings.lm` as it is when `compile` is called.
        root_adapter: formats what the root LM is asked as the agent, and what its sub-agents ask. None: DSPy's
            `ChatAdapter`. Program and metric keep the adapter of `dspy.settings`; sub-LM prompts have none.
        num_threads: examples evaluated at once; with an `executor`, examples that it has at once.
        rlm_max_iterations: turns of the agent.
        rlm_max_llm_calls: prompts to the sub-LM in one compile, whatever the budget would allow.
        rlm_max_output_chars: of one turn's output, that the root LM sees; head and tail are kept.
        rlm_max_history_chars: of the earlier turns, that the root LM sees in one request. Above it, outputs are left
            out, the oldest first, and the oldest turns whole; the agent can read them in its REPL. None: no limit.
        root_stateful_session: chain the root LM's turns by `previous_response_id` when it is a Responses LM.
        rlm_multiturn_history: tell the root LM its earlier turns as user and assistant messages.
        verbose: show the agent's turns as they happen, and what was begun and what came of it, on stderr or in the
            notebook cell. Every evaluation has its progress there in any case.
        run_storage_dir: the directory that keeps the run store, so that `compile(..., resume=True)` can resume it.
            None: a temporary one, removed when `compile` ends.
        sub_agents: let the agent build sub-agents (`import dspy` in its code). They run on `sub_lm`, each prompt costs
            a unit, and they need a `KernelInterpreter`, which checks what is asked of them.
        kernel: makes the agent's interpreter: a zero-argument callable, as `dspy.RLM` takes it. None:
            `KernelInterpreter.factory()`.
        max_cost_usd: what all LM calls of one compile may cost, baseline and agent included, by DSPy's own figures
            (answers from its cache cost nothing). What is expected to cost more than is left, going by such calls so
            far, is refused before anything is spent. Once the limit is spent nothing more begins, and what is under way
            is finished: at most `num_threads` examples, the sub-LM prompts that were sent, and one turn of the agent.
            The best candidate by then is the result. Calls whose price DSPy does not know are not counted, with a
            warning; an LM whose calls can never have a price is refused when `compile` begins. None: no limit.
        seed: of the random samples of examples for which the agent gives no seed. With the same seed, data, turns of
            the agent and answers of the LMs, runs and result are the same, whatever `num_threads` is (but not where
            `max_cost_usd` cuts a run short). None: another one in each compile.
        perfect_score: the metric's best score. Numbers from 0 to this are divided by it; its bools and its
            `objective_scores` are not.
        share_source: give the agent the source of the program's classes and tools, of the metric, and of what these use
            of their own modules, as `program_source` and `metric_source`. It can read all that stands there.
        max_prompt_tokens: a longer text for a step is refused, with its count; the student's own texts are always
            taken. A token is counted for every four bytes of UTF-8, whatever the model. None: no limit but 100,000
            characters.
        example_timeout: seconds for program and metric together, on one example. One that takes longer is an error of
            the kind "example_timeout" with a score of 0, and is paid; its place is free again. What it still waits for
            is cancelled where it is async, else left behind in a thread that never keeps the process alive. None: as
            long as it takes.
        target_score: in percent, 0 to 100. Once prompts have it on all of val, as the mean over all their runs there
            (without a validation set: on all of train; the baseline included), the work ends: calls of the agent are
            refused, the root LM is not asked again, and the best candidate so far is the result. None: no score ends
            it.
        patience: so many runs on all of val (or train, as above) in a row that are not better than the best before end
            the work in the same way. None: they never do.
        max_seconds: of one optimization, from the beginning of `compile`, those of earlier processes included. Then the
            work ends in the same way, and the agent's cell is interrupted. The baseline, a run on val, examples and an
            answer of the root LM that are under way come to their end. None: no limit.
        callbacks: functions that get every event (the classes of `rlmoptimizer.events`), in order, each on a thread of
            its own. One that raises gets nothing more; a slow one never holds up the work.
        executor: where program and metric run: any `concurrent.futures.Executor`, which stays the caller's own, also
            one of other processes or machines, such as `Client.get_executor()` of Dask. Or a callable that makes one
            (`lambda: ProcessPoolExecutor(4)`): it is shut down when `compile` ends, and made anew when a worker's
            death has broken it. An example whose worker dies runs again once. None: threads of this process.

    Raises:
        InvalidSetup: naming the parameter, what came and what is accepted.
    """

    @_refuses_unknown("compile(...)")
    def __init__(
        self,
        *,
        metric: Callable[..., Any] | None = None,
        root_lm: dspy.BaseLM,
        max_iterations: int | None = None,
        auto: Literal["light", "medium", "heavy"] | None = None,
        sub_lm: dspy.BaseLM | None = None,
        eval_lm: dspy.BaseLM | None = None,
        root_adapter: dspy.Adapter | None = None,
        num_threads: int = 8,
        rlm_max_iterations: int = 200,
        rlm_max_llm_calls: int = 200,
        rlm_max_output_chars: int = 10_000,
        rlm_max_history_chars: int | None = 200_000,
        root_stateful_session: bool = True,
        rlm_multiturn_history: bool = False,
        verbose: bool = False,
        run_storage_dir: str | os.PathLike[str] | None = None,
        sub_agents: bool = False,
        kernel: Callable[[], CodeInterpreter] | None = None,
        max_cost_usd: float | None = None,
        seed: int | None = 0,
        perfect_score: float = 1.0,
        example_timeout: float | None = None,
        target_score: float | None = None,
        patience: int | None = None,
        max_seconds: float | None = None,
        share_source: bool = False,
        max_prompt_tokens: int | None = None,
        callbacks: Sequence[EventCallback] = (),
        executor: Executor | Callable[[], Executor] | None = None,
    ) -> None:
        super().__init__()
        self.settings = Settings(
            metric=metric,
            root_lm=root_lm,
            max_iterations=max_iterations,
            auto=auto,
            sub_lm=sub_lm,
            eval_lm=eval_lm,
            root_adapter=root_adapter,
            num_threads=num_threads,
            rlm_max_iterations=rlm_max_iterations,
            rlm_max_llm_calls=rlm_max_llm_calls,
            rlm_max_output_chars=rlm_max_output_chars,
            rlm_max_history_chars=rlm_max_history_chars,
            root_stateful_session=root_stateful_session,
            rlm_multiturn_history=rlm_multiturn_history,
            verbose=verbose,
            run_storage_dir=run_storage_dir,  # pyright: ignore[reportArgumentType] # it becomes a Path there
            sub_agents=sub_agents,
            kernel=kernel,
            max_cost_usd=max_cost_usd,
            seed=seed,
            perfect_score=perfect_score,
            example_timeout=example_timeout,
            target_score=target_score,
            patience=patience,
            max_seconds=max_seconds,
            share_source=share_source,
            max_prompt_tokens=max_prompt_tokens,
            callbacks=callbacks,  # pyright: ignore[reportArgumentType] # they become EventCallbacks there
            executor=executor,
        )

    def __getattr__(self, name: str) -> Any:
        """A parameter, by its name; `max_iterations` is the number in force."""
        if name in Settings.__slots__:
            return self.settings.iterations if name == "max_iterations" else getattr(self.settings, name)
        raise self._unknown(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a parameter for the compiles to come.

        Raises:
            InvalidSetup: as the constructor does.
            AttributeError: there is no such parameter. A subclass may declare other attributes, on the class.
        """
        if name in Settings.__slots__:
            name, value = "settings", replace(self.settings, **{name: value})
        elif name == "settings":
            if not isinstance(value, Settings):
                raise InvalidSetupType(f"settings must be a Settings, got {type(value).__name__}")
        elif not name.startswith("_") and not hasattr(type(self), name):
            raise self._unknown(name)
        super().__setattr__(name, value)

    def _unknown(self, name: str) -> AttributeError:
        advice = advice_on(name, Settings.__slots__)
        return AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}{f'; {advice}' if advice else ''}"
        )

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *Settings.__slots__]

    def get_params(self) -> dict[str, Any]:
        """The parameters by name, as they were given; the constructor takes them again."""
        return {name: getattr(self.settings, name) for name in Settings.__slots__}

    @_refuses_unknown("the constructor, RLMDocstringOptimizer(...)")
    def compile(  # pyright: ignore[reportIncompatibleMethodOverride] # DSPy's takes any keyword
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        metric: Callable[..., Any] | None = None,
        valset: list[dspy.Example] | None = None,
        testset: list[dspy.Example] | None = None,
        teacher: dspy.Module | None = None,
        resume: bool = False,
    ) -> dspy.Module:
        """Return a copy of `student` with better instructions; `student` itself is not touched.

        `metric(example, prediction[, trace, ...])` returns a bool, a number from 0 to `perfect_score`, or an object
        with `score`, and perhaps `feedback` and `objective_scores`. In GEPA's form, with `pred_name` and `pred_trace`,
        it is asked about each step of an example of train too. None: the metric of the constructor. `teacher` is
        accepted because DSPy's optimizers have it, and not used.

        `valset` gives the agent scores only. `testset` gives it nothing: when it has ended, old and new prompts are
        scored on these examples once, side by side, for no units.

        `resume=True` resumes the newest optimization in `run_storage_dir`, however it ended: everything that had
        finished, its budget, its prompts, and the agent's turns and variables are kept. Student, data, metric and
        settings must be the same. A finished one gives its result at once; if there is none, a new one begins. One that
        was branched by a person while it ran ends, and the result is that of the branch.

        What comes back has the prompts that the agent has submitted. They are first run on the whole of `valset`, if
        they never were and the budget allows; if another candidate is better there beyond chance, its prompts come back
        instead, and a warning says so.

        The result carries `optimization_result` (an `OptimizationResult`: how much better it is on each split, how sure
        that is, and what came back and why), `optimized_dspy_program` (step to prompt), `latest_run_id`, `best_run_id`,
        `best_score` (0 to 100), `baseline_run_id`, `trial_logs` (every run, in order), `agent_trajectory`,
        `agent_final_reasoning`, `usage` (LM calls, tokens and dollars of the roles "root", "sub" and "eval"; `cost_usd`
        is None where a price is not known) and `cost_usd` (of all three).

        Raises:
            InvalidSetup: the student, the data, the metric or an LM cannot be used, such as an LM without a key, or the
                optimization to be resumed had others; then it names every difference.
            MetricFailed: the metric raises, or returns no valid score, on every example; with what came of the first.
            CostLimitReached: `max_cost_usd` does not pay for the baseline.
            WorkersLost: the `executor` takes no more work; every result so far is kept.
            StoreCorrupt: the run store cannot be read or written.
        What the root LM raises after its own retries is raised too, and what an LM raises on every example of the
        baseline: with a short traceback (`__context__` has the cause), and a line on stderr that says which LM and why.
        Where `run_storage_dir` is given, a line on stderr says how to resume.
        """
        if a_bool("resume", resume) and self.settings.run_storage_dir is None:
            raise InvalidSetup("resume=True needs the directory of the optimization: run_storage_dir is None")
        setup = Setup.checked(self.settings, student, trainset, valset, metric, testset)
        if not resume:
            setup.check_keys()  # one that is resumed may be finished, and need none
        if teacher is not None:
            logger.warning("teacher is not used by RLMDocstringOptimizer")
        try:
            program = compiled_in_stores(setup, resume=resume)
        except dspy.LMError as error:
            if failure_line(error) is None:
                raise
            logger.debug("An LM was not available", exc_info=True)
            failed = without_traceback(error)
        else:
            log_result(program.optimization_result)
            return program
        raise failed

    @_refuses_unknown("the constructor, RLMDocstringOptimizer(...)")
    def check(
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        metric: Callable[..., Any] | None = None,
        valset: list[dspy.Example] | None = None,
        testset: list[dspy.Example] | None = None,
    ) -> CheckReport:
        """Look at what `compile` would be given, for a few LM calls: no units, and nothing is stored.

        Every LM is asked once, three examples of train are run, and the metric is asked twice about each prediction.
        The report has the steps, the LMs, what the metric gives, examples that stand twice in a split or in two, what
        the budget pays for, an estimate of calls, tokens, dollars and time, and what would confine the agent's kernel.
        It prints, and shows itself in a notebook; `report.ok` says that there are no `report.problems`. What cannot be
        worked with is among these, and not raised. `compile` finds the answers of the three examples in DSPy's cache.
        """
        from rlmoptimizer.check.checking import checked  # which no compile needs

        with printable_logs():
            return checked(self.settings, student, trainset, valset, metric, testset)

    @staticmethod
    def best_program(student: dspy.Module, run_storage_dir: str | os.PathLike[str]) -> dspy.Module:
        """A copy of `student` with the best prompts so far of the newest optimization in a directory.

        Reads only: also while another process is at work there, or after it died. The best is what `compile` itself
        would take without a submission: the prompts with the best mean over all their runs on val, or on train without
        a validation set, of those that have a score on every example. The copy carries `best_run_id` and `best_score`
        (0 to 100).

        Raises:
            InvalidSetup: there is no optimization in the directory, it has no finished run yet, or it is about another
                student.
            StoreCorrupt: its run store cannot be read.
        """
        check_program(student)
        directory = a_directory("run_storage_dir", run_storage_dir)
        if directory is None:
            raise InvalidSetup("run_storage_dir must be the directory that the optimization is kept in, got None")
        return stored_best_program(student, directory)


join_autologging()  # here: it has to know the class above
