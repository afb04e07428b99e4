"""Prints which version of each of the project's own dependencies is installed, on one line."""

import re
from importlib.metadata import PackageNotFoundError, requires, version

names = {re.match(r"[\w.-]+", line)[0] for line in requires("rlmoptimizer") or []}
found = []
for name in sorted(names):
    try:
        found.append(f"{name} {version(name)}")
    except PackageNotFoundError:  # of an extra that was not asked for
        continue
print(", ".join(found))
