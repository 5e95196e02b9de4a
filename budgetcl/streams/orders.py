"""Which rows of a table are streamed, in which order, in which steps; and which are held out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError
from budgetcl.randomness import generator
from budgetcl.streams.cache import parts, release
from budgetcl.streams.cuts import by_chunk, by_number, by_span
from budgetcl.streams.rows import Rows
from budgetcl.streams.stream import PREFIX, PRETRAIN, SETS, STREAM, TEST, VALIDATION, IntArray

STEPS = 10
_CODE = {name: np.int8(code) for code, name in enumerate(SETS)}

Places = NDArray[np.integer[Any]]


def sorted_by(values: NDArray[Any], rows: Places) -> Places:
    """Return rows sorted by a column's values, rows of equal values staying in their order.

    Whole numbers that span less than 2^32, such as seconds and labels, are sorted together with their places as one
    integer, which takes less time and memory than sorting places does.

    Args:
        values: (all rows,) the column; it may be mapped.
        rows: (n,) the rows to sort.
    """
    if not len(rows):
        return rows
    low = high = last = values[rows[0]]
    whole = ascending = True
    for part in _gathered(values, rows):
        ascending = ascending and part[0] >= last and bool((part[1:] >= part[:-1]).all())
        whole = whole and (part.dtype.kind != "f" or not (part % 1).any())
        low, high, last = min(low, part.min()), max(high, part.max()), part[-1]
    if ascending:
        return rows
    if not whole or high - low >= 1 << 32 or len(rows) >= 1 << 32:
        return rows[np.argsort(values[rows], kind="stable")]
    keys = np.empty(len(rows), np.uint64)
    at = 0
    for part in _gathered(values, rows):
        keys[at : at + len(part)] = part - low
        at += len(part)
    keys <<= np.uint64(32)
    keys |= np.arange(len(rows), dtype=np.uint32)
    keys.sort()
    ordered = np.empty_like(rows)
    for at, key in parts(keys):
        ordered[at : at + len(key)] = rows[key & np.uint64(0xFFFFFFFF)]
    return ordered


def _gathered(values: NDArray[Any], rows: Places) -> Iterator[NDArray[Any]]:
    for _, part in parts(rows):
        yield values[part]
        release(values)


def divided(rows: Rows, shares: dict[str, float], by_time: NDArray[Any] | None, ahead: bool) -> NDArray[np.int8]:
    """Return the set of each row: that of the split column, and by shares what the column does not name.

    Pretraining rows are the earliest part of the streamed rows, and where there are none the prefix is, if samples are
    predicted ahead. Test and validation rows are drawn class by class from the rest, the same for every seed, and so
    are pretraining rows where nothing is early; the last row of a class is never drawn, so that each class can be
    learned.

    Args:
        rows: the table.
        shares: of the streamed rows, by the name of the set: pretrain, prefix, test, validation.
        by_time: (rows,) what "earliest" goes by; None: no row is earlier than another one, and there is no prefix.
        ahead: whether samples are predicted ahead in that order; else there is no prefix either.

    Raises:
        UserError: shares that leave nothing.
    """
    drawn = {name: shares[name] for name in (TEST, VALIDATION, *((PRETRAIN,) if by_time is None else ()))}
    if sum(drawn.values()) > 0.9:
        given = " and ".join(f"{name}={share}" for name, share in drawn.items() if share)
        raise UserError(f"{given} given; together at most 0.9 are expected")
    sets = np.zeros(len(rows.label), np.int8) if rows.split is None else np.array(rows.split)
    named = {name for name, code in _CODE.items() if rows.split is not None and (sets == code).any()}
    first = PRETRAIN if shares[PRETRAIN] and PRETRAIN not in named else PREFIX
    if by_time is not None and shares[first] and (first == PRETRAIN or (ahead and not named & {PREFIX, PRETRAIN})):
        left = rows_where(sets == _CODE[STREAM])
        sets[sorted_by(by_time, left)[: round(shares[first] * len(left))]] = _CODE[first]
    wanted = {name: share for name, share in drawn.items() if share and name not in named}
    if not wanted:
        return sets
    _draw(rows.label, sets, wanted)
    return sets


def _draw(label: NDArray[np.int32], sets: NDArray[np.int8], shares: dict[str, float]) -> None:
    """Give each class's share of the streamed rows to other sets, at random.

    A row's lot is a random number; the rows of the smallest lots of a class are drawn. Lots are made twice instead of
    kept: once to find each class's bounds, once to draw.
    """

    def lots() -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.bool_]]]:
        random = generator(0, "split")
        for low, part in parts(label):
            lot = part.astype(np.uint64) << np.uint64(32) | random.integers(1 << 32, size=len(part), dtype=np.uint32)
            yield low, lot, sets[low : low + len(part)] == _CODE[STREAM]

    ascending = np.empty(int(np.count_nonzero(sets == _CODE[STREAM])), np.uint64)
    at = 0
    for _, lot, streamed in lots():
        some = lot[streamed]
        ascending[at : at + len(some)] = some
        at += len(some)
    ascending.sort()
    classes = int(label.max()) + 1
    edges = np.searchsorted(ascending, np.arange(classes + 1, dtype=np.uint64) << np.uint64(32))
    counts, drawn = np.diff(edges), np.zeros(classes, np.int64)
    bounds = {}
    for name, share in shares.items():
        # Every so-manieth row of all classes in a row; one of each class is left.
        drawn = np.minimum(drawn + np.diff(np.floor(edges * share)).astype(np.int64), (counts - 1).clip(0))
        bounds[name] = ascending[np.minimum(edges[:-1] + drawn, len(ascending) - 1)] if len(ascending) else ascending
    for low, lot, streamed in lots():
        mine, part = label[low : low + len(lot)], sets[low : low + len(lot)]
        for name in reversed(bounds):  # the first, whose bound is lowest, has the last word
            part[streamed & (lot < bounds[name][mine])] = _CODE[name]


def rows_where(mask: NDArray[np.bool_]) -> Places:
    """Return the rows at which a mask is true, in as few bytes as they fit in."""
    kind = np.int32 if len(mask) < 1 << 31 else np.int64
    return np.concatenate(
        [np.empty(0, kind), *((np.flatnonzero(part) + low).astype(kind) for low, part in parts(mask))]
    )


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
    if rows.order is not None and (rows.order[streamed] < 0).any():
        row = streamed[np.argmax(rows.order[streamed] < 0)]
        raise UserError(f"{rows.given}, row {row + 1}: a streamed row has no place in the column 'order'")
    if order == "class":
        return _by_class(rows, streamed, steps, classes, seed)
    if rows.order is not None:
        streamed = sorted_by(rows.order, streamed)
    elif order == "data":
        streamed = generator(seed, "order").permutation(streamed)
    if order == "time":
        assert rows.time is not None
        streamed = sorted_by(rows.time, streamed)
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
    rows: Rows, streamed: Places, steps: int | None, names: Sequence[str] | None, seed: int
) -> tuple[Places, IntArray]:
    label = rows.label[streamed]
    present = np.flatnonzero(np.bincount(label, minlength=len(rows.names)))
    if names is not None:
        classes = _checked(rows, present, names)
    elif rows.order is not None:  # as they come first in the given order
        first = np.full(len(rows.names), np.iinfo(np.int64).max)
        np.minimum.at(first, label, rows.order[streamed])
        classes = present[np.argsort(first[present], kind="stable")]
    else:
        classes = generator(seed, "order of classes").permutation(present)
    steps = min(STEPS, len(classes)) if steps is None else steps
    if steps > len(classes):
        raise UserError(f"steps={steps} given; order=class allows at most {len(classes)}, the classes streamed")
    step_of = np.zeros(len(rows.names), np.int32)
    step_of[classes] = np.repeat(np.arange(steps), np.diff(by_number(len(classes), steps)))
    if rows.order is not None:
        streamed = sorted_by(rows.order, streamed)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(step_of[label], minlength=steps))])
    streamed = sorted_by(step_of[rows.label], streamed)
    if rows.order is None:
        for number, (low, high) in enumerate(itertools.pairwise(bounds.tolist())):
            generator(seed, "order", number).shuffle(streamed[low:high])
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
