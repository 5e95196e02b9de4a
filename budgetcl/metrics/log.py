"""The prediction log: one row a prediction, the same columns everywhere. Every accuracy comes from it alone.

- ``index``: the sample's row in the stream's table; for streamed samples that is its position in the stream.
- ``set``: "ahead" (predicted before its label was revealed), "heldout", or "retention" (fresh samples of the past).
- ``shift``: for ahead rows the shift S they were predicted at, else -1. There is one row for each index and shift.
- ``seen``: how many stream samples' labels were revealed when the prediction was made.
- ``step``: the time step: ahead rows come before its reveal, the others after its fit.
- ``target``, ``pred``: labels.
- ``top5``: whether the target is among the five best guesses.
- ``confidence``: in the predicted label, in [0, 1].
- ``origin``: for held-out and retention rows the stream position they re-take, or -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError, nearest

SETS = AHEAD, HELDOUT, RETENTION = ("ahead", "heldout", "retention")

# Column -> type in the file. "category" is a string from a short list (a dictionary column in parquet).
COLUMNS: Mapping[str, str] = {
    "index": "int64",
    "set": "category",
    "shift": "int32",
    "seen": "int64",
    "step": "int32",
    "target": "int64",
    "pred": "int64",
    "top5": "bool",
    "confidence": "float32",
    "origin": "int64",
}


def check_log(columns: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return a log's columns as numpy arrays of the right types, or say what is wrong and where.

    Args:
        columns: column name -> (n,) values; all of :data:`COLUMNS`, in any order of rows.

    Raises:
        UserError: a missing, unknown, mistyped or shorter column; an unknown set; a shift where there is none or none
            where there is one; a leak (an ahead row with ``seen > index``); two ahead rows for one index and shift; a
            lead below the shift; a retention row of something not seen yet.

    Examples:
        >>> log = dict(index=[0, 1], set=["ahead"] * 2, shift=[0, 0], seen=[0, 1], step=[0, 1], target=[3, 3],
        ...            pred=[4, 3], top5=[False, True], confidence=[0.5, 0.5], origin=[-1, -1])
        >>> check_log(log)["index"].dtype
        dtype('int64')
        >>> check_log(log | {"seen": [0, 2]})
        Traceback (most recent call last):
        budgetcl.errors.UserError: row 1 predicts index 1 after seen=2 labels, its own among them: a leak
    """
    for name in columns:
        if name not in COLUMNS:
            raise UserError(f"a prediction log has no column '{name}'; {nearest(name, COLUMNS)}")
    lost = [name for name in COLUMNS if name not in columns]
    if lost:
        raise UserError(f"the prediction log lacks {', '.join(lost)}; its columns are {', '.join(COLUMNS)}")
    log = {name: _typed(name, np.asarray(columns[name]), kind) for name, kind in COLUMNS.items()}
    lengths = {name: len(values) for name, values in log.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"a log's columns must be equally long; given {lengths}")
    _check_rows(log)
    return log


def _typed(name: str, values: NDArray[Any], kind: str) -> NDArray[Any]:
    if values.ndim != 1:
        raise UserError(f"the log's column '{name}' has the shape {values.shape}; one dimension is expected")
    if kind == "category":
        known = np.isin(values, SETS)
        if not known.all():
            row = int(np.argmin(known))
            raise UserError(f"set is {str(values[row])!r} at row {row}; known: {', '.join(SETS)}")
        return values.astype(str)
    expected = {"b": "b", "f": "fiu", "i": "iu"}[np.dtype(kind).kind]
    if values.dtype.kind not in expected and len(values):
        raise UserError(f"the log's column '{name}' has the type {values.dtype}; {kind} is expected")
    if kind == "float32" and np.isnan(values).any():
        raise UserError(f"{name} is NaN at row {int(np.argmax(np.isnan(values)))}; a number is expected")
    return values.astype(kind, copy=False)


def _check_rows(log: Mapping[str, NDArray[Any]]) -> None:
    ahead, retention = log["set"] == AHEAD, log["set"] == RETENTION
    index, seen, shift, origin = log["index"], log["seen"], log["shift"], log["origin"]

    def refuse(wrong: NDArray[np.bool_], message: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(message.format(row=row, **{name: log[name][row] for name in COLUMNS}))

    refuse(index < 0, "index is {index} at row {row}; a row of the stream's table, from 0 on, is expected")
    refuse(seen < 0, "seen is {seen} at row {row}; a number of labels, from 0 on, is expected")
    refuse(
        ahead & (seen > index), "row {row} predicts index {index} after seen={seen} labels, its own among them: a leak"
    )
    refuse(ahead & (shift < 0), "row {row} is predicted ahead at shift={shift}; a shift of at least 0 is expected")
    refuse(~ahead & (shift != -1), "row {row} of the set {set} has shift={shift}; -1 is expected")
    refuse(
        ahead & (index - seen < shift),
        "row {row} predicts index {index} after seen={seen} labels: less than its shift={shift} ahead",
    )
    refuse(
        retention & (origin >= seen), "row {row} re-takes position {origin}, of which seen={seen} labels know nothing"
    )
    refuse(retention & (origin < 0), "row {row} is a retention row without an origin (origin={origin})")
    rows = np.flatnonzero(ahead)
    rows = rows[np.lexsort((index[rows], shift[rows]))]
    twice = (np.diff(index[rows]) == 0) & (np.diff(shift[rows]) == 0)
    if twice.any():
        first, second = rows[int(np.argmax(twice)) : int(np.argmax(twice)) + 2]
        raise UserError(f"rows {first} and {second} both predict index {index[first]} at shift={shift[first]}")


def rows_of(log: Mapping[str, NDArray[Any]], set_name: str, shift: int | None = None) -> dict[str, NDArray[Any]]:
    """Return the log's rows of one set, and at one shift where one is given.

    Raises:
        UserError: an unknown set, or a shift the log does not hold.

    Examples:
        >>> log = {"set": np.array(["ahead", "heldout"]), "shift": np.array([0, -1]), "index": np.array([3, 9])}
        >>> rows_of(log, "ahead", shift=0)["index"].tolist()
        [3]
    """
    if set_name not in SETS:
        raise UserError(f"set={set_name!r} given; {nearest(set_name, SETS)}")
    kept = log["set"] == set_name
    if shift is not None:
        at = kept & (log["shift"] == shift)
        if not at.any():
            held = ", ".join(map(str, np.unique(log["shift"][kept]))) or "none"
            raise UserError(f"the log holds no {set_name} rows at shift={shift}; it holds the shifts {held}")
        kept = at
    return {name: values[kept] for name, values in log.items()}
