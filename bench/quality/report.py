"""The report: what is in a directory of results, as rows, as tables, as JSON. Every number comes from the results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from quality.models import EVAL_ROLES
from quality.results import Result, read_results, read_setup, run_name, write_json
from rlmoptimizer.comparison import compare, mean_interval
from rlmoptimizer.outcome.split_result import verdict_of

__all__ = ["report_rows", "show_report", "summary_rows"]


def report_rows(results: Iterable[Result], arms: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each result; scores and differences are 0 to 100. By task and seed; in it, in the order of `arms`."""
    known = list(results)
    unchanged = {(one.task, one.seed): one for one in known if one.arm == "unchanged"}
    order = {arm: place for place, arm in enumerate(arms)}
    known.sort(key=lambda one: (one.task, one.seed, order.get(one.arm, len(order)), one.arm))
    return [_row(one, unchanged.get((one.task, one.seed))) for one in known]


def _row(result: Result, unchanged: Result | None) -> dict[str, Any]:
    scores = result.test_scores
    row: dict[str, Any] = {
        "task": result.task,
        "seed": result.seed,
        "arm": result.arm,
        "n": len(scores),
        "score": _percent(statistics.fmean(scores)),
        "interval": _percents(mean_interval(scores)),
        "errors": result.test_errors,
        "difference": None,
        "difference_interval": None,
        "better": None,
        "worse": None,
        "p_value": None,
        "verdict": None,
        "budget": result.budget,
        "metric_calls": result.metric_calls,
        "feedback_calls": result.feedback_calls,
        "usage": result.usage,
        "seconds": round(result.seconds, 1),
        "processes": result.processes,
        "proposer": result.proposer,
        "answered_by": result.answered_by,
        "notes": result.notes,
    }
    if unchanged is not None and unchanged is not result and len(unchanged.test_scores) == len(scores):
        compared = compare(unchanged.test_scores, scores)
        row |= {
            "difference": _percent(compared.difference),
            "difference_interval": _percents(compared.interval),
            "better": compared.better,
            "worse": compared.worse,
            "p_value": compared.p_value,
            "verdict": verdict_of(compared.interval, compared.p_value),
        }
    return row


def summary_rows(rows: Iterable[dict[str, Any]], arms: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each arm, over the tasks and seeds that it has; comparable where `runs` is the same."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row)
    ordered = sorted(by_arm, key=lambda arm: (arms.index(arm) if arm in arms else len(arms), arm))
    return [_summary(arm, by_arm[arm]) for arm in ordered]


def _summary(arm: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    differences = [row["difference"] for row in rows if row["difference"] is not None]
    proposers = [_proposer_usage(row["usage"]) for row in rows]
    return {
        "arm": arm,
        "runs": len(rows),
        "score": round(statistics.fmean(row["score"] for row in rows), 1),
        "difference": round(statistics.fmean(differences), 1) if differences else None,
        "gains": sum(row["verdict"] == "gain" for row in rows),
        "losses": sum(row["verdict"] == "loss" for row in rows),
        "metric_calls": round(statistics.fmean(row["metric_calls"] for row in rows)),
        "proposer_calls": round(statistics.fmean(calls for calls, _ in proposers), 1),
        "proposer_tokens": round(statistics.fmean(tokens for _, tokens in proposers)),
    }


def show_report(out: Path, arms: Sequence[str], console: Console) -> None:
    """Print the tables of what is in `out`, and write `report.json` there."""
    rows = report_rows(read_results(out), arms)
    summary = summary_rows(rows, arms)
    setup = read_setup(out)
    write_json(out / "report.json", {"setup": setup, "results": rows, "summary": summary})
    for task, seed in dict.fromkeys((row["task"], row["seed"]) for row in rows):
        shown = [row for row in rows if (row["task"], row["seed"]) == (task, seed)]
        console.print(_table(f"{task}, seed {seed}, {shown[0]['n']} held-out rows", shown))
    if not rows:
        console.print(f"there are no results in {out}", markup=False)
        return
    console.print(_summary_table(summary))
    proposers = ", ".join(dict.fromkeys(row["proposer"] for row in rows if row["proposer"])) or "nobody"
    console.print(f"programs run by {setup.get('eval', '?')}; prompts by {proposers}", markup=False, highlight=False)
    for who in dict.fromkeys(row["answered_by"] for row in rows if row["answered_by"]):
        runs = ", ".join(run_name(row["task"], row["arm"], row["seed"]) for row in rows if row["answered_by"] == who)
        console.print(f"answered by {who}: {runs}", markup=False, highlight=False)


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("arm", no_wrap=True)
    headings = ("held-out", "95%", "vs unchanged", "95%", "metric calls", "eval calls", "proposer calls", "tokens", "s")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        calls, tokens = _proposer_usage(row["usage"])
        evaluated = row["usage"].get("eval", {"calls": 0, "cached": 0})
        table.add_row(
            row["arm"],
            f"{row['score']:.1f}",
            _range(row["interval"]),
            "" if row["difference"] is None else f"{row['difference']:+.1f}",
            _range(row["difference_interval"], signed=True),
            str(row["metric_calls"]) + (f" (+{row['feedback_calls']})" if row["feedback_calls"] else ""),
            str(evaluated["calls"]) + (f" ({evaluated['cached']} cached)" if evaluated["cached"] else ""),
            str(calls) if calls else "",
            f"{tokens:,}" if calls else "",
            f"{row['seconds']:.0f}" + ("+" if row["processes"] > 1 else ""),
        )
    return table


def _summary_table(summary: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="mean over tasks and seeds", title_justify="left", header_style="bold")
    table.add_column("arm", no_wrap=True)
    for heading in ("runs", "held-out", "vs unchanged", "gains", "losses", "metric calls", "proposer calls", "tokens"):
        table.add_column(heading, justify="right")
    for row in summary:
        table.add_row(
            row["arm"],
            str(row["runs"]),
            f"{row['score']:.1f}",
            "" if row["difference"] is None else f"{row['difference']:+.1f}",
            *("" if row["difference"] is None else str(row[kind]) for kind in ("gains", "losses")),
            str(row["metric_calls"]),
            f"{row['proposer_calls']:g}",
            f"{row['proposer_tokens']:,}",
        )
    return table


def _proposer_usage(usage: dict[str, dict[str, Any]]) -> tuple[int, int]:
    """Calls and tokens of all roles but those that run the program."""
    asked = [counts for role, counts in usage.items() if role not in EVAL_ROLES]
    return (
        sum(counts["calls"] for counts in asked),
        sum(counts["prompt_tokens"] + counts["completion_tokens"] for counts in asked),
    )


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 1)


def _percents(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (round(100 * interval[0], 1), round(100 * interval[1], 1))


def _range(interval: Sequence[float] | None, *, signed: bool = False) -> str:
    if interval is None:
        return ""
    form = "+.1f" if signed else ".1f"
    return f"{interval[0]:{form}} .. {interval[1]:{form}}"
