"""`RLMDocstringOptimizer`: checks what it is given, puts the parts together, and takes them apart again at the end."""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextvars
import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import dspy
from dspy.primitives.code_interpreter import CodeInterpreter
from dspy.teleprompt import Teleprompter

from . import answers
from .agent import Agent, AgentOutcome
from .budget import Ledger
from .checks import a_bool, a_cost_limit, a_directory, a_factory, a_seed, an_lm, at_least
from .costs import CostLedger, total_usd, usage_dict
from .dataset import Dataset, build_dataset
from .display import Display
from .doubts import warn_of_a_dead_baseline
from .errors import InvalidSetup
from .evaluation import Evaluator
from .events import (
    AgentSubmitted,
    CompileFinished,
    CompileStarted,
    Emitter,
    Event,
    ExamplesScored,
    FellBack,
    Split,
    TurnFinished,
)
from .gate import Gate
from .kernel_lease import InterpreterFactory, KernelLease
from .prices import check_priced
from .program import apply_prompts, check_program, clone, fingerprint
from .root_lm import root_session
from .run_store import RunRecord, RunStore
from .seeds import fresh_seed
from .sub_lm import SubLMMeter
from .task import describe_steps, describe_task
from .usage_meter import UsageMeter
from .workbench import Workbench

__all__ = ["RLMDocstringOptimizer"]

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 600.0  # how long the end of a compile waits for evaluations under way
_HURRIED_SECONDS = 2.0


