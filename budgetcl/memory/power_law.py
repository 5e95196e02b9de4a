"""Rehearsal by a power law: the longer ago a sample was used, the less likely it comes again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import between
from budgetcl.memory.by_use import RowsByUse
from budgetcl.memory.sampler import Place, enough
from budgetcl.memory.weighted import FEW, Proposals, distinct, heaviest
from budgetcl.streams.stream import IntArray


class PowerLaw:
    """A sample's weight is a power of the time since it was last used: age^-exponent.

    After Catastrophic Interference is Mitigated in Naturalistic Power-Law Learning Environments (Gandhi et al., 2024).
    Ages are counted in steps, from 1: what this step revealed or used has age 1, what was used in the step before 2,
    and what was never used counts as used before the first step. A batch is drawn one by one by weight, without
    repetition.

    Large memories are drawn from by rejection. Every row has the weight of one that was never used; what the new rows
    have beyond that is theirs alone, and what the used ones have beyond it is proposed window by window of
    :class:`RowsByUse`, at its newest age, and taken as often as the row's own age says. Ages in a window differ by a
    factor of two at most. So proposals are seldom refused, and an update costs about the same in step 10 and in step
    4,000, whatever the size of the memory.

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
        self._uses: RowsByUse | None = None

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows, by weight."""
        size = len(self._place.memory)
        enough(n, size, "the memory")
        random = self._place.random("power law", update)
        if size <= FEW * n:
            return heaviest(n, self._log_weight(np.arange(size)), random)

        def weigh_all(wanted: int, taken: IntArray) -> IntArray:
            left = np.delete(np.arange(size), taken)
            return left[heaviest(wanted, self._log_weight(left), random)]

        return distinct(n, self._proposals(random), weigh_all)

    def _proposals(self, random: np.random.Generator) -> Proposals:
        """Return (tries) -> the rows that come of so many independent proposals, by weight."""
        memory, step = self._place.memory, self._place.step
        if self._uses is None:
            self._uses = memory.by_use(step)
        uses, old = self._uses, len(memory) - memory.new
        floor = self._power(step - np.array([-1]))
        # All rows, the new ones, then the windows: how many rows there are, and what each is proposed with.
        counts = np.concatenate([[len(memory), memory.new], np.diff(uses.ends, prepend=0)])
        each = np.concatenate([floor, 1 - floor, self._power(step - uses.last) - floor])
        starts = np.concatenate([[0, old], uses.ends]) - np.concatenate([[0, 0], counts[2:]])
        bounds = np.concatenate([[0.0], np.cumsum(counts * each)])

        def propose(tries: int) -> IntArray:
            at = random.random(tries) * bounds[-1]
            part = np.searchsorted(bounds[1:-1], at, side="right")
            # Where a part has no weight, `at` is not in it.
            place = ((at - bounds[part]) / np.where(each > 0, each, 1)[part]).astype(np.int64)
            rows = starts[part] + np.minimum(place, counts[part] - 1)
            (used,) = np.nonzero(part >= 2)
            rows[used] = found = uses.at(rows[used])
            part, last = part[used] - 2, memory.last_used[found]
            there = (uses.first[part] <= last) & (last <= uses.last[part]) & (found < old)
            share = (self._power(step - last) - floor) / np.where(each > 0, each, 1)[part + 2]
            taken = np.ones(tries, bool)
            taken[used] = there & (random.random(len(used)) < share)
            return rows[taken]

        return propose

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)

    def _log_weight(self, rows: IntArray) -> NDArray[np.float64]:
        memory, step = self._place.memory, self._place.step
        last = np.where(rows >= len(memory) - memory.new, step, memory.last_used[rows])
        return -self.exponent * np.log(1.0 + step - last)

    def _power(self, since: IntArray) -> NDArray[np.float64]:
        """Return the weights of rows that were last used so many steps ago."""
        return np.power(1.0 + since, -self.exponent, dtype=np.float64)
