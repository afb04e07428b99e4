"""A compile in which the agent uses every tool, fails, loses its kernel and is resumed, for tests of its recording."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import dspy
import toy

THINKS = "turn"  # how the scripted agent's reasoning begins
TURNS = [
    "import threading\nfirst = evaluate_program(limit=3)\nprint(first['summary_line'])\nfirst['score']",
    "heard = []\n"
    "def ask(n):\n    heard.append(llm_query(f'thread {n}'))\n"
    "threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]\n"
    "for one in threads: one.start()\n"
    "for one in threads: one.join()\n"
    "print(sorted(heard), llm_query_batched(['one', 'two']), llm_query('same'), llm_query('same'))",
    "print('before')\nupdate_prompt('nosuch', 'x')",
    "try:\n    evaluate_program('val', repeats=50)\n"
    "except BudgetExceededError as refused:\n    print('refused:', refused)\n"
    f"print(update_prompt('topic', {toy.FIX!r}))\nprint(optimization_status()['remaining_budget'])",
    "kept, lost = 5, threading.Lock()",
    "import os\nos._exit(3)",
    "print(kept, 'lost' in dir())\n"
    "print(try_program({'message': 'message 1 at length about bug'}))\n"
    "print(run_data('r1', ids='1')['examples'])\nprint(compare_runs('r1', 'r3')['summary_line'])\n"
    "print(race_prompts([None, {'topic': 'a'}], limit=2)['ranking'])\n"
    "print(evaluate_program('val')['score'], len(previous_trajectory))",
    RuntimeError("the process ends here"),
]
RESUMED = [
    "print(len(previous_trajectory), work_so_far[:20], program_steps[0]['step'], task_facts['budget'], kept)",
    "SUBMIT({'topic': 'x'})",
    "SUBMIT(optimization_status()['current_prompts'])",
]


def record(directory: Path) -> Any:
    """Run it; gives the program."""
    with contextlib.suppress(dspy.LMError):
        toy.compiled(list(TURNS), run_storage_dir=directory, rlm_max_iterations=20)
    return toy.compiled(list(RESUMED), run_storage_dir=directory, rlm_max_iterations=20, resume=True)[0]
