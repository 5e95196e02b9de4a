"""Weighted draws without repetition whose cost follows the batch, not the memory.

Both ways give what drawing one by one gives, each time by weight among those not taken yet.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from budgetcl.streams.stream import IntArray

Proposals = Callable[[int], IntArray]  # how many to try -> those that came of it, maybe fewer

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


def distinct(n: int, propose: Proposals, weigh_all: Callable[[int, IntArray], IntArray] | None = None) -> IntArray:
    """Return the first n distinct values of a row of independent proposals.

    For pools much larger than n, where proposals seldom repeat. Where they do, because a few values have nearly all the
    weight, the rest is drawn by weighing all that are left: which value is the next new one does not depend on how
    often old ones came before it.

    Args:
        n: how many.
        propose: how many to try -> those that came of it, maybe fewer.
        weigh_all: (how many, those taken) -> so many others, one by one by weight; None where it will not be needed.
    """
    found, tries = np.empty(0, np.int64), n
    while len(found) < n:
        found = np.concatenate([found, propose(tries)])
        found = found[np.sort(np.unique(found, return_index=True)[1])]
        if weigh_all is not None and tries == _MOST and len(found) < n:
            return np.concatenate([found, weigh_all(n - len(found), found)])
        tries = min(2 * tries, _MOST)  # however few come of a try, rounds stay few
    return found[:n]
