"""A stream of the user's own pictures: a table with the columns path, label and, if known, time and split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError, at_least, between, nearest, one_of
from budgetcl.randomness import generator
from budgetcl.streams.batch import Source
from budgetcl.streams.cuts import by_chunk, by_number, evenly
from budgetcl.streams.images import ImagePixels
from budgetcl.streams.prefix import check_shifts, chosen_shift, chosen_window
from budgetcl.streams.stream import (
    PREFIX,
    PRETEST,
    PREVALIDATION,
    RETENTION,
    SETS,
    STREAM,
    TEST,
    VALIDATION,
    IntArray,
    Stream,
)

if TYPE_CHECKING:
    import pandas

SPLITS = tuple(name for name in SETS if name != RETENTION)
CHUNK, STEPS, OCCASIONS = 16, 10, 10


@dataclass(frozen=True)
class _Table:
    """A table that was read and found sound.

    Attributes:
        path: (rows,) as written.
        label: (rows,) codes.
        names: the labels by code: in numerical order where all are integers, else alphabetically.
        time: (rows,) seconds, or None.
        split: (rows,) set codes, or None.
    """

    path: list[str]
    label: IntArray
    names: tuple[str, ...]
    time: NDArray[np.float64] | None
    split: NDArray[np.int8] | None


def table(
    path: str,
    size: int = 32,
    channels: int = 3,
    order: str | None = None,
    steps: int | None = None,
    chunk: int | None = None,
    shifts: Sequence[int] | None = None,
    shift: int | None = None,
    test: float = 0.1,
    validation: float = 0.0,
    prefix: float = 0.2,
    occasions: int | None = None,
    evaluate: str = "test",
    augment: str = "none",
    memory: int = 1 << 30,
    seed: int = 0,
) -> Source:
    """Return the stream of a table of pictures. Only the table is read; pictures are read when they are looked at.

    Columns: ``path`` (PNG or JPEG, relative to the table's folder), ``label`` (any text), and, if there are,
    ``time`` (ISO 8601, without a zone UTC; or seconds as numbers) and ``split`` (stream, pretrain, prefix, test,
    pretest, validation, prevalidation). Other columns are ignored.

    In the order of time, the next samples are predicted before they are revealed, the near-future shift S is chosen on
    the prefix, and the held-out samples measure retention: each is shown once the stream has reached its time. In the
    other orders nothing is predicted ahead, and held-out samples are shown once their class was revealed. Without a
    ``split`` column the first ``prefix`` of the times is the prefix, and held-out samples are drawn, class by class,
    from the rest: the same for every seed.

    Args:
        path: of the .csv or .parquet file.
        size: the pictures' side in pixels: short side resized, centre crop.
        channels: 3 (RGB) or 1 (grey).
        order: "time" (ties in the table's order), "data" (shuffled), "class" (steps cut the classes, in a random
            order); None: "time" where there are times, else "data".
        steps: the number of time steps; None: 10, or by ``chunk`` in the order of time.
        chunk: samples a step reveals instead; None: 16 in the order of time, unless ``steps`` is given.
        shifts: how many samples ahead to predict, 0 being the very next. None: in the order of time 0 and 1, 2, 4, 8
            and 16 chunks, as far as they are below an eighth of the stream; else nothing.
        shift: S, one of ``shifts``; None: chosen on the prefix. Where the prefix is too short for the rule there is no
            S, and the stream's notes say so.
        test: the held-out share, if there is no ``split`` column.
        validation: the share held out for tuning, if there is no ``split`` column.
        prefix: the share of the samples, by time, on which S and k are chosen; only in the order of time.
        occasions: how often the held-out samples are due; None: after each step, at most 10 times.
        evaluate: "test" or "validation", the samples held out.
        augment: "none", "crop" or "crop_flip", in training.
        memory: bytes the decoded pictures may take; where they need more they are decoded at each use.
        seed: of the order, where it is random.

    Raises:
        UserError: a table that cannot be read or is not sound; numbers out of range.
    """
    at_least(8, size=size)
    at_least(0, seed=seed, memory=memory)
    between(0, 0.9, test=test, validation=validation, prefix=prefix)
    one_of(("test", "validation"), evaluate=evaluate)
    if steps is not None and chunk is not None:
        raise UserError(f"steps={steps} and chunk={chunk} given; only one of them cuts the stream: set one to null")
    for name, value in {"steps": steps, "chunk": chunk, "occasions": occasions}.items():
        if value is not None:
            at_least(1, **{name: value})
    rows = _read(Path(path))
    if order is None:
        order = "data" if rows.time is None else "time"
    one_of(("time", "data", "class"), order=order)
    timed = order == "time"
    if timed and rows.time is None:
        raise UserError(f"order=time given; {path} has no column 'time': add it, or set order=data or order=class")

    sets = _split(rows, test, validation, prefix if timed else 0.0) if rows.split is None else rows.split.copy()
    streamed = np.flatnonzero(sets == SETS.index(STREAM))
    if len(streamed) < 2:
        raise UserError(f"{path}: {len(streamed)} rows are left to stream; at least 2 are expected")
    arranged, bounds = _arranged(rows, streamed, order, steps, chunk, seed)
    held = _held_out(sets, timed, evaluate, path)
    rest = np.flatnonzero(sets != SETS.index(STREAM))
    rest = rest[np.lexsort((rest, rows.time[rest]))] if timed and rows.time is not None else rest
    index = np.concatenate([arranged, rest])
    n, label, sets = len(arranged), rows.label[index], sets[index]

    time = np.arange(len(index), dtype=np.float64)
    origin = np.full(len(index), -1, np.int64)
    if timed and rows.time is not None:
        time = rows.time[index]
        # A held-out sample belongs to the last streamed one that is not later (to the first, where all are later).
        kept = sets == SETS.index(RETENTION)
        origin[kept] = (np.searchsorted(time[:n], time[kept], side="right") - 1).clip(0)

    size_of_step = int(np.diff(bounds).max())
    ahead = _shifts(shifts, shift, size_of_step, n, order)
    past = label[sets == SETS.index(PREFIX)]
    notes: list[str] = []
    if shift is None and ahead:
        shift = _shift_or_note(past, ahead, size_of_step, notes)
    if occasions is None:
        occasions = min(OCCASIONS, len(bounds) - 1)
    pixels = ImagePixels(Path(path).parent, [rows.path[i] for i in index], size, channels, augment, memory)
    stream = Stream(
        name=Path(path).stem,
        label=label,
        set=sets,
        bounds=bounds,
        time=time,
        group=np.full(len(index), -1, np.int64),
        origin=origin,
        label_names=rows.names,
        source=pixels.fingerprint,
        shifts=ahead,
        shift=shift,
        heldout=held,
        occasions=evenly(len(bounds) - 1, occasions),
        window=chosen_window(past, size_of_step) if ahead else None,
        notes=tuple(notes),
    )
    return Source(stream, pixels)


def _arranged(
    rows: _Table, streamed: IntArray, order: str, steps: int | None, chunk: int | None, seed: int
) -> tuple[IntArray, IntArray]:
    n = len(streamed)
    if order == "class":
        if chunk is not None:
            raise UserError(f"chunk={chunk} given with order=class, whose steps cut the classes: set steps instead")
        classes = generator(seed, "order of classes").permutation(np.unique(rows.label[streamed]))
        steps = min(STEPS, len(classes)) if steps is None else steps
        if steps > len(classes):
            raise UserError(f"steps={steps} given; order=class allows at most {len(classes)}, the classes streamed")
        parts = [streamed[np.isin(rows.label[streamed], some)] for some in np.array_split(classes, steps)]
        parts = [part[generator(seed, "order", step).permutation(len(part))] for step, part in enumerate(parts)]
        return np.concatenate(parts), np.cumsum([0] + [len(part) for part in parts])
    if order == "time" and rows.time is not None:
        arranged = streamed[np.lexsort((streamed, rows.time[streamed]))]
        chunk = CHUNK if steps is None and chunk is None else chunk
    else:
        arranged = streamed[generator(seed, "order").permutation(n)]
    if chunk is not None:
        return arranged, by_chunk(n, chunk)
    steps = min(STEPS, n) if steps is None else steps
    if steps > n:
        raise UserError(f"steps={steps} given; at most {n} are expected, the samples streamed")
    return arranged, by_number(n, steps)


def _split(rows: _Table, test: float, validation: float, prefix: float) -> NDArray[np.int8]:
    if test + validation > 0.9:
        raise UserError(f"test={test} and validation={validation} given; together at most 0.9 are expected")
    sets = np.full(len(rows.path), SETS.index(STREAM), np.int8)
    left = np.arange(len(sets))
    if prefix and rows.time is not None:
        left = np.lexsort((left, rows.time))
        early = round(prefix * len(left))
        sets[left[:early]] = SETS.index(PREFIX)
        left = np.sort(left[early:])
    # Class by class, in a random order within each: every so-manieth row, so that each class gives its share.
    left = left[np.lexsort((generator(0, "split").random(len(left)), rows.label[left]))]
    sets[left[_every(len(left), test)]] = SETS.index(TEST)
    left = left[sets[left] == SETS.index(STREAM)]
    sets[left[_every(len(left), validation / (1 - test))]] = SETS.index(VALIDATION)
    return sets


def _every(n: int, share: float) -> NDArray[np.bool_]:
    return np.diff(np.floor(np.arange(n + 1) * share)) > 0


def _held_out(sets: NDArray[np.int8], timed: bool, evaluate: str, path: str) -> tuple[str, ...]:
    """Return the held-out sets to show; in the order of time the shown samples become retention samples."""
    shown, known = (TEST, PRETEST) if evaluate == "test" else (VALIDATION, PREVALIDATION)
    if evaluate == "validation" and not np.any(sets == SETS.index(VALIDATION)):
        raise UserError(f"evaluate=validation given; {path} has no validation rows: set validation=0.1, say")
    if timed:
        sets[sets == SETS.index(shown)] = SETS.index(RETENTION)
        shown = RETENTION
    return tuple(name for name in (shown, known) if np.any(sets == SETS.index(name)))


def _shifts(shifts: Sequence[int] | None, shift: int | None, chunk: int, n: int, order: str) -> tuple[int, ...]:
    if shifts is None:
        wanted = {0, *(chunk << i for i in range(5) if chunk << i < n / 8)} if order == "time" else set()
        shifts = sorted(wanted if shift is None else wanted | {0, shift})
    ahead = check_shifts(shifts, shift, n)
    if ahead and order == "class":
        raise UserError(
            f"shifts={list(ahead)} given with order=class, where nothing is predicted ahead: set it to null"
        )
    return ahead


def _shift_or_note(past: IntArray, shifts: tuple[int, ...], chunk: int, notes: list[str]) -> int | None:
    if shifts == (0,):
        notes.append("no near-future accuracy: predictions are made for the very next samples only (shifts=[0])")
        return None
    try:
        return chosen_shift(past, shifts, chunk)
    except UserError as error:
        notes.append(
            f"no near-future accuracy: the prefix of {len(past)} samples gives no shift S ({error}). "
            "Set stream.shift, or a larger stream.prefix"
        )
        return None


def _read(path: Path) -> _Table:
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"path={str(path)!r} given; the file of a table is expected, and there is none") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table ({' '.join(str(error).split())})") from error
    columns = [str(column) for column in frame.columns]
    for column in ("path", "label"):
        if column not in columns:
            raise UserError(f"{path} has no column '{column}'; its columns are {columns}: {nearest(column, columns)}")
    if not len(frame):
        raise UserError(f"{path} has no rows")
    paths, labels = _text(frame["path"]), _text(frame["label"])
    for name, values in (("path", paths), ("label", labels)):
        if "" in values:
            raise UserError(f"{path}, row {values.index('') + 1}: the {name} is empty")
    if len(set(paths)) < len(paths):
        first: dict[str, int] = {}
        again, before = next((i, first[p]) for i, p in enumerate(paths) if first.setdefault(p, i) != i)
        raise UserError(f"{path}, rows {before + 1} and {again + 1}: the picture {paths[again]} is named twice")
    names = _ordered(set(labels))
    if len(names) < 2:
        raise UserError(f"{path}: all labels are {names[0]!r}; at least two classes are expected")
    code = {name: i for i, name in enumerate(names)}
    return _Table(
        path=paths,
        label=np.array([code[label] for label in labels], np.int64),
        names=names,
        time=_times(frame["time"], path) if "time" in columns else None,
        split=_splits(_text(frame["split"]), path) if "split" in columns else None,
    )


def _text(column: pandas.Series) -> list[str]:
    return ["" if value is None or value != value else str(value).strip() for value in column.tolist()]


def _ordered(names: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def _splits(values: list[str], path: Path) -> NDArray[np.int8]:
    for row, value in enumerate(values):
        if value not in SPLITS:
            raise UserError(f"{path}, row {row + 1}: split {value!r} given; one of {', '.join(SPLITS)} is expected")
    return np.array([SETS.index(value) for value in values], np.int8)


def _times(column: pandas.Series, path: Path) -> NDArray[np.float64]:
    values = [value.isoformat() if isinstance(value, datetime) else value for value in column.tolist()]
    texts = ["" if value is None else str(value).strip() for value in values]
    # One column, one notation: a number among dates would be taken for a moment in 1970.
    parse = _number if texts and not math.isnan(_number(texts[0])) else _moment
    seconds = np.array([parse(text) for text in texts])
    if np.isnan(seconds).any():
        row = int(np.isnan(seconds).argmax())
        raise UserError(
            f"{path}, row {row + 1}: time {texts[row]!r} given; {'seconds' if parse is _number else 'ISO 8601'} like "
            f"{'1717156800' if parse is _number else '2024-05-31T12:00:00Z'} are expected in the whole column"
        )
    return seconds


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
