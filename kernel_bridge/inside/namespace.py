"""The agent's namespace: the globals of all cells, and which of the names the agent made itself."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from types import ModuleType
from typing import Any

from kernel_bridge.inside.stubs import Binding

__all__ = ["Namespace"]

_HOST_OWNED = ("_dspy", "__dspy", "_Dspy")  # prefixes of the names that DSPy's own set-up cells make


class Namespace:
    """The globals of one kernel.

    Args:
        main: the module in which cells run, with the names that all find there.
        binding: makes the stubs of the host's tools.
    """

    def __init__(self, main: ModuleType, binding: Binding) -> None:
        self.names: dict[str, Any] = main.__dict__
        self._main = main
        self._shell: Any = None
        self._binding = binding
        self._hidden = set(self.names)
        self._given = dict(self.names)  # what every cell finds, whatever those before it have wiped out
        self._given_modules: dict[str, ModuleType] = {"__main__": self._main}
        self._sent: dict[str, Any] = {}  # the host's variables
        self.restored: set[str] = set()  # names from a checkpoint that the host has not sent since

    @contextlib.contextmanager
    def taken_over(self, stand_ins: Mapping[str, Any]) -> Generator[None]:
        """A block in which IPython gives names of its own. What cells have made of these names stays.

        Args:
            stand_ins: what has stood for them until now.
        """
        names = self.names
        own = {name: names[name] for name, value in stand_ins.items() if names.get(name, value) is not value}
        yield
        self._given.update({name: names[name] for name in stand_ins})
        names.update(own)

    def watch(self, shell: Any) -> None:
        """From now on there is IPython's shell, which the agent's code may send elsewhere."""
        self._shell = shell

    def restore(self) -> None:
        """Put back what a cell has wiped out of that which every cell finds: `%reset`, `globals().clear()`."""
        shell = self._shell
        if shell is not None and (shell.user_ns is not self.names or shell.user_module is not self._main):
            shell.user_module, shell.user_ns = self._main, self.names
        for name, value in self._given.items():
            self.names.setdefault(name, value)
        sys.modules.update(self._given_modules)

    def take(self, variables: Sequence[Any], buffers: Sequence[Any], load: Callable[[Any], Any]) -> None:
        """Set the variables of a cell. Raises: whatever a pickled value raises where it is loaded.

        Args:
            variables: `[name, index of its buffer or None when unchanged, form, whether what was restored is newer]`.
            load: decodes a buffer that holds a value.
        """
        names = self.names
        for name, index, form, restored_is_newer in variables:
            if index is None:
                if name not in names and name in self._sent:
                    names[name] = self._sent[name]  # the agent deleted it; inputs are there at every turn
                continue
            data = buffers[index]
            value = load(data) if form == "value" else str(data, "utf-8") if form == "text" else bytes(data)
            self._sent[name] = value
            if not (restored_is_newer and name in self.restored):
                names[name] = value
            self.restored.discard(name)

    @contextlib.contextmanager
    def prepared(self, *, again: bool) -> Generator[None]:
        """Inside, a set-up cell runs: what it makes is there in every cell from now on, unless it is set anew.

        Args:
            again: it runs for a successor, whose restored names it must not undo.
        """
        restored = self.own_names() if again else {}
        before, modules = dict(self.names), set(sys.modules)
        try:
            yield
        finally:
            made = {name: value for name, value in self.names.items() if before.get(name, before) is not value}
            self._given.update(made)
            for name in set(sys.modules) - modules:
                module = sys.modules[name]
                if getattr(module, "__spec__", None) is None:  # made by the cell, such as DSPy's stand-in, not imported
                    self._given_modules[name] = module
            self.names.update(restored)

    def own_names(self) -> dict[str, Any]:
        """What the agent made: not IPython's names, not the stubs, not inputs that the host sends anyway."""
        stubs, sent = self._binding.names, self._sent
        return {
            name: value
            for name, value in tuple(self.names.items())  # a thread of the agent's may add names meanwhile
            if isinstance(name, str)  # pyright: ignore[reportUnnecessaryIsInstance] - globals() takes any key
            and name not in self._hidden
            and stubs.get(name) is not value
            and not name.startswith(_HOST_OWNED)
            and name != "dspy"
            and not (name in sent and sent[name] is value and isinstance(value, (str, bytes, int, float)))
            and not _is_ipythons(name)
        }


# A debugger that was refused leaves the last, which no pickle can hold.
_IPYTHONS = {"_", "__", "___", "__pdb_convenience_variables"}


def _is_ipythons(name: str) -> bool:
    return name in _IPYTHONS or (name[:1] == "_" and name[1:].removeprefix("i").isdigit())
