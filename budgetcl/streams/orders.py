"""Which rows of a table are streamed, in which order, in which steps; and which are held out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError
from budgetcl.randomness import generator
from budgetcl.streams.cuts import by_chunk, by_number, by_span
from budgetcl.streams.rows import Rows
from budgetcl.streams.stream import PREFIX, PRETRAIN, SETS, STREAM, TEST, VALIDATION, IntArray

STEPS = 10
_CODE = {name: np.int8(code) for code, name in enumerate(SETS)}

Places = NDArray[np.integer[Any]]


def sorted_by(values: NDArray[Any]) -> Places:
    """Return the order that sorts values, equal ones staying in their order.

    Whole numbers that span less than 2^32, such as seconds and labels, are sorted together with their places as one
    integer, which takes less time and memory than sorting places does.
    """
    n = len(values)
    if not n or (values[1:] >= values[:-1]).all():
        return np.arange(n, dtype=np.int32 if n < 1 << 31 else np.int64)
    low = values.min()
    if n >= 1 << 31 or values.max() - low >= 1 << 32 or (values.dtype.kind == "f" and (values % 1).any()):
        return np.argsort(values, kind="stable")
    keys = (values - low).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(n, dtype=np.uint32)
    keys.sort()
    return keys.astype(np.uint32).view(np.int32)


def divided(rows: Rows, shares: dict[str, float], by_time: NDArray[Any] | None) -> NDArray[np.int8]:
    """Return the set of each row: that of the split column, and by shares what the column does not name.

    The prefix is the earliest part of the streamed rows, unless the column names a prefix or pretraining rows. Test and
    validation rows are drawn class by class from the rest, the same for every seed; the last row of a class is never
    drawn, so that each class can be learned.

    Args:
        rows: the table.
        shares: of the streamed rows, by the name of the set: prefix, test, validation.
        by_time: (rows,) what "earliest" goes by; None: nothing is predicted ahead, and there is no prefix.

    Raises:
        UserError: shares that leave nothing.
    """
    if shares[TEST] + shares[VALIDATION] > 0.9:
        raise UserError(
            f"test={shares[TEST]} and validation={shares[VALIDATION]} given; together at most 0.9 are expected"
        )
    sets = np.zeros(len(rows.label), np.int8) if rows.split is None else np.array(rows.split)
    named = {name for name, code in _CODE.items() if rows.split is not None and (sets == code).any()}
    if by_time is not None and shares[PREFIX] and not named & {PREFIX, PRETRAIN}:
        left = np.flatnonzero(sets == _CODE[STREAM])
        early = left[sorted_by(by_time[left])[: round(shares[PREFIX] * len(left))]]
        sets[early] = _CODE[PREFIX]
    wanted = {name: shares[name] for name in (TEST, VALIDATION) if shares[name] and name not in named}
    if not wanted:
        return sets
    # Class by class, in a random order within each: every so-manieth row, so that each class gives its share.
    left = generator(0, "split").permutation(np.flatnonzero(sets == _CODE[STREAM]).astype(np.int32))
    left = left[sorted_by(rows.label[left])]
    taken = 0.0
    for name, share in wanted.items():
        drawn = np.diff(np.floor(np.arange(len(left) + 1) * (share / (1 - taken)))) > 0
        label = rows.label[left]
        first = np.flatnonzero(np.diff(label, prepend=-1))
        drawn[first[np.logical_and.reduceat(drawn, first)] if len(first) else first] = False
        sets[left[drawn]] = _CODE[name]
        left, taken = left[~drawn], taken + share
    return sets


def arranged(
    rows: Rows,
    streamed: Places,
    order: str,
    steps: int | None,
    chunk: int | None,
    cut: str,
    classes: Sequence[str] | None,
    seed: int,
) -> tuple[Places, IntArray]:
    """Return the streamed rows in the order of their reveal, and the bounds of the time steps.

    Args:
        rows: the table.
        streamed: the rows to arrange, ascending.
        order: "time", "data", "class" or "given".
        steps: how many, or None: 10, as far as there is something to cut.
        chunk: how many samples a step reveals instead.
        cut: "counts" or "spans" (of time).
        classes: the order of the classes, or None.
        seed: of what is random.

    Raises:
        UserError: more steps than can be cut, or an order that the table does not have.
    """
    n = len(streamed)
    given = None if rows.order is None else rows.order[streamed]
    if given is not None and (given < 0).any():
        row = streamed[np.argmax(given < 0)]
        raise UserError(f"{rows.given}, row {row + 1}: a streamed row has no place in the column 'order'")
    if order == "class":
        return _by_class(rows, streamed, given, steps, classes, seed)
    if given is not None:
        streamed = streamed[sorted_by(given)]
    elif order == "data":
        streamed = streamed[generator(seed, "order").permutation(n).astype(streamed.dtype)]
    if order == "time":
        assert rows.time is not None
        streamed = streamed[sorted_by(rows.time[streamed])]
    if chunk is not None:
        return streamed, by_chunk(n, chunk)
    steps = min(STEPS, n) if steps is None else steps
    if steps > n:
        raise UserError(f"steps={steps} given; at most {n} are expected, the samples streamed")
    if cut == "spans":
        assert rows.time is not None
        return streamed, by_span(rows.time[streamed], steps)
    return streamed, by_number(n, steps)


def _by_class(
    rows: Rows, streamed: Places, given: Places | None, steps: int | None, names: Sequence[str] | None, seed: int
) -> tuple[Places, IntArray]:
    label = rows.label[streamed]
    present = np.flatnonzero(np.bincount(label, minlength=len(rows.names)))
    if names is not None:
        classes = _checked(rows, present, names)
    elif given is not None:  # as they come first in the given order
        first = np.full(len(rows.names), np.iinfo(np.int64).max)
        np.minimum.at(first, label, given)
        classes = present[np.argsort(first[present], kind="stable")]
    else:
        classes = generator(seed, "order of classes").permutation(present)
    steps = min(STEPS, len(classes)) if steps is None else steps
    if steps > len(classes):
        raise UserError(f"steps={steps} given; order=class allows at most {len(classes)}, the classes streamed")
    step_of = np.zeros(len(rows.names), np.int32)
    step_of[classes] = np.repeat(np.arange(steps), np.diff(by_number(len(classes), steps)))
    if given is not None:
        streamed = streamed[sorted_by(given)]
    step = step_of[rows.label[streamed]]
    streamed = streamed[sorted_by(step)]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(step, minlength=steps))])
    if given is None:
        for number, (low, high) in enumerate(itertools.pairwise(bounds)):
            shuffle = generator(seed, "order", number).permutation(int(high - low))
            streamed[low:high] = streamed[low:high][shuffle]
    return streamed, bounds


def _checked(rows: Rows, present: IntArray, names: Sequence[str]) -> IntArray:
    """Return the codes of a class order, or refuse it."""
    code = {rows.names[c]: c for c in present.tolist()}
    unknown = [name for name in names if name not in code]
    if unknown:
        raise UserError(
            f"class_order names {len(unknown)} labels that {rows.given} does not stream, the first is {unknown[0]!r}"
        )
    missing = sorted(set(code) - set(names))
    if missing:
        raise UserError(f"class_order lacks {len(missing)} labels of {rows.given}, the first is {missing[0]!r}")
    return np.array([code[name] for name in names], np.int64)


def labels_in(path: str) -> list[str]:
    """Read a class order: one label a line.

    Raises:
        UserError: the file cannot be read, is empty, or names a label twice.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"class_order={path!r} given; a text file with one label a line is expected ({error})"
        ) from error
    if not names:
        raise UserError(f"class_order={path!r} given; one label a line is expected, and it is empty")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"class_order={path!r} names the label {twice!r} twice; each is expected once")
    return names
