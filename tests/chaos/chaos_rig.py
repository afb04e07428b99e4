"""The rig of chaos: starts, kills and resumes one optimization, and holds what it left against what must be true.

What must be true after every death, whatever it was:
    the law             what is charged == results that were paid for + prompts to the sub-LM, and never above the limit
    nothing runs twice  an example whose result the store held when a process died is not finished again by a later one;
                        one that the program had finished but the store did not hold (it was under way) may be
    nothing is left     no process, and at the end no temporary file
and when it has ended: the result is the one of an undisturbed optimization.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import toy
from chaos_job import TRAIN, VAL, key_of, student, testing
from child_process import Child, WarmProcess, forked

from kernel_bridge.files.live_sessions import live_sessions
from kernel_bridge.files.session_facts import FACTS
from rlmoptimizer import InvalidSetup, RLMDocstringOptimizer
from rlmoptimizer.store.json_text import decode

DISK_PRELUDE = """
import sys
sys.path.insert(0, {here!r})
import private_disk
private_disk.enter({directory!r}, {size})
import chaos_job
"""


def process_with_disk(directory: Path, size: int) -> WarmProcess:
    """A warm process that sees a disk of its own there, of so many bytes."""
    return WarmProcess(DISK_PRELUDE.format(here=str(HERE), directory=str(directory), size=size))


def seen_by(process: WarmProcess, path: Path) -> Path:
    """A path of that process's, as others reach it."""
    return Path(f"/proc/{process.pid}/root{path}")


LIMIT = 10 * TRAIN + VAL  # units
PROMPTS_ASKED = 4  # to the sub-LM, by the whole script
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Accounts:
    """What the store held at one moment, and what the program had finished."""

    charged: Counter[str] = field(default_factory=Counter[str])  # purpose -> units
    paid: int = 0  # examples with a verdict that some run has to pay for
    stored: Counter[str] = field(default_factory=Counter[str])  # key -> results that were made, not taken over
    finished: Counter[str] = field(default_factory=Counter[str])  # key -> lines of the program
    ended: bool = False  # the result is recorded


