"""Deferred imports: modules that run when something of them is first used, not when they are imported.

IPython imports many modules of which its start uses nothing, and some are slow. `importlib.util.LazyLoader` is not
enough: `from module import function` runs the module at once, and before Python 3.11.9 one thread could use a module
that another was still running.
"""

from __future__ import annotations

import contextlib
import copyreg
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any

__all__ = ["deferred", "slow_modules"]

# What the import system has set, and asks for.
_OF_IMPORT = frozenset({"__name__", "__spec__", "__loader__", "__package__", "__path__", "__file__", "__cached__"})


def slow_modules() -> dict[str, dict[str, str]]:
    """The modules of which the start of IPython uses nothing, or from which it only imports functions.

    As `deferred` takes them.
    """
    found = {name: dict.fromkeys(functions, name) for name, functions in _SLOW.items()}
    found["jupyter_client"]["write_connection_file"] = "jupyter_client.connect"  # the package itself imports forty more
    if sys.platform != "darwin":
        found["ipykernel.eventloops"] = {"_use_appnope": __name__}
    for name, needed in (("curses", "_curses"), ("ssl", "_ssl")):
        if importlib.util.find_spec(needed) is None:
            del found[name]  # whoever can do without it is told so when he imports it
    return found


_SLOW: dict[str, tuple[str, ...]] = {
    "IPython.core.completer": ("provisionalcompleter", "rectify_completions"),
    "IPython.core.page": (),
    "asyncio.sslproto": (),
    "curses": (),
    "dateutil.parser": ("isoparse", "parse"),
    "dateutil.tz": ("tzlocal",),
    "gettext": ("gettext", "ngettext"),
    "glob": ("glob",),
    "html": ("escape",),
    "jupyter_client": (),
    "logging.config": ("dictConfig",),
    "platformdirs": (),
    "ssl": (),
    "tempfile": (),
}


def _use_appnope() -> bool:  # pyright: ignore[reportUnusedFunction] - found by its name
    """What `ipykernel.eventloops` says where the system is not macOS."""
    return False


@contextlib.contextmanager
def deferred(modules: Mapping[str, Mapping[str, str]], *, first: Callable[[], object] | None = None) -> Generator[None]:
    """A block in which these modules are imported without running them. Each runs when anything of it is first used.

    Args:
        modules: by name; to each the functions that code imports from it by name, and the module where each is made.
            In the block such code gets functions that run that module when they are called.
        first: is called before one of them runs.
    """
    finder = _Finder(modules, first)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for state in finder.states:
            state.functions = {}  # code that comes later gets the real ones


class _Finder:
    """Finds what is to be deferred as the other finders do, and has it run later."""

    def __init__(self, modules: Mapping[str, Mapping[str, str]], first: Callable[[], object] | None) -> None:
        self._modules = modules
        self._first = first
        self.states: list[_State] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._modules:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if found is not None and type(found.loader) is SourceFileLoader:
            functions = {of: _calling(home, of) for of, home in self._modules[name].items()}
            self.states.append(_State(functions, self._first))
            found.loader = _Loader(found.loader, self.states[-1])  # pyright: ignore[reportAttributeAccessIssue]
        return found


class _Loader:
    """Makes a module that runs later."""

    def __init__(self, real: SourceFileLoader, state: _State) -> None:
        self._real = real
        self._state = state

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # a plain one will do

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._real
        spec.loader_state = self._state
        module.__class__ = _DeferredModule


def _calling(home: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        module = importlib.import_module(home)
        _run(module)
        return getattr(module, name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call


class _State:
    """What is known of a module that has not run yet."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]], first: Callable[[], object] | None) -> None:
        self.functions = functions
        self.first = first
        self.lock = threading.RLock()  # one thread runs the module, others wait
        self.runs = False


class _DeferredModule(ModuleType):
    """Becomes an ordinary module as soon as it has run."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # `isinstance` asks for it
            return ModuleType
        if name not in _OF_IMPORT:
            state = _state_of(self)
            if state is not None and name in state.functions:
                return state.functions[name]
            _run(self)
        return ModuleType.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        is_submodule = isinstance(value, ModuleType) and value.__name__ == f"{self.__name__}.{name}"
        if name not in _OF_IMPORT and not is_submodule:
            _run(self)
        ModuleType.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        _run(self)
        ModuleType.__delattr__(self, name)


def _state_of(module: ModuleType) -> _State | None:
    """None: the module has run."""
    state = getattr(ModuleType.__getattribute__(module, "__spec__"), "loader_state", None)
    return state if isinstance(state, _State) else None


def _run(module: ModuleType) -> None:
    state = _state_of(module)
    if state is None:
        return
    if state.first is not None:
        state.first()
    with state.lock:
        spec = ModuleType.__getattribute__(module, "__spec__")
        if state.runs or _state_of(module) is None:
            return  # it uses itself while it runs, or another thread has run it
        state.runs = True
        try:
            spec.loader.exec_module(module)
        finally:
            state.runs = False
        spec.loader_state = None
        ModuleType.__setattr__(module, "__class__", ModuleType)


def _by_name(module: ModuleType) -> tuple[Callable[[str], ModuleType], tuple[str]]:
    return importlib.import_module, (module.__name__,)


# As cloudpickle does it with other modules, which it knows by their exact type.
copyreg.pickle(_DeferredModule, _by_name)  # pyright: ignore[reportArgumentType] - it may give any module
