"""Comparing, racing and trying as the agent does it: by code in a kernel, in a whole compile."""

from __future__ import annotations

import toy

SUBMIT = "SUBMIT(optimized_dspy_program=race['ranking'][0]['prompts'])"
CODE = f"""
race = race_prompts([None, {{"topic": {toy.FIX!r}}}], limit=6)
print([(one["index"], one["score"], one["evaluated_count"], one["left_after"]) for one in race["ranking"]])
worse, better = race["ranking"][1]["run_ids"][0], race["ranking"][0]["run_ids"][0]
found = compare_runs(worse, better)
print(found["fixed"], found["broken"], found["first_changed_counts"], found["interval"])
tried = try_program({{"message": "mine about bug"}}, prompts=race["ranking"][0]["prompts"])
print(tried["outputs"], tried["error"], tried["remaining_budget"])
for line in optimization_status()["candidates"]:
    print(line["changed_steps"], line["train_passed"], line["train_evaluated"], line["val_score"])
for call in (
    lambda: try_program({{"other": 1}}),
    lambda: race_prompts([None, None]),
    lambda: compare_runs("r1", "r2"),
    lambda: race_prompts([None, {{"topic": "x"}}], keep=2),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_the_tools_work_from_a_kernel_and_their_refusals_have_names() -> None:
    result, root = toy.compiled([CODE, SUBMIT])
    lines = result.agent_trajectory[0]["output"].splitlines()
    assert lines[0] == "[(1, 100.0, 6, None), (0, 50.0, 6, None)]"
    assert lines[1].startswith("['2', '4', '6'] [] {'topic': 3} [")
    assert lines[2] == "{'topic': 'bug', 'answer': 'we fix it'} None 21"
    assert lines[3:5] == ["[] 3 6 50.0", "['topic'] 6 6 None"]
    assert [line.split()[0] for line in lines[5:9]] == ["InputsError", *["SelectionError"] * 3]
    assert result.optimized_dspy_program == {"topic": toy.FIX, "reply": "Answer by the topic."}
    assert toy.SECRET not in "".join(request.text for request in root.seen)
