"""A factory of interpreters: the same options for each, and kernels kept warm for them. Knows nothing of DSPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from kernel_bridge.live.warm_kernels import WarmKernels

__all__ = ["KernelInterpreterFactory"]

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class KernelInterpreterFactory(Generic[_Made]):
    """Makes interpreters with the same options; what DSPy's `interpreter_factory=` takes. Thread-safe.

    With kernels that are kept warm it is a context manager: they end with the block, or with `close`. They also end
    when the factory and the interpreters that it made are forgotten, and with the process. A copy is the factory
    itself; one that is unpickled has kernels of its own, from its first interpreter on.
    """

    make: Callable[..., _Made]  # called with the options, and with `warm` where kernels are kept warm
    options: Mapping[str, Any]
    prewarm: int = 0  # how many kernels are kept warm
    warm: WarmKernels | None = field(default=None, compare=False, repr=False)

    @property
    def execution_instructions(self) -> str:
        """What DSPy tells the agent of the place where its code runs. Probes the machine, unless that was done."""
        return cast("Any", self.make(**self.options)).execution_instructions

    def __call__(self) -> _Made:
        """A fresh interpreter. With its first cell its kernel starts, or it takes a warm one."""
        return self.make(**self.options) if self.warm is None else self.make(**self.options, warm=self.warm)

    def keeping_warm(self, least: int) -> KernelInterpreterFactory[_Made]:
        """This factory if it keeps so many kernels warm; else one with the same options that does, yours to close."""
        return self if self.prewarm >= least else _with_warm(self.make, self.options, least)

    def wait_warm(self, seconds: float = 60.0) -> bool:
        """Wait until all kernels that are kept warm are ready, but not longer than this. Whether they are."""
        return self.warm is None or self.warm.wait_full(seconds)

    def close(self) -> None:
        """End the kernels that are kept warm. Interpreters go on, and later ones start their own. Idempotent."""
        if self.warm is not None:
            self.warm.close()

    def __enter__(self) -> KernelInterpreterFactory[_Made]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> KernelInterpreterFactory[_Made]:
        return self

    def __deepcopy__(self, _: Any) -> KernelInterpreterFactory[_Made]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_warm, (self.make, dict(self.options), self.prewarm)


def _with_warm(make: Any, options: Mapping[str, Any], prewarm: int) -> Any:
    return make.factory(prewarm=prewarm, **options)
