"""Rows grouped by class, in one array that grows: a class-wise draw is one gather, whatever the memory's size."""

from __future__ import annotations

import numpy as np

from budgetcl.streams.stream import IntArray

_FIRST = 4  # rows a new class has room for


class RowsByClass:
    """The rows of each class, oldest first.

    Each class has a block of one array. A class that outgrows its block moves to a block of twice the size at the end;
    when the end is reached, the blocks are packed into an array half as large again. So adding costs in proportion to
    what is added.

    Args:
        dtype: of the rows.
    """

    def __init__(self, dtype: type[np.signedinteger]) -> None:
        self._rows = np.empty(0, dtype)
        self._end = 0  # of the last block
        self._starts, self._rooms, self.counts = (np.zeros(0, np.int64) for _ in range(3))

    def add(self, rows: IntArray, label: IntArray) -> None:
        """Append rows, (n,), of classes, (n,)."""
        order = np.argsort(label, kind="stable")
        label = label[order]
        present, first, n = np.unique(label, return_index=True, return_counts=True)
        if len(present) and present[-1] >= len(self.counts):
            new = np.zeros(int(present[-1]) + 1 - len(self.counts), np.int64)
            self._starts, self._rooms, self.counts = (
                np.concatenate([column, new]) for column in (self._starts, self._rooms, self.counts)
            )
        needed = self.counts[present] + n
        full = needed > self._rooms[present]
        if full.any():
            self._move(present[full], np.maximum(_FIRST, 2 * needed[full]))
        ends = self._starts[present] + self.counts[present]
        self._rows[np.arange(len(rows)) + np.repeat(ends - first, n)] = rows[order]
        self.counts[present] += n

    def _move(self, labels: IntArray, rooms: IntArray) -> None:
        """Give classes larger blocks."""
        self._rooms[labels] = rooms
        old, starts = self._rows, self._starts.copy()
        if self._end + rooms.sum() > len(old):
            labels, rooms, self._end = np.arange(len(self.counts)), self._rooms, 0
            self._rows = np.empty(int(rooms.sum()) * 3 // 2, old.dtype)
        ends = self._end + np.cumsum(rooms)
        self._starts[labels] = ends - rooms
        self._end = int(ends[-1])
        for label in labels[self.counts[labels] > 0].tolist():
            count, old_start, start = self.counts[label], starts[label], self._starts[label]
            self._rows[start : start + count] = old[old_start : old_start + count]

    def of(self, label: int) -> IntArray:
        """Return the rows of one class."""
        start = self._starts[label]
        return self._rows[start : start + self.counts[label]]

    def at(self, labels: IntArray, places: IntArray) -> IntArray:
        """Return (n,) rows: of each class, the one at the place, from 0 to the class's count."""
        return self._rows[self._starts[labels] + places]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of where each class's stand, without the room to grow."""
        places = self._starts.nbytes + self._rooms.nbytes + self.counts.nbytes
        return int(self.counts.sum()) * self._rows.itemsize + places
