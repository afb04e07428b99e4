"""The program: its steps, their prompts, and a fingerprint of all the rest.

A step is a predictor that DSPy itself names (`named_predictors()`), so DSPy saves and loads whatever is set here.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# DSPy's modules and signatures are untyped.

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import dspy
from dspy.primitives.base_module import BaseModule

from rlmoptimizer.errors import InvalidSetup, InvalidSetupType, PromptUpdateError
from rlmoptimizer.lms.attachment_marks import has_attachments
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.task.copying import RECORDS, deep_copy
from rlmoptimizer.task.digests import module_digests

__all__ = [
    "PromptChecker",
    "all_modules",
    "apply_prompts",
    "check_program",
    "clone",
    "fingerprint",
    "fingerprints",
    "read_prompts",
    "step_names",
    "step_of",
    "write_prompts",
]


def check_program(program: Any) -> None:
    """Raise `InvalidSetup` unless `program` is a `dspy.Module` that can be called, cloned and improved.

    It has at least one step, distinct step names, and clones whose prompts are their own.
    """
    if not isinstance(program, dspy.Module):
        if isinstance(program, type):
            raise InvalidSetupType(f"student must be a dspy.Module, not the class {program.__name__}; pass an instance")
        raise InvalidSetupType(f"student must be a dspy.Module, not {type(program).__name__}")
    try:
        names = step_names(program)
    except RecursionError as error:
        raise InvalidSetup("the student contains itself; DSPy cannot name the steps of such a program") from error
    if not names:
        frozen = any(getattr(module, "_compiled", False) for _, module in _modules(program))
        why = "its predictors are in compiled, and so frozen, sub-modules" if frozen else "it has no dspy.Predict in it"
        raise InvalidSetup(f"the student has no step whose instructions could be improved: {why}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidSetup(
            f"DSPy gives several predictors of the student the same name ({', '.join(twice)}); "
            f"give attributes and dict keys distinct texts"
        )
    if not _can_be_called(program):
        raise InvalidSetup(f"the student cannot be called: {type(program).__name__} has neither forward nor aforward")
    _check_clones(program)


def step_names(program: dspy.Module) -> tuple[str, ...]:
    """The names of all steps in DSPy's order; what `update_prompt` takes and what traces show."""
    return tuple(name for name, _ in _steps(program))


def read_prompts(program: dspy.Module) -> dict[str, str]:
    """The instructions of every step, as the LM sees them."""
    return {name: _instructions(predictor) for name, predictor in _steps(program)}


def clone(program: dspy.Module) -> dspy.Module:
    """A copy that shares no module, predictor, demo or container with `program`.

    LMs, callbacks and whatever cannot be copied (locks, clients) are shared. Two names for one predictor stay two
    names for one predictor.
    """
    modules = list(_modules(program))
    memo: dict[int, Any] = {id(lm): lm for _, module in modules for lm in _lms(module)}
    try:
        copied = deep_copy(program, memo)
    except Exception as error:
        raise InvalidSetup(f"the program cannot be copied: {type(error).__name__}: {error}") from error
    for _, module in modules:  # DSPy drops the callbacks of a module that is copied
        mate = memo.get(id(module))
        if isinstance(mate, dspy.Module) and mate is not module:
            mate.callbacks = list(getattr(module, "callbacks", None) or [])
    return copied


def apply_prompts(program: dspy.Module, prompts: Mapping[Any, Any], known: str | None = None) -> None:
    """Replace the whole instructions of the named steps in place. `known`: the program's fingerprint, if it is.

    Raises `PromptUpdateError` for a step that does not exist, a text that no step can have, and when anything but the
    instructions would change; the program is then as it was.
    """
    before = fingerprint(program) if known is None else known
    steps = dict(_steps(program))
    kept = {name: steps[name].signature for name in prompts if name in steps}
    try:
        for name, text in prompts.items():
            _reword(steps, name, text)
        if prompts and fingerprint(program) != before:
            raise PromptUpdateError(", ".join(prompts), "more than the instructions would have changed")
    except Exception:
        for name, signature in kept.items():
            steps[name].signature = signature
        raise


def write_prompts(program: dspy.Module, prompts: Prompts) -> None:
    """Give every step its text from a map that was checked for this program. Checks nothing itself."""
    for name, predictor in _steps(program):
        if _instructions(predictor) != prompts[name]:
            predictor.signature = _with_instructions(predictor.signature, prompts[name])


