"""Weighted draws without repetition whose cost follows the batch, not the memory.

Both ways give what drawing one by one gives, each time by weight among those not taken yet.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from budgetcl.streams.stream import IntArray

FEW = 100  # pools of up to so many times the batch are weighed whole
_MOST = 1 << 20  # proposals a round


def heaviest(n: int, log_weight: NDArray[np.float64], random: np.random.Generator) -> IntArray:
    """Return n distinct positions by weighing each: the n largest of log weight + Gumbel noise.

    For pools not much larger than n (Gumbel-top-k; Kool et al., ICML 2019).

    Args:
        n: how many, at most ``len(log_weight)``.
        log_weight: (k,) logarithms of the weights, up to a common constant.
        random: decides.
    """
    keys = log_weight + random.gumbel(size=len(log_weight))
    return np.argpartition(-keys, n - 1)[:n] if n < len(keys) else np.arange(n)


def distinct(n: int, propose: Callable[[int], IntArray]) -> IntArray:
    """Return the first n distinct values of a row of independent proposals.

    For pools much larger than n, where proposals seldom repeat.

    Args:
        n: how many.
        propose: how many to try -> those that came of it, maybe fewer.
    """
    found, tries = np.empty(0, np.int64), n
    while len(found) < n:
        found = np.concatenate([found, propose(tries)])
        found = found[np.sort(np.unique(found, return_index=True)[1])]
        tries = min(2 * tries, _MOST)  # however few come of a try, rounds stay few
    return found[:n]
