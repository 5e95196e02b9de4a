"""Sampling that prefers what came last: FIFO, recent windows, half recent half uniform (ER), exponential age."""

from __future__ import annotations

import numpy as np

from budgetcl.errors import at_least, between
from budgetcl.memory.sampler import Place, enough
from budgetcl.memory.weighted import FEW, distinct, heaviest
from budgetcl.streams.stream import IntArray


class Recent:
    """Uniform over the last samples revealed; older ones are never seen again (FIFO, BudgetCL, CVPR 2023).

    Args:
        window: how many of the last samples; None: what the current step revealed.
    """

    ahead = True

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
        share: the recent share of a batch: 0 is uniform sampling, 1 is the window alone, as far as it fills a batch.
        window: how many of the last samples; None: what the current step revealed. Where fewer are there than the
            share asks, the rest of the memory fills up.
    """

    ahead = True

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
        others = untaken(len(memory), recent, n - len(recent), self._place.random("uniform", update))
        return np.concatenate([recent, others])

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)


class RecencyBiased:
    """The newer, the likelier: a sample's weight falls exponentially with its age (BudgetCL, CVPR 2023).

    The weight of the sample after which k others were revealed is exp(-k / scale). A batch is drawn one by one by
    weight, without repetition. Ages beyond n + 40 x scale are left out: all of them together would come once in
    exp(40) draws.

    Args:
        scale: the age at which the weight has fallen to 1/e, in samples; None: as many as the current step revealed.
    """

    ahead = True

    def __init__(self, scale: int | None = None) -> None:
        if scale is not None:
            at_least(1, scale=scale)
        self.scale = scale

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place = place

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows, by weight."""
        memory = self._place.memory
        size, scale = len(memory), self.scale or max(1, memory.new)
        enough(n, size, "the memory")
        random = self._place.random("recency", update)
        pool = min(size, n + 40 * scale)

        def propose(tries: int) -> IntArray:
            # The inverse of the distribution function of a geometric age below the pool's size.
            ages = -scale * np.log1p(random.random(tries) * np.expm1(-pool / scale))
            return np.minimum(ages.astype(np.int64), pool - 1)

        ages = heaviest(n, -np.arange(pool) / scale, random) if pool <= FEW * n else distinct(n, propose)
        return size - 1 - ages

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)


def untaken(size: int, taken: IntArray, n: int, random: np.random.Generator) -> IntArray:
    """Return n distinct rows of ``size``, uniformly among those that are not taken."""
    # Ranks among the rows that are not taken, which then step over the taken ones.
    ranks = random.choice(size - len(taken), n, replace=False, shuffle=False)
    taken = np.sort(taken)
    return ranks + np.searchsorted(taken - np.arange(len(taken)), ranks, side="right")
