"""What is imported with the package: looking at a stored run must not cost the two seconds that DSPy takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rlmoptimizer

READING = [
    "rlmoptimizer",
    "rlmoptimizer.records",
    "rlmoptimizer.events",
    "rlmoptimizer.store.store_reader",
    "rlmoptimizer.store.run_store",
    "rlmoptimizer.show.terminal.display",
    "rlmoptimizer.show.terminal.log_lines",
]


@pytest.mark.smoke
def test_what_reads_and_shows_a_stored_run_imports_neither_dspy_nor_zmq() -> None:
    imports = "\n".join(f"import {name}" for name in READING)
    code = f"import sys\n{imports}\nprint(sorted({{'dspy', 'zmq', 'litellm', 'openai'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_the_public_names_are_listed_and_can_be_imported() -> None:
    assert set(rlmoptimizer.__all__) <= set(dir(rlmoptimizer))
    for name in rlmoptimizer.__all__:
        found = getattr(rlmoptimizer, name)
        assert found.__name__ == name if isinstance(found, type) else name == "Event"  # the union of the event classes
    with pytest.raises(AttributeError, match="module 'rlmoptimizer' has no attribute 'Optimizer'"):
        _ = rlmoptimizer.Optimizer  # type: ignore[attr-defined]
