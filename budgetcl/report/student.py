"""Means over seeds and their intervals by Student's t: few seeds, each an independent repetition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from budgetcl.metrics.stats import Interval

LEVEL = 0.95
ENOUGH = 5  # seeds from which on plots show intervals


def student_interval(values: Sequence[float]) -> Interval:
    """Return the mean over seeds and its 95 % interval by Student's t; the ends are NaN for a single value."""
    mean, half = mean_and_half(np.asarray(values, dtype=float)[:, None])
    return Interval(float(mean[0]), float(mean[0] - half[0]), float(mean[0] + half[0]), LEVEL)


def mean_and_half(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean over the rows and the half width of its 95 % interval by Student's t, by column.

    Args:
        values: (seeds, points); NaN is left out.

    Returns:
        (points,) means, NaN where there is nothing; (points,) half widths, NaN where there are fewer than two values.
    """
    table = np.asarray(values, dtype=float)
    count = (~np.isnan(table)).sum(0)
    mean = np.divide(np.nansum(table, 0), count, out=np.full(table.shape[1], np.nan), where=count > 0)
    squares = np.nansum((table - mean) ** 2, 0)
    several = count > 1
    deviation = np.sqrt(np.divide(squares, count - 1, out=np.full(len(mean), np.nan), where=several))
    t = np.array([student_quantile(n - 1) if n > 1 else np.nan for n in count.tolist()])
    return mean, t * deviation / np.sqrt(np.maximum(count, 1))


def spread(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return what a plot shows of several seeds: mean, low and high, by column; NaN ends for a single seed.

    From :data:`ENOUGH` seeds on, the ends are those of the 95 % interval. With fewer they are the lowest and the
    highest seed: Student's t is then so wide that it would hide every line, and the seeds themselves say more.

    Args:
        values: (seeds, points); NaN is left out.
    """
    table = np.asarray(values, dtype=float)
    mean, half = mean_and_half(table)
    if len(table) >= ENOUGH:
        return mean, mean - half, mean + half
    alone = np.isnan(half)
    filled = np.where(np.isnan(table), mean, table)
    return mean, np.where(alone, np.nan, filled.min(0)), np.where(alone, np.nan, filled.max(0))


def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """Return t such that Student's t with so many degrees of freedom lies in [-t, t] with probability ``level``.

    By halving on the closed form for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2  # the angle arctan(t / sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < level else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _inside(angle: float, freedom: int) -> float:
    cosine, total, term = math.cos(angle), 0.0, 1.0
    if freedom % 2 == 0:
        for k in range(0, freedom - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        return math.sin(angle) * total
    term = cosine
    for k in range(1, freedom - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return 2 / math.pi * (angle + math.sin(angle) * total)
