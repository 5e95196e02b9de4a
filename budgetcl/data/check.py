"""`budgetcl data check`: what is in a table of pictures, and what is wrong with it, before a run finds out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from budgetcl.data.files import examine
from budgetcl.errors import UserError, at_least
from budgetcl.metrics.blind import blind_accuracy, label_autocorrelation
from budgetcl.report.blind import progress_bar
from budgetcl.streams.packed import pictures_of
from budgetcl.streams.rows import Rows, read
from budgetcl.streams.stream import PREFIX, PRETRAIN, SETS, STREAM, UNASKED, Stream
from budgetcl.streams.table import table, usual_shifts

LAGS = (1, 10, 100, 1000, 10000)
WINDOWS = (1, 10, 100, 1000, None)
_BAR = 40  # characters of a histogram's longest bar
_SHOWN = 5  # examples of a problem, labels of a histogram
_LEARNED = [SETS.index(name) for name in (STREAM, PRETRAIN, PREFIX)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `budgetcl data check`."""
    parser.add_argument("path", help="a .csv or .parquet table, a folder of pictures, or a packed folder")
    parser.add_argument("--root", help="what a table's paths are relative to (default: the table's folder)")
    parser.add_argument("--order", choices=("time", "data", "class", "given"), help="as stream.order")
    parser.add_argument("--cache", help="as stream.cache")
    parser.add_argument("--no-files", action="store_true", help="do not open the pictures")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="pictures opened at a time")


def main(options: argparse.Namespace) -> int:
    """Print what was found.

    Returns:
        0 if nothing is wrong, 1 if there are problems. (Notes are none: what a run does about them is defined.)

    Raises:
        UserError: input that is no table of pictures.
    """
    at_least(1, jobs=options.jobs)
    rows = read(options.path, options.root, options.cache)
    counts = np.bincount(rows.label, minlength=len(rows.names))
    print(f"{_plain(rows.given)}: {len(rows.label):,} rows, {len(counts):,} classes")
    if rows.time is not None:
        print(f"time: {_moment(rows.time.min())} to {_moment(rows.time.max())}")
    if rows.split is not None:
        held = np.bincount(rows.split, minlength=len(SETS))
        print("split: " + ", ".join(f"{name} {n:,}" for name, n in zip(SETS, held) if n))
    print("\n".join(_histogram(rows, counts)))
    for note in (*rows.notes, *_lonely(rows, counts)):
        print(f"note: {_plain(note)}")

    repeated = rows.paths.repeated()
    problems = [*_repeated(rows, repeated), *([] if options.no_files else _files(rows, options.jobs))]
    if repeated:  # what no run would take can be looked at as if each picture stood once
        rows = rows.at(np.setdiff1d(np.arange(len(rows.label)), np.concatenate([places[1:] for places in repeated])))
    try:
        stream = table(rows, order=options.order).stream
    except UserError as error:
        problems.append(str(error))
    else:
        _stream(stream, whole=not repeated, said=rows.notes)
        if not stream.asks:
            problems.append(f"with stream.test and stream.shifts as they are {UNASKED}")
        ordered = rows.order is not None or not Path(options.path).is_dir()
        given = options.order == "given" or (options.order is None and ordered)
        _labels(_as_given(rows) if given and not stream.shifts else stream)
        if not repeated:
            print(f"fingerprint: {stream.fingerprint()}")
    for problem in problems:
        print(f"problem: {_plain(problem)}")
    print("nothing is wrong" if not problems else f"{len(problems)} problems" if len(problems) > 1 else "1 problem")
    return int(bool(problems))


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(float(seconds), UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.15g} s"


