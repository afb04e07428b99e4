"""Measures the IPythonREPL of rlms, with its kernel in a process of its own. Runs in an environment that has rlms.

For each line that comes in, one round: a line of JSON goes out, name of the figure to seconds. Imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

from rlm.environments.ipython_repl import IPythonREPL


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def one_round(cells: int, prints: int) -> dict[str, float]:
    found: dict[str, float] = {}
    started = time.perf_counter()
    repl = IPythonREPL(kernel_mode="subprocess")
    try:
        repl.execute_code("1 + 1")
        found["start to first result"] = time.perf_counter() - started
        repl.execute_code("x = 1")
        found["cell"] = seconds(lambda: [repl.execute_code("x + 1") for _ in range(cells)]) / cells
        found[f"{prints:,} prints"] = seconds(lambda: repl.execute_code(f"for i in range({prints}):\n    print(i)"))
    finally:
        found["shutdown"] = seconds(repl.cleanup)
    return found


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints is no answer
    for _ in sys.stdin:
        answers.write(json.dumps(one_round(int(sys.argv[1]), int(sys.argv[2]))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
