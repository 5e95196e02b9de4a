"""The memory: what was seen, as columns. Images stay where they are; storage is not the scarce thing, compute is."""

from __future__ import annotations

import numpy as np

from budgetcl.streams.stream import IntArray


class Memory:
    """Everything revealed so far: row r is the r-th sample revealed.

    Columns grow in place by doubling, so that revealing costs in proportion to what is revealed and not to the past.

    Attributes:
        new: the number of rows revealed in the current step; they are the last ones.
    """

    def __init__(self) -> None:
        self._size = 0
        self.new = 0
        self._index = np.empty(1024, np.int64)
        self._label = np.empty(1024, np.int64)
        self._used = np.empty(1024, np.int64)
        # Rows of each class, in the same growing columns: class-wise draws are gathers, whatever the memory's size.
        self._rows_of: list[np.ndarray] = []
        self._counts = np.empty(0, np.int64)

    def __len__(self) -> int:
        return self._size

    def add(self, index: IntArray, label: IntArray) -> None:
        """Append samples just revealed.

        Args:
            index: (n,) their indices in the stream.
            label: (n,) their classes, numbered in the order of reveal.
        """
        n = len(index)
        end = self._size + n
        if end > len(self._index):
            capacity = max(end, 2 * len(self._index))
            self._index, self._label, self._used = (
                np.concatenate([column[: self._size], np.empty(capacity - self._size, np.int64)])
                for column in (self._index, self._label, self._used)
            )
        rows = np.arange(self._size, end)
        self._index[rows], self._label[rows], self._used[rows] = index, label, -1
        self._size, self.new = end, n
        self._add_to_classes(rows, label)

    def _add_to_classes(self, rows: IntArray, label: IntArray) -> None:
        order = np.argsort(label, kind="stable")
        present, starts = np.unique(label[order], return_index=True)
        if len(present) and present[-1] >= len(self._counts):
            grown = int(present[-1]) + 1
            self._rows_of += [np.empty(4, np.int64) for _ in range(grown - len(self._counts))]
            self._counts = np.concatenate([self._counts, np.zeros(grown - len(self._counts), np.int64)])
        for c, members in zip(present.tolist(), np.split(rows[order], starts[1:])):
            count = int(self._counts[c])
            column = self._rows_of[c]
            if count + len(members) > len(column):
                column = np.concatenate([column[:count], np.empty(count + 2 * len(members), np.int64)])
                self._rows_of[c] = column
            column[count : count + len(members)] = members
            self._counts[c] += len(members)

    @property
    def index(self) -> IntArray:
        """(len,) the samples' indices in the stream."""
        return self._index[: self._size]

    @property
    def label(self) -> IntArray:
        """(len,) their classes."""
        return self._label[: self._size]

    @property
    def last_used(self) -> IntArray:
        """(len,) the step in which each sample was last drawn, or -1."""
        return self._used[: self._size]

    @property
    def class_counts(self) -> IntArray:
        """(classes,) how many samples of each class were revealed."""
        return self._counts

    def rows_of(self, label: int) -> IntArray:
        """Return the rows of one class, oldest first."""
        return self._rows_of[label][: self._counts[label]]

    def used(self, rows: IntArray, step: int) -> None:
        """Note that rows were drawn in a step."""
        self._used[rows] = step

    @property
    def nbytes(self) -> int:
        """Bytes that the columns hold."""
        columns = self._index.nbytes + self._label.nbytes + self._used.nbytes
        return columns + sum(rows.nbytes for rows in self._rows_of) + self._counts.nbytes

    def state_dict(self) -> dict[str, IntArray]:
        """Return the columns."""
        return {"index": self.index.copy(), "label": self.label.copy(), "used": self.last_used.copy()}

    def load_state_dict(self, state: dict[str, IntArray]) -> None:
        """Take up the columns of another memory."""
        self.__init__()  # type: ignore[misc]
        self.add(state["index"], state["label"])
        self._used[: self._size] = state["used"]
