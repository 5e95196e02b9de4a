"""What a memory of limited capacity keeps. Lots are a hash of (seed, sample), so that no counter has to be saved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budgetcl.memory.memory import Memory
from budgetcl.memory.uniform import fill_evenly
from budgetcl.randomness import generator, lots
from budgetcl.streams.stream import IntArray


class Reservoir:
    """Every sample seen is kept with the same probability (reservoir sampling: Vitter, ACM TOMS 1985).

    Each sample draws a lot once, and the smallest ``capacity`` lots of all samples seen are kept: the same distribution
    as the classical algorithm, whatever the size of the steps.
    """

    def __call__(self, memory: Memory, capacity: int, seed: int) -> IntArray:
        """Return the rows with the smallest lots."""
        return np.sort(np.argpartition(_lots(memory, seed), capacity)[:capacity])


class BalancedReservoir:
    """Every class keeps an equal share, as far as it has so many; within a class, a reservoir.

    After class-balancing reservoir sampling (Chrysakis & Moens, ICML 2020), which replaces samples of the largest class
    first: shares are filled as evenly as the classes' sizes allow. With fewer places than classes, lots decide which
    classes keep one; a run whose memory is so small says so before it begins.
    """

    def __call__(self, memory: Memory, capacity: int, seed: int) -> IntArray:
        """Return, of each class, as many rows as its share, with the smallest lots."""
        return _balanced(memory, capacity, seed, _lots(memory, seed))


class Greedy:
    """Every class keeps an equal share, and within a class what came first stays (GDumb, ECCV 2020, algorithm 1).

    A new sample displaces one of the largest class only where its own class is smaller. With fewer places than classes,
    lots decide anew after each step which classes keep one; a run whose memory is so small says so before it begins.
    """

    def __call__(self, memory: Memory, capacity: int, seed: int) -> IntArray:
        """Return, of each class, its oldest rows."""
        return _balanced(memory, capacity, seed, np.arange(len(memory)))


class Newest:
    """What came last is kept (FIFO)."""

    def __call__(self, memory: Memory, capacity: int, seed: int) -> IntArray:
        """Return the last rows."""
        return np.arange(len(memory) - capacity, len(memory))


def _lots(memory: Memory, seed: int) -> NDArray[np.uint64]:
    return lots(seed, "reservoir", memory.index)


def _balanced(memory: Memory, capacity: int, seed: int, rank: NDArray[np.generic]) -> IntArray:
    """Return the rows of lowest rank of each class, shares as even as the classes' sizes allow."""
    shares = fill_evenly(capacity, memory.class_counts, generator(seed, "shares", int(memory.index[-1])))
    label = memory.label
    order = np.lexsort((rank, label))
    starts = np.cumsum(memory.class_counts) - memory.class_counts
    place = np.arange(len(order)) - starts[label[order]]  # within its class, by rank
    return np.sort(order[place < shares[label[order]]])
