"""All metrics of a prediction log in one pass, a part at a time: one byte for each streamed sample and shift, no more.

The definitions are those of :mod:`budgetcl.metrics.functional`; a test holds both to the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError
from budgetcl.metrics._arrays import warmup_end
from budgetcl.metrics.functional import average_accuracy, calibration_error, final_accuracy, forgetting
from budgetcl.metrics.log import AHEAD, HELDOUT

HIT, TOP5, PRESENT = 1, 2, 4  # bits of a streamed sample's byte
AGE_BINS = 10
TIME_BLOCKS = 50  # stretches of the stream over which accuracy is drawn and bootstrapped
LABELS_KEPT = 5_000_000  # for blind classifiers: a prefix of this length, or all of a shorter stream
_CONFIDENCES_KEPT = 1 << 20
_LARGEST_CLASS = 1 << 22  # above it (and below 0), classes are counted in a dictionary


@dataclass(frozen=True)
class Scores:
    """What a log says.

    Attributes:
        numbers: metric -> value, in the order to print; what the log does not hold is left out.
        curve: shift -> accuracy, all over the same positions; empty without ahead rows.
        along: shift -> (blocks,) accuracy in equal stretches of the stream behind the warm-up.
        by_step: time step -> accuracy on held-out rows.
        by_age: (bins,) accuracy on retention rows by age, equal bins from the newest to the oldest; or None.
        by_class: class -> (rows, hits), over the rows at shift 0 or, without any, those held out after the last step.
        missing: shift -> how many positions behind the warm-up have no row.
        samples: length of the stream.
        start: first position that counts.
        chunk: how many samples were predicted at once, at most; 1 where the log does not say ``seen``.
        labels: the stream's first labels, as many as were kept; empty without shift 0.
    """

    numbers: dict[str, float]
    curve: dict[int, float]
    along: dict[int, NDArray[np.float64]]
    by_step: dict[int, float]
    by_age: NDArray[np.float64] | None
    by_class: dict[int, tuple[int, int]]
    missing: dict[int, int]
    samples: int
    start: int
    chunk: int
    labels: NDArray[np.int64]


@dataclass
class _Bytes:
    """A byte for each position of the stream, grown as it comes."""

    values: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(1 << 16, dtype=np.uint8))
    length: int = 0

    def reach(self, end: int) -> None:
        if end > len(self.values):
            grown = np.zeros(max(end, 5 * len(self.values) // 4), dtype=np.uint8)
            grown[: len(self.values)] = self.values
            self.values = grown
        self.length = max(self.length, end)

    def since(self, start: int, end: int) -> NDArray[np.uint8]:
        self.reach(end)
        return self.values[start:end]


class LogScorer:
    """Takes a log in parts, in any order of rows, and says all its metrics.

    Args:
        warmup: what does not count: a share of the stream below 1, or a number of samples.
        samples: the length of the stream; None: the largest ahead index + 1.

    Examples:
        >>> scorer = LogScorer(warmup=0)
        >>> scorer.add({"set": np.array([0, 0]), "index": np.array([0, 1]), "shift": np.zeros(2, int),
        ...             "pred": np.array([7, 7]), "target": np.array([7, 8])})
        >>> scorer.scores().numbers["online_accuracy"]
        0.5
    """

    def __init__(self, *, warmup: float = 0.1, samples: int | None = None) -> None:
        self._warmup, self._samples = warmup, samples
        self._row = 0
        self._ahead: dict[int, _Bytes] = {}
        self._labels = np.zeros(0, dtype=np.int64)
        self._cells: dict[tuple[int, int], NDArray[np.int64]] = {}  # (step, task) -> rows, hits, top-5 hits
        self._age_seen = -1
        self._ages = np.zeros((2, AGE_BINS), dtype=np.int64)
        self._retained = np.zeros(2, dtype=np.int64)
        self._confidence: dict[str, _Thinned] = {AHEAD: _Thinned(), HELDOUT: _Thinned()}
        self._classes: dict[str, _Classes] = {AHEAD: _Classes(), HELDOUT: _Classes()}
        self._last_step = -1
        self._chunk = 1
        self._has_top5 = self._has_task = False

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Take the next rows.

        Args:
            columns: (n,) arrays by name: ``set`` (0 ahead, 1 heldout, 2 retention), ``index``, ``target``, ``pred``
                and, where there are any, ``shift``, ``seen``, ``step``, ``task``, ``top5``, ``confidence``, ``origin``.
                Strings must have been numbered.

        Raises:
            UserError: a leak, a lead below the shift, two rows for one index and shift, an origin not yet seen; each
                names the first such row of the whole log.
        """
        sets = columns["set"]
        hits = columns["pred"] == columns["target"]
        self._has_top5 |= "top5" in columns
        self._has_task |= "task" in columns
        for code, take in ((0, self._add_ahead), (1, self._add_heldout), (2, self._add_retention)):
            rows = np.flatnonzero(sets == code)
            if len(rows) == len(sets):
                take(dict(columns), hits, rows)
            elif len(rows):
                take({name: values[rows] for name, values in columns.items()}, hits[rows], rows)
        self._row += len(sets)

    def _refuse(self, wrong: NDArray[np.bool_], rows: NDArray[np.int64], say: Any) -> None:
        if wrong.any():
            at = int(np.argmax(wrong))
            raise UserError(f"row {self._row + int(rows[at])} {say(at)}")

    def _add_ahead(self, part: dict[str, Any], hits: NDArray[np.bool_], rows: NDArray[np.int64]) -> None:
        index = part["index"]
        shift = part.get("shift")
        self._refuse(index < 0, rows, lambda at: f"has index={index[at]}; positions of the stream start at 0")
        if self._samples is not None:
            self._refuse(
                index >= self._samples,
                rows,
                lambda at: f"has index={index[at]}; the stream has {self._samples} samples",
            )
        if shift is not None:
            self._refuse(shift < 0, rows, lambda at: f"is predicted ahead at shift={shift[at]}; at least 0 is expected")
        if "seen" in part:
            lead = index - part["seen"]
            self._refuse(
                lead < 0,
                rows,
                lambda at: (
                    f"predicts index {index[at]} after seen={part['seen'][at]} labels, its own among them: a leak"
                ),
            )
            if shift is not None:
                self._refuse(
                    lead < shift,
                    rows,
                    lambda at: f"predicts index {index[at]} {lead[at]} samples ahead, less than its shift={shift[at]}",
                )
            near = lead if shift is None else lead - shift
            self._chunk = max(self._chunk, int(near.max()) + 1)
        for value in [0] if shift is None else np.unique(shift).tolist():
            at = slice(None) if shift is None else np.flatnonzero(shift == value)
            bits = np.where(hits[at], HIT | PRESENT, PRESENT).astype(np.uint8)
            if "top5" in part:
                bits[part["top5"][at].astype(bool)] |= TOP5
            self._mark(int(value), index[at], bits, rows[at])
            if value == 0:
                self._keep_labels(index[at], part["target"][at])
                self._classes[AHEAD].add(index[at], part["target"][at], hits[at])
                if "confidence" in part:
                    self._confidence[AHEAD].add(part["confidence"][at], hits[at])

    def _mark(self, shift: int, index: NDArray[np.int64], bits: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        table = self._ahead.setdefault(shift, _Bytes())
        table.reach(int(index.max()) + 1)
        again = table.values[index] != 0
        if not again.any() and not (np.diff(index) > 0).all():
            first = np.unique(index, return_index=True)[1]
            again = np.ones(len(index), dtype=bool)
            again[first] = False
        self._refuse(again, rows, lambda at: f"predicts index {index[at]} at shift={shift} for the second time")
        table.values[index] = bits

    def _keep_labels(self, index: NDArray[np.int64], target: NDArray[np.int64]) -> None:
        end = min(int(index.max()) + 1, LABELS_KEPT)
        if end > len(self._labels):
            grown = np.zeros(min(LABELS_KEPT, max(end, 2 * len(self._labels))), dtype=np.int64)
            grown[: len(self._labels)] = self._labels
            self._labels = grown
        if int(index.min()) < LABELS_KEPT:
            early = index < LABELS_KEPT
            self._labels[index[early]] = target[early]

    def _add_heldout(self, part: dict[str, Any], hits: NDArray[np.bool_], rows: NDArray[np.int64]) -> None:
        step = part.get("step", np.zeros(len(hits), dtype=np.int64)).astype(np.int64)
        task = part.get("task", np.zeros(len(hits), dtype=np.int64)).astype(np.int64)
        top5 = part.get("top5", np.zeros(len(hits), dtype=bool)).astype(bool)
        width = int(task.max()) + 2  # tasks start at -1
        if int(task.min()) < -1 or int(step.min()) < 0:
            raise UserError(
                f"held-out rows have step={int(step.min())}, task={int(task.min())}; from 0 (-1) on expected"
            )
        cells, place, count = np.unique(step * width + task + 1, return_inverse=True, return_counts=True)
        right = np.bincount(place[hits], minlength=len(cells))
        top = np.bincount(place[top5], minlength=len(cells))
        for i, cell in enumerate(cells.tolist()):
            sums = self._cells.setdefault((cell // width, cell % width - 1), np.zeros(3, dtype=np.int64))
            sums += (count[i], right[i], top[i])
        if int(step.max()) > self._last_step:
            self._last_step = int(step.max())
            self._classes[HELDOUT], self._confidence[HELDOUT] = _Classes(), _Thinned()
        last = step == self._last_step
        if last.any():
            self._classes[HELDOUT].add(None, part["target"][last], hits[last])
            if "confidence" in part:
                self._confidence[HELDOUT].add(part["confidence"][last], hits[last])

    def _add_retention(self, part: dict[str, Any], hits: NDArray[np.bool_], rows: NDArray[np.int64]) -> None:
        seen = part.get("seen")
        if seen is None:
            raise UserError("retention rows need the column 'seen'")
        if int(seen.max()) > self._age_seen:
            self._age_seen = int(seen.max())
            self._ages[:], self._retained[:] = 0, 0
        last = seen == self._age_seen
        self._retained += (last.sum(), hits[last].sum())
        if "origin" not in part:
            return
        origin = part["origin"]
        self._refuse(
            (origin >= seen) | (origin < 0), rows, lambda at: f"re-takes position {origin[at]} of {seen[at]} seen"
        )
        age = self._age_seen - origin[last]
        place = np.minimum((age - 1) * AGE_BINS // self._age_seen, AGE_BINS - 1)
        self._ages[0] += np.bincount(place, minlength=AGE_BINS)
        self._ages[1] += np.bincount(place[hits[last]], minlength=AGE_BINS)

    def scores(self) -> Scores:
        """Return what the rows so far say.

        Raises:
            UserError: no rows; a shift or warm-up beyond the stream; too few time steps for what is asked.
        """
        if not self._row:
            raise UserError("the log holds no rows")
        samples = self._samples or max((table.length for table in self._ahead.values()), default=0)
        start = 0
        numbers: dict[str, float] = {}
        curve: dict[int, float] = {}
        along: dict[int, NDArray[np.float64]] = {}
        missing: dict[int, int] = {}
        if self._ahead:
            start = max(warmup_end(samples, self._warmup), *self._ahead)
            if start >= samples:
                raise UserError(f"shift={max(self._ahead)} leaves nothing of a stream of {samples} samples")
            for shift in sorted(self._ahead):
                blocks = _blocks(self._ahead[shift].since(start, samples))
                present, right, top = blocks.sum(axis=1).tolist()
                if not present:
                    raise UserError(f"no row at shift={shift} lies behind position {start}, where the warm-up ends")
                curve[shift], missing[shift] = right / present, samples - start - present
                with np.errstate(invalid="ignore"):
                    along[shift] = blocks[1] / blocks[0]
                if shift == 0:
                    numbers["online_accuracy"] = curve[0]
                    if self._has_top5:
                        numbers["online_top5"] = top / present
        if self._cells:
            numbers |= self._heldout_numbers()
        if self._retained[0]:
            numbers["information_retention"] = float(self._retained[1] / self._retained[0])
        for name in (AHEAD, HELDOUT):
            error = self._confidence[name].error()
            if error is not None:
                numbers["calibration_error" if name == HELDOUT else "online_calibration_error"] = error
        group = AHEAD if 0 in self._ahead else HELDOUT
        by_class = self._classes[group].table()
        if by_class:
            numbers["class_balanced_accuracy"] = float(np.mean([hits / rows for rows, hits in by_class.values()]))
        with np.errstate(invalid="ignore"):
            by_age = self._ages[1] / self._ages[0] if self._ages[0].any() else None
        labels = self._labels[: min(samples, LABELS_KEPT)] if 0 in self._ahead and not missing[0] else self._labels[:0]
        by_step = dict(zip(*self._steps(1))) if self._cells else {}
        return Scores(numbers, curve, along, by_step, by_age, by_class, missing, samples, start, self._chunk, labels)

    def _steps(self, column: int) -> tuple[list[int], list[float]]:
        steps = sorted({step for step, _ in self._cells})
        sums = {step: np.zeros(3, dtype=np.int64) for step in steps}
        for (step, _), cell in self._cells.items():
            sums[step] += cell
        return steps, [float(sums[step][column] / sums[step][0]) for step in steps]

    def _heldout_numbers(self) -> dict[str, float]:
        accuracy = self._steps(1)[1]
        numbers = {"average_accuracy": average_accuracy(accuracy), "final_accuracy": final_accuracy(accuracy)}
        if self._has_top5:
            numbers["final_top5"] = self._steps(2)[1][-1]
        tasks = sorted({task for _, task in self._cells if task >= 0})
        steps = sorted({step for step, _ in self._cells})
        if self._has_task and len(tasks) > 1 and len(steps) > 1:
            matrix = np.full((len(steps), len(tasks)), np.nan)
            for (step, task), (rows, hits, _) in self._cells.items():
                if task >= 0:
                    matrix[steps.index(step), tasks.index(task)] = hits / rows
            numbers["forgetting"] = forgetting(matrix)
        return numbers


def _blocks(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return (3, blocks): rows, hits and top-5 hits in equal stretches."""
    bounds = np.linspace(0, len(bits), min(TIME_BLOCKS, len(bits)) + 1).astype(np.int64)
    parts = np.split(bits, bounds[1:-1])
    return np.array([[np.count_nonzero(part & bit) for part in parts] for bit in (PRESENT, HIT, TOP5)], dtype=np.int64)


class _Thinned:
    """Confidences and hits, thinned evenly so that they stay few."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._stride, self._next, self._kept = 1, 0, 0

    def add(self, confidence: NDArray[Any], hits: NDArray[np.bool_]) -> None:
        at = slice(self._next, None, self._stride)
        self._parts.append((confidence[at].astype(np.float32), hits[at].copy()))
        self._kept += len(self._parts[-1][0])
        self._next = (self._next - len(hits)) % self._stride
        if self._kept > _CONFIDENCES_KEPT:
            joined = [np.concatenate(column)[::2] for column in zip(*self._parts)]
            self._parts, self._kept = [(joined[0], joined[1])], len(joined[0])
            self._stride *= 2

    def error(self) -> float | None:
        if not self._kept:
            return None
        confidence, hits = (np.concatenate(column) for column in zip(*self._parts))
        return calibration_error(confidence, hits)


class _Classes:
    """Rows and hits by class."""

    def __init__(self) -> None:
        self._small = np.zeros((2, 0), dtype=np.int64)
        self._other: dict[int, NDArray[np.int64]] = {}

    def add(self, index: NDArray[np.int64] | None, target: NDArray[np.int64], hits: NDArray[np.bool_]) -> None:
        if int(target.min()) >= 0 and int(target.max()) < _LARGEST_CLASS:
            rows = np.bincount(target, minlength=self._small.shape[1])
            grown = np.zeros((2, len(rows)), dtype=np.int64)
            grown[:, : self._small.shape[1]] = self._small
            grown[0] += rows
            grown[1] += np.bincount(target[hits], minlength=len(rows))
            self._small = grown
            return
        values, place, count = np.unique(target, return_inverse=True, return_counts=True)
        right = np.bincount(place[hits], minlength=len(values))
        for value, rows_here, hits_here in zip(values.tolist(), count.tolist(), right.tolist()):
            self._other.setdefault(value, np.zeros(2, dtype=np.int64))[:] += (rows_here, hits_here)

    def table(self) -> dict[int, tuple[int, int]]:
        small = {
            int(label): (int(self._small[0, label]), int(self._small[1, label]))
            for label in np.flatnonzero(self._small[0])
        }
        for label, (rows, hits) in self._other.items():
            before = small.get(label, (0, 0))
            small[label] = (before[0] + int(rows), before[1] + int(hits))
        return small