class RLMDocstringOptimizer(Teleprompter):
    """Improves the instructions of a DSPy program with an LLM agent that works in a Jupyter kernel of its own.

    Args:
        max_iterations: the budget is this times len(trainset), plus len(valset), in units. One evaluated example costs
            one unit, one prompt to the sub-LM costs one; the baseline and the agent's own turns are free.
        root_lm: the agent.
        sub_lm: answers `llm_query`, `llm_query_batched` and the agent's sub-agents. None: `root_lm`.
        eval_lm: runs the program, as `dspy.settings.lm`; predictors that have an LM of their own keep it. None:
            `dspy.settings.lm` as it is when `compile` is called.
        num_threads: examples evaluated at once.
        rlm_max_iterations: turns of the agent.
        rlm_max_llm_calls: prompts to the sub-LM in one compile, whatever the budget would allow.
        rlm_max_output_chars: of one turn's output, that the root LM sees; head and tail are kept.
        root_stateful_session: chain the root LM's turns by `previous_response_id` when it is a Responses LM.
        rlm_multiturn_history: tell the root LM its earlier turns as user and assistant messages.
        verbose: show the agent's turns as panels on stderr. A progress bar is shown for every evaluation in any case.
        run_storage_dir: directory to keep the run store in. None: a temporary one, removed when `compile` ends.
        kernel: makes the agent's interpreter: a zero-argument callable, as `dspy.RLM` takes it. None:
            `KernelInterpreter.factory()`.
        max_cost_usd: what all LM calls of one compile may cost, the baseline's and the agent's own included, by DSPy's
            own figures (answers from its cache cost nothing). Whatever is expected to cost more than is left, going by
            what such calls have cost so far, is refused before anything is spent. Once it is spent nothing more is
            begun, and what is under way is finished: at most `num_threads` examples, the sub-LM prompts that were sent,
            and one turn of the agent. The best candidate by then is the result. Calls whose price DSPy does not know
            are not counted; LMs that can never have one are refused when `compile` begins, others are warned of.
            None: no limit.
        seed: of random samples of examples that the agent asks for without a seed of its own. With the same seed, data,
            turns of the agent and answers of the LMs, runs and result are the same, whatever `num_threads` is (but not
            where `max_cost_usd` cuts a run short). None: another one in each compile.

    Raises:
        InvalidSetup: naming the parameter, what came and what is accepted.
    """

    def __init__(
        self,
        *,
        root_lm: dspy.BaseLM,
        max_iterations: int = 5,
        sub_lm: dspy.BaseLM | None = None,
        eval_lm: dspy.BaseLM | None = None,
        num_threads: int = 8,
        rlm_max_iterations: int = 200,
        rlm_max_llm_calls: int = 200,
        rlm_max_output_chars: int = 10_000,
        root_stateful_session: bool = True,
        rlm_multiturn_history: bool = False,
        verbose: bool = False,
        run_storage_dir: str | os.PathLike[str] | None = None,
        kernel: Callable[[], CodeInterpreter] | None = None,
        max_cost_usd: float | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        self.max_iterations = at_least("max_iterations", max_iterations, 1)
        self.root_lm = an_lm("root_lm", root_lm)
        self.sub_lm = None if sub_lm is None else an_lm("sub_lm", sub_lm)
        self.eval_lm = None if eval_lm is None else an_lm("eval_lm", eval_lm)
        self.num_threads = at_least("num_threads", num_threads, 1)
        self.rlm_max_iterations = at_least("rlm_max_iterations", rlm_max_iterations, 1)
        self.rlm_max_llm_calls = at_least("rlm_max_llm_calls", rlm_max_llm_calls, 0)
        self.rlm_max_output_chars = at_least("rlm_max_output_chars", rlm_max_output_chars, 1)
        self.root_stateful_session = a_bool("root_stateful_session", root_stateful_session)
        self.rlm_multiturn_history = a_bool("rlm_multiturn_history", rlm_multiturn_history)
        self.verbose = a_bool("verbose", verbose)
        self.run_storage_dir = a_directory("run_storage_dir", run_storage_dir)
        self.kernel = a_factory("kernel", kernel)
        self.max_cost_usd = a_cost_limit("max_cost_usd", max_cost_usd)
        self.seed = a_seed("seed", seed)

    def compile(  # pyright: ignore[reportIncompatibleMethodOverride] # `metric` is required here
        self,
        student: dspy.Module,
        *,
        trainset: list[dspy.Example],
        metric: Callable[..., Any],
        valset: list[dspy.Example] | None = None,
        teacher: dspy.Module | None = None,
    ) -> dspy.Module:
        """Return a copy of `student` with better instructions; `student` itself is not touched.

        `metric(example, prediction[, trace, ...])` returns a bool, a number from 0 to 1, or an object with `score`
        and `feedback`. `teacher` is accepted because DSPy's optimizers have it, and not used.

        The result carries `optimized_dspy_program` (step to prompt), `latest_run_id`, `best_run_id`, `best_score`
        (0 to 100), `baseline_run_id`, `trial_logs` (every run, in order), `agent_trajectory`, `agent_final_reasoning`,
        `usage` (LM calls, tokens and dollars of the roles "root", "sub" and "eval"; `cost_usd` is None where a price is
        not known) and `cost_usd` (of all three).

        Raises:
            InvalidSetup: the student, the data, the metric or the LMs cannot be worked with.
            MetricFailed: the metric raises on every example; with its traceback.
            CostLimitReached: `max_cost_usd` does not pay for the baseline.
        Whatever the root LM raises after its own retries is raised too. A run store that was asked for stays.
        """
        check_program(student)
        data = build_dataset(trainset, valset)
        eval_lm = self._eval_lm_for(student)
        if self.max_cost_usd is not None:
            sub_lms = [self.sub_lm] if self.sub_lm is not None and self.rlm_max_llm_calls else []
            check_priced({"root": [self.root_lm], "sub": sub_lms, "eval": _lms_of(student, eval_lm)})
        if teacher is not None:
            logger.warning("teacher is not used by RLMDocstringOptimizer")
        with ExitStack() as stack:
            session = _Session(self, student, data, metric, eval_lm, stack)
            return session.run()

    def _eval_lm_for(self, student: dspy.Module) -> dspy.BaseLM | None:
        lm: Any = self.eval_lm if self.eval_lm is not None else dspy.settings.lm
        if lm is None:
            predictors = [module for _, module in student.named_sub_modules(dspy.Predict)]
            if all(getattr(predictor, "lm", None) is not None for predictor in predictors):
                return None
            raise InvalidSetup(
                "eval_lm is None and dspy.settings.lm is not set, so nothing can run the program; "
                "pass eval_lm=dspy.LM(...) or call dspy.configure(lm=dspy.LM(...))"
            )
        return an_lm("eval_lm", lm) if self.eval_lm is not None else an_lm("dspy.settings.lm", lm)


class _Session:
    """One compile: every part of it, made in the order in which they need each other and ended in reverse."""

    def __init__(
        self,
        options: RLMDocstringOptimizer,
        student: dspy.Module,
        data: Dataset,
        metric: Callable[..., Any],
        eval_lm: dspy.BaseLM | None,
        stack: ExitStack,
    ) -> None:
        self.options = options
        self.student = student
        self.data = data
        self.metric = metric
        directory = options.run_storage_dir
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlmoptimizer-")))
        self.store = stack.enter_context(RunStore.create_in(directory))
        gate = Gate(on_failure=lambda: self.kernels.interrupt())
        lms = {id(lm): lm for lm in (options.root_lm, options.sub_lm, *_lms_of(student, eval_lm)) if lm is not None}
        self.usage = UsageMeter(CostLedger(options.max_cost_usd, journal=self.store), lms.values(), gate.fail)
        stack.callback(self.usage.close)
        # The LM and adapter that are set for the agent's turns must not reach the program.
        with self.usage.role("eval"):
            context = contextvars.copy_context()
        self.evaluator = stack.enter_context(Evaluator(metric, eval_lm, options.num_threads, context=context))
        display = Display(verbose=options.verbose)
        stack.callback(display.close)
        self.emitter = Emitter([_recorder(self.store), display])
        val_count = len(data.val or ())
        self.ledger = Ledger(options.max_iterations * len(data.train) + val_count, journal=self.store)
        self.meter = SubLMMeter(options.rlm_max_llm_calls, self.ledger, self.emitter, gate.closed, self.usage)
        self.bench = Workbench(
            clone(student),
            data,
            evaluator=self.evaluator,
            ledger=self.ledger,
            meter=self.meter,
            store=self.store,
            emitter=self.emitter,
            gate=gate,
            seed=fresh_seed() if options.seed is None else options.seed,
            num_threads=options.num_threads,
            costs=self.usage.ledger,
        )
        self.kernels = KernelLease(_kernel_factory(options.kernel), self._check_submission)
        # Ended in this order: nothing new starts, the kernels go, what was under way is waited for.
        stack.push(self._wait_idle)
        stack.callback(self.kernels.close)
        stack.callback(self.bench.cancel)
        self.emitter.emit(CompileStarted(self.bench.steps, len(data.train), val_count, self.ledger.limit))

    def run(self) -> dspy.Module:
        self.kernels.start(on_failure=self.bench.cancel)
        baselines = self.bench.evaluate_baseline(clone(self.student))
        if self.bench.failure is not None:
            raise self.bench.failure
        self.kernels.wait_started()
        warn_of_a_dead_baseline(self.store, baselines["train"])
        outcome = self._run_agent(baselines)
        return self._result(self._choose(outcome), outcome, baselines)

    def _wait_idle(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        # Whoever presses Ctrl-C does not want to wait for an LM's answer.
        hurried = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.bench.wait_idle(_HURRIED_SECONDS if hurried else _IDLE_SECONDS)

    def _check_submission(self, fields: dict[str, Any]) -> None:
        self.bench.check_submission(fields)

    def _run_agent(self, baselines: Mapping[Split, RunRecord]) -> AgentOutcome:
        options = self.options
        with root_session(
            options.root_lm,
            stateful=options.root_stateful_session,
            multiturn_history=options.rlm_multiturn_history,
            max_output_chars=options.rlm_max_output_chars,
            asking=lambda: self.usage.calling("root"),
        ) as session:
            agent = Agent(
                self.bench,
                meter=self.meter,
                emitter=self.emitter,
                sub_lm=options.sub_lm if options.sub_lm is not None else options.root_lm,
                interpreter_factory=cast("Any", self.kernels),
                max_iters=options.rlm_max_iterations,
                max_llm_calls=options.rlm_max_llm_calls,
                max_output_chars=options.rlm_max_output_chars,
            )
            session.attach(agent)
            return agent.work(
                interpreter_factory=cast("Any", self.kernels),
                program_steps=describe_steps(self.student),
                baseline_runs={
                    split: answers.run_totals(baselines[split]) if split in baselines else None
                    for split in ("train", "val")
                },
                task_facts=describe_task(
                    self.student,
                    self.metric,
                    self.data,
                    budget=self.ledger.limit,
                    num_threads=options.num_threads,
                    max_turns=options.rlm_max_iterations,
                    max_llm_calls=options.rlm_max_llm_calls,
                    max_cost_usd=options.max_cost_usd,
                ),
            )

    def _choose(self, outcome: AgentOutcome) -> dict[str, str]:
        """The submitted prompts, else those of the best run."""
        if outcome.prompts is not None:
            self.emitter.emit(AgentSubmitted(outcome.prompts))
            return outcome.prompts
        best = self.bench.best_run()
        if best is None:  # the baseline is one, so a store was tampered with or this is a bug
            raise RuntimeError("there is no finished run to fall back to")
        logger.warning(
            "There is no valid submission (%s); taking the prompts of run %s, the best on %s with a score of %s",
            outcome.problem,
            best.run_id,
            best.split,
            answers.percent(best.score),
        )
        self.emitter.emit(FellBack(str(outcome.problem), best.run_id))
        return dict(best.prompts)

    def _result(
        self, prompts: dict[str, str], outcome: AgentOutcome, baselines: Mapping[Split, RunRecord]
    ) -> dspy.Module:
        result = clone(self.student)
        apply_prompts(result, prompts)
        if fingerprint(result) != fingerprint(self.student):
            raise RuntimeError("the result differs from the student in more than its instructions")
        runs = self.store.runs()
        best = self.bench.best_run()
        state = self.ledger.state()
        target = baselines["val" if "val" in baselines else "train"]
        score = None if best is None else best.score
        self.usage.ledger.flush()
        usage = self.usage.ledger.usage()
        self.emitter.emit(
            CompileFinished(target.score, score, state.spent, self.bench.root_lm_calls, usage_dict(usage))
        )
        attributes = {
            "optimized_dspy_program": dict(prompts),
            "latest_run_id": runs[-1].run_id,
            "best_run_id": None if best is None else best.run_id,
            "best_score": answers.percent(score),
            "baseline_run_id": baselines["train"].run_id,
            "trial_logs": [answers.run_log(record) for record in runs],
            "agent_trajectory": outcome.trajectory,
            "agent_final_reasoning": outcome.final_reasoning,
            "usage": usage_dict(usage),
            "cost_usd": total_usd(usage),
        }
        for name, value in attributes.items():
            setattr(result, name, value)
        result._compiled = True  # pyright: ignore[reportPrivateUsage] # how DSPy's optimizers mark what they return
        return result


def _lms_of(student: dspy.Module, eval_lm: dspy.BaseLM | None) -> list[dspy.BaseLM]:
    """The LMs that answer the program's own predictors."""
    own: list[Any] = [getattr(predictor, "lm", None) for predictor in student.predictors()]
    lms = [lm if lm is not None else eval_lm for lm in own]
    return [lm for lm in lms if isinstance(lm, dspy.BaseLM)]


def _recorder(store: RunStore) -> Callable[[Event], None]:
    """An observer that keeps what is not kept otherwise: results and turns have tables of their own."""

    def record(event: Event) -> None:
        if not isinstance(event, (ExamplesScored, TurnFinished)):
            store.record_event(type(event).__name__, dataclasses.asdict(event))

    return record


def _kernel_factory(kernel: Callable[[], CodeInterpreter] | None) -> InterpreterFactory:
    if kernel is not None:
        return cast("InterpreterFactory", kernel)
    from kernel_bridge import KernelInterpreter

    return cast("InterpreterFactory", KernelInterpreter.factory())