class PromptChecker:
    """Makes `Prompts` for one program, which nobody else changes: each map is tried on a clone. Thread-safe."""

    def __init__(self, program: dspy.Module) -> None:
        self._program = program
        self._trial = clone(program)
        self._fingerprint = fingerprint(program)
        self._lock = threading.Lock()  # of the clone
        self.original = Prompts(read_prompts(program))

    def checked(self, base: Prompts, changes: Mapping[Any, Any]) -> Prompts:
        """`base` with the texts of `changes`, as DSPy will show them. Raises `PromptUpdateError` as `apply_prompts`."""
        if not changes:
            return base
        with self._lock:
            try:
                write_prompts(self._trial, base)
                apply_prompts(self._trial, changes, self._fingerprint)
            except PromptUpdateError:
                self._trial = clone(self._program)  # a foreign step may have kept something of the refused text
                raise
            return Prompts(read_prompts(self._trial))


def fingerprint(program: dspy.Module) -> str:
    """A text that is equal, in every process, for programs that differ in the instructions of their steps alone.

    Covers the classes of all sub-modules, the fields with annotations, prefixes, descriptions and defaults, demos,
    predictor configs and LM settings (without keys and other secrets).
    """
    return "\n".join(f"{path} {digest}" for path, digest in fingerprints(program).items())


def fingerprints(program: dspy.Module) -> dict[str, str]:
    """The same for each module alone, by its path: says which one differs."""
    free = {id(predictor) for _, predictor in _steps(program)}
    return module_digests((path, module, id(module) in free) for path, module in _modules(program))


def step_of(program: dspy.Module) -> Callable[[Any], str]:
    """A function from a predictor in a trace of `program` to the name of its step.

    It knows copies that DSPy makes of a predictor while it runs (`dspy.Refine`, `dspy.BestOfN`). For a predictor that
    is not a step it gives the path (of one in a frozen sub-module), else type and fields in angle brackets.
    """
    modules = list(_modules(program))  # held by the closure below, so that no id is used twice
    names = {id(module): path for path, module in modules if isinstance(module, dspy.Predict)}
    names.update({id(predictor): name for name, predictor in _steps(program)})
    # DSPy gives each predictor a random `stage` when it is made, and copies take it with them.
    by_stage: dict[str, str] = {}
    for _, module in modules:
        if isinstance(module, dspy.Predict):
            stage = str(getattr(module, "stage", ""))
            by_stage[stage] = "" if stage in by_stage else names[id(module)]

    def name_of(predictor: Any, _kept: Any = modules) -> str:
        name = names.get(id(predictor)) or by_stage.get(str(getattr(predictor, "stage", None)))
        return name or f"<{type(predictor).__name__}({getattr(predictor.signature, 'signature', '?')})>"

    return name_of


def all_modules(program: dspy.Module) -> list[BaseModule]:
    """The program and every module in it, once each, also those in nested containers and in frozen modules."""
    return [module for _, module in _modules(program)]


def separate_stages(program: dspy.Module) -> None:
    """Give predictors that are copies of each other different stages, so that `step_of` can tell them apart.

    For clones that are only run, never returned.
    """
    seen: set[str] = set()
    for number, (_, module) in enumerate(_modules(program)):
        if isinstance(module, dspy.Predict):
            if module.stage in seen:
                module.stage = f"{module.stage}-{number}"
            seen.add(module.stage)


def _can_be_called(program: dspy.Module) -> bool:
    kind = cast("Any", type(program))
    if kind.__call__ is not dspy.Module.__call__ or kind.acall is not dspy.Module.acall:
        return True
    if hasattr(kind, "__getattr__"):
        return True  # it may hand everything on to another module
    # Looked up without touching `program.forward`, which DSPy answers with a warning.
    found = (vars(program).get(name) or getattr(kind, name, None) for name in ("forward", "aforward"))
    return any(callable(method) for method in found)


def _check_clones(program: dspy.Module) -> None:
    """Refuse a program whose clones share predictors or signatures with it."""
    twin = clone(program)
    own = {id(module): path for path, module in _modules(program) if isinstance(module, dspy.Predict)}
    shared = {own[id(module)] for _, module in _modules(twin) if id(module) in own}
    shared |= {name for name, predictor in _steps(twin) if id(predictor) not in own and _writes_to(program, predictor)}
    if shared:
        raise InvalidSetup(
            f"a copy of the student shares {', '.join(sorted(shared))} with it, so trying a prompt would change the "
            "student itself: give that module, or the one it is in, a __deepcopy__ that makes a copy, or none"
        )
    for path, module in _modules(program):
        for name in ("forward", "aforward"):
            if (kind := _module_in_closure(vars(module).get(name))) is not None:
                raise InvalidSetup(
                    f"{name} of {path} is a function of its own that calls a {kind} from around it: copies of the "
                    "student call that same one, and no prompt that is tried would reach an LM. Keep that module in an "
                    "attribute and define the method in a class. (dspy.KNNFewShot returns such a student: pass the one "
                    "that it was given)"
                )


