"""Learning-rate schedules: a factor on the peak rate, by the share of the step's allowance that is spent.

Progress is 0 at the first update of a step, whatever was spent on selection before it, so that the first update of
every method has the peak rate.
"""

from __future__ import annotations


class Linear:
    """From the peak to 0 within each step, restarted at the next (BudgetCL, CVPR 2023)."""

    def __call__(self, progress: float) -> float:
        """Return 1 - progress."""
        return 1 - progress


class Constant:
    """The peak rate throughout (EvalOCL, ICCV 2023)."""

    def __call__(self, progress: float) -> float:
        """Return 1."""
        return 1.0
