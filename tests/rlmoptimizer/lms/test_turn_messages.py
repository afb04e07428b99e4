from __future__ import annotations

from itertools import pairwise
from typing import Any

import dspy
import pytest
from dspy.primitives.repl_types import REPLEntry, REPLHistory
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.lms.turn_messages import ConversationSoFar, TurnFormat, history_field

RLM = dspy.RLM("question -> answer: dict[str, str]", max_iters=9, interpreter_factory=dspy.LocalInterpreter)
ACTION = RLM.generate_action.signature
EXTRACT = RLM.extract.signature
VARIABLES = ["Variable: `question`"]
REMINDER = (
    "Respond with the corresponding output fields, starting with the field `[[ ## reasoning ## ]]`, "
    "then `[[ ## code ## ]]`, and then ending with the marker for `[[ ## completed ## ]]`."
)


def history(*entries: tuple[str, str, str], max_output_chars: int = 10_000) -> REPLHistory:
    told = REPLHistory(max_output_chars=max_output_chars)
    for reasoning, code, output in entries:
        told = told.append(reasoning=reasoning, code=code, output=output)
    return told


def inputs(told: REPLHistory) -> dict[str, Any]:
    return {"variables_info": VARIABLES, "repl_history": told, "iteration": f"{len(told) + 1}/9"}


def dialogue(told: REPLHistory, adapter: dspy.Adapter | None = None, **options: Any) -> list[dict[str, Any]]:
    return TurnFormat(adapter or dspy.ChatAdapter(), conversation=True, **options)(ACTION, [], inputs(told))


ONE = ("look at it", "print(1)", "1\n")
TWO = ("again", "print(2)", "2\n")
FIRST_USER = f"""[[ ## variables_info ## ]]
«Variable: `question`»

[[ ## iteration ## ]]
1/9

{REMINDER}"""
FIRST_ANSWER = """[[ ## reasoning ## ]]
look at it

[[ ## code ## ]]
```python
print(1)
```

[[ ## completed ## ]]
"""
SECOND_USER = f"""[[ ## execution_result ## ]]
Output (2 chars):
1


[[ ## iteration ## ]]
2/9

{REMINDER}"""


def roles(messages: list[dict[str, Any]]) -> list[str]:
    return [message["role"] for message in messages]


@pytest.mark.smoke
def test_each_earlier_turn_is_an_assistant_message_and_its_result_is_in_the_user_message_that_follows():
    first, second, third = dialogue(history()), dialogue(history(ONE)), dialogue(history(ONE, TWO))

    assert roles(first) == ["system", "user"]
    assert first[1]["content"] == FIRST_USER
    assert roles(second) == ["system", "user", "assistant", "user"]
    assert second[2]["content"] == FIRST_ANSWER
    assert second[3]["content"] == SECOND_USER
    assert roles(third) == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "again" in third[4]["content"]
    assert "print(2)" in third[4]["content"]
    assert "Output (2 chars):\n2" in third[5]["content"]
    assert "3/9" in third[5]["content"]


texts = st.text(max_size=40)


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=5), st.sampled_from(["chat", "json", "xml"]))
def test_what_was_said_is_never_said_differently_later_so_the_providers_prompt_cache_holds(
    entries: list[tuple[str, str, str]], style: str
):
    adapter = {"chat": dspy.ChatAdapter(), "json": dspy.JSONAdapter(), "xml": dspy.XMLAdapter()}[style]
    told = [dialogue(history(*entries[:count]), adapter) for count in range(len(entries) + 1)]
    for before, after in pairwise(told):
        assert after[: len(before)] == before


def test_the_instructions_speak_of_the_execution_result_in_place_of_the_history():
    system = dialogue(history(ONE))[0]["content"]
    assert "`execution_result`" in system
    assert "repl_history" not in system
    assert ACTION.instructions.splitlines()[0] in system


def test_without_a_conversation_the_messages_are_those_of_the_adapter():
    told = inputs(history(ONE, TWO))
    plain = TurnFormat(dspy.ChatAdapter(), conversation=False)(ACTION, [], told)
    assert plain == dspy.ChatAdapter().format(ACTION, [], told)


def test_a_signature_without_a_repl_history_is_formatted_by_the_adapter():
    signature = dspy.Signature("question -> answer")
    assert history_field(signature) is None
    asked = {"question": "why"}
    assert TurnFormat(dspy.ChatAdapter(), conversation=True)(signature, [], asked) == dspy.ChatAdapter().format(
        signature, [], asked
    )


def test_the_extraction_is_told_the_whole_history_since_its_answers_have_other_fields():
    told = {"variables_info": VARIABLES, "repl_history": history(ONE)}
    messages = TurnFormat(dspy.ChatAdapter(), conversation=True)(EXTRACT, [], told)
    assert messages == dspy.ChatAdapter().format(EXTRACT, [], told)


