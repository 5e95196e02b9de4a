"""A stream: an ordered table of samples cut into time steps. Integers only: no image is touched here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError

IntArray = NDArray[np.signedinteger[Any]]
_PART = 1 << 20  # samples looked at together, so that a long stream takes no more memory than a short one

# The sets a sample can belong to. STREAM rows are revealed step by step, PRETRAIN rows before the first step; PREFIX
# rows are the past on which shifts and windows are chosen; the others are held out and their labels never revealed.
STREAM, PRETRAIN, PREFIX, TEST, PRETEST, VALIDATION, PREVALIDATION, RETENTION = SETS = (
    "stream", "pretrain", "prefix", "test", "pretest", "validation", "prevalidation", "retention",
)  # fmt: skip


@dataclass(frozen=True)
class TimeStep:
    """One step of a stream.

    Attributes:
        number: 0, 1, ...
        revealed: the rows whose labels are revealed in this step.
        ahead: shift -> the rows to predict before the reveal, ``shift`` samples ahead of what was seen.
        heldout: set name -> the held-out rows due after the step.
        seen: the number of stream samples revealed before this step.
        classes: the number of classes with a revealed label, this step's included.
        last: whether this is the stream's last step.
    """

    number: int
    revealed: IntArray
    ahead: Mapping[int, IntArray]
    heldout: Mapping[str, IntArray]
    seen: int
    classes: int
    last: bool


UNASKED = (
    "nothing would be predicted: the stream has neither shifts nor held-out samples that are ever due; hold more out "
    "(a larger stream.test, of which a class with one picture gives none, or test rows in a column split), or give "
    "stream.shifts"
)


@dataclass(frozen=True)
class Stream:
    """An ordered, immutable table of samples. Row numbers are the samples' indices everywhere in the package.

    Rows ``0 .. n-1`` are the streamed samples in the order of their reveal, so that a streamed sample's index is its
    position; the rows behind them are pretraining, prefix and held-out samples.

    Attributes:
        name: the stream's name in tables.
        label: (rows,) class codes ``0 .. len(label_names)-1``.
        set: (rows,) codes into :data:`SETS`.
        bounds: (steps + 1,) step t reveals the rows ``bounds[t] .. bounds[t+1]-1``.
        time: (rows,) time stamps, non-decreasing over the streamed rows (their position where there is no time).
        group: (rows,) who or what a sample comes from (uploader, font, ...), or -1.
        origin: (rows,) for retention rows the stream position that they re-take, else -1.
        label_names: the user's labels, by code.
        source: the fingerprint of the pixels' source.
        shifts: how many samples ahead to predict (0: the very next ones); empty where nothing is predicted ahead.
        shift: the near-future shift S, or None where there is none; one of ``shifts``.
        heldout: the held-out sets evaluated after a step: class-wise sets show only classes seen, retention rows only
            what they re-take.
        occasions: after which steps held-out sets are due; None: after each.
        window: the blind classifier's window k chosen on the prefix, or None.
        notes: what a user of the stream should be told, such as why it has no shift.
        digest: a hash of the columns above, where it is known already; else they are hashed for the fingerprint.

    Raises:
        UserError: columns of unequal length, or bounds that do not cut the streamed rows.
    """

    name: str
    label: IntArray
    set: NDArray[np.int8]
    bounds: IntArray
    time: NDArray[np.float64]
    group: IntArray
    origin: IntArray
    label_names: tuple[str, ...]
    source: str
    shifts: tuple[int, ...] = ()
    shift: int | None = None
    heldout: tuple[str, ...] = (TEST,)
    occasions: tuple[int, ...] | None = None
    window: int | None = None
    notes: tuple[str, ...] = ()
    digest: str = ""
    _rows_of: dict[str, IntArray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("label", "set", "time", "group", "origin")}
        if len(set(lengths.values())) != 1:
            raise UserError(f"a stream's columns must be equally long; given {lengths}")
        streamed = int(np.count_nonzero(self.set == SETS.index(STREAM)))
        if np.any(self.set[:streamed] != SETS.index(STREAM)):
            raise UserError("a stream's rows must begin with the streamed samples in their order")
        if len(self.bounds) < 2 or self.bounds[0] != 0 or self.bounds[-1] != streamed:
            raise UserError(f"the steps' bounds must run from 0 to {streamed}; given {self.bounds[:3]}...")
        if np.any(np.diff(self.bounds) <= 0):
            raise UserError("each time step must reveal at least one sample")
        if np.any(self.time[1:streamed] < self.time[: streamed - 1]):
            raise UserError("a stream's samples must be in the order of their times")
        for name in ("label", "set", "bounds", "time", "group", "origin"):
            getattr(self, name).setflags(write=False)

    @property
    def asks(self) -> bool:
        """Whether anything is to be predicted: what lies ahead, or held-out samples that are due in some step."""
        if any(shift < self.samples for shift in self.shifts):
            return True
        due = range(len(self)) if self.occasions is None else self.occasions
        first, last = self.first_seen(), max(due, default=-1)  # what is due once stays so
        return last >= 0 and any(len(self._due(name, last, int(self.bounds[last + 1]), first)) for name in self.heldout)

    def __len__(self) -> int:
        """Return the number of time steps."""
        return len(self.bounds) - 1

    @property
    def samples(self) -> int:
        """The number of streamed samples."""
        return int(self.bounds[-1])

    def rows(self, name: str) -> IntArray:
        """Return the rows of one set, ascending."""
        if name not in self._rows_of:
            rows = np.flatnonzero(self.set == SETS.index(name)).astype(np.int64)
            rows.setflags(write=False)
            self._rows_of[name] = rows
        return self._rows_of[name]

    def fingerprint(self) -> str:
        """Return the hash of the table, its cuts, what is evaluated and the pixels' source.

        Runs on streams of equal hashes may be compared, others not.
        """
        digest = hashlib.sha256(self.digest.encode())
        for name in () if self.digest else ("label", "set", "bounds", "time", "group", "origin"):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        shown = (self.shifts, self.shift, self.heldout, self.occasions)
        digest.update("\0".join((*self.label_names, self.source, repr(shown))).encode())
        return digest.hexdigest()[:16]

    def first_seen(self) -> IntArray:
        """Return for each class the step that first reveals it: -1 for pretraining classes, ``len(self)`` for never."""
        position = np.full(len(self.label_names), self.samples, dtype=np.int64)
        for low in reversed(range(0, self.samples, _PART)):  # of several values at one index, numpy keeps the last
            high = min(low + _PART, self.samples)
            position[self.label[low:high][::-1]] = np.arange(high - 1, low - 1, -1)
        first = np.searchsorted(self.bounds, position, side="right") - 1
        first[self.label[self.rows(PRETRAIN)]] = -1
        return first

    def __iter__(self) -> Iterator[TimeStep]:
        return self.steps(range(len(self)))

    def steps(self, numbers: Iterable[int]) -> Iterator[TimeStep]:
        """Yield the steps of these numbers."""
        first = self.first_seen()
        occasions = None if self.occasions is None else frozenset(self.occasions)
        classes = np.searchsorted(np.sort(first), np.arange(len(self)), side="right")
        for number in numbers:
            low, high = int(self.bounds[number]), int(self.bounds[number + 1])
            ahead = {
                shift: np.arange(min(low + shift, self.samples), min(high + shift, self.samples))
                for shift in self.shifts
            }
            due = occasions is None or number in occasions
            yield TimeStep(
                number=number,
                revealed=np.arange(low, high),
                ahead={shift: rows for shift, rows in ahead.items() if len(rows)},
                heldout={name: self._due(name, number, high, first) for name in self.heldout} if due else {},
                seen=low,
                classes=int(classes[number]),
                last=number == len(self) - 1,
            )

    def _due(self, name: str, number: int, seen: int, first: IntArray) -> IntArray:
        rows = self.rows(name)
        if name == RETENTION:
            return rows[self.origin[rows] < seen]
        return rows[first[self.label[rows]] <= number]
