"""What is chosen on a stream's tuning prefix, before the stream: the near-future shift S and the blind window k."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from budgetcl.errors import UserError
from budgetcl.metrics.blind import WINDOWS, select_shift, select_window
from budgetcl.streams.stream import IntArray

SHUFFLES = 20  # of the prefix's labels, to know what chance gives at each shift
BLOCKS = 4  # the labels are shuffled within this many blocks of the prefix


def check_shifts(shifts: Sequence[int], shift: int | None, samples: int) -> tuple[int, ...]:
    """Return the shifts as integers.

    Raises:
        UserError: they are not ascending whole numbers below the stream's number of samples, or ``shift`` is none of
            them.
    """
    if isinstance(shifts, str) or not isinstance(shifts, Iterable):
        raise UserError(f"shifts={shifts!r} given; a list is expected, such as shifts=[0,16]")
    whole = all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in shifts)
    if not whole or list(shifts) != sorted(set(shifts)) or min(shifts, default=0) < 0:
        raise UserError(f"shifts={list(shifts)} given; ascending integers of at least 0 are expected")
    if max(shifts, default=0) >= samples:
        raise UserError(f"shifts={list(shifts)} given; shifts below the {samples} samples streamed are expected")
    if shift is not None and shift not in list(shifts):
        raise UserError(f"shift={shift!r} given; one of shifts={list(shifts)}, or null, is expected")
    return tuple(int(value) for value in shifts)


def chosen_window(labels: IntArray, chunk: int) -> int | None:
    """Return the blind classifier's window that scores best on the prefix, online; None for a prefix of 1 or 2."""
    return _window(labels.tobytes(), chunk)


def chosen_shift(labels: IntArray, shifts: tuple[int, ...], chunk: int) -> int | None:
    """Return S, or None where no shift above zero is asked for.

    The rule is :func:`budgetcl.metrics.blind.select_shift` with blocks of a quarter of the prefix: a block must hold
    many bursts, or shuffling within it leaves what it should destroy. Shifts beyond an eighth of the prefix are not
    tested, as too little is left to test them on.

    Raises:
        UserError: no shift ends the label correlation by that rule.
    """
    if not any(shifts):
        return None
    tested = tuple(shift for shift in shifts if shift <= len(labels) // 8)
    if not any(tested):
        raise UserError(f"{len(labels)} labels are too few to test shifts={list(shifts)}: 8 times the shift are needed")
    return _shift(labels.tobytes(), tested, chunk)


# Cached: the runs of one sweep choose on the same prefix.
@lru_cache(maxsize=16)
def _window(labels: bytes, chunk: int) -> int | None:
    codes = np.frombuffer(labels, np.int64)
    return select_window(codes, _windows(len(codes)), 0, chunk) if len(codes) > 2 else None


@lru_cache(maxsize=16)
def _shift(labels: bytes, shifts: tuple[int, ...], chunk: int) -> int:
    codes = np.frombuffer(labels, np.int64)
    block = max(1, len(codes) // BLOCKS)
    return select_shift(codes, _windows(len(codes)), shifts, block, chunk=chunk, shuffles=SHUFFLES, threads=1)


def _windows(n: int) -> tuple[int, ...]:
    return tuple(window for window in WINDOWS if window <= max(1, n // 2))
