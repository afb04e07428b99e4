"""The script that spawns a process of ours: with the default signals and umask, and for a kernel behind a guardian.

The host's own Python runs `python -I -S spawn.py FILE`, where FILE holds, in `marshal`'s form, the fields of a
`SpawnConfig` (see `launch_config.py`). `python -I -S spawn.py -- ARGV...` needs no file.

A process inherits ignored and blocked signals and the umask, which a host may have set for itself: bubblewrap would
wait for ever where SIGCHLD is ignored, a cell could not be interrupted where SIGINT is, and under `umask 777` nobody
could read his own files.
"""

# Every import here costs time at every start, `typing` among the most: there are no annotations.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportCallIssue=false

import _signal  # pyright: ignore[reportMissingImports] - what is in C of `signal`
import marshal  # the one format that imports nothing; the file is the host's own
import os
import sys

Fields = type(sys.implementation)  # `types.SimpleNamespace`


def main() -> None:
    if sys.argv[1] == "--":
        start(Fields(argv=sys.argv[2:], arguments=None))
    with open(sys.argv[1], "rb") as file:
        config = Fields(**marshal.load(file))
    if config.guardian is None:
        start(config)
    forget_signals()
    guardian = os.getpid()
    child = os.fork()
    if not child:
        leave_guardian()
        if config.arguments is None:  # else a wrapper comes first, and the kernel has another parent
            config.argv.append(str(guardian))
        start(config)
    # The child is on its way already. The package is mounted by its path, as in launch.py.
    package = type(sys)("kernel_bridge")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["kernel_bridge"] = package
    from kernel_bridge.inside.guardian import watch

    watch(child, Fields(**config.guardian))  # pyright: ignore[reportArgumentType] - it has the same fields


def forget_signals() -> None:
    """Ignore no signal, and block none."""
    for number in range(1, _signal.NSIG):
        try:
            _signal.signal(number, _signal.SIG_DFL)
        except (OSError, ValueError):  # none that can be set
            continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def leave_guardian() -> None:
    """Be a process group of its own, without the lifeline and the report, which are the guardian's."""
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)


def start(config):
    """Become the program."""
    try:
        forget_signals()
        os.umask(os.umask(0o77) & 0o77)  # what others may do is the host's to say
        if config.arguments is not None:
            source = os.memfd_create("arguments")
            for argument in config.arguments:
                if argument[:1] == "<":  # `launch_config.OPENED`
                    opened = os.open(argument[1:], os.O_RDONLY)
                    os.set_inheritable(opened, True)
                    argument = str(opened)
                os.write(source, os.fsencode(argument) + b"\0")
            os.lseek(source, 0, os.SEEK_SET)
            os.set_inheritable(source, True)
            config.argv[config.argv.index(config.descriptor)] = str(source)
        os.execvp(config.argv[0], config.argv)
    except OSError as error:
        os.write(2, f"cannot start {config.argv[0]}: {error}\n".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    main()
