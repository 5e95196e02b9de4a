"""Where a stream is cut: into steps of so many samples, or so many steps; and after which steps it is evaluated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budgetcl.streams.stream import IntArray


def by_chunk(samples: int, chunk: int) -> IntArray:
    """Return the bounds of steps of ``chunk`` samples; the last may be shorter."""
    return np.append(np.arange(0, samples, chunk), samples)


def by_number(samples: int, steps: int) -> IntArray:
    """Return the bounds of so many steps, equally long to one sample, the longer ones first."""
    step = np.arange(steps + 1)
    return step * (samples // steps) + np.minimum(step, samples % steps)


def by_span(time: NDArray[np.float64], steps: int) -> IntArray:
    """Return the bounds of steps of equal time, first to last sample; a span without a sample joins the next one.

    Args:
        time: (samples,) non-decreasing.
        steps: the number of spans.
    """
    edges = np.linspace(time[0], time[-1], steps + 1)[1:-1]
    return np.unique(np.concatenate([[0], np.searchsorted(time, edges), [len(time)]])).astype(np.int64)


def evenly(steps: int, occasions: int) -> tuple[int, ...]:
    """Return so many of the steps (all, where there are fewer) at equal distances, the last step among them."""
    return tuple(sorted({(i + 1) * steps // occasions - 1 for i in range(occasions)} - {-1}))