class Optimization:
    """One optimization, attempt after attempt. `disk`: a disk of its own, and the process that sees it."""

    def __init__(self, directory: Path, disk: tuple[Path, WarmProcess] | None = None) -> None:
        self.directory = directory
        self._disk = disk
        self._given_runs = (directory if disk is None else disk[0]) / "runs"
        self.runs = self._given_runs if disk is None else seen_by(disk[1], self._given_runs)
        self._attempt: Child | None = None  # that has not been waited for
        self.tmp = directory / "tmp"  # of the process and all that it starts; a short path, for sockets
        self.tmp.mkdir(parents=True)
        self.attempts = 0
        self.again = 0  # examples that were finished more than once because they were under way at a death
        self._messages = {
            (split, str(number)): example.message
            for split, examples in (("train", toy.trainset(TRAIN)), ("val", toy.valset(VAL)), ("test", testing()))
            for number, example in enumerate(examples, start=1)
        }
        self.accounts = Accounts()

    def start(self, **plan: Any) -> Child:
        self.attempts += 1
        (self.directory / "told.json").unlink(missing_ok=True)
        given = {"directory": str(self.directory), "runs": str(self._given_runs), "tmp": str(self.tmp)}
        self._attempt = forked(
            "import chaos_job; chaos_job.main()",
            json.dumps({"seed": self.attempts, **given, **plan}),
            variables={"TMPDIR": str(self.tmp)},
            warm=None if self._disk is None else self._disk[1],
        )
        return self._attempt

    def wait(self) -> int:
        """Wait for the end of the attempt and of all that it started; gives its exit code."""
        assert self._attempt is not None
        with self._attempt as attempt:
            code = attempt.wait()
        assert code in (0, -signal.SIGKILL), f"attempt {self.attempts} exited with {code}:\n{self.output()}"
        deadline = time.monotonic() + 30
        while left := self.processes():
            assert time.monotonic() < deadline, f"still there after 30 s: {left}"
            time.sleep(0.01)
        return code

    def attempt(self, **plan: Any) -> int:
        self.start(**plan)
        return self.wait()

    def told(self) -> dict[str, Any]:
        """What an attempt that was not killed says at its end."""
        return json.loads((self.directory / "told.json").read_text(encoding="utf-8"))

    @property
    def kernels(self) -> int:
        """Processes of kernels that were killed."""
        path = self.directory / "killed.log"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def output(self) -> str:
        path = self.directory / "output.txt"
        return path.read_text(encoding="utf-8", errors="replace")[-6000:] if path.exists() else ""

    def processes(self) -> list[str]:
        """All that belongs to an attempt: it has the attempt's directory among its arguments or in its environment."""
        mark, found = str(self.tmp), list[str]()
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                    continue
                if any(mark in text for text in (*process.cmdline(), *process.environ().values())):
                    found.append(f"{process.pid}: {' '.join(process.cmdline())}")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def store(self) -> Path | None:
        paths = sorted(self.runs.glob("runs-*.sqlite"))
        assert len(paths) <= 1  # a resume goes on with it
        return paths[0] if paths else None

    def look(self, undisturbed: Counter[str] | None) -> None:
        """Hold the store against the law, and what was finished since the last look against what it held then.

        `undisturbed`: how often an optimization that nobody disturbs finishes each example. None: this is one.
        """
        before, now = self.accounts, self._read()
        assert now.charged.total() <= LIMIT
        assert now.charged["llm_query"] in (0, 1, PROMPTS_ASKED)
        assert now.charged.total() - now.charged["llm_query"] == now.paid
        for key in now.finished.keys() | now.stored.keys():
            made, kept = now.finished[key] - before.finished[key], now.stored[key] - before.stored[key]
            assert made >= kept >= 0  # nothing is kept that was not run; nothing that was kept is lost
            if undisturbed is not None and made > kept:
                # Under way at the death: the store cannot have held all results that there will ever be of it.
                assert now.stored[key] < undisturbed[key], f"{key} was finished again though its result was stored"
                self.again += made - kept
            if undisturbed is not None:
                assert now.stored[key] <= undisturbed[key]
        self.accounts = now

    def check_best_program(self) -> None:
        """Another process can have the best program at any moment, or is told that there is none yet."""
        program: Any = None
        with contextlib.suppress(InvalidSetup):
            program = RLMDocstringOptimizer.best_program(student(), self.runs)
        # The baseline on val ends last before the agent's first turn.
        assert (program is None) == (not self._has_ended_on_val())
        assert program is None or program.best_score >= 50.0

    def check_ended(self, undisturbed: Optimization) -> None:
        told = self.told()
        assert told["error"] is None, told["error"][2]
        assert told["left"] == []
        before = self.accounts
        # What has ended is only read by a later process, which leaves what a killed one has left.
        self.check_clean(only_read=before.ended)
        self.look(undisturbed.accounts.finished)
        assert self.accounts.stored == undisturbed.accounts.stored
        assert self.accounts.charged == undisturbed.accounts.charged
        # All that this last process has finished is kept: none of it was under way when anything died.
        assert self.accounts.finished - before.finished == self.accounts.stored - before.stored
        assert told["result"] == undisturbed.told()["result"]

    def check_stopped(self, undisturbed: Optimization, message: str) -> None:
        """The last attempt ended by itself, saying why; what it had stored is there, and it left nothing running."""
        told = self.told()
        assert told["error"] is not None
        assert message in told["error"][1], told["error"][2]
        assert str(self._given_runs) in told["error"][1]
        assert told["left"] == []
        self.look(undisturbed.accounts.finished)

    def check_clean(self, *, only_read: bool = False) -> None:
        """Nothing is left but the store and its events. `only_read`: by the last process, so its log may be there."""
        assert self.processes() == []
        names = {path.name for path in self.runs.iterdir()}
        log = {f"runs-0001.sqlite{end}" for end in ("-wal", "-shm", ".lock")} if only_read else set[str]()
        assert names - log == {"runs-0001.sqlite", "runs-0001.events.jsonl"}
        for sessions in self.tmp.iterdir():  # one, or none when no kernel was ever started
            # A host that was killed before its guardian ran left its session's directory; whoever looks removes it.
            # One that was killed before it had written whose that is left an empty description, which goes when it is
            # old.
            assert live_sessions(sessions) == []
            left = [path for path in sessions.rglob("*") if not path.is_dir()]
            assert [path for path in left if path.name != FACTS or path.stat().st_size] == []

    def remove(self) -> None:
        shutil.rmtree(self.directory)

    def _has_ended_on_val(self) -> bool:
        with self._copied() as database:
            if database is None:
                return False
            ended = "SELECT COUNT(*) FROM runs WHERE split = 'val' AND state = 'finished'"
            return bool(database.execute(ended).fetchone()[0])

    @contextlib.contextmanager
    def _copied(self) -> Generator[sqlite3.Connection | None]:
        """What the store holds now that nobody writes; read in a copy, so that the next process opens it untouched."""
        path = self.store()
        if path is None:
            yield None
            return
        with tempfile.TemporaryDirectory() as name:
            for part in (path, path.with_name(f"{path.name}-wal")):
                if part.exists():
                    shutil.copy(part, name)
            with closing(sqlite3.connect(Path(name) / path.name)) as database:
                yield database

    def _read(self) -> Accounts:
        log = self.directory / "finished.log"
        # A line that was torn by the kill was never finished.
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        with self._copied() as database:
            if database is None:
                return Accounts(finished=Counter(lines))
            charged = Counter[str]()
            for purpose, amount in database.execute("SELECT purpose, SUM(amount) FROM charges GROUP BY purpose"):
                charged[purpose] = amount
            every = (
                "SELECT split, candidates.prompts, example_id, counted AND NOT baseline AND split != 'test' "
                "FROM results JOIN runs ON number = run JOIN candidates ON id = candidate WHERE origin IS NULL"
            )
            rows = database.execute(every).fetchall()
            ended = database.execute("SELECT 1 FROM compile WHERE outcome IS NOT NULL").fetchone() is not None
        stored = Counter(key_of(decode(prompts), self._messages[split, one]) for split, prompts, one, _ in rows)
        return Accounts(charged, sum(row[3] for row in rows), stored, Counter(lines), ended)
