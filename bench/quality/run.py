"""Runs the quality benchmark, and shows its results.

    python bench/quality/run.py --tasks a,b --arms unchanged,guess,gepa,mipro,ours,hand --budget 300 --seeds 0,1 \\
        --eval gguf:MODEL.gguf --root files:ANSWERS --answered-by "who answers there" --out RESULTS
    python bench/quality/run.py --report RESULTS      the tables of what is there
    python bench/quality/run.py --list                the tasks and the arms

A result that is there is not made again: the same command goes on where it was stopped. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":  # the folder of this package, and the packages of this checkout, installed or not
    sys.path[:1] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")  # no prices are needed, so none are downloaded

import dspy
from rich.console import Console

from quality.arms import ARMS, RESUMED, Job
from quality.counter import MetricCounter
from quality.heldout import held_out
from quality.metered_lm import CallLog
from quality.models import EVAL_ROLES, ModelNames, Models, opened_models
from quality.report import show_report
from quality.results import Result, check_setup, result_path, run_name, write_result
from quality.task import Task
from quality.tasks import load, names

__all__ = ["Conditions", "main", "run_arm"]

_SIZES: Final = {"train": 60, "val": 60, "test": 100}


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is the same for all arms of a command."""

    out: Path
    budget: int  # metric calls
    threads: int
    root: str  # name of the proposer
    answered_by: str | None
    ours: Mapping[str, Any]  # more parameters of RLMDocstringOptimizer


def run_arm(task: Task, arm: str, seed: int, conditions: Conditions, models: Models) -> Result | None:
    """Run an arm, score what came of it on the test rows, and write the result. None: the task has no such arm."""
    run = run_name(task.name, arm, seed)
    directory = result_path(conditions.out, run).parent
    anew = arm not in RESUMED
    with (
        MetricCounter(directory / "metric_calls", anew=anew) as counter,
        CallLog(directory / "lm_calls.jsonl", anew=anew) as log,
    ):
        lm = models.of_run(run, log)
        metric = counter.around(task.metric)
        began = time.monotonic()
        outcome = ARMS[arm](
            Job(task, metric, conditions.budget, seed, conditions.threads, lm, directory, conditions.ours)
        )
        seconds = time.monotonic() - began
        if outcome is None:
            return None
        metric_calls, feedback_calls = counter.metric_calls, counter.feedback_calls
        exact = task.exact_metric or task.metric
        scores = held_out(outcome.program, task.test, exact, lm("test"), conditions.threads)
        usage, processes = log.usage(), log.processes
    asked = bool(usage.keys() - EVAL_ROLES)
    result = Result(
        task=task.name,
        arm=arm,
        seed=seed,
        budget=conditions.budget,
        proposer=conditions.root if asked else None,
        answered_by=conditions.answered_by if asked else None,
        prompts={name: step.signature.instructions for name, step in outcome.program.named_predictors()},
        test_scores=scores.scores,
        test_errors=scores.errors,
        metric_calls=metric_calls,
        feedback_calls=feedback_calls,
        usage={role: used.as_dict() for role, used in sorted(usage.items())},
        seconds=seconds,
        processes=processes,
        notes=outcome.notes,
    )
    write_result(conditions.out, result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 140)  # a log has no edge to keep to
    if options.report is not None:
        show_report(options.report, list(ARMS), console)
        return 0
    if options.list:
        console.print(f"tasks: {', '.join(names())}\narms: {', '.join(ARMS)}", markup=False, highlight=False)
        return 0
    try:
        failed = _run(options, console)
    except ValueError as error:
        parser.error(str(error))
    show_report(options.out, list(ARMS), console)
    if failed:
        console.print(f"failed: {', '.join(failed)}; the same command tries again", markup=False)
    return 1 if failed else 0


def _run(options: argparse.Namespace, console: Console) -> list[str]:
    """Make the results that are not there yet. Gives the runs that failed.

    Raises: `ValueError` for options that cannot be.
    """
    for needed in ("tasks", "eval", "root", "out"):
        if getattr(options, needed) is None:
            raise ValueError(f"--{needed} is needed")
    tasks = names() if options.tasks == ["all"] else options.tasks
    for kind, asked, known in (("task", tasks, names()), ("arm", options.arms, list(ARMS))):
        if unknown := [name for name in asked if name not in known]:
            raise ValueError(f"no such {kind}: {', '.join(unknown)}; there are {', '.join(known)}")
    sizes = {split: getattr(options, split) for split in _SIZES}
    given = {name: getattr(options, name) for name in ModelNames.__slots__}
    named = ModelNames(**given)
    limits = {"eval_max_tokens": options.eval_max_tokens, "budget": options.budget}
    check_setup(options.out, {"eval": named.eval_model, **limits, **sizes})
    dspy.configure_cache(disk_cache_dir=str(options.out / "cache"))
    conditions = Conditions(
        options.out, options.budget, options.threads, options.root, options.answered_by, dict(options.ours or ())
    )
    failed: list[str] = []
    with opened_models(named, threads=options.threads) as models:
        for name, seed, arm in itertools.product(tasks, options.seeds, options.arms):
            run = run_name(name, arm, seed)
            if result_path(options.out, run).exists():
                continue
            # Anew for each arm: a noisy metric draws by what it was asked before.
            task = load(name, seed, **sizes)
            console.print(f"{time.strftime('%H:%M:%S')} {run}", markup=False, highlight=False)
            try:
                run_arm(task, arm, seed, conditions, models)
            except Exception:  # noqa: BLE001 - optimizers, programs and LMs are foreign code; the others go on
                failed.append(run)
                traceback.print_exc()
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare what optimizers make of programs with equal metric calls.")
    parser.add_argument("--report", type=Path, metavar="DIR", help="show the results in DIR, run nothing")
    parser.add_argument("--list", action="store_true", help="show the tasks and the arms")
    parser.add_argument("--tasks", type=_names, help="comma-separated, or all")
    parser.add_argument("--arms", type=_names, default=list(ARMS), help=f"comma-separated (default {','.join(ARMS)})")
    parser.add_argument("--seeds", type=_numbers, default=[0], help="comma-separated (default 0)")
    parser.add_argument("--budget", type=int, default=300, help="metric calls of each arm (default 300)")
    parser.add_argument("--eval", metavar="MODEL", help="runs the programs: a model as DSPy names it, or gguf:PATH")
    parser.add_argument(
        "--root", "--proposer", metavar="MODEL", help="proposes prompts in every arm: the same, or files:DIR"
    )
    parser.add_argument("--eval-api-base", metavar="URL", help="where the eval model answers")
    parser.add_argument("--root-api-base", metavar="URL", help="where the root model answers")
    parser.add_argument("--eval-max-tokens", type=int, default=512, help="of an answer (default 512)")
    parser.add_argument("--root-max-tokens", type=int, default=16_000, help="of an answer (default 16000)")
    parser.add_argument("--answer-seconds", type=float, default=3600.0, help="wait for a file (default 3600)")
    parser.add_argument("--answered-by", metavar="TEXT", help="who answers in files:DIR; stands in the report")
    parser.add_argument("--threads", type=int, default=4, help="examples at once (default 4)")
    for split, rows in _SIZES.items():
        parser.add_argument(f"--{split}", type=int, default=rows, metavar="N", help=f"rows (default {rows})")
    parser.add_argument(
        "--ours", type=_setting, action="append", metavar="NAME=JSON", help="a parameter of RLMDocstringOptimizer"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results are kept")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, json.loads(value)


if __name__ == "__main__":
    raise SystemExit(main())
