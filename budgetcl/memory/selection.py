"""Selection: a part of the allowance buys a look at candidates, and the step learns from those chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right

import numpy as np
import torch
from torch import Tensor

from budgetcl.errors import UserError, at_least, between
from budgetcl.memory.sampler import Place, enough
from budgetcl.streams.stream import IntArray


class Selection(ABC):
    """Draws uniformly from chosen candidates (the costly samplers of BudgetCL, CVPR 2023).

    Candidates are drawn uniformly from everything seen, new data included. Each costs a forward pass, charged as
    "score"; the choice among them is charged as "select". Both are due at the first draw, before any training.

    Args:
        spend: the share of the step's allowance that this may cost, all in all; it bounds the number of candidates.
            Where it does not pay for as many as a batch, the run is refused.
        keep: the share of the candidates that is chosen; at least a batch is.
        candidates: how many there are at most; None: as many as ``spend`` pays for.
        refresh: how many times a step candidates are drawn and chosen from anew, evenly over what the step spends;
            each time costs an equal part of ``spend``.
    """

    ahead = False

    def __init__(
        self, spend: float = 1 / 6, keep: float = 1 / 3, candidates: int | None = None, refresh: int = 1
    ) -> None:
        between(0, 1, spend=spend, keep=keep)
        at_least(1, refresh=refresh)
        if candidates is not None:
            at_least(1, candidates=candidates)
        self.spend, self.keep, self.candidates, self.refresh = spend, keep, candidates, refresh

    @abstractmethod
    def price(self, n: int, kept: int) -> int:
        """Return the FLOPs of choosing among n candidates at most, their forward passes left out."""

    @abstractmethod
    def select(self, candidates: IntArray, kept: int) -> IntArray:
        """Return the ``kept`` rows chosen among the candidates' rows."""

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place, self._selections = place, 0
        self._allowance = int(self.spend * place.compute.spare) // self.refresh

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows, uniformly among those chosen; choose first, where that is due.

        Raises:
            Exhausted: the rest of the step's allowance does not pay for choosing.
            UserError: fewer candidates than n, or none.
        """
        place = self._place
        progress = place.compute.ledger.progress
        if self._selections < self.refresh and progress >= self._selections / self.refresh:
            count = self._affordable(n)
            candidates = place.random("candidates", update).choice(len(place.memory), count, False, shuffle=False)
            self._chosen = self.select(candidates, self._kept(n, count))
            self._selections += 1
        return self._chosen[place.random("scored", update).choice(len(self._chosen), n, False, shuffle=False)]

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)

    def features(self, candidates: IntArray) -> Tensor:
        """Return the candidates' features (n, d); the passes are charged as "score"."""
        return torch.cat([outputs.features.float() for _, outputs in self._place.forward(candidates, "score")])

    def _affordable(self, n: int) -> int:
        """Return how many candidates there are, when batches of n are drawn."""
        forward, size = self._place.price(), len(self._place.memory)
        most = size if self.candidates is None else min(size, self.candidates)

        def price(count: int) -> int:
            return count * forward + self.price(count, self._kept(n, count))

        count = bisect_right(range(1, most + 1), self._allowance, key=price)
        if count < 1:
            part = f"spend={self.spend:g}" + (f" in {self.refresh} parts" if self.refresh > 1 else "")
            raise UserError(f"{part} of this step's allowance does not pay for scoring one image: raise it")
        enough(n, count, "the memory" if count == size else f"the candidates that {self._bound(count)}")
        return count

    def _bound(self, count: int) -> str:
        return f"candidates={count} allows" if count == self.candidates else f"spend={self.spend:g} pays for"

    def _kept(self, n: int, count: int) -> int:
        return min(count, max(n, round(self.keep * count)))


def top(values: Tensor, n: int) -> np.ndarray:
    """Return the positions of the n largest values, largest first; among equals, the first."""
    return torch.argsort(values, descending=True, stable=True)[:n].cpu().numpy()
