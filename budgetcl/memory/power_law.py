"""Rehearsal by a power law: the longer ago a sample was used, the less likely it comes again."""

from __future__ import annotations

import numpy as np

from budgetcl.errors import between
from budgetcl.memory.sampler import Place, enough
from budgetcl.memory.weighted import FEW, distinct, heaviest
from budgetcl.streams.stream import IntArray


class PowerLaw:
    """A sample's weight is a power of the time since it was last used: age^-exponent.

    After Catastrophic Interference is Mitigated in Naturalistic Power-Law Learning Environments (Gandhi et al., 2024).
    Ages are counted in steps, from 1: what this step revealed or used has age 1, what was used in the step before 2,
    and what was never used counts as used before the first step. A batch is drawn one by one by weight, without
    repetition.

    Large memories are drawn from by rejection: a row is proposed uniformly and taken with probability age^-exponent.
    So an update costs batch x memory / (sum of all weights) proposals, and nothing is kept beside the memory.

    Args:
        exponent: 0 is uniform.
    """

    ahead = False  # an update's draws change the ages of the next

    def __init__(self, exponent: float = 1.0) -> None:
        between(0, 10, exponent=exponent)
        self.exponent = exponent

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place = place

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows, by weight."""
        size = len(self._place.memory)
        enough(n, size, "the memory")
        random = self._place.random("power law", update)

        def propose(tries: int) -> IntArray:
            rows = random.integers(size, size=tries)
            return rows[-random.standard_exponential(tries) < self._log_weight(rows)]

        return heaviest(n, self._log_weight(np.arange(size)), random) if size <= FEW * n else distinct(n, propose)

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)

    def _log_weight(self, rows: IntArray) -> np.ndarray:
        memory, step = self._place.memory, self._place.step
        last = np.where(rows >= len(memory) - memory.new, step, memory.last_used[rows])
        return -self.exponent * np.log(1.0 + step - last)
