"""Where a stream is cut: into steps of so many samples, or so many steps; and after which steps it is evaluated."""

from __future__ import annotations

import numpy as np

from budgetcl.streams.stream import IntArray


def by_chunk(samples: int, chunk: int) -> IntArray:
    """Return the bounds of steps of ``chunk`` samples; the last may be shorter."""
    return np.append(np.arange(0, samples, chunk), samples)


def by_number(samples: int, steps: int) -> IntArray:
    """Return the bounds of so many steps, equally long to one sample."""
    return np.cumsum([0] + [len(part) for part in np.array_split(np.arange(samples), steps)])


def evenly(steps: int, occasions: int) -> tuple[int, ...]:
    """Return so many of the steps (all, where there are fewer) at equal distances, the last step among them."""
    return tuple(sorted({(i + 1) * steps // occasions - 1 for i in range(occasions)} - {-1}))
