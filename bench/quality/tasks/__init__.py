"""The tasks: each module makes one, from a seed, without a network. Their data is generated or comes from packages."""

from __future__ import annotations

from importlib import import_module

from quality.task import Task, check_task

__all__ = ["load", "names"]

NAMES = ("booking", "claims", "function_call", "legs", "listing_title", "news_desk", "ticket_queue")


def names() -> list[str]:
    """The tasks, also those whose data package is not installed."""
    return list(NAMES)


def load(name: str, seed: int, *, train: int = 60, val: int = 60, test: int = 100) -> Task:
    """Makes a task; the same arguments give the same rows.

    Raises:
        ValueError: No such task, a package that its data comes from is not installed, or its data has too few rows.
    """
    if name not in NAMES:
        raise ValueError(f"no task {name!r}; there are {', '.join(NAMES)}")
    task = import_module(f"quality.tasks.{name}").load(seed, train, val, test)
    check_task(task)
    return task
