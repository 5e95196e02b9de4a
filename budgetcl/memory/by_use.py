"""Rows grouped by when they were last used, in windows of steps that grow with their age: few, however many steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from budgetcl.streams.stream import IntArray


class RowsByUse:
    """The rows that were used, oldest use first, in one array that grows.

    It is cut into windows of steps. :meth:`join` makes one of neighbours whose ages, together, differ by no more than a
    factor of two. So there are about 2 log2(steps) windows, and a row is moved about log2(steps) times in its life. A
    row that is used again stays where it was beside its new place until its old window is joined: it counts only where
    its last use lies in the window.

    Args:
        last_used: (rows,) the step in which each row was last used, or -1.

    Attributes:
        first: (windows,) the first step of each window.
        last: (windows,) the last one.
        ends: (windows,) where each window ends in the array.
    """

    def __init__(self, last_used: IntArray) -> None:
        rows = np.flatnonzero(last_used >= 0)
        order = np.argsort(last_used[rows], kind="stable")
        self._rows = rows[order].astype(last_used.dtype)
        self.first, counts = np.unique(last_used[rows].astype(np.int64), return_counts=True)
        self.last, self.ends = self.first.copy(), np.cumsum(counts)

    def add(self, rows: IntArray, step: int) -> None:
        """Append distinct rows, (n,), used in a step that is not over; none of them was used in it before."""
        if not len(self.last) or self.last[-1] != step:
            self.first, self.last = np.append(self.first, step), np.append(self.last, step)
            self.ends = np.append(self.ends, self.ends[-1:].sum())
        start, end = int(self.ends[-1]), int(self.ends[-1]) + len(rows)
        if end > len(self._rows):
            self._rows = np.concatenate([self._rows[:start], np.empty(end, self._rows.dtype)])
        self._rows[start:end] = rows
        self.ends[-1] = end

    def join(self, step: int, last_used: IntArray) -> None:
        """Join windows by their ages in a step; the step's own stays apart."""
        windows = np.arange(len(self.last))  # window -> the joined one, by its newest
        for i in range(len(windows) - 1, 0, -1):
            newest = windows[i]
            if self.last[i] < step and 1 + step - self.first[i - 1] <= 2 * (1 + step - self.last[newest]):
                windows[i - 1] = newest
        joined = np.flatnonzero(windows != np.arange(len(windows)))
        if not len(joined):
            return
        start = self.ends[joined[0] - 1] if joined[0] else 0
        tail = self._rows[start : self.ends[-1]]
        window = np.repeat(np.arange(len(windows)), np.diff(self.ends, prepend=0))[start:]
        there = (self.first[window] <= last_used[tail]) & (last_used[tail] <= self.last[window])
        kept = tail[there]
        self._rows[start : start + len(kept)] = kept
        counts = np.diff(self.ends, prepend=0)
        counts[joined[0] :] = np.bincount(window[there], minlength=len(windows))[joined[0] :]
        newest, oldest = np.unique(windows, return_index=True)
        self.ends = np.cumsum(counts)[newest]
        self.first, self.last = self.first[oldest], self.last[newest]

    def at(self, places: IntArray) -> IntArray:
        """Return (n,) rows by their places in the array."""
        return self._rows[places].astype(np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of the windows, without the room to grow."""
        held = int(self.ends[-1]) if len(self.ends) else 0
        return held * self._rows.itemsize + self.first.nbytes + self.last.nbytes + self.ends.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the windows: those that were used again are not to be told from the last uses alone."""
        rows = self._rows[: int(self.ends[-1]) if len(self.ends) else 0].copy()
        return {"rows": rows, "first": self.first.copy(), "last": self.last.copy(), "ends": self.ends.copy()}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> RowsByUse:
        """Return rows as they were."""
        made = cls(np.empty(0, state["rows"].dtype))
        made._rows = state["rows"].copy()
        made.first, made.last, made.ends = (state[name].copy() for name in ("first", "last", "ends"))
        return made
