"""The paths of a stream's pictures: tens of millions fit, and a text is made of one only when it is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from budgetcl.streams.stream import IntArray

_PART = 1 << 18  # paths that are gathered at a time


class Paths(Sequence[str]):
    """Paths as one string of bytes and where each begins, both of which may be memory-mapped files.

    A path is what the file system holds, bytes: one that is no UTF-8 comes back with surrogates, as ``os`` gives it.

    Args:
        data: (bytes,) uint8, the paths one after the other.
        start: (paths + 1,) where each begins; the last entry is where the last ends.
        order: (n,) which path stands at each place; None: all, as they are.
    """

    def __init__(self, data: NDArray[np.uint8], start: IntArray, order: NDArray[np.integer] | None = None) -> None:
        self._data, self._start, self._order = data, start, order

    def __len__(self) -> int:
        return len(self._start) - 1 if self._order is None else len(self._order)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        row = range(len(self))[place]  # counts negative places from the end and refuses those outside
        row = row if self._order is None else int(self._order[row])
        return os.fsdecode(self._data[self._start[row] : self._start[row + 1]].tobytes())

    def ordered(self, order: NDArray[np.integer]) -> Paths:
        """Return the paths at some places, in their order; nothing is copied."""
        return Paths(self._data, self._start, order if self._order is None else self._order[order])

    def digest(self) -> str:
        """Return a hash of the paths in their order: equal for equal paths, however they are kept."""
        digest = hashlib.sha256()
        for low in range(0, len(self), _PART):
            rows = (
                np.arange(low, min(low + _PART, len(self))) if self._order is None else self._order[low : low + _PART]
            )
            start, length = self._start[rows], self._start[rows + 1] - self._start[rows]
            end = np.cumsum(length)
            place = np.arange(end[-1]) + np.repeat(start - end + length, length)
            digest.update(length.astype("<i8").tobytes())
            digest.update(self._data[place].tobytes())
        return digest.hexdigest()


def paths_of(texts: Sequence[str]) -> Paths:
    """Return a few paths in the form of many."""
    encoded = [os.fsencode(text) for text in texts]
    start = np.concatenate([[0], np.cumsum([len(path) for path in encoded])]).astype(np.int64)
    return Paths(np.frombuffer(b"".join(encoded), np.uint8), start)
