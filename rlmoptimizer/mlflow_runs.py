"""What MLflow's autologging of DSPy does not do by itself for this optimizer. Imports MLflow only where it is in use.

MLflow records compiles of the optimizer classes that there are when `mlflow.dspy.autolog()` is called, it nests runs by
the thread that begins them, and it knows nothing of a verdict. All of it is done through MLflow's public functions, and
whatever fails there is logged and never stops a compile.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from kernel_bridge.text import printable_line

__all__ = ["ActiveMLflowRun", "join_autologging", "log_result"]

logger = logging.getLogger(__name__)

_TAG_CHARS: Final = 5000  # MLflow takes no longer values of tags
_ERROR_CHARS: Final = 500


def join_autologging() -> None:
    """Let MLflow see the optimizer classes that were made after `mlflow.dspy.autolog()` was called.

    That looks for them once, so it is called again with the options that it had.
    """
    if not (options := _autologging()):
        return
    autolog, settings = _module("mlflow.dspy").autolog, _module("dspy").settings
    accepted, tracked = inspect.signature(autolog).parameters, settings.track_usage
    try:
        autolog(**{name: value for name, value in options.items() if name in accepted})
        if settings.track_usage != tracked:
            settings.configure(track_usage=tracked)
    except Exception as error:  # noqa: BLE001 - MLflow's; DSPy lets only one thread change its settings, too
        logger.warning(
            "MLflow's autologging of DSPy was turned on before rlmoptimizer was imported, and cannot be told of it "
            "(%s). Call mlflow.dspy.autolog(...) once more, from the thread that called it",
            _shown(error),
        )


class ActiveMLflowRun:
    """The MLflow run that is active where this is made, for blocks of other threads. Thread-safe.

    None is, or MLflow is not to record evaluations: it does nothing.
    """

    def __init__(self) -> None:
        self._run_id: str | None = None
        if _autologging().get("log_evals"):
            run = _module("mlflow").active_run()
            self._run_id = None if run is None else run.info.run_id

    @contextmanager
    def active(self) -> Generator[None]:
        """What begins a nested run in the block begins it as a child of that run."""
        begun = self._run_id is not None and self._begin(self._run_id)
        try:
            yield
        finally:
            if begun:
                self._end()

    def _begin(self, run_id: str) -> bool:
        mlflow = _module("mlflow")
        try:
            if mlflow.active_run() is not None:
                return False  # the thread that compiles
            mlflow.start_run(run_id=run_id, log_system_metrics=False)
        except Exception as error:  # noqa: BLE001 - MLflow's; its server may be away
            logger.warning("An evaluation is no child of MLflow's run of the compile: %s", _shown(error))
            return False
        return True

    def _end(self) -> None:
        with contextlib.suppress(Exception):  # what it recorded has failed before, and was told of
            _module("mlflow").end_run(status="RUNNING")  # it is over for this thread only


def log_result(result: Any) -> None:
    """Add an `OptimizationResult` to the run in which MLflow records the compile, if it does."""
    if not _autologging().get("log_compiles"):
        return
    mlflow = _module("mlflow")
    try:
        if mlflow.active_run() is None:
            return
        mlflow.log_dict(result.prompts_after, "prompts.json")
        mlflow.log_dict(result.to_dict(), "optimization_result.json")
        mlflow.set_tag("verdict", result.verdict_text[:_TAG_CHARS])
        for split, found in result.splits.items():
            figures = {f"baseline_{split}": found.baseline, f"result_{split}": found.result}
            mlflow.log_metrics({name: score for name, score in figures.items() if score is not None})
    except Exception as error:  # noqa: BLE001 - MLflow's; its server may be away
        logger.warning("MLflow could not keep the result of the optimization: %s", _shown(error))


def _shown(error: Exception) -> str:
    return printable_line(f"{type(error).__name__}: {error}", _ERROR_CHARS)


def _autologging() -> Mapping[str, Any]:
    """The options of MLflow's autologging of DSPy; {}: it is off."""
    if "mlflow.dspy" not in sys.modules:
        return {}
    try:
        options: Mapping[str, Any] = _module("mlflow.utils.autologging_utils").AUTOLOGGING_INTEGRATIONS["dspy"]
    except (ImportError, AttributeError, KeyError):  # it is off, or another MLflow than we know
        return {}
    return {} if options.get("disable", True) else options


def _module(name: str) -> Any:
    """MLflow need not be installed, so its types are not known."""
    return importlib.import_module(name)
