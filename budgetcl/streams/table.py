"""A stream of the user's own pictures: a table with the columns path, label and, if known, time, split and order; or a
folder of pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError, at_least, between, one_of
from budgetcl.streams.batch import Source
from budgetcl.streams.cache import Columns, hash_of, kept, parts, release
from budgetcl.streams.cuts import evenly
from budgetcl.streams.images import ImagePixels
from budgetcl.streams.orders import STEPS, arranged, divided, labels_in, rows_where, sorted_by
from budgetcl.streams.packed import pictures_of
from budgetcl.streams.prefix import check_shifts, chosen_shift, chosen_window
from budgetcl.streams.rows import Rows, read
from budgetcl.streams.stream import (
    PREFIX,
    PRETEST,
    PRETRAIN,
    PREVALIDATION,
    RETENTION,
    SETS,
    STREAM,
    TEST,
    VALIDATION,
    IntArray,
    Stream,
)

CHUNK = 16  # the default shifts are multiples of it
OCCASIONS = 10
_LEFT_OUT = -1  # of a stream of the prefix: the code of what is later
LONGEST_PAST = 1 << 18  # of the prefix, its last labels, on which S and k are chosen


@dataclass(frozen=True)
class _Plan:
    """What rows become a stream by; see :func:`table`."""

    order: str | None
    classes: tuple[str, ...] | None
    steps: int | None
    chunk: int | None
    cut: str
    shifts: Sequence[int] | None
    shift: int | None
    test: float
    validation: float
    prefix: float
    pretrain: float
    part: str
    evaluate: str
    seed: int

    @property
    def timed(self) -> bool:
        """Whether samples stand in the order of their times."""
        return self.order == "time"

    @property
    def ahead(self) -> bool:
        """Whether samples are predicted before they are revealed."""
        return self.timed or self.shifts is not None or self.shift is not None


def table(
    path: str | Rows,
    root: str | None = None,
    size: int = 32,
    channels: int = 3,
    order: str | None = None,
    class_order: str | None = None,
    steps: int | None = None,
    chunk: int | None = None,
    cut: str = "counts",
    shifts: Sequence[int] | None = None,
    shift: int | None = None,
    test: float = 0.1,
    validation: float = 0.0,
    prefix: float = 0.2,
    pretrain: float = 0.0,
    part: str = "stream",
    occasions: int | None = None,
    evaluate: str = "test",
    augment: str = "none",
    resize: int | None = None,
    memory: int = 1 << 30,
    workers: int | None = None,
    damaged: str = "stop",
    cache: str | None = None,
    seed: int = 0,
) -> Source:
    """Return the stream of a table of pictures. Only the table is read; pictures are read when they are looked at.

    Columns; others are ignored:

    - ``path``: PNG or JPEG, relative to the table's folder or to ``root``, which it must not leave. Bytes: it need not
      be UTF-8.
    - ``label``: any text.
    - ``time``: ISO 8601, without a zone UTC; or seconds as numbers.
    - ``split``: the row's set: train (or stream) rows are streamed, pretrain rows are revealed before the first step,
      prefix rows are the past on which S and k are chosen; test and val (or validation) rows are held out, and so are
      pretest and preval (or prevalidation) rows, the held-out rows of the pretraining classes, which are evaluated
      beside them from the first step on. What the column does not name is drawn by its share, as without the column.
    - ``order``: the places of the train rows in a given order, whole numbers.

    A folder holds a folder of pictures for each class; these may lie in folders that are named as a split is (train,
    val, test, ...).

    In the order of time, the next samples are predicted before they are revealed, the near-future shift S is chosen on
    the prefix, and the held-out samples measure retention: each is shown once the stream has reached its time. In the
    other orders held-out samples are shown once their class was revealed, and nothing is predicted ahead unless
    ``shifts`` are given. The prefix is the first ``prefix`` of the train rows by time; where the split column names
    pretrain rows and no prefix, S and k are chosen on them. Held-out samples are drawn, class by class, from the rest:
    the same for every seed; a class keeps at least one row to learn from.

    Args:
        path: of the .csv or .parquet file, or of the folder; or the rows, where they are read already.
        root: what a table's paths are relative to; None: the table's folder.
        size: the pictures' side in pixels: short side resized, centre crop.
        channels: 3 (RGB) or 1 (grey).
        order: "time" (ties by the column ``order``, else in the table's order); "data" (shuffled); "class" (steps cut
            the classes); "given" (by the column ``order``, else as the table stands). Where there is a column
            ``order``, "data" follows it too, and "class" takes classes as they come first in it and their samples in
            its order. None: "given" where there is that column, else "time" where there are times, else "data".
        class_order: for "class", a text file with one label a line; None: by the column ``order``, else random.
        steps: the number of time steps; None: 10.
        chunk: samples a step reveals, instead of ``steps``.
        cut: "counts", steps of equally many samples; or "spans", of equal time (an empty one joins the next).
        shifts: how many samples ahead to predict, 0 being the very next. None: in the order of time 0 and 16, 32, 64,
            128 and 256 (or multiples of a smaller ``chunk``), as far as they are below an eighth of the stream; else
            nothing.
        shift: S, one of ``shifts``; None: chosen on the prefix. Where the prefix is too short for the rule there is no
            S, and the stream's notes say so.
        test: the held-out share.
        validation: the share held out for tuning.
        prefix: the share of the train rows on which S and k are chosen; only where samples are predicted ahead.
        pretrain: the share of the train rows that is known before the first step, where the split column names none:
            the earliest by time or in the given order, and then the prefix as well; where rows are shuffled, some of
            each class, the same for every seed. For classes to pretrain on, name their rows in the split column.
        part: "stream"; or "prefix", which streams the prefix itself, for tuning, in steps about as large as the
            stream's. Nothing is held out then: held-out samples are later.
        occasions: how often the held-out samples are due; None: after each step, at most 10 times.
        evaluate: "test" or "validation", the samples held out that are shown.
        augment: "none", "crop", "crop_flip" or "random_resized_crop", in training.
        resize: what the short side is resized to before the central square is cut; None: to ``size``.
        memory: bytes the decoded pictures may take; where they need more they are decoded at each use.
        workers: threads that decode; None: as many as there are processors, at most 16.
        damaged: "stop" at a picture that cannot be read; or "replace" it: in training another one of its batch stands
            in for it, and a prediction of it counts as no answer. Both are counted in the record.
        cache: a folder for the columns of tables; None: those of large tables lie beside them, as <table>.cache.
        seed: of the order, where it is random.

    Raises:
        UserError: a table that cannot be read or is not sound; numbers out of range.
    """
    at_least(8, size=size)
    at_least(0, seed=seed, memory=memory)
    between(0, 0.9, test=test, validation=validation, prefix=prefix, pretrain=pretrain)
    one_of(("test", "validation"), evaluate=evaluate)
    one_of(("stream", "prefix"), part=part)
    one_of(("counts", "spans"), cut=cut)
    if steps is not None and chunk is not None:
        raise UserError(f"steps={steps} and chunk={chunk} given; only one of them cuts the stream: set one to null")
    for name, value in {"steps": steps, "chunk": chunk, "occasions": occasions}.items():
        if value is not None:
            at_least(1, **{name: value})
    rows = path if isinstance(path, Rows) else read(path, root, cache)
    classes, shares = None if class_order is None else tuple(labels_in(class_order)), (test, validation)
    plan = _checked(
        rows,
        _Plan(order, classes, steps, chunk, cut, shifts, shift, *shares, prefix, pretrain, part, evaluate, seed),
    )
    home = rows.home and rows.home / f"stream-{hash_of(plan)}"
    columns, facts = kept(home, lambda columns: _fill(columns, rows, plan))

    pictures = pictures_of(rows.root, rows.paths, columns["row"], facts["paths"])
    pixels = ImagePixels(pictures, size, channels, augment, memory, resize, workers, damaged)
    nothing = np.broadcast_to(np.int64(-1), len(columns["label"]))  # takes no memory
    bounds = columns["bounds"]
    if occasions is None:
        occasions = min(OCCASIONS, len(bounds) - 1)
    origin, time = columns.get("origin"), columns.get("time")
    stream = Stream(
        name=rows.name,
        label=columns["label"],
        set=columns["set"],
        bounds=bounds,
        time=np.arange(len(nothing), dtype=np.float64) if time is None else time,
        group=nothing,
        origin=nothing if origin is None else origin,
        label_names=rows.names,
        source=pixels.fingerprint,
        shifts=tuple(facts["shifts"]),
        shift=facts["shift"],
        heldout=tuple(facts["heldout"]),
        occasions=evenly(len(bounds) - 1, occasions),
        window=facts["window"],
        notes=(*rows.notes, *facts["notes"]),
        digest=facts["digest"],
    )
    return Source(stream, pixels)


def _checked(rows: Rows, plan: _Plan) -> _Plan:
    """Return the plan with its order, or refuse what does not go together."""
    order = plan.order or ("given" if rows.order is not None else "data" if rows.time is None else "time")
    one_of(("time", "data", "class", "given"), order=order)
    if order == "time" and rows.time is None:
        raise UserError(
            f"order=time given; {rows.given} has no column 'time': add it, or set order=data or order=class"
        )
    if plan.part == "prefix" and plan.evaluate != "test":
        raise UserError(f"evaluate={plan.evaluate} given with part=prefix, which holds nothing out: set evaluate=test")
    if order == "class" and plan.pretrain:
        raise UserError(
            f"pretrain={plan.pretrain} given with order=class, which streams whole classes: name those to pretrain on "
            "in a column split (pretrain, pretest), or set pretrain=0"
        )
    if plan.cut == "spans" and (order != "time" or plan.chunk is not None):
        raise UserError("cut=spans given; equal spans of time are cut in order=time, by steps and not by chunk")
    if order == "class" and plan.chunk is not None:
        raise UserError(f"chunk={plan.chunk} given with order=class, whose steps cut the classes: set steps instead")
    if order == "class" and plan.shifts:
        raise UserError(
            f"shifts={list(plan.shifts)} given with order=class, where nothing is predicted ahead: set it to null"
        )
    if order != "class" and plan.classes is not None:
        raise UserError(f"class_order given with order={order}; set order=class, or class_order=null")
    shifts = None if plan.shifts is None else tuple(plan.shifts)
    random = order in ("data", "class") and rows.order is None
    return replace(plan, order=order, shifts=shifts, seed=plan.seed if random else 0)


def _fill(columns: Columns, rows: Rows, plan: _Plan) -> dict[str, Any]:
    """Arrange the rows as a stream, column by column; return what is chosen on it and said of it."""
    if len(rows.names) < 2:
        raise UserError(f"{rows.given}: all labels are {rows.names[0]!r}; at least two classes are expected")
    refuse_repeated(rows)
    shares = {PREFIX: plan.prefix, TEST: plan.test, VALIDATION: plan.validation, PRETRAIN: plan.pretrain}
    sets = divided(rows, shares, _earliness(rows, plan), plan.ahead and plan.order in ("time", "given"))
    if plan.evaluate == "validation" and not (sets == SETS.index(VALIDATION)).any():
        raise UserError(f"evaluate=validation given; {rows.given} has no validation rows: set validation=0.1, say")
    streamed = rows_where(sets == SETS.index(STREAM))
    if len(streamed) < 2:
        raise UserError(f"{rows.given}: {len(streamed)} rows are left to stream; at least 2 are expected")
    notes = _never_learned(rows, sets) if plan.part == "stream" else []
    steps = plan.steps
    if plan.part == "prefix":
        sets, whole = _only_the_prefix(rows, sets, plan), len(streamed)
        streamed = rows_where(sets == SETS.index(STREAM))
        steps = min(max(2, round((steps or STEPS) * len(streamed) / whole)), len(streamed))
    streamed, bounds = arranged(
        rows, streamed, str(plan.order), None if plan.chunk else steps, plan.chunk, plan.cut, plan.classes, plan.seed
    )
    if plan.cut == "spans" and len(bounds) - 1 < (steps or STEPS):
        notes.append(f"{len(bounds) - 1} time steps: the other spans hold no sample and joined the next one")
    heldout = _shown(sets, plan)
    n, rest = len(streamed), rows_where((sets != SETS.index(STREAM)) & (sets != _LEFT_OUT))
    place = rows.time if plan.timed else rows.order
    if place is not None:
        rest = sorted_by(place, rest)
    columns.append("row", streamed)
    columns.append("row", rest)
    del streamed, rest
    for _, part in parts(columns["row"]):
        columns.append("label", rows.label[part].astype(np.int64))
        columns.append("set", sets[part])
        if plan.timed and rows.time is not None:
            columns.append("time", rows.time[part])
            release(rows.time)
        release(rows.label)
    columns.append("bounds", bounds)
    label, sets = columns["label"], columns["set"]
    if RETENTION in heldout:
        _retake(columns, n)
    past = _past(label, sets) if plan.part == "stream" else label[max(0, n - LONGEST_PAST) : n]
    size = int(np.diff(bounds).max())
    shifts = _shifts(plan, n)
    # On the learner's clock, where the past is long enough to show it; sample by sample can only make S larger.
    clock = size if 4 * size <= len(past) else 1
    shift = _shift_or_note(past, shifts, clock, notes) if shifts and plan.shift is None else plan.shift
    return {
        "shifts": shifts,
        "shift": shift,
        "window": chosen_window(past, clock) if shifts else None,
        "heldout": heldout,
        "notes": notes,
        "digest": _digest(columns),
        "paths": rows.paths.ordered(columns["row"]).digest(),
    }


def _only_the_prefix(rows: Rows, sets: NDArray[np.int8], plan: _Plan) -> NDArray[np.int8]:
    """Return the sets of a stream of the prefix, or where there is none of the pretraining rows; the rest is left out.

    Pretraining rows before a prefix stay what they are.
    """
    pretrain, prefix = (sets == SETS.index(name) for name in (PRETRAIN, PREFIX))
    past = prefix if prefix.any() else pretrain
    if not plan.ahead or past.sum() < 2:
        raise UserError(
            f"part=prefix given; {rows.given} has {past.sum() if plan.ahead else 'no'} rows of a prefix with "
            f"order={plan.order}, prefix={plan.prefix}: a prefix is the past of a stream that is predicted ahead. Set "
            "order=time and a larger prefix; in other orders tune on stream.evaluate=validation"
        )
    sets = np.where(pretrain, sets, np.int8(_LEFT_OUT))
    sets[past] = SETS.index(STREAM)
    return sets


def _earliness(rows: Rows, plan: _Plan) -> NDArray[Any] | None:
    """Return what prefix and pretraining rows are the earliest by; None where there is no order before a run's own."""
    if plan.timed:
        return rows.time
    if plan.order == "given" and rows.order is None:
        return np.arange(len(rows.label))
    return rows.order


