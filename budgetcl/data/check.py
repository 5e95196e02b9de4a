"""`budgetcl data check`: what is in a table of pictures, and what is wrong with it, before a run finds out."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np

from budgetcl.data.files import examine
from budgetcl.errors import UserError, at_least
from budgetcl.metrics.blind import blind_accuracy, label_autocorrelation
from budgetcl.report.blind import progress_bar
from budgetcl.streams.packed import pictures_of
from budgetcl.streams.rows import Rows, read
from budgetcl.streams.stream import PREFIX, PRETRAIN, SETS, STREAM, Stream
from budgetcl.streams.table import table

LAGS = (1, 10, 100, 1000, 10000)
WINDOWS = (1, 10, 100, 1000, None)
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
        0 if nothing is wrong, 1 if there are problems.

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
    print(_histogram(rows, counts))
    for note in (*rows.notes, *_lonely(rows, counts)):
        print(f"note: {_plain(note)}")

    problems = [*_repeated(rows), *([] if options.no_files else _files(rows, options.jobs))]
    try:
        stream = table(options.path, root=options.root, order=options.order, cache=options.cache).stream
    except UserError as error:
        if not problems:
            problems.append(str(error))
    else:
        _stream(stream)
    for problem in problems:
        print(f"problem: {_plain(problem)}")
    print("nothing is wrong" if not problems else f"{len(problems)} problems" if len(problems) > 1 else "1 problem")
    return int(bool(problems))


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(float(seconds), UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.15g} s"


def _histogram(rows: Rows, counts: np.ndarray) -> str:
    order = np.argsort(-counts, kind="stable")
    shown = [*order[:_SHOWN], *order[max(_SHOWN, len(order) - _SHOWN) :]]
    listed = [f"{rows.names[label]} {counts[label]:,}" for label in shown]
    if len(order) > 2 * _SHOWN:
        listed.insert(_SHOWN, "...")
    return f"rows a class: {counts.min():,} to {counts.max():,}, median {np.median(counts):,.0f}: {', '.join(listed)}"


def _lonely(rows: Rows, counts: np.ndarray) -> list[str]:
    alone = counts == 1
    if rows.split is not None:  # which decides about its rows itself
        alone[rows.label[rows.split != SETS.index(STREAM)]] = False
    if not alone.any():
        return []
    names = _listed(rows.names[label] for label in np.flatnonzero(alone))
    return [f"classes with one picture, which is never held out: {names}"]


def _repeated(rows: Rows) -> list[str]:
    """Return what there is to say of pictures that the table names more than once."""
    found = rows.paths.repeated()
    print(f"named more than once: {len(found):,}")
    leaks = [places for places in found if _leaks(rows, places)]
    said = [f"{rows.paths[int(p[0])]} (rows {' and '.join(str(row + 1) for row in p)})" for p in leaks or found]
    if leaks:
        return [f"leak: held out and also to be learned from: {_listed(said)}"]
    return [f"named more than once: {_listed(said)}"] if said else []


def _files(rows: Rows, jobs: int) -> list[str]:
    """Open all pictures; return what is wrong with them."""
    pictures = pictures_of(rows.root, rows.paths, np.arange(len(rows.label)))
    with progress_bar("opening pictures") as advance:
        found = examine(pictures, jobs, advance)
    whole = np.flatnonzero(found.same >= 0)
    twice = whole[found.same[whole] != whole]
    print(f"missing or broken: {len(found.broken):,}; of the same content as another: {len(twice):,}")
    problems = [f"{len(found.broken)} pictures cannot be shown: {_listed(text for _, text in found.broken)}"]
    leaks = [row for row in twice.tolist() if _leaks(rows, np.array([row, found.same[row]]))]
    pairs = [f"{rows.paths[row]} = {rows.paths[int(found.same[row])]}" for row in leaks or twice.tolist()]
    what = "leak: held-out pictures of the same content as one to learn from" if leaks else "the same content twice"
    return problems * bool(found.broken) + [f"{what}: {_listed(pairs)}"] * bool(pairs)


def _leaks(rows: Rows, places: np.ndarray) -> bool:
    return rows.split is not None and len(set(np.isin(rows.split[places], _LEARNED).tolist())) == 2


def _stream(stream: Stream) -> None:
    """Say what a run would make of it with the settings as they are."""
    n = stream.samples
    print(f"stream: {n:,} samples in {len(stream):,} steps; held out: {_listed(stream.heldout) or 'nothing'}")
    for note in stream.notes:
        print(f"note: {_plain(note)}")
    if stream.shifts:
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
    else:
        print("nothing is predicted ahead in this order: neither autocorrelation nor blind classifiers matter")
    print(f"fingerprint: {stream.fingerprint()}")


def _window(window: int | None) -> str:
    return "last label" if window == 1 else "majority" if window is None else f"mode of {window:,}"


def _listed(items: Iterable[object]) -> str:
    texts = [str(item) for item in items]
    more = f" and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _plain(text: str) -> str:
    """Return one line that every terminal can print, whatever bytes a path holds."""
    return " ".join(os.fsencode(text).decode(errors="backslashreplace").split())
