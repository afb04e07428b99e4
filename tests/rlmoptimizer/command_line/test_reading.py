"""The reading commands: what `show`, `diff` and `prompts` tell of an optimization."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Command
from stored_optimization import AFTER, BEFORE, add_run, finish, setup_of, write_small
from stored_runs import result

from rlmoptimizer.records import StepTrace
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small")
    write_small(path).close()
    return path


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """One that a test fills; closed by `add`."""
    store = RunStore.create_in(tmp_path)
    store.record_setup(setup_of(6, 4))
    return store


# show


def test_a_run_on_train_is_shown_with_its_examples(command: Command, small: Path) -> None:
    lines = command("show", small, "r3").lines
    assert lines[0] == "run r3 on train: score 66.67 (standard error 21.08)"
    assert lines[1] == "6 of 6 examples, 4 passed, 6 units, turn 1"
    assert lines[2:5] == ["prompts changed: topic", "", "example   score  verdict  inputs  error or feedback"]
    assert [line.split() for line in lines[5:7]] == [["0", "100.00", "passed", "q0"], ["1", "100.00", "passed", "q1"]]
    assert len(lines) == 11


def test_lists_and_maps_of_an_example_are_json_with_media_by_their_names(
    command: Command, store: RunStore, tmp_path: Path
) -> None:
    picture = "data:image/png;base64," + "iVBORw0KGgo" * 40
    inputs = {"pages": [{"url": picture}, {"url": picture}], "icon": picture}
    family = "\U0001f469\u200d\U0001f467"
    log = {"thought": "a thought that is long " * 4, "tool": {"name": family, "found": [None, True]}}
    predicted = {"tags": [family, None], "log": log}
    with store:
        add_run(store, "train", [result("1", 1.0, inputs=inputs, predicted=predicted)], BEFORE)
    row = command("show", tmp_path, "r1").lines[5]
    assert row.split() == ["1", "100.00", "passed", "pages:", "[<image/png>...;", "icon:", "<image/png>"]
    text = "\n".join(command("show", tmp_path, "r1", "--id", "1").lines)
    assert "pages: [<image/png>, <image/png>]\n    icon: <image/png>\n" in text
    assert f'tags: ["{family}", null]\n' in text
    assert '        "tool": {\n          "name"' in text
    assert "iVBOR" not in text
    assert command("show", tmp_path, "r1", "--json").json["examples"][0]["inputs"] == inputs


def test_of_a_run_on_val_only_totals_are_shown(command: Command, small: Path) -> None:
    lines = command("show", small, "r4").lines
    assert lines[-1] == "examples of val are never shown"
    assert len(lines) == 4
    for option in (["--failed"], ["--flipped-since", "r2"], ["--id", "1"]):
        assert f"leave out {option[0]}" in command("show", small, "r4", *option).refused(2)
    assert "run r2 is on val" in command("show", small, "r3", "--flipped-since", "r2").refused(2)
    assert command("show", small, "r4", "--json").json["examples"] is None


def test_nothing_of_val_is_in_the_answer_of_any_command(command: Command, small: Path) -> None:
    calls = [
        ["runs"], ["show", "r2"], ["show", "r4", "--steps"], ["diff", "r2", "r4"], ["diff", "r1", "r4"], ["prompts"],
        ["export"], ["export", "--format", "jsonl", "--steps"],
    ]  # fmt: skip
    with StoreReader.open_in(small) as reader:
        assert "quokka" in str(reader.examples("r2"))
    for name, *rest in calls:
        for form in ([], ["--json"]) if name != "export" else ([],):
            written = command(name, small, *rest, *form)
            assert written.code == 0
            assert "quokka" not in written.out + written.err


def test_examples_can_be_chosen(command: Command, small: Path) -> None:
    def shown(*options: str) -> list[str]:
        return [row["example_id"] for row in command("show", small, "r3", *options, "--json").json["examples"]]

    assert shown() == ["0", "1", "2", "3", "4", "5"]
    assert shown("--failed") == ["4", "5"]
    assert shown("--flipped-since", "r1") == ["1", "3", "4"]
    assert shown("--failed", "--flipped-since", "r1") == ["4"]
    assert shown("--id", "5", "--id", "2") == ["2", "5"]
    flipped = command("show", small, "r3", "--flipped-since", "r1").lines[4:]
    assert [line.split()[:4] for line in flipped] == [
        ["example", "score", "was", "verdict"],
        ["1", "100.00", "0.00", "passed"],
        ["3", "100.00", "0.00", "passed"],
        ["4", "0.00", "100.00", "failed"],
    ]


def test_an_example_is_also_known_by_the_id_of_its_user(command: Command, store: RunStore, tmp_path: Path) -> None:
    with store:
        add_run(
            store, "train", [result("0", source_example_id="first"), result("1", source_example_id="second")], BEFORE
        )
    assert "example 1 (second)  passed" in command("show", tmp_path, "r1", "--id", "second").out
    assert "has no result of example third" in command("show", tmp_path, "r1", "--id", "third").refused(1)


def test_what_does_not_fit_is_said(command: Command, store: RunStore, tmp_path: Path) -> None:
    with store:
        add_run(store, "train", [1, 1], BEFORE)
        add_run(store, "train", [], BEFORE, planned=6, ends=False)
    assert command("show", tmp_path, "r1", "--failed").lines[-1] == "no example of this run fits --failed"
    assert command("show", tmp_path, "r2").lines[-1] == "no example has a result yet"
    assert "the runs are r1, r2" in command("show", tmp_path, "r3").refused(1)


def test_an_example_is_shown_whole_with_its_steps(command: Command, store: RunStore, tmp_path: Path) -> None:
    steps = (
        StepTrace(0, "topic", "Topic", {"message": "one\ntwo"}, {"topic": "bug"}, feedback="too short"),
        StepTrace(1, "reply", "Reply", {"n": 3}, {}, error="ValueError: no", completion="bla"),
    )
    broken = result("0", 0.0, error="ValueError: no", error_kind="program", predicted=None, steps=steps)
    with store:
        add_run(store, "train", [broken, result("1")], BEFORE)
    assert command("show", tmp_path, "r1", "--id", "0", "--steps").lines[4:] == [
        "example 0  error  score 0.00  0.25 s",
        "  inputs:",
        "    question: q0",
        "  expected:",
        "    answer: a",
        "  predicted: None",
        "  error: ValueError: no",
        "  step 1: topic (Topic)",
        "    in:",
        "      message:",
        "        one",
        "        two",
        "    out:",
        "      topic: bug",
        "    feedback: too short",
        "  step 2: reply (Reply)",
        "    in:",
        "      n: 3",
        "    out: nothing",
        "    error: ValueError: no",
        "    completion: bla",
    ]
    assert "step" not in command("show", tmp_path, "r1", "--id", "0").out


def test_repeats_and_missing_verdicts_are_told(command: Command, store: RunStore, tmp_path: Path) -> None:
    rows = [result("0", 1.0), result("1", 0.0, error="timed out", error_kind="timeout", predicted=None, steps=())]
    with store:
        add_run(store, "train", [*rows, result("0", 0.0, rollout=1), result("1", 1.0, rollout=1)], BEFORE)
        add_run(store, "train", [rows[1]], BEFORE)
    assert command("show", tmp_path, "r1").lines[1] == (
        "3 of 4 evaluations, 1 passed, 1 without a verdict, 4 units, turn 0"
    )
    assert "mean of 2: 100.00, 0.00" in command("show", tmp_path, "r1", "--id", "0").out
    assert [line.split()[:4] for line in command("show", tmp_path, "r2").lines[-1:]] == [["1", "-", "no", "verdict"]]


# diff


def test_two_runs_are_compared_word_by_word_and_example_by_example(command: Command, small: Path) -> None:
    assert command("diff", small, "r1", "r3").lines == [
        "r1 to r3 on train: 50.00 to 66.67 on 6 examples, +16.67 points",
        "2 better, 1 worse, 3 same; sign test p = 1, may be chance",
        "fixed: 1, 3",
        "broken: 4",
        "",
        "prompt of topic",
        "  Say {+in one word +}what the message is about{+: billing, bug or praise+}.",
    ]
    found = command("diff", small, "r3", "r1", "--json").json
    assert (found["difference"], found["fixed"], found["broken"]) == (-16.67, ["4"], ["1", "3"])
    assert (found["n"], found["better"], found["worse"], found["same"], found["p_value"]) == (6, 1, 2, 3, 1.0)
    assert "".join(text for kind, text in found["prompts"]["topic"] if kind != "removed") == BEFORE["topic"]
    assert "".join(text for kind, text in found["prompts"]["topic"] if kind != "added") == AFTER["topic"]


def test_runs_on_val_are_compared_without_naming_an_example(command: Command, small: Path) -> None:
    assert command("diff", small, "r2", "r4").lines[:3] == [
        "r2 to r4 on val: 50.00 to 100.00 on 4 examples, +50.00 points",
        "2 better, 0 worse, 2 same; sign test p = 0.5, may be chance",
        "examples of val are never shown",
    ]
    assert command("diff", small, "r2", "r4", "--json").json["fixed"] is None


def test_runs_on_two_splits_have_only_their_prompts_to_compare(command: Command, small: Path) -> None:
    lines = command("diff", small, "r1", "r4").lines
    assert lines[:3] == ["r1 on train and r4 on val: no examples in common", "", "prompt of topic"]
    assert command("diff", small, "r1", "r2").lines[-1] == "the prompts are the same"
    assert command("diff", small, "r1", "r4", "--json").json["split"] is None


def test_a_change_of_several_lines_is_marked_in_each_of_them(command: Command, store: RunStore, tmp_path: Path) -> None:
    with store:
        add_run(store, "train", [1], {"topic": "Answer."})
        add_run(store, "train", [1], {"topic": "Answer.\nBe short.\n\nBe kind."})
    assert command("diff", tmp_path, "r1", "r2").lines[-4:] == [
        "  Answer.{++}",
        "  {+Be short.+}",
        "  {++}",
        "  {+Be kind.+}",
    ]


# prompts


def test_the_prompts_that_are_asked_for_are_given(command: Command, small: Path) -> None:
    assert command("prompts", small, "--json").json == AFTER
    assert command("prompts", small, "--result", "--json").json == AFTER
    assert command("prompts", small, "--best", "--json").json == AFTER
    assert command("prompts", small, "--baseline", "--json").json == BEFORE
    assert command("prompts", small, "--run", "r1", "--json").json == BEFORE
    lines = command("prompts", small, "--baseline").lines
    assert lines == [
        "the prompts of the unchanged program", "",
        "topic", f"  {BEFORE['topic']}", "",
        "reply", f"  {BEFORE['reply']}",
    ]  # fmt: skip


def test_prompts_that_are_the_unchanged_ones_are_told_as_such(
    command: Command, small: Path, store: RunStore, tmp_path: Path
) -> None:
    with store:
        add_run(store, "val", [1, 0, 1, 0], BEFORE, baseline=True)
        add_run(store, "val", [0, 0, 1, 0], AFTER)
        best = "the prompts with the best score on val, 50.00: those of the unchanged program"
        assert command("prompts", tmp_path).lines[0] == command("prompts", tmp_path, "--best").lines[0] == best
        said = command("prompts", tmp_path, "--run", "r1").lines[0]
        assert said == "the prompts of run r1: those of the unchanged program"
        finish(store, BEFORE)
    assert command("prompts", tmp_path).lines[0] == (
        "the prompts that the optimization gave back: those of the unchanged program"
    )
    assert command("prompts", small).lines[0] == "the prompts that the optimization gave back"
    assert command("prompts", small, "--best").lines[0] == "the prompts with the best score on val, 100.00"


def test_prompts_that_are_not_there_are_an_error(command: Command, store: RunStore, tmp_path: Path) -> None:
    with store:
        add_run(store, "train", [1, 0], BEFORE, baseline=True)
        add_run(store, "train", [1, 1], AFTER)
    assert "--best gives" in command("prompts", tmp_path, "--result").refused(1)
    assert "on all of val yet" in command("prompts", tmp_path, "--best").refused(1)
    assert "no run 'r3'" in command("prompts", tmp_path, "--run", "r3").refused(1)
    assert "give one of them" in command("prompts", tmp_path, "--best", "--baseline").refused(2)
    # Without a wish: the best there are.
    assert command("prompts", tmp_path, "--json").json == BEFORE
