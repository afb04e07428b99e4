"""A guardian that stays outside of the confinement: fork, start the confined process, watch it.

Run as a script by the host's own Python: `python -I -S guard.py FILE`, where FILE holds, in `marshal`'s form,
`guardian` (see `guardian.py`), `argv`, and for a wrapper that reads its arguments from a descriptor, `arguments` and
`descriptor`.
The child is on its way before the parent imports what it needs for watching: both go on at once.
"""

# Every import here is paid at every start, `typing` among the dearest: there are no annotations.
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import marshal  # the one form that needs no import of its own; the file is the host's, in a directory of its own
import os
import sys


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        config = marshal.load(file)
    child = os.fork()
    if not child:
        start(config)
    # This package without running its __init__, as in launch.py: nothing of the host side is imported.
    package = type(sys)("kernel_bridge")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["kernel_bridge"] = package
    from kernel_bridge.inside.guardian import watch

    watch(child, config["guardian"])


def start(config):
    """Become the confined process, which dies with its parent by its own doing: the wrapper's or the seal's."""
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):  # the lifeline and the report belong to the guardian alone
            os.dup2(null, fd)
        if config["arguments"] is not None:
            source = os.memfd_create("arguments")
            for argument in config["arguments"]:
                os.write(source, os.fsencode(argument) + b"\0")
            os.lseek(source, 0, os.SEEK_SET)
            os.dup2(source, config["descriptor"], inheritable=True)
            if source != config["descriptor"]:
                os.close(source)
        os.execve(config["argv"][0], config["argv"], dict(os.environ))
    except OSError as error:
        os.write(2, f"cannot start {config['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    main()
