"""The paths of a stream's pictures: tens of millions fit, and a text is made of one only when it is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from budgetcl.streams.cache import parts, release

_PART = 1 << 13  # paths that are hashed together: their sums stay in the cache
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64


class Paths(Sequence[str]):
    """Paths as one string of bytes and where each begins, both of which may be memory-mapped files.

    A path is what the file system holds, bytes: one that is no UTF-8 comes back with surrogates, as ``os`` gives it.

    Args:
        data: (bytes,) uint8, the paths one after the other.
        start: (paths + 1,) where each begins; the last entry is where the last ends.
        hashes: (paths,) what :func:`hashes_of` returns of them.
        order: (n,) which path stands at each place; None: all, as they are.
        digest: what :meth:`digest` returns, where that is known already.
    """

    def __init__(
        self,
        data: NDArray[np.uint8],
        start: NDArray[np.int64],
        hashes: NDArray[np.uint64],
        order: NDArray[Any] | None = None,
        digest: str | None = None,
    ) -> None:
        self._data, self._start, self._hashes, self._order, self._digest = data, start, hashes, order, digest

    @classmethod
    def of(cls, texts: Sequence[str]) -> Paths:
        """Return a few paths in the form of many."""
        encoded = [os.fsencode(text) for text in texts]
        data = np.frombuffer(b"".join(encoded), np.uint8)
        start = np.cumsum([0, *(len(path) for path in encoded)]).astype(np.int64)
        return cls(data, start, hashes_of(data, start))

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

    def ordered(self, order: NDArray[Any], digest: str | None = None) -> Paths:
        """Return the paths at some places, in their order; nothing is copied."""
        order = order if self._order is None else self._order[order]
        return Paths(self._data, self._start, self._hashes, order, digest)

    def digest(self) -> str:
        """Return a hash of the paths in their order: equal for equal paths, however they are kept."""
        if self._digest is None:
            digest = hashlib.sha256()
            for _, part in parts(self._hashes if self._order is None else self._order):
                digest.update((part if self._order is None else self._hashes[part]).astype("<u8").tobytes())
                release(self._hashes)
            self._digest = digest.hexdigest()
        return self._digest

    def repeated(self) -> list[NDArray[np.int64]]:
        """Return the places of each path that stands at several of them.

        Paths are compared by their hashes, and those of equal hash as they are.
        """
        ascending = np.empty(len(self), np.uint64)
        for low, part in parts(self._hashes if self._order is None else self._order):
            ascending[low : low + len(part)] = part if self._order is None else self._hashes[part]
            release(self._hashes)
        ascending.sort()
        twice = np.unique(ascending[1:][ascending[1:] == ascending[:-1]])
        if not len(twice):
            return []
        hashes = self._hashes if self._order is None else self._hashes[self._order]
        places: dict[str, list[int]] = {}
        for place in np.flatnonzero(np.isin(hashes, twice)).tolist():
            places.setdefault(self[place], []).append(place)
        return [np.array(same) for same in places.values() if len(same) > 1]


def hashes_of(data: NDArray[np.uint8], start: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return for each path the sum of (byte + 1) * factor^place, modulo 2^64.

    The sums of all paths come from one running sum over the bytes, from which the power at a path's start is divided.
    """
    hashes = np.empty(len(start) - 1, np.uint64)
    for low in range(0, len(hashes), _PART):
        begin = start[low : low + _PART + 1]
        piece = data[begin[0] : begin[-1]]
        begin = begin - begin[0]
        powers, inverses = _powers(1 << len(piece).bit_length())
        sums = np.zeros(len(piece) + 1, np.uint64)
        np.cumsum((piece + np.uint64(1)) * powers[: len(piece)], out=sums[1:])
        hashes[low : low + _PART] = (sums[begin[1:]] - sums[begin[:-1]]) * inverses[begin[:-1]]
    return hashes


@lru_cache(maxsize=1)
def _powers(n: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return factor^0, factor^1, ... and their inverses, n of each, modulo 2^64."""
    inverse = pow(int(_FACTOR), -1, 1 << 64)
    ones = np.ones(1, np.uint64)
    powers, inverses = (
        np.cumprod(np.concatenate([ones, np.full(n - 1, factor, np.uint64)])) for factor in (_FACTOR, inverse)
    )
    return powers, inverses
