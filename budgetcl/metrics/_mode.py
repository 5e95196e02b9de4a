"""The most frequent label of a sliding window, in constant time a label; plain Python that numba compiles on demand.

Counting needs two small tables: how often each label lies in the window, and how many labels have each count. The mode
is known at once whenever a label reaches the highest count. Only when the mode itself drops out of it is the next one
looked for, by walking back from the newest label: the first one with the highest count is also the most recent one, so
ties resolve themselves. A label with m occurrences among k leaves the window m/k of the time and is found after about
k/m steps back: constant on average for exchangeable and for bursty labels (no guarantee for adversarial ones).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

TOP, BEST, SHOWN = range(3)  # the state carried from block to block; see `slide`
UNKNOWN = -1


def slide(y: Any, window: int, chunk: int, start: int, stop: int, state: Any, count: Any, level: Any, out: Any) -> None:
    """Write into ``out[t - start]`` the mode known at position t of [start, stop), and count the labels there.

    The mode at t is that of ``y[max(0, s - window):s]``, where s is the last multiple of ``chunk`` up to t; -1 where
    s = 0. Calls follow each other: ``start`` is the last call's ``stop``.

    Args:
        y: (n,) label codes.
        window: how many labels count.
        chunk: how many positions share one prediction.
        start: first position.
        stop: one behind the last position.
        state: (3,) ints, [0, -1, -1] at first: highest count, its most recent label or -1 (unknown), the mode shown.
        count: (classes,) ints, zeros at first: occurrences in the window.
        level: (window + 2,) ints, zeros at first: labels by their count.
        out: (stop - start,) ints, written.
    """
    top, best, shown = state[TOP], state[BEST], state[SHOWN]
    ahead = start % chunk
    for t in range(start, stop):
        if ahead == 0 and t > 0:
            if best == UNKNOWN:
                back = t - 1
                while count[y[back]] != top:
                    back -= 1
                best = y[back]
            shown = best
        ahead += 1
        if ahead == chunk:
            ahead = 0
        out[t - start] = shown
        new = y[t]
        old = y[t - window] if t >= window else UNKNOWN
        if old == new:  # nothing changes but that this label is now the most recent one
            if count[new] == top:
                best = new
            continue
        c = count[new] + 1
        count[new] = c
        level[c - 1] -= 1
        level[c] += 1
        if c >= top:
            top = c
            best = new
        if old != UNKNOWN:
            c = count[old]
            count[old] = c - 1
            level[c] -= 1
            level[c - 1] += 1
            if c == top:
                if level[c] == 0:
                    top = c - 1
                    best = old if level[top] == 1 else UNKNOWN
                elif best == old:
                    best = UNKNOWN
    state[TOP], state[BEST], state[SHOWN] = top, best, shown


@lru_cache(maxsize=1)
def compiled() -> Callable[..., None]:
    """Return `slide` as machine code, kept on disk by numba (in the user's cache where the package is read-only)."""
    import numba

    try:
        return numba.njit(slide, cache=True, nogil=True)
    except RuntimeError:  # no folder can be written at all: compile in each process
        return numba.njit(slide, nogil=True)