def _module_in_closure(function: Any) -> str | None:
    """The class of a module in the closure of a function or bound method; None: there is none."""
    for cell in getattr(getattr(function, "__func__", function), "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # an empty one
            continue
        if isinstance(content, BaseModule):
            return type(content).__name__
    return None


def _writes_to(program: dspy.Module, predictor: dspy.Predict) -> bool:
    """Whether a new signature of `predictor`, a step of a clone, shows up in `program` too."""
    before, kept = [step.signature for _, step in _steps(program)], predictor.signature
    try:
        predictor.signature = _with_instructions(kept, "anything else")
        return any(step.signature is not was for (_, step), was in zip(_steps(program), before, strict=True))
    except Exception:  # noqa: BLE001 - a foreign signature that takes no prompt is refused when it is given one
        return False
    finally:
        predictor.signature = kept


def _steps(program: dspy.Module) -> list[tuple[str, dspy.Predict]]:
    return cast("list[tuple[str, dspy.Predict]]", program.named_predictors())


def _instructions(predictor: dspy.Predict) -> str:
    return cast("Any", predictor.signature).instructions


def _reword(steps: Mapping[str, dspy.Predict], step: Any, text: Any) -> None:
    if step not in steps:
        raise PromptUpdateError(str(step), f"there is no such step; the steps are {', '.join(steps)}")
    if not isinstance(text, str) or not text.strip():
        what = "it is empty" if isinstance(text, str) else f"it is of type {type(text).__name__}"
        raise PromptUpdateError(step, f"the text must be a non-empty string, and {what}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PromptUpdateError(step, "the text holds lone surrogates, which no LM can be sent; leave them out")
    predictor, text = steps[step], _clean(text)
    if _instructions(predictor) == text:
        return
    if has_attachments(text):
        raise PromptUpdateError(step, "the text holds the mark by which DSPy finds attachments; leave it out")
    try:
        predictor.signature = _with_instructions(predictor.signature, text)
    except Exception as error:
        raise PromptUpdateError(step, f"the signature does not take it: {type(error).__name__}: {error}") from error
    if _instructions(predictor) != text:
        raise PromptUpdateError(step, "the step does not keep the text it is given")


def _with_instructions(signature: Any, text: str) -> Any:
    """A subclass of `signature` with other instructions.

    DSPy's own `with_instructions` builds a new class from the fields alone: that loses the name, the base classes and
    other attributes, and refuses some annotations.
    """
    base = vars(signature).get("__rewords__", signature)  # so that many updates make no chain of subclasses
    namespace = {
        "__doc__": text,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__rewords__": base,
    }
    return type(base)(base.__name__, (base,), namespace)


def _clean(text: str) -> str:
    """The text as DSPy will show it: it dedents instructions whenever it reads them."""
    # Leading empty lines go at once: the loop below would need a pass over the text for each.
    text = text[text.rfind("\n", 0, len(text) - len(text.lstrip())) + 1 :]
    while (cleaned := inspect.cleandoc(text)) != text:
        text = cleaned
    return text


def _modules(program: dspy.Module) -> Iterator[tuple[str, BaseModule]]:
    """Every module of a program once, with a path in DSPy's spelling, also in nested containers and frozen modules."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", program)]
    while stack:
        path, item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        inner: list[tuple[str, Any]] = []
        if isinstance(item, BaseModule):
            yield path or "self", item
            dot = f"{path}." if path else ""
            inner = [(f"{dot}{name}", value) for name, value in _values(item) if _may_hold(value)]
        elif isinstance(item, dict):
            inner = [(f"{path}['{key}']", value) for key, value in item.items() if _may_hold(value)]
        elif isinstance(item, list | tuple):
            inner = [(f"{path}[{index}]", value) for index, value in enumerate(item) if _may_hold(value)]
        stack.extend(reversed(inner))


def _values(module: BaseModule) -> Iterator[tuple[str, Any]]:
    return (item for item in vars(module).items() if item[0] not in RECORDS)


def _may_hold(value: Any) -> bool:
    return isinstance(value, BaseModule | dict | list | tuple)


def _lms(module: BaseModule) -> Iterator[Any]:
    for value in vars(module).values():
        if isinstance(value, dspy.BaseLM) or getattr(type(value), "supports_decision_requests", False) is True:
            yield value
