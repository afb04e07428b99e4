"""A guardian that stays outside of the confinement: fork, start the confined process, watch it.

Run as a script by the host's own Python: `python -I -S guard.py FILE`, where FILE is a JSON file with `guardian` (see
`guardian.py`), `argv`, and for a wrapper that reads its arguments from a descriptor, `arguments` and `descriptor`.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    # This package without running its __init__, as in launch.py: nothing of the host side is imported.
    package = type(sys)("kernel_bridge")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["kernel_bridge"] = package
    from kernel_bridge.inside.guardian import fork_under_guard

    with open(sys.argv[1], encoding="utf-8") as file:
        config = json.load(file)
    fork_under_guard(config["guardian"])
    if config["arguments"] is not None:
        source = os.memfd_create("arguments")
        for argument in config["arguments"]:
            os.write(source, os.fsencode(argument) + b"\0")
        os.lseek(source, 0, os.SEEK_SET)
        os.dup2(source, config["descriptor"], inheritable=True)
        if source != config["descriptor"]:
            os.close(source)
    os.execve(config["argv"][0], config["argv"], dict(os.environ))


if __name__ == "__main__":
    main()
