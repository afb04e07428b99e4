"""Seeds: numbers that look random and are the same wherever the same thing is drawn."""

from __future__ import annotations

import random

__all__ = ["drawn_seed", "fresh_seed"]


def fresh_seed() -> int:
    """A seed that nobody can foresee."""
    return random.SystemRandom().randrange(2**63)


def drawn_seed(seed: int, *what: object) -> int:
    """A number below 2**31 that follows from `seed` and from what it is drawn for.

    Unlike the next number of a generator, it does not depend on what else was drawn before, by which thread, or before
    the process was started again. The same on every platform and Python.
    """
    return random.Random(repr((seed, *what))).randrange(2**31)
