"""A kernel's launch: its plan, its configuration, the files handed over and the command."""

from __future__ import annotations

import compileall
import functools
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from kernel_bridge.confine import Confinement, plan_launch
from kernel_bridge.confine.launch_plan import PACKAGE, prepare_files, spawn_command, write_spawn_file
from kernel_bridge.confine.readable_paths import ExtraPathUnusable
from kernel_bridge.confine.tier_bubblewrap import EXTRA_PATH
from kernel_bridge.errors import StartupFailed, what_to_do
from kernel_bridge.files.checkpoint_file import DESCRIPTION_BYTES
from kernel_bridge.files.layout import CHECKPOINT, INTERRUPT, PROGRESS, TRANSCRIPT, Layout
from kernel_bridge.files.private_files import make_directory, make_file, open_new
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.files.standard_descriptors import occupy_standard_files
from kernel_bridge.inside.launch_config import CheckpointConfig, GuardianConfig, LaunchConfig
from kernel_bridge.options import SessionOptions
from kernel_bridge.process.connection import Connection
from kernel_bridge.process.shared_files import SharedFiles

__all__ = ["Launch", "LaunchOptions", "StartedProcess"]


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What every kernel of a session is launched with."""

    session: SessionOptions
    confinement: Confinement  # what was asked for, resolved
    tier: str  # how it is confined; see `kernel_bridge.confine.resolve`

    def largest_checkpoint(self) -> int:
        """Bytes that a kernel may put into one checkpoint."""
        most, scratch = self.session.limits.checkpoint_bytes, self.confinement.scratch_bytes
        return most if scratch is None else min(most, scratch // 4)  # a new one is written beside the old one

    def largest_kept_checkpoint(self) -> int:
        """Bytes of the largest one that is left for a successor, which would be killed for a larger one.

        A file of any size costs the agent's code nothing, so there is a bound also where its disk has none.
        """
        scratch = self.confinement.scratch_bytes
        return self.largest_checkpoint() + DESCRIPTION_BYTES if scratch is None else scratch // 3


@dataclass(frozen=True, slots=True)
class StartedProcess:
    """A process that was begun."""

    process: subprocess.Popen[bytes]  # the guardian, or the kernel itself where there is none
    lifeline: socket.socket | None  # to the guardian; None: there is none, and the kernel's own input is its lifeline


class Launch:
    """The launch of one kernel of a session, planned; `start` begins it. Then its `files` are the caller's to close.

    Raises:
        StartupFailed: the interpreter cannot be run.
    """

    def __init__(self, directory: SessionDirectory, options: LaunchOptions) -> None:
        confinement = options.confinement
        self._directory = directory
        self._options = options
        self.layout = directory.next_layout()
        directory.drop_checkpoint_above(options.largest_kept_checkpoint())
        try:
            self.plan = plan_launch(confinement, options.tier, self.layout, options.session.python)
        except ExtraPathUnusable as error:
            raise StartupFailed(str(error)) from error
        except OSError as error:
            text = f"the kernel's interpreter cannot be used: {error}"
            raise StartupFailed(text + what_to_do(text)) from error
        self.connection = Connection.open(directory, self.layout, self.plan.inside)
        self.files = SharedFiles(self.layout.sockets)

    @property
    def wrappers(self) -> int:
        """How many processes stand between the guardian and the kernel."""
        return 0 if self.plan.wrapper_arguments is None else 2  # the wrapper, and its first process inside

    @property
    def last_words(self) -> Path:
        """The file that takes the kernel's stderr where there is no guardian."""
        return self.layout.sockets / "stderr"

    def start(self) -> StartedProcess:
        """Begin the process: the guardian, or the kernel itself where there is none.

        Raises:
            StartupFailed: the interpreter cannot be run. The shared files are closed.
        """
        try:
            extra_path = _extra_path(self._options.session.python, self._directory, self.plan.inside)
            config = self._configuration(extra_path)
            make_file(self.layout.config, json.dumps(asdict(config)).encode())
            self._hand_over()
            return self._launch()
        except BaseException:
            self.files.close()
            self.connection.close()
            raise

    def _configuration(self, extra_path: list[str]) -> LaunchConfig:
        limits, inside = self._options.session.limits, self.plan.inside
        keeping = CheckpointConfig(
            path=str(inside.keep / CHECKPOINT),
            bytes=self._options.largest_checkpoint(),
            seconds=limits.checkpoint_seconds,
            progress_file=str(inside.sockets / PROGRESS),
        )
        return LaunchConfig(
            connection_file=self.connection.inside_file,
            calls_url=self.connection.inside_urls[0],
            replies_url=self.connection.inside_urls[1],
            frame_bytes=limits.frame_bytes,
            frame_depth=limits.frame_depth,
            output_bytes=limits.output_bytes,
            result_chars=limits.result_chars,
            transcript_file=str(inside.sockets / TRANSCRIPT),
            interrupt_file=str(inside.sockets / INTERRUPT) if os.name == "posix" else None,
            working_directory=str(inside.scratch),
            extra_path=extra_path,
            seal=self.plan.seal,
            checkpoint=keeping if self._options.session.checkpoint else None,
        )

    def _hand_over(self) -> None:
        prepare_files(self.plan, self.layout)
        if self.plan.owner is not None:
            for path in (*self.layout.sockets.iterdir(), *self.layout.keep.iterdir()):
                os.chown(path, self.plan.owner, self.plan.owner, follow_symlinks=False)
            self._directory.let_pass()

    def _launch(self) -> StartedProcess:
        _compile_inside()
        try:
            return self._launch_guarded() if os.name == "posix" else self._launch_plain()
        except OSError as error:
            text = f"cannot run {self.plan.command[0]!r}: {error}"
            raise StartupFailed(text + what_to_do(text)) from error

    def _launch_guarded(self) -> StartedProcess:
        """The guardian, which starts the kernel; and the lifeline to it."""
        occupy_standard_files()
        guardian = GuardianConfig(os.getpid(), str(self._directory.path), self.wrappers)
        file = write_spawn_file(self.plan, self.layout, guardian)
        ours, theirs = socket.socketpair()  # no pipe: writing to one whose reader is gone may kill a host
        with theirs:
            try:
                process = subprocess.Popen(
                    spawn_command(file),
                    stdin=theirs.fileno(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=dict(self.plan.environment),
                    cwd=str(self.layout.session),  # the kernel goes to its scratch directory when it is sealed
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)  # a guardian that was stopped must not stop the host
        return StartedProcess(process, ours)

    def _launch_plain(self) -> StartedProcess:
        # Its output is no cell's: what a child of the kernel writes would fill a pipe that nobody reads.
        with open(open_new(self.last_words), "wb") as last_words:
            process = subprocess.Popen(
                self.plan.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=last_words,
                env=dict(self.plan.environment),
                cwd=str(self.layout.session),
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Ctrl-C is not for the kernel
            )
        return StartedProcess(process, None)


@functools.cache
def _compile_inside() -> None:
    """Compile what runs in a kernel, once: a kernel writes no byte code, so every start would compile it anew."""
    for path in (*(PACKAGE / "inside").glob("*.py"), *(PACKAGE / "wire").glob("*.py")):
        # Where the package cannot be written, starts are slower and nothing else.
        compileall.compile_file(path, quiet=2)


def _extra_path(python: str, directory: SessionDirectory, inside: Layout) -> list[str]:
    """For a foreign interpreter: a folder with our cloudpickle, which is plain Python and serves any version."""
    if os.path.realpath(python) == os.path.realpath(sys.executable) and python == sys.executable:
        return []
    import cloudpickle

    folder = directory.path / "path"
    if not folder.exists():
        assert cloudpickle.__file__ is not None
        for made in (folder, folder / "cloudpickle"):
            make_directory(made, 0o755)  # the kernel may be another user
        for source in Path(cloudpickle.__file__).parent.glob("*.py"):
            make_file(folder / "cloudpickle" / source.name, source.read_bytes(), 0o644)
    return [str(folder if inside.session == inside.sockets.parent else EXTRA_PATH)]