@pytest.mark.parametrize("conversation", [True, False])
def test_a_follow_up_says_only_the_last_result_and_what_changed(conversation: bool):
    said = ConversationSoFar(ACTION.instructions, {"variables_info": VARIABLES, "iteration": "2/9"}, answers=2)
    follow_up = TurnFormat(dspy.ChatAdapter(), conversation=conversation, continued=True, so_far=said)
    messages = follow_up(ACTION, [], inputs(history(ONE, TWO)))

    assert messages == [{"role": "user", "content": SECOND_USER.replace("\n1\n", "\n2\n").replace("2/9", "3/9")}]


def test_a_follow_up_says_also_what_happened_since_the_last_answer_that_the_conversation_holds():
    said = ConversationSoFar(ACTION.instructions, {"variables_info": VARIABLES, "iteration": "1/9"}, answers=1)
    follow_up = TurnFormat(dspy.ChatAdapter(), conversation=True, so_far=said)
    told = history(ONE, ("", "", "[Error] could not be read"), TWO)
    result = follow_up(ACTION, [], inputs(told))[0]["content"]

    assert "Output (2 chars):\n1\n" in result
    assert "print(1)" not in result
    assert "[Error] could not be read" in result
    assert "=== Step 2 ===" not in result
    assert "=== Step 3 ===\nReasoning: again\nCode:\n```python\nprint(2)\n```\nOutput (2 chars):\n2" in result
    assert result.index("\n1\n") < result.index("could not be read") < result.index("Step 3")


def test_a_follow_up_on_another_task_says_the_task_first():
    said = ConversationSoFar(ACTION.instructions, {"variables_info": VARIABLES, "iteration": "2/9"}, answers=1)
    follow_up = TurnFormat(dspy.ChatAdapter(), conversation=True, continued=True, so_far=said)
    messages = follow_up(EXTRACT, [], {"variables_info": VARIABLES, "repl_history": history(ONE)})

    assert roles(messages) == ["system", "user"]
    assert "extract the final outputs" in messages[0]["content"]
    assert "Output (2 chars):\n1" in messages[1]["content"]
    assert "`[[ ## answer ## ]]`" in messages[1]["content"]
    assert "variables_info" not in messages[1]["content"]


@pytest.mark.parametrize("limit", [0, 1, 7, 100])
@pytest.mark.parametrize("mode", ["dialogue", "follow-up", "whole"])
def test_output_is_cut_as_dspy_cuts_it(limit: int, mode: str):
    long = "".join(chr(ord("a") + index % 26) for index in range(300))
    said = ConversationSoFar(ACTION.instructions, {}, answers=1) if mode == "follow-up" else None
    for of_history, of_format in ((limit, None), (10_000, limit)):
        told = inputs(history(("", "print(long)", long), max_output_chars=of_history))
        turn_format = TurnFormat(
            dspy.ChatAdapter(), conversation=mode == "dialogue", so_far=said, max_output_chars=of_format
        )
        last = turn_format(ACTION, [], told)[-1]["content"]
        # DSPy indents a value of several lines when the field is not a plain string.
        cut = REPLEntry.format_output(long, limit)
        assert [line.strip() for line in cut.splitlines()] == [
            line.strip() for line in last[last.index("Output (300 chars):") :].splitlines()[: len(cut.splitlines())]
        ]


def test_code_that_came_with_its_fences_gets_no_second_ones():
    fenced = "```sql\nselect 1\n```"
    assert f"\n{fenced}\n" in dialogue(history(("", fenced, "[Error]")))[2]["content"]


def test_turns_that_are_not_counted_are_told_without_a_count():
    told = inputs(history(ONE)) | {"iteration": "the last one"}
    messages = TurnFormat(dspy.ChatAdapter(), conversation=True)(ACTION, [], told)
    assert "[[ ## iteration ## ]]\nthe last one" in messages[1]["content"]
    assert "iteration" not in messages[3]["content"]


def test_demonstrations_come_before_the_conversation():
    demo = dict(variables_info="shown", repl_history=history(), iteration="1/9", reasoning="as shown", code="pass")
    messages = TurnFormat(dspy.ChatAdapter(), conversation=True)(ACTION, [demo], inputs(history(ONE)))
    assert roles(messages) == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "as shown" in messages[2]["content"]


def test_the_adapter_given_is_left_as_it_was_and_its_callbacks_are_called_once_for_each_format():
    class Watch(dspy.utils.BaseCallback):
        def __init__(self) -> None:
            self.seen: list[object] = []

        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.seen.append(instance)

    watch = Watch()
    adapter = dspy.ChatAdapter(callbacks=[watch])
    before = dict(vars(adapter))
    turned = TurnFormat(adapter, conversation=True).adapter()
    messages = turned.format(ACTION, [], inputs(history(ONE)))

    assert roles(messages) == ["system", "user", "assistant", "user"]
    assert watch.seen == [adapter]
    assert vars(adapter) == before
    assert isinstance(turned, dspy.ChatAdapter)
    assert turned.parse(ACTION, FIRST_ANSWER) == {"reasoning": "look at it", "code": "```python\nprint(1)\n```"}
