"""One kernel per module, shared by the tests to which its history does not matter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernel_bridge import KernelInterpreter


@pytest.fixture(scope="module")
def module_kernel() -> Iterator[KernelInterpreter]:
    with KernelInterpreter() as interpreter:
        yield interpreter


@pytest.fixture
def kernel(module_kernel: KernelInterpreter) -> KernelInterpreter:
    """The module's kernel, without tools, output fields and validator; what earlier tests defined is still there."""
    module_kernel.bind(tools={})
    module_kernel.submit_validator = None
    return module_kernel
