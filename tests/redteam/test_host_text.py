"""What a kernel or an LM writes reaches a person's terminal and logs as text that steers nothing.

Each host here is a process of its own with a real terminal, and what it writes there is read as bytes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import pytest
from child_process import forked

from kernel_bridge import KernelInterpreter
from kernel_bridge.console import table
from kernel_bridge.files.live_sessions import live_sessions

if sys.platform == "win32":
    pytest.skip("there is no pty", allow_module_level=True)
import pty

EVIL = (
    "\x1b]0;OWNED\x07\x1b]2;OWNED\x1b\\\x1b]52;c;T1dORUQ=\x07\x1b]8;;http://x/\x1b\\\x1b[2J\x1b[38;5;199;7m\x1b[6n"
    "\x1bP1$r\x1b\\\x1b_apc\x1b\\\x1b^pm\x1b\\\x1bc\x9b38;5;199;7m\x9d0;OWNED\x9c\x90q\x9c\rOVER\x08\x08\x07\x00\x7f"
    "[bold red]OWNED[/] \u202eabc\u2066 \u2028 \U000e0041 end"
)
# What rich itself sends to a terminal: colours, the cursor's visibility, its column, lines up, lines erased.
OF_RICH = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[\d*[AK]|\x1b\[1;1H")
HOST = """
import logging, sys
import dspy, toy
from offline import field_lm
from kernel_bridge import KernelInterpreter
EVIL = {evil}
turns = iter({turns})
def respond(question):
    if "code" not in question.outputs:
        raise RuntimeError("no conclusion " + EVIL)
    turn = next(turns)
    if turn is None:
        raise RuntimeError("no answer " + EVIL)
    return {{"reasoning": "thinking " + EVIL, "code": "```python\\n" + turn + "\\n```"}}
logging.basicConfig(level=logging.INFO)
optimizer = toy.optimizer(
    type("Root", (), {{"lm": field_lm(respond, "root")}})(),
    verbose=True, rlm_max_iterations={most}, kernel=KernelInterpreter.factory({options}),
)
optimizer.compile(toy.Triage(), trainset=toy.trainset(), metric=toy.metric)
"""


def host_script(turns: list[str | None], *, options: str = "", most: int = 8) -> str:
    return HOST.format(evil=ascii(EVIL), turns=ascii(turns), most=most, options=options)


# As Python itself does when it starts on one, but for what cannot be encoded.
LIKE_A_TERMINAL = """
import sys
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace", line_buffering=True)
"""


def on_a_terminal(script: str) -> str:
    """Everything that a script writes to a terminal of its own, which is both its stdout and its stderr."""
    master, slave = pty.openpty()
    variables = {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": None}
    written = b""
    try:
        with forked(f"{LIKE_A_TERMINAL}\n{script}", variables=variables, terminal=slave) as process:
            os.close(slave)
            while True:
                try:
                    read = os.read(master, 65536)
                except OSError:  # the last that had the terminal open is gone
                    break
                if not read:
                    break
                written += read
            process.wait()
    finally:
        os.close(master)
    return written.decode("utf-8")


def assert_steers_nothing(written: str) -> None:
    assert "\x1b[38;5;199;7m" not in written
    left = OF_RICH.sub("", written).replace("\r\n", "\n")
    left = left.replace("\r", "") if "\x1b[2K" in written else left  # rich goes to the first column and erases
    found = sorted({c for c in left if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t"})
    assert found == [], [left[max(0, left.index(c) - 80) : left.index(c) + 20] for c in found]
    assert "\rOVER" not in written


PRINTS = f"print({EVIL!a})\nprint('x' * 300_000)\nprint('\\ud800 lone')"
UPDATES = f"update_prompt('topic', 'new prompt ' + {EVIL!a})\nprint(evaluate_program(limit=1)['summary_line'])"
FAILS = f"raise RuntimeError('failure ' + {EVIL!a})"
REFUSED = f"SUBMIT(optimized_dspy_program={{'unknown ' + {EVIL!a}: 'x'}})"
HUGE = """
for call in (
    lambda: print(10 ** 6000),
    lambda: evaluate_program(limit=10 ** 6000),
    lambda: evaluate_program(ids=[10 ** 6000]),
    lambda: run_data(10 ** 6000),
    lambda: update_prompt("topic", 10 ** 6000),
    lambda: update_prompt(10 ** 6000, "x"),
    lambda: llm_query(10 ** 6000),
    lambda: SUBMIT(optimized_dspy_program=10 ** 6000),
    lambda: SUBMIT(optimized_dspy_program={"topic": 10 ** 6000}),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, str(error)[:300])
