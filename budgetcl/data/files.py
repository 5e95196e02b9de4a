"""Every picture of a table is opened once: which are missing or broken, and which are the same to the byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError
from budgetcl.streams.decoding import decoded, refusal, regular
from budgetcl.streams.images import Pictures

_PART = 64  # pictures that a thread takes at a time
_SIDE = 32  # they are decoded to; smaller is faster, and as strict


@dataclass(frozen=True)
class Examined:
    """What was found.

    Attributes:
        broken: (row, what is wrong) of each picture that cannot be shown, in the order of rows.
        same: (pictures,) int64, the first row of equal content; -1 where a picture is broken.
        outside: the rows of files that lie outside the root of the pictures, by a link on their way.
    """

    broken: list[tuple[int, str]]
    same: NDArray[np.int64]
    outside: list[int]


def examine(
    pictures: Pictures,
    jobs: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    root: Path | None = None,
) -> Examined:
    """Read and decode every picture.

    Args:
        pictures: files of a folder, or a packed folder.
        jobs: threads; decoding lets go of the interpreter's lock.
        progress: called with (done, total).
        root: the folder that files are expected in.
    """
    digests = np.zeros(len(pictures), "V16")
    broken: list[tuple[int, str]] = []
    outside: list[int] = []
    leaves = _leaves(root)
    starts = range(0, len(pictures), _PART)

    def part(start: int) -> tuple[list[tuple[int, str]], list[int]]:
        wrong, away = [], []
        for row in range(start, min(start + _PART, len(pictures))):
            try:
                digests[row] = _digest(pictures, row)
            except UserError as error:
                wrong.append((row, str(error)))
            if leaves(pictures.source(row)):
                away.append(row)
        return wrong, away

    with ThreadPoolExecutor(jobs) as pool:
        for start, (wrong, away) in zip(starts, pool.map(part, starts)):
            broken += wrong
            outside += away
            progress(min(start + _PART, len(pictures)), len(pictures))
    words = digests.view(np.uint64).reshape(-1, 2)
    order = np.lexsort((words[:, 0], words[:, 1]))  # stable: within equal content, rows ascend
    fresh = np.ones(len(order), bool)
    fresh[1:] = (words[order[1:]] != words[order[:-1]]).any(1)
    same = np.empty(len(order), np.int64)
    same[order] = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))]
    same[[row for row, _ in broken]] = -1
    return Examined(broken, same, outside)


def _leaves(root: Path | None) -> Callable[[str | BytesIO], bool]:
    """Return what tells whether a file lies outside a folder once all links are followed; a folder is asked once."""
    if root is None:
        return lambda source: False
    home = os.path.join(os.path.realpath(root), "")
    real = lru_cache(maxsize=1 << 16)(os.path.realpath)

    def leaves(source: str | BytesIO) -> bool:
        if isinstance(source, BytesIO):
            return False
        folder, name = os.path.split(source)
        target = os.path.realpath(source) if os.path.islink(source) else os.path.join(real(folder), name)
        return not target.startswith(home)

    return leaves


def _digest(pictures: Pictures, row: int) -> bytes:
    """Return a hash of a picture's bytes if it can be decoded.

    Raises:
        UserError: it cannot.
    """
    source, name = pictures.source(row), pictures.name(row)
    try:
        data = source.read() if isinstance(source, BytesIO) else Path(regular(source)).read_bytes()
    except (OSError, ValueError) as error:
        raise refusal(error, name) from error
    decoded(BytesIO(data), lambda: name, _SIDE, 3)
    return hashlib.blake2b(data, digest_size=16).digest()
