"""Uniform and class-balanced sampling over everything seen: no cost beyond plain training."""

from __future__ import annotations

import numpy as np

from budgetcl.errors import UserError
from budgetcl.memory.sampler import Place, enough
from budgetcl.streams.stream import IntArray


class Uniform:
    """Every sample seen is equally likely (Naive, BudgetCL, CVPR 2023).

    Args:
        replacement: whether a sample may come more than once in a batch, as in independent draws.
    """

    ahead = True

    def __init__(self, replacement: bool = False) -> None:
        if not isinstance(replacement, bool):
            raise UserError(f"replacement={replacement!r} given; true or false is expected")
        self.replacement = replacement

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place = place

    def draw(self, n: int, update: int) -> IntArray:
        """Return n rows, uniformly; distinct ones unless drawn with replacement."""
        size = len(self._place.memory)
        enough(1 if self.replacement else n, size, "the memory")
        random = self._place.random("uniform", update)
        if self.replacement:
            return random.integers(size, size=n)
        return random.choice(size, n, replace=False, shuffle=False)

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)


class ClassBalanced:
    """Every class seen has an equal share of a batch (BudgetCL, CVPR 2023); in a class samples are uniform, none twice.

    Shares differ by at most one sample, drawn by lot, unless a class has fewer samples than its share: it then gives
    all it has and the others fill up evenly.
    """

    ahead = True

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place = place

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows, class by class."""
        memory = self._place.memory
        enough(n, len(memory), "the memory")
        random = self._place.random("class-balanced", update)
        shares = fill_evenly(n, memory.class_counts, random)
        labels = np.flatnonzero(shares)
        shares, counts = shares[labels], memory.class_counts[labels]
        holders, places = np.repeat(labels, shares), distinct_places(shares, counts, random)
        return memory.rows_at(holders, places)

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)


def distinct_places(shares: IntArray, counts: IntArray, random: np.random.Generator) -> IntArray:
    """Return for each holder, uniformly, as many distinct places as its share, out of as many as its count.

    Args:
        shares: (k,) how many of each, from 1 to its count.
        counts: (k,) how many places each holder has.
        random: decides.

    Returns:
        (shares.sum(),) places in [0, count): the first holder's, then the second's, and so on.
    """
    most = int(shares.max())
    if most > len(shares):  # a few holders with large shares
        return np.concatenate([random.choice(c, s, replace=False, shuffle=False) for s, c in zip(shares, counts)])
    # Floyd's algorithm (Bentley & Floyd, CACM 1987) for all holders at once. The i-th pick is one of the first
    # count - share + i + 1 places; where that is taken already, it is the last of them, which cannot be.
    picks = np.full((len(shares), most), -1)
    for i in range(most):
        (holders,) = np.nonzero(shares > i)
        last = counts[holders] - shares[holders] + i
        pick = random.integers(last + 1)
        taken = (picks[holders, :i] == pick[:, None]).any(1)
        picks[holders, i] = np.where(taken, last, pick)
    return picks[np.arange(most) < shares[:, None]]


def fill_evenly(n: int, capacity: IntArray, random: np.random.Generator) -> IntArray:
    """Share n among holders as evenly as their capacities allow; what is left over goes by lot.

    Args:
        n: how many to share, at most ``capacity.sum()``.
        capacity: (k,) how many each can take.
        random: decides the lots.

    Returns:
        (k,) shares: each at most its capacity, their sum n, and any two below their capacity differ by at most one.
    """
    shares = np.zeros_like(capacity)
    while n:
        room = np.flatnonzero(shares < capacity)
        if n < len(room):
            shares[random.choice(room, n, replace=False, shuffle=False)] += 1
            break
        level = n // len(room)
        given = np.minimum(level, capacity[room] - shares[room])
        shares[room] += given
        n -= int(given.sum())
    return shares