"""
SUBMITS = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
DIES = f"import os\nos.write(2, ('last words ' + {EVIL!a}).encode('utf-8', 'surrogatepass'))\nos._exit(3)"


@pytest.mark.parametrize("options", ["", "confinement='off'"], ids=["confined", "off"])
def test_escapes_in_turns_prompts_and_submissions_do_not_steer_the_terminal(options: str) -> None:
    written = on_a_terminal(host_script([PRINTS, UPDATES, FAILS, REFUSED, HUGE, SUBMITS], options=options))
    assert_steers_nothing(written)
    for shown in ("thinking", "new prompt", "failure", "unknown", "Submitted", "Result", "]0;OWNED", "[bold red]OWNED"):
        assert shown in written, written[-3000:]
    assert "lone" in written
    assert "characters left out" in written
    assert ("not confined, " if options else "confined by ") in written


def test_escapes_in_the_last_words_of_a_kernel_do_not_steer_the_terminal() -> None:
    written = on_a_terminal(host_script([DIES], options="restarts=0"))
    assert_steers_nothing(written)
    assert "The agent's interpreter is lost" in written
    assert "last words" in written
    assert "]0;OWNED" in written
    assert "No prompts could be taken" in written
    assert "no conclusion" in written


def test_escapes_in_what_an_lm_fails_with_do_not_steer_the_terminal() -> None:
    written = on_a_terminal(host_script([PRINTS, None]))
    assert_steers_nothing(written)
    assert "Traceback" in written
    assert "no answer" in written


def test_a_kernel_that_rewrites_its_description_cannot_steer_or_stop_the_list() -> None:
    # The path of a socket holds about 107 bytes, and pytest's own directories are long.
    with (
        tempfile.TemporaryDirectory() as root,
        KernelInterpreter(confinement="off", runtime_dir=root) as interpreter,
    ):
        assert interpreter.connection_file is not None
        description = interpreter.connection_file.parent / "session.json"
        facts = json.loads(description.read_text(encoding="utf-8"))
        interpreter.execute("import json, os")
        for change in ({"command": EVIL}, {"command": "x" * 10**6}, {"started": 1e308}, {"started": -1e308},
                       {"connection_file": "/etc/passwd"}):  # fmt: skip
            interpreter.execute("open(path, 'w').write(json.dumps(facts))",
                                {"path": str(description), "facts": {**facts, **change}})  # fmt: skip
            sessions = live_sessions(Path(root))
            assert {session.connection_file for session in sessions} <= {interpreter.connection_file}
            shown = table(sessions)
            assert [c for c in shown if not c.isprintable() and c != "\n"] == []
        for text in ('{"started": NaN}', "[" * 10_000, "1" * 10_000, "{}", "[]", "\\ud800", '"' + "\\u0000" * 100_000):
            interpreter.execute("open(path, 'w').write(text)", {"path": str(description), "text": text})
            assert live_sessions(Path(root)) == []
        wrong = {"started": "NaN", "host_pid": 10**30, "host_started": [1]}
        for name, value in wrong.items():
            text = json.dumps({**facts, name: value}).replace('"NaN"', "NaN")
            interpreter.execute("open(path, 'w').write(text)", {"path": str(description), "text": text})
            assert live_sessions(Path(root)) == []
        interpreter.execute("os.unlink(path); os.mkfifo(path)", {"path": str(description)})
        assert live_sessions(Path(root)) == []
        assert interpreter.execute("6 * 7") == "42"


def test_names_of_sessions_and_paths_do_not_steer_the_list(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b]0;OWNED\x07\nb"
    folder.mkdir()
    (folder / "kernel.json").touch()
    facts = {"host_pid": os.getpid(), "host_started": None, "command": EVIL, "started": time.time()}
    (folder / "session.json").write_text(json.dumps(facts), encoding="utf-8")
    shown = table(live_sessions(tmp_path))
    assert len(shown.splitlines()) == 2
    assert [c for c in shown if not c.isprintable() and c != "\n"] == []
    assert "OWNED" in shown
