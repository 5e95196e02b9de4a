"""Learning-rate schedules: a factor in [0, 1] on the peak rate.

A schedule is called before each update with ``progress``, the share of the step's allowance that is spent, in [0, 1],
and with ``step``, the number of the time step, counted from 0. Progress is 0 at the first update of a step, whatever
was spent on selection before it, so that every method begins its schedule at the same place.
"""

from __future__ import annotations

import math

from budgetcl.errors import UserError, at_least, between


class Linear:
    """From the peak to 0 within each step, restarted at the next (BudgetCL, CVPR 2023)."""

    def __call__(self, progress: float, step: int) -> float:
        """Return 1 - progress."""
        return 1 - progress


class Cosine:
    """Half a cosine from the peak to 0 within each step, restarted at the next (SGDR, ICLR 2017, eq. 5)."""

    def __call__(self, progress: float, step: int) -> float:
        """Return (1 + cos(pi x progress)) / 2."""
        return (1 + math.cos(math.pi * progress)) / 2


class Constant:
    """The peak rate throughout (EvalOCL, ICCV 2023)."""

    def __call__(self, progress: float, step: int) -> float:
        """Return 1."""
        return 1.0


class Infinite:
    """Warm up and cool down once, then stay: no re-warming between steps (arXiv 2403.08763, TMLR 2024).

    The first ``steps`` time steps, taken as one stretch from 0 to 1, hold the warm-up (linear, from ``floor`` to the
    peak), the cool-down (half a cosine, from the peak to ``level``) and the start of the constant phase; later steps
    stay at ``level``. The last share ``anneal`` of every step falls exponentially from the rate it would have there
    to ``floor``, so that the network that predicts after a step is an annealed one.

    In the paper, training goes on from the weights before the annealing. Here it goes on from the annealed ones, at
    ``level`` again: updates that were paid for are not thrown away.

    Args:
        warm: share of the first stretch for the warm-up.
        cool: share of the first stretch for the cool-down.
        level: the constant rate, as a share of the peak.
        anneal: share of each step for the annealing; 0: none.
        floor: where the warm-up begins and the annealing ends, as a share of the peak; above 0, so that no update is
            made for nothing.
        steps: how many time steps the first stretch has.

    Raises:
        UserError: a share outside [0, 1], ``warm`` and ``cool`` above 1 together, or ``floor`` above ``level``.
    """

    def __init__(
        self,
        warm: float = 0.1,
        cool: float = 0.4,
        level: float = 0.5,
        anneal: float = 0.2,
        floor: float = 0.01,
        steps: int = 1,
    ) -> None:
        between(0, 1, warm=warm, cool=cool, level=level, anneal=anneal)
        between(1e-6, 1, floor=floor)
        at_least(1, steps=steps)
        if warm + cool > 1:
            raise UserError(f"warm={warm:g} and cool={cool:g} given; shares that sum to at most 1 are expected")
        if floor > level:
            raise UserError(f"floor={floor:g} given; at most the level, {level:g}, is expected")
        self.warm, self.cool, self.level = warm, cool, level
        self.anneal, self.floor, self.steps = anneal, floor, steps

    def __call__(self, progress: float, step: int) -> float:
        """Return the factor of its phase."""
        begin = 1 - self.anneal
        if progress <= begin:
            return self._unannealed(progress, step)
        start = self._unannealed(begin, step)
        return start * (self.floor / start) ** ((progress - begin) / self.anneal)

    def _unannealed(self, progress: float, step: int) -> float:
        place = (step + progress) / self.steps
        if place < self.warm:
            return self.floor + (1 - self.floor) * place / self.warm
        if place < self.warm + self.cool:
            return 1 - (1 - self.level) * (1 - math.cos(math.pi * (place - self.warm) / self.cool)) / 2
        return self.level
