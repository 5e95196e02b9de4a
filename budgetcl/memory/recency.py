"""Sampling that prefers what came last: FIFO, recent windows, and half recent half uniform (ER)."""

from __future__ import annotations

import numpy as np

from budgetcl.errors import at_least, between
from budgetcl.memory.sampler import Place, enough
from budgetcl.streams.stream import IntArray


class Recent:
    """Uniform over the last samples revealed; older ones are never seen again (FIFO, last-k).

    Args:
        window: how many of the last samples; None: what the current step revealed.
    """

    def __init__(self, window: int | None = None) -> None:
        if window is not None:
            at_least(1, window=window)
        self.window = window

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place = place

    def reach(self) -> int:
        """Return the size of the window."""
        memory = self._place.memory
        return min(self.window if self.window is not None else memory.new, len(memory))

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows among the last ones, uniformly."""
        size = self.reach()
        enough(n, size, f"the last {size} samples (window={self.window})")
        rows = self._place.random("recent", update).choice(size, n, replace=False, shuffle=False)
        return rows + (len(self._place.memory) - size)


class HalfRecent:
    """A share of each batch from the last samples, the rest uniform over everything seen (ER; EvalOCL, ICCV 2023).

    Args:
        share: the recent share of a batch.
        window: how many of the last samples; None: what the current step revealed. Where fewer are there than the
            share asks, the rest of the memory fills up.
    """

    def __init__(self, share: float = 0.5, window: int | None = None) -> None:
        between(0, 1, share=share)
        self.share = share
        self._recent = Recent(window)

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place = place
        self._recent.begin(place)

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows: round(share x n) recent ones, then others."""
        memory = self._place.memory
        enough(n, len(memory), "the memory")
        recent = self._recent.draw(min(round(self.share * n), self._recent.reach()), update)
        return np.concatenate([recent, self._others(n - len(recent), recent, update)])

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)

    def _others(self, n: int, taken: IntArray, update: int) -> IntArray:
        # Uniform over the rows that are not taken: draw ranks among them, then step over the taken ones.
        ranks = self._place.random("uniform", update).choice(
            len(self._place.memory) - len(taken), n, replace=False, shuffle=False
        )
        taken = np.sort(taken)
        return ranks + np.searchsorted(taken - np.arange(len(taken)), ranks, side="right")