def refuse_repeated(rows: Rows) -> None:
    """Refuse pictures that stand in the table twice; worst where one of them is held out."""
    repeated = rows.paths.repeated()
    if not repeated:
        return
    learned = [SETS.index(name) for name in (STREAM, PRETRAIN, PREFIX)]
    sets = np.zeros(len(rows.label), np.int8) if rows.split is None else rows.split
    leaks = [places for places in repeated if len(set(np.isin(sets[places], learned).tolist())) == 2]
    found = leaks or repeated
    listed = ", ".join(f"{rows.paths[int(p[0])]} (rows {' and '.join(str(row + 1) for row in p)})" for p in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    what = "both held out and to be learned from (a leak)" if leaks else "named twice"
    many = "pictures are" if len(found) > 1 else "picture is"
    raise UserError(f"{rows.given}: {len(found)} {many} {what}: {listed}{more}; keep one row of each")


def _never_learned(rows: Rows, sets: NDArray[np.int8]) -> list[str]:
    """Return a note on labels of held-out rows that no row to learn from has."""
    counts = np.zeros((len(SETS), len(rows.names)), np.int64)
    for low, label in parts(rows.label):
        np.add.at(counts, (sets[low : low + len(label)], label), 1)
    present = dict(zip(SETS, counts > 0))
    known = present[STREAM] | present[PRETRAIN]
    asked = present[TEST] | present[PRETEST] | present[VALIDATION] | present[PREVALIDATION]
    lost = np.flatnonzero(asked & ~known)
    if not len(lost):
        return []
    return [
        f"{len(lost)} labels stand in held-out rows only and are never revealed, the first is {rows.names[lost[0]]!r}"
    ]


def _shown(sets: NDArray[np.int8], plan: _Plan) -> list[str]:
    """Return the held-out sets to show; in the order of time the shown samples become retention samples."""
    shown, known = (TEST, PRETEST) if plan.evaluate == "test" else (VALIDATION, PREVALIDATION)
    if plan.timed:
        sets[sets == SETS.index(shown)] = SETS.index(RETENTION)
        shown = RETENTION
    return [name for name in (shown, known) if (sets == SETS.index(name)).any()]


def _retake(columns: Columns, n: int) -> None:
    """A held-out sample belongs to the last streamed one that is not later (to the first, where all are later)."""
    time = columns["time"]
    for low, part in parts(columns["set"]):
        retaken = part == SETS.index(RETENTION)
        origin = np.full(len(part), -1, np.int64)
        later = np.searchsorted(time[:n], time[low : low + len(part)][retaken], side="right") - 1
        origin[retaken] = later.clip(0)
        columns.append("origin", origin)
        release(time)


def _past(label: IntArray, sets: NDArray[np.int8]) -> IntArray:
    """Return the last labels of the tuning prefix, or where there is none of the pretraining rows."""
    for name in (PREFIX, PRETRAIN):
        rows = np.flatnonzero(sets == SETS.index(name))
        if len(rows):
            return label[rows[-LONGEST_PAST:]]
    return np.empty(0, np.int64)


def usual_shifts(samples: int, chunk: int = CHUNK) -> tuple[int, ...]:
    """Return how many samples ahead is predicted, where nobody says it, on a stream of so many samples."""
    return (0, *(chunk << i for i in range(5) if chunk << i < samples / 8))


def _shifts(plan: _Plan, n: int) -> tuple[int, ...]:
    shifts = plan.shifts
    if shifts is None:
        wanted = set(usual_shifts(n, min(plan.chunk or CHUNK, CHUNK))) if plan.timed else set()
        shifts = sorted(wanted if plan.shift is None else wanted | {0, plan.shift})
    return check_shifts(shifts, plan.shift, n)


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


def _digest(columns: Columns) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns.types.keys() - {"row"}):
        digest.update(name.encode())
        for _, part in parts(columns[name]):
            digest.update(part.tobytes())
    return digest.hexdigest()