def _histogram(rows: Rows, counts: np.ndarray) -> list[str]:
    """Say how large classes are: the largest and the smallest by name, all of them by how many are of which size."""
    order = np.argsort(-counts, kind="stable")
    shown = [*order[:_SHOWN], *order[max(_SHOWN, len(order) - _SHOWN) :]]
    listed = [f"{_plain(rows.names[label])} {counts[label]:,}" for label in shown]
    if len(order) > 2 * _SHOWN:
        listed.insert(_SHOWN, "...")
    said = f"rows a class: {counts.min():,} to {counts.max():,}, median {np.median(counts):,.0f}: {', '.join(listed)}"
    edges = [step * 10**power for power in range(10) for step in (1, 2, 5)]
    classes = np.histogram(counts, [0, *edges])[0]
    there = np.flatnonzero(classes)
    lines = []
    for place in range(there[0], there[-1] + 1):
        low, high = edges[place - 1] if place else 0, edges[place] - 1
        sizes = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        bar = "#" * -(-_BAR * int(classes[place]) // int(classes.max()))
        lines.append(f"  {sizes:>24} rows: {classes[place]:>6,} classes {bar}".rstrip())
    return [said, *lines]


def _lonely(rows: Rows, counts: np.ndarray) -> list[str]:
    alone = counts == 1
    if rows.split is not None:  # which decides about its rows itself
        alone[rows.label[rows.split != SETS.index(STREAM)]] = False
    if not alone.any():
        return []
    names = _listed(rows.names[label] for label in np.flatnonzero(alone))
    return [f"classes with one picture, which is never held out: {names}"]


def _repeated(rows: Rows, found: list[np.ndarray]) -> list[str]:
    """Return what there is to say of pictures that the table names more than once."""
    print(f"named more than once: {len(found):,}")
    said: dict[bool, list[str]] = {True: [], False: []}  # whether it is a leak -> the pictures
    for places in found:
        several = " and ".join(str(row + 1) for row in places)
        said[_leaks(rows, places)].append(f"{rows.paths[int(places[0])]} (rows {several})")
    return _both(said, "held out and also to be learned from", "named more than once")


def _files(rows: Rows, jobs: int) -> list[str]:
    """Open all pictures; return what is wrong with them."""
    pictures = pictures_of(rows.root, rows.paths, np.arange(len(rows.label)))
    with progress_bar("opening pictures") as advance:
        found = examine(pictures, jobs, advance, rows.root)
    whole = np.flatnonzero(found.same >= 0)
    twice = whole[found.same[whole] != whole]
    print(f"missing or broken: {len(found.broken):,}; of the same content as another: {len(twice):,}")
    if found.outside:
        away = _listed(f"{rows.paths[row]} -> {os.path.realpath(rows.root / rows.paths[row])}" for row in found.outside)
        print(f"note: outside the folder of the pictures, by links: {len(found.outside):,}: {_plain(away)}")
    problems = [f"{len(found.broken)} pictures cannot be shown: {_listed(text for _, text in found.broken)}"]
    pairs: dict[bool, list[str]] = {True: [], False: []}
    for row in twice.tolist():
        one, other = rows.paths[row], rows.paths[int(found.same[row])]
        if one != other:
            pairs[_leaks(rows, np.array([row, found.same[row]]))].append(f"{one} = {other}")
    drawn = " (one may be drawn to be held out, and the other one learned from)" * (rows.split is None)
    return problems * bool(found.broken) + _both(
        pairs, "held-out pictures of the same content as one to learn from", f"the same content twice{drawn}"
    )


def _both(found: dict[bool, list[str]], leaks: str, others: str) -> list[str]:
    """Return a line on leaks and a line on the other ones, where there are any."""
    return [
        f"{what}: {_listed(found[leak])}" for leak, what in ((True, f"leak: {leaks}"), (False, others)) if found[leak]
    ]


def _leaks(rows: Rows, places: np.ndarray) -> bool:
    return rows.split is not None and len(set(np.isin(rows.split[places], _LEARNED).tolist())) == 2


def _stream(stream: Stream, whole: bool, said: Sequence[str]) -> None:
    """Say what a run would make of it with the settings as they are, and notes beside those ``said``."""
    n, once = stream.samples, "" if whole else " (were each picture named once)"
    print(f"stream{once}: {n:,} samples in {len(stream):,} steps; held out: {_listed(stream.heldout) or 'nothing'}")
    for note in stream.notes:
        if note not in said:
            print(f"note: {_plain(note)}")


def _as_given(rows: Rows) -> Stream:
    """Return the stream in the order of the table, predicted ahead as one with times is; or as it is, if too short."""
    plain = table(rows, order="given").stream
    shifts = usual_shifts(plain.samples)
    try:
        stream = table(rows, order="given", shifts=shifts).stream
    except UserError:
        return plain
    print(f"in the order of the table (stream.order=given stream.shifts=[{','.join(map(str, shifts))}]):")
    for note in stream.notes[len(plain.notes) :]:
        print(f"note: {_plain(note)}")
    return stream


def _labels(stream: Stream) -> None:
    """Say what labels give away without pictures, where they are predicted ahead."""
    if not stream.shifts:
        print("nothing is predicted ahead in this order: neither autocorrelation nor blind classifiers matter")
        return
    n = stream.samples
    labels = stream.label[:n]
    lags = [lag for lag in LAGS if lag < n // 2]
    equal = label_autocorrelation(labels, lags, adjusted=True)
    print("label autocorrelation: " + ", ".join(f"{value:.3f} at {lag:,}" for lag, value in zip(lags, equal)))
    delays = sorted({0, stream.shift or 0})
    grid = blind_accuracy(labels, WINDOWS, delays, threads=1)
    for i, delay in enumerate(delays):
        cells = (f"{100 * grid[j, i]:.1f} % {_window(window)}" for j, window in enumerate(WINDOWS))
        print(f"blind, {delay} samples ahead: {', '.join(cells)}")
    print(f"suggested shift: {'none' if stream.shift is None else f'stream.shift={stream.shift}'}")


def _window(window: int | None) -> str:
    return "last label" if window == 1 else "majority" if window is None else f"mode of {window:,}"


def _listed(items: Iterable[object]) -> str:
    texts = [str(item) for item in items]
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _plain(text: str) -> str:
    """Return one line that every terminal can print, whatever bytes a path holds."""
    return " ".join(os.fsencode(text).decode(errors="backslashreplace").split())
