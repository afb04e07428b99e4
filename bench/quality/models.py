"""The LMs of a run by their names on the command line: MODEL as DSPy names it, gguf:PATH, or files:DIR."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dspy

from quality.answer_files import AnswerDirectory, AsyncFilesEngine, FilesEngine
from quality.metered_lm import CallLog, MeteredLM

__all__ = ["EVAL_ROLES", "ModelNames", "Models", "opened_models"]

EVAL_ROLES: Final = frozenset({"eval", "test"})  # the others are the proposer's
_FILES: Final = "files:"
_GGUF: Final = "gguf:"
_NO_KEY: Final = "none"  # a server of one's own wants no key, and DSPy's client wants one


@dataclass(frozen=True, slots=True)
class ModelNames:
    """What the command line says of the models."""

    eval: str
    root: str  # the root LM, GEPA's reflection LM, MIPROv2's prompt model, and who guesses
    eval_api_base: str | None = None
    root_api_base: str | None = None
    eval_max_tokens: int = 512
    root_max_tokens: int = 16_000
    answer_seconds: float = 3600.0  # how long one answer is waited for in a directory

    @property
    def eval_model(self) -> str:
        """As DSPy names it, also where it is served from a file."""
        return f"openai/{Path(self.eval).stem}" if self.eval.startswith(_GGUF) else self.eval


@dataclass(frozen=True, slots=True)
class _Endpoint:
    model: str
    options: Mapping[str, Any]


class Models:
    """Makes the LMs of one run after the other. Every arm has the same models with the same settings."""

    def __init__(self, names: ModelNames, eval_endpoint: _Endpoint, root_endpoint: _Endpoint | None) -> None:
        self._names = names
        self._eval = eval_endpoint
        self._root = root_endpoint

    def of_run(self, run: str, log: CallLog) -> Callable[[str], dspy.LM]:
        """Gives the LM of a role. A proposer in a directory gets a subdirectory for each run: it may start afresh."""
        engine: FilesEngine | None = None

        def lm(role: str) -> dspy.LM:
            nonlocal engine
            if role in EVAL_ROLES:
                return MeteredLM(self._eval.model, role=role, log=log, temperature=0.0, **self._eval.options)
            if self._root is not None:
                return MeteredLM(self._root.model, role=role, log=log, **self._root.options)
            if engine is None:
                directory = Path(self._names.root.removeprefix(_FILES)) / run
                engine = FilesEngine(AnswerDirectory(directory, timeout=self._names.answer_seconds))
            return MeteredLM(
                "files/proposer",
                role=role,
                log=log,
                engine=engine,
                async_engine=AsyncFilesEngine(engine),
                cache=False,  # the directory is one
                num_retries=0,
                max_tokens=self._names.root_max_tokens,
            )

        return lm


@contextmanager
def opened_models(names: ModelNames, *, threads: int) -> Iterator[Models]:
    """The models, with a server for each gguf until the end of the block."""
    with ExitStack() as servers:

        def endpoint(name: str, api_base: str | None, max_tokens: int) -> _Endpoint:
            options: dict[str, Any] = {"max_tokens": max_tokens}
            if name.startswith(_GGUF):
                from quality.model_server import serve

                if not Path(name.removeprefix(_GGUF)).is_file():
                    raise ValueError(f"{name}: there is no such file; README.md says how to make one")
                served = servers.enter_context(serve(Path(name.removeprefix(_GGUF)), slots=threads))
                name, api_base = served.model, served.api_base
            if api_base is not None:
                options |= {"api_base": api_base, "api_key": _NO_KEY}
            return _Endpoint(name, options)

        if names.eval.startswith(_FILES):
            raise ValueError("--eval cannot be a directory: it runs the program on hundreds of rows")
        evaluated = endpoint(names.eval, names.eval_api_base, names.eval_max_tokens)
        root = None
        if not names.root.startswith(_FILES):
            root = endpoint(names.root, names.root_api_base, names.root_max_tokens)
        yield Models(names, evaluated, root)
