"""Uniform and class-balanced sampling over everything seen: no cost beyond plain training."""

from __future__ import annotations

import numpy as np

from budgetcl.memory.sampler import Place, enough
from budgetcl.streams.stream import IntArray


class Uniform:
    """Every sample seen is equally likely; within a batch none comes twice (Naive, BudgetCL, CVPR 2023)."""

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place = place

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows, uniformly."""
        size = len(self._place.memory)
        enough(n, size, "the memory")
        return self._place.random("uniform", update).choice(size, n, replace=False, shuffle=False)

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)


class ClassBalanced:
    """Every class seen has an equal share of a batch; within a class, samples are uniform without repetition.

    Shares differ by at most one sample, drawn by lot, unless a class has fewer samples than its share: it then gives
    all it has and the others fill up evenly.
    """

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place = place

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows, class by class."""
        memory = self._place.memory
        enough(n, len(memory), "the memory")
        random = self._place.random("class-balanced", update)
        shares = fill_evenly(n, memory.class_counts, random)
        picks = []
        for label in np.flatnonzero(shares).tolist():
            rows = memory.rows_of(label)
            share = int(shares[label])
            if share == 1:  # the common case with many classes, without a choice()'s set-up
                picks.append(rows[random.integers(len(rows), size=1)])
            else:
                picks.append(rows[random.choice(len(rows), share, replace=False, shuffle=False)])
        return np.concatenate(picks)

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)


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
