"""Metrics as functions of arrays: numpy or torch in (same results), plain floats out. Torch and numpy only.

Three rules hold for all predict-then-learn metrics (protocols of EvalOCL, arXiv 2305.09275, made exact):

- A row is one prediction: of the sample at position ``index`` of the stream, made when the labels of the first ``seen``
  samples were known. ``index - seen`` is its lead. ``seen > index`` is a leak and an error.
- Near-future accuracy at shift S takes for each index the one row with the smallest lead of at least S. Online accuracy
  is the same at S = 0.
- Averages begin after a warm-up (10 % of the stream), and never before position S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetcl.errors import UserError, at_least
from budgetcl.metrics._arrays import Array, booleans, floats, integers, labels, together, warmup_end


def top_k_hits(scores: Array, target: Array, k: int = 5) -> Tensor:
    """Return which rows have their target among the k best scores.

    A target that ties with others at the k-th place is a miss if more than k classes score at least as much: a
    constant score hits nothing.

    Args:
        scores: (n, classes) finite numbers.
        target: (n,) columns of ``scores``.
        k: how many guesses count.

    Returns:
        (n,) bool.

    Raises:
        UserError: bad shapes or numbers, a target that is no column, k below 1.

    Examples:
        >>> top_k_hits([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], [2, 2], k=2).tolist()
        [True, False]
    """
    at_least(1, k=k)
    values = floats("scores", scores, dimensions=2)
    columns = integers("target", target)
    values, columns = together(scores=values, target=columns)
    wrong = ((columns < 0) | (columns >= values.shape[1])).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"target holds {int(columns[row])} at row {row}; scores has the columns 0 to {values.shape[1] - 1}"
        )
    own = values.gather(1, columns[:, None])
    return (values >= own).sum(1) <= k


def _hits(pred: Array, target: Array, top_k: int) -> Tensor:
    if getattr(pred, "ndim", 1) == 2:
        return top_k_hits(pred, target, top_k)
    if top_k != 1:
        raise UserError(f"top_k={top_k} needs scores of the shape (n, classes); pred holds one label a row")
    given, wanted = labels(pred=pred, target=target)
    return given == wanted


def accuracy(pred: Array, target: Array, *, top_k: int = 1) -> float:
    """Return the share of hits.

    Args:
        pred: (n,) labels, or (n, classes) scores.
        target: (n,) labels.
        top_k: with scores, how many guesses count.

    Raises:
        UserError: bad labels, unequal lengths.

    Examples:
        >>> accuracy(["cat", "dog"], ["cat", "cat"])
        0.5
    """
    return _mean(_hits(pred, target, top_k))


def _mean(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _first(found: Tensor) -> int:
    """Return the position of the first True."""
    return int(found.to(torch.uint8).argmax())


@dataclass(frozen=True)
class _Rows:
    """Checked rows of a log, ascending in (index, lead)."""

    hits: Tensor
    index: Tensor
    seen: Tensor
    samples: int
    unique: bool  # one row for each index


def _rows(hits: Tensor, index: Array | None, seen: Array | None, samples: int | None) -> _Rows:
    """Check the rows of a predict-then-learn log and sort them by index, then by lead."""
    position = torch.arange(len(hits), device=hits.device) if index is None else integers("index", index)
    known = None if seen is None else integers("seen", seen)
    hits, position, known = together(pred=hits, index=position, seen=known)
    known = position if known is None else known
    for name, column in (("index", position), ("seen", known)):
        if int(column.min()) < 0:
            row = _first(column < 0)
            raise UserError(
                f"{name} holds {int(column[row])} at row {row}; positions of the stream, from 0 on, are expected"
            )
    leaks = known > position
    if bool(leaks.any()):
        row = _first(leaks)
        raise UserError(
            f"row {row} predicts index {int(position[row])} after seen={int(known[row])} labels, its own among them: "
            "a leak. Held-out and retention rows do not belong here"
        )
    last = int(position.max())
    if samples is None:
        samples = last + 1
    elif last >= samples:
        raise UserError(f"index holds {last}, but the stream has samples={samples}")
    unique = index is None or bool((position[1:] > position[:-1]).all())
    if not unique:
        # Stable sorts by the lesser key first: the latest seen (the smallest lead) comes first for each index.
        order = known.argsort(descending=True, stable=True)
        order = order[position[order].argsort(stable=True)]
        hits, position, known = hits[order], position[order], known[order]
        twice = (position[1:] == position[:-1]) & (known[1:] == known[:-1])
        if bool(twice.any()):
            at = _first(twice)
            raise UserError(
                f"rows {int(order[at])} and {int(order[at + 1])} both predict index {int(position[at])} after "
                f"seen={int(known[at])} labels; give one row for each index and shift, or one shift at a time"
            )
        unique = not bool((position[1:] == position[:-1]).any())
    return _Rows(hits, position, known, samples, unique)


def _at_shift(rows: _Rows, shift: int) -> tuple[Tensor, Tensor]:
    """Return (hits, index) of the rows with the smallest lead of at least ``shift``, one for each index from it on."""
    if shift >= rows.samples:
        raise UserError(f"shift={shift} lies beyond the stream of {rows.samples} samples")
    hits, index, seen = rows.hits, rows.index, rows.seen
    chosen = index - seen >= shift
    if rows.unique:
        lost = ~chosen & (index >= shift)
    else:
        follows = index[1:] == index[:-1]
        last = torch.ones_like(chosen)
        last[:-1] = ~follows
        lost = last & ~chosen & (index >= shift)  # leads ascend within an index: the last one is the largest
        chosen[1:] &= ~(chosen[:-1] & follows)
    if bool(lost.any()):
        raise UserError(
            f"no row predicts index {int(index[_first(lost)])} at least {shift} samples ahead (index - seen >= "
            f"{shift}); predict at this shift too, or ask for one that the log holds"
        )
    if not bool(chosen.all()):
        hits, index, seen = hits[chosen], index[chosen], seen[chosen]
    _closest(index, seen, rows.seen, shift)
    return hits, index


def _closest(index: Tensor, seen: Tensor, all_seen: Tensor, shift: int) -> None:
    """Refuse rows made earlier than need be: predictions after s labels exist, s <= index - shift, but not of it."""
    if len(index) == len(all_seen) and bool((seen[1:] >= seen[:-1]).all()):
        # All rows in order: the last row made at one time must come too early for the next time.
        last = (seen[1:] != seen[:-1]).nonzero().flatten()
        index, seen, following = index[last], seen[last], seen[last + 1]
    else:
        times = torch.unique(all_seen)
        place = torch.searchsorted(times, seen, right=True)
        later = place < len(times)
        index, seen, following = index[later], seen[later], times[place[later]]
    early = following <= index - shift
    if bool(early.any()):
        row = _first(early)
        raise UserError(
            f"index {int(index[row])} is predicted {int(index[row] - seen[row])} samples ahead, though the log goes on "
            f"at seen={int(following[row])}: it holds no rows for shift={shift}"
        )


def online_accuracy(
    pred: Array,
    target: Array,
    index: Array | None = None,
    seen: Array | None = None,
    *,
    warmup: float = 0.1,
    samples: int | None = None,
    top_k: int = 1,
) -> float:
    """Return the share of hits when each sample is predicted just before its label comes.

    ``1 / |T| * sum over t in T of [pred_t = target_t]``, T the positions behind the warm-up. On a bursty stream this
    rewards repeating the last label: compare with :func:`budgetcl.metrics.blind_accuracy`.

    Args:
        pred: (n,) labels, or (n, classes) scores.
        target: (n,) labels.
        index: (n,) positions in the stream; None: the rows are the stream, in order. Rows may come in any order.
        seen: (n,) how many labels were known at the prediction; None: the rows are trusted. Of several rows for one
            index the one with the smallest lead counts.
        warmup: what does not count: a share of the stream below 1, or a number of samples.
        samples: the length of the stream; None: the largest index + 1.
        top_k: with scores, how many guesses count.

    Raises:
        UserError: bad labels, unequal lengths, two rows for one index, a leak (``seen > index``), a warm-up that leaves
            nothing.

    Examples:
        >>> online_accuracy([1, 1, 2, 2], [1, 2, 2, 2], warmup=0)
        0.75
        >>> online_accuracy([1, 1, 2, 2], [1, 2, 2, 2], warmup=2)
        1.0
    """
    hits = _hits(pred, target, top_k)
    if index is None and seen is None and samples in (None, len(hits)):
        return _mean(hits[warmup_end(len(hits), warmup) :])
    rows = _rows(hits, index, seen, samples)
    return _average(*_at_shift(rows, 0), warmup_end(rows.samples, warmup))


def near_future_accuracy(
    pred: Array,
    target: Array,
    index: Array,
    seen: Array,
    shift: int,
    *,
    warmup: float = 0.1,
    samples: int | None = None,
    top_k: int = 1,
) -> float:
    """Return the share of hits when each sample is predicted ``shift`` samples before it comes.

    ``NFA(S) = 1 / |T| * sum over t in T of [pred_t^(S) = target_t]`` with T the positions from max(warm-up, S) on and
    pred^(S) the prediction with the smallest lead of at least S. With S behind the reach of label correlation
    (:func:`budgetcl.metrics.select_shift`) repeating past labels no longer helps. Shifts that are not whole chunks
    apart make some predictions twice; give the rows of one shift then (:func:`budgetcl.metrics.rows_of`).

    Args:
        pred: (n,) labels, or (n, classes) scores.
        target: (n,) labels.
        index: (n,) positions in the stream, in any order.
        seen: (n,) how many labels were known at the prediction.
        shift: S, in samples.
        warmup: what does not count: a share of the stream below 1, or a number of samples.
        samples: the length of the stream; None: the largest index + 1.
        top_k: with scores, how many guesses count.

    Raises:
        UserError: as in :func:`online_accuracy`; a negative shift, one beyond the stream, or one that the rows do not
            hold.

    Examples:
        Predicted two at a time, two samples ahead:

        >>> near_future_accuracy([1, 1, 2, 2], [1, 2, 2, 2], index=[2, 3, 4, 5], seen=[0, 0, 2, 2], shift=2, warmup=0)
        0.75
    """
    at_least(0, shift=shift)
    rows = _rows(_hits(pred, target, top_k), index, seen, samples)
    return _average(*_at_shift(rows, shift), max(shift, warmup_end(rows.samples, warmup)))


def near_future_curve(
    pred: Array,
    target: Array,
    index: Array,
    seen: Array,
    shifts: Sequence[int],
    *,
    warmup: float = 0.1,
    samples: int | None = None,
    top_k: int = 1,
) -> dict[int, float]:
    """Return near-future accuracy for several shifts, all averaged over the same positions.

    Args:
        pred: (n,) labels, or (n, classes) scores: the rows of all shifts together.
        target: (n,) labels.
        index: (n,) positions in the stream, in any order.
        seen: (n,) how many labels were known at the prediction.
        shifts: the shifts S; with 0 among them the curve holds the online accuracy.
        warmup: what does not count: a share of the stream below 1, or a number of samples. All shifts count from
            max(warm-up, largest shift) on.
        samples: the length of the stream; None: the largest index + 1.
        top_k: with scores, how many guesses count.

    Returns:
        shift -> accuracy.

    Raises:
        UserError: as in :func:`near_future_accuracy`.

    Examples:
        >>> index, seen = [0, 1, 2, 3, 2, 3], [0, 1, 2, 3, 0, 1]
        >>> near_future_curve([5, 5, 6, 6, 5, 6], [5, 6, 6, 6, 6, 6], index, seen, shifts=[0, 2], warmup=0)
        {0: 1.0, 2: 0.5}
    """
    if not len(shifts):
        raise UserError("no shift given; at least one is expected")
    for shift in shifts:
        at_least(0, shift=shift)
    rows = _rows(_hits(pred, target, top_k), index, seen, samples)
    start = max(max(shifts), warmup_end(rows.samples, warmup))
    return {shift: _average(*_at_shift(rows, shift), start) for shift in shifts}


def _average(hits: Tensor, index: Tensor, start: int) -> float:
    counted = hits[index >= start]
    if len(counted) == 0:
        raise UserError(f"no row lies behind position {start}, where the warm-up ends; give more rows or less warmup")
    return _mean(counted)


@dataclass(frozen=True)
class Retention:
    """How well the past is kept.

    Attributes:
        accuracy: share of hits over all rows.
        edges: (bins + 1,) ages, in samples; bin i holds ``edges[i] < age <= edges[i + 1]``.
        by_age: (bins,) share of hits, NaN where no row lies.
        count: (bins,) rows.
    """

    accuracy: float
    edges: tuple[float, ...]
    by_age: tuple[float, ...]
    count: tuple[int, ...]


def information_retention(
    pred: Array, target: Array, origin: Array, seen: Array, bins: int | Sequence[float] = 10, *, top_k: int = 1
) -> Retention:
    """Return the accuracy of the last model on held-out samples of the whole past, by their age.

    Only rows of the last occasion count (the largest ``seen``). The age of a row is ``seen - origin``: how many samples
    ago the thing it shows was streamed (EvalOCL, arXiv 2305.09275: "information retention").

    Args:
        pred: (n,) labels, or (n, classes) scores.
        target: (n,) labels.
        origin: (n,) the stream position each row re-takes.
        seen: (n,) how many labels the model had seen.
        bins: how many bins of equal width over the ages 0 to ``seen``, or their edges (ascending, the first below every
            age).
        top_k: with scores, how many guesses count.

    Raises:
        UserError: bad columns; an origin below 0 or not yet seen; edges that do not ascend or leave an age out.

    Examples:
        >>> kept = information_retention([1, 2, 3, 9], [1, 2, 3, 4], origin=[9, 6, 3, 0], seen=[10] * 4, bins=2)
        >>> kept.accuracy, kept.edges, kept.by_age
        (0.75, (0.0, 5.0, 10.0), (1.0, 0.5))
    """
    hits, past, known = together(
        pred=_hits(pred, target, top_k), origin=integers("origin", origin), seen=integers("seen", seen)
    )
    last = int(known.max())
    final = known == last
    hits, past = hits[final], past[final]
    for wrong, what in ((past < 0, "which is no position of the stream"), (past >= last, f"not among the {last} seen")):
        if bool(wrong.any()):
            row = int(final.nonzero()[_first(wrong)])
            raise UserError(f"origin holds {int(past[_first(wrong)])} at row {row}, {what}; give retention rows only")
    if isinstance(bins, int):
        at_least(1, bins=bins)
        edges = torch.arange(bins + 1, dtype=torch.float64, device=past.device) * last / bins
    else:
        edges = floats("bins", bins).to(past.device)
        if len(edges) < 2 or bool((edges[1:] <= edges[:-1]).any()):
            raise UserError(f"bins={list(bins)} given; at least two ascending edges are expected")
    age = (last - past).double()
    place = torch.searchsorted(edges, age) - 1
    outside = (place < 0) | (place >= len(edges) - 1)
    if bool(outside.any()):
        lost = int(age[_first(outside)])
        raise UserError(f"the age {lost} lies in no bin of ({float(edges[0])}, {float(edges[-1])}]; give wider edges")
    count = torch.bincount(place, minlength=len(edges) - 1)
    right = torch.bincount(place[hits], minlength=len(edges) - 1)
    by_age = (right.double() / count.double()).tolist()
    return Retention(_mean(hits), tuple(edges.tolist()), tuple(by_age), tuple(count.tolist()))


def accuracy_by_step(pred: Array, target: Array, step: Array, *, top_k: int = 1) -> tuple[Tensor, Tensor]:
    """Return the accuracy after each time step.

    Args:
        pred: (n,) labels, or (n, classes) scores.
        target: (n,) labels.
        step: (n,) the time step after which the row was predicted.
        top_k: with scores, how many guesses count.

    Returns:
        ((steps,) int64 step numbers, ascending, (steps,) float64 accuracies).

    Examples:
        >>> accuracy_by_step([1, 2, 2, 2], [1, 1, 2, 2], [0, 0, 1, 1])[1].tolist()
        [0.5, 1.0]
    """
    hits, steps = together(pred=_hits(pred, target, top_k), step=integers("step", step))
    numbers, place, count = torch.unique(steps, return_inverse=True, return_counts=True)
    right = torch.bincount(place[hits], minlength=len(numbers))
    return numbers, right.double() / count.double()


def accuracy_matrix(pred: Array, target: Array, step: Array, task: Array, *, top_k: int = 1) -> Tensor:
    """Return R with R[i, j] = accuracy after the i-th step on task j, NaN where nothing was predicted.

    Args:
        pred: (n,) labels, or (n, classes) scores.
        target: (n,) labels.
        step: (n,) the time step after which the row was predicted.
        task: (n,) the task a row belongs to, 0, 1, ...: in a class-incremental stream the step that brought its class.
            Rows below 0 (pretraining classes) are left out.
        top_k: with scores, how many guesses count.

    Returns:
        (steps, tasks) float64.

    Examples:
        >>> accuracy_matrix([1, 1, 2], [1, 1, 2], step=[0, 1, 1], task=[0, 0, 1])
        tensor([[1., nan],
                [1., 1.]], dtype=torch.float64)
    """
    hits, steps, tasks = together(
        pred=_hits(pred, target, top_k), step=integers("step", step), task=integers("task", task)
    )
    kept = tasks >= 0
    if not bool(kept.any()):
        raise UserError("task holds no number of at least 0; give each row the step that brought its class")
    hits, steps, tasks = hits[kept], steps[kept], tasks[kept]
    numbers, place = torch.unique(steps, return_inverse=True)
    width = int(tasks.max()) + 1
    cell = place * width + tasks
    count = torch.bincount(cell, minlength=len(numbers) * width)
    right = torch.bincount(cell[hits], minlength=len(numbers) * width)
    return (right.double() / count.double()).view(len(numbers), width)


def _numbers(matrix: Array) -> Tensor:
    values = matrix.double() if isinstance(matrix, Tensor) else torch.as_tensor(_plain(matrix), dtype=torch.float64)
    if values.ndim != 2 or len(values) == 0:
        raise UserError(f"an accuracy matrix of the shape (steps, tasks) is expected; given {tuple(values.shape)}")
    return values


def _matrix(matrix: Array) -> Tensor:
    """Return an accuracy matrix as float64, which must be square and filled up to its diagonal."""
    values = _numbers(matrix)
    if values.shape[0] != values.shape[1]:
        raise UserError(f"an accuracy matrix of the shape (steps, steps) is expected; given {tuple(values.shape)}")
    filled = torch.ones_like(values).tril().bool()
    wrong = (filled & ~torch.isfinite(values)).nonzero()
    if len(wrong):
        i, j = wrong[0].tolist()
        raise UserError(f"the accuracy matrix has no number at [{i}, {j}]: task {j} must be tested after step {i}")
    return values


def _plain(values: Any) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(f"accuracies of the type {array.dtype} given; numbers are expected")
    return array.astype(np.float64)


def _by_step(values: Array) -> Tensor:
    """Return the accuracy after each step, of a row of accuracies or the lower triangle of a matrix."""
    if getattr(values, "ndim", None) == 2 or (isinstance(values, Sequence) and isinstance(values[0], Sequence)):
        matrix = _matrix(values)
        weights = torch.ones_like(matrix).tril()
        return (torch.nan_to_num(matrix).tril()).sum(1) / weights.sum(1)
    return floats("accuracy", values)


def average_accuracy(accuracies: Array) -> float:
    """Return the mean over time steps of the accuracy on everything seen so far (average incremental accuracy).

    Args:
        accuracies: (steps,) accuracy after each step, as :func:`accuracy_by_step` gives it (each sample counts the
            same), or (steps, tasks) R, as :func:`accuracy_matrix` gives it (each task counts the same).

    Examples:
        >>> average_accuracy([0.9, 0.6])
        0.75
        >>> average_accuracy([[0.9, 0.0], [0.5, 0.7]])
        0.75
    """
    return float(_by_step(accuracies).mean())


def final_accuracy(accuracies: Array) -> float:
    """Return the accuracy after the last step on everything seen; arguments as in :func:`average_accuracy`.

    Examples:
        >>> final_accuracy([0.9, 0.6])
        0.6
    """
    return float(_by_step(accuracies)[-1])


def forgetting(matrix: Array, reference: str = "best") -> float:
    """Return how much accuracy is lost on earlier tasks, averaged over all tasks but the last.

    ``1 / (T-1) * sum over j < T-1 of (ref_j - R[T-1, j])``, ref_j = the best accuracy on task j before the last step
    ("best": Chaudhry et al. 2018, arXiv 1801.10112), or that just after learning it ("first": Avalanche; the negative
    of backward transfer).

    Args:
        matrix: (T, T) R, T at least 2; what stands above the diagonal does not count. Where not every step is followed
            by a test, (tests, tasks) with NaN where a task was not tested: then the tasks count that were tested last
            and at least once before.
        reference: "best" or "first".

    Raises:
        UserError: another shape, no task tested twice, another reference.

    Examples:
        >>> round(forgetting([[0.9, 0.0], [0.5, 0.7]]), 3)
        0.4
    """
    if reference not in ("best", "first"):
        raise UserError(f"reference={reference!r} given; 'best' or 'first' is expected")
    values = _numbers(matrix)
    if values.shape[0] == values.shape[1]:
        _several(len(values))
        values = values.masked_fill(~torch.ones_like(values).tril().bool(), torch.nan)
    earlier, last = values[:-1], values[-1]
    tested = ~torch.isnan(earlier)
    kept = tested.any(0) & ~torch.isnan(last)
    if not bool(kept.any()):
        raise UserError("no task is tested after the last step and before it; forgetting needs one that is")
    if reference == "first":
        start = earlier.gather(0, tested.to(torch.uint8).argmax(0, keepdim=True))[0]
    else:
        start = earlier.masked_fill(~tested, -torch.inf).max(0).values
    return float((start - last)[kept].mean())


def backward_transfer(matrix: Array) -> float:
    """Return what later learning gave to earlier tasks: ``mean over j < T-1 of (R[T-1, j] - R[j, j])``.

    Args:
        matrix: (T, T) R, T at least 2 (Lopez-Paz and Ranzato 2017, arXiv 1706.08840).

    Raises:
        UserError: another shape, a gap in the lower triangle.

    Examples:
        >>> round(backward_transfer([[0.5, 0.0], [0.7, 0.7]]), 3)
        0.2
    """
    values = _matrix(matrix)
    _several(len(values))
    return -forgetting(values, "first")


def forward_transfer(matrix: Array, baseline: Array) -> float:
    """Return what earlier learning gives to a task before it comes: ``mean over j > 0 of (R[j-1, j] - b_j)``.

    Args:
        matrix: (T, T) R, T at least 2, with the first diagonal above the main one filled (Lopez-Paz and Ranzato 2017).
        baseline: (T,) accuracy b of an untrained model on each task. There is no default: chance is seldom zero.

    Raises:
        UserError: another shape, a gap.

    Examples:
        >>> forward_transfer([[0.5, 0.25], [0.7, 0.7]], baseline=[0.125, 0.125])
        0.125
    """
    values = _matrix(matrix)
    _several(len(values))
    before = values.diagonal(1)
    chance = floats("baseline", baseline).to(values.device)
    if len(chance) != len(values):
        raise UserError(f"baseline holds {len(chance)} numbers; one for each of the {len(values)} tasks is expected")
    if not bool(torch.isfinite(before).all()):
        j = _first(~torch.isfinite(before)) + 1
        raise UserError(f"the accuracy matrix has no number at [{j - 1}, {j}]: task {j} must be tested before it comes")
    return float((before - chance[1:]).mean())


def _several(tasks: int) -> None:
    if tasks < 2:
        raise UserError(f"an accuracy matrix of {tasks} task given; transfer between tasks needs two")


def _spending(accuracies: Array, spent: Array) -> tuple[Tensor, Tensor]:
    values, cost = together(accuracy=floats("accuracy", accuracies), spent=floats("spent", spent))
    if bool((cost[1:] <= cost[:-1]).any()):
        at = _first(cost[1:] <= cost[:-1]) + 1
        raise UserError(f"spent must ascend; it holds {float(cost[at])} at {at} after {float(cost[at - 1])}")
    return values, cost


def anytime_accuracy(accuracies: Array, spent: Array) -> float:
    """Return the area under accuracy against what was spent, scaled to [0, 1] (trapezoids between measurements).

    ``1 / (c_n - c_1) * integral from c_1 to c_n of accuracy dc``: how good the model was *on the way*, not only at the
    end. A single measurement is returned as it is.

    Args:
        accuracies: (n,) measurements.
        spent: (n,) FLOPs (2 x MAC), samples or seconds at each of them, ascending.

    Raises:
        UserError: unequal lengths, costs that do not ascend.

    Examples:
        >>> anytime_accuracy([0.0, 0.5, 0.5], spent=[0, 1, 3])
        0.4166666666666667
    """
    values, cost = _spending(accuracies, spent)
    if len(values) == 1:
        return float(values[0])
    return float(torch.trapezoid(values, cost) / (cost[-1] - cost[0]))


def accuracy_at_budget(accuracies: Array, spent: Array, budget: float) -> float:
    """Return the accuracy of the last model that cost no more than the budget; nothing is interpolated.

    Args:
        accuracies: (n,) measurements.
        spent: (n,) what was spent at each of them, ascending.
        budget: in the same unit.

    Raises:
        UserError: as in :func:`anytime_accuracy`; a budget below the first measurement.

    Examples:
        >>> accuracy_at_budget([0.2, 0.6, 0.7], spent=[10, 20, 30], budget=29)
        0.6
    """
    values, cost = _spending(accuracies, spent)
    affordable = int((cost <= budget).sum())
    if not affordable:
        raise UserError(f"budget={budget} lies below the first measurement at {float(cost[0])}; give a larger one")
    return float(values[affordable - 1])


def negative_flip_rate(old_pred: Array, new_pred: Array, target: Array) -> float:
    """Return the share of samples that the old model had right and the new one has wrong.

    Yan et al. 2021, arXiv 2011.09161: what users of an updated model notice, also where accuracy rose.

    Args:
        old_pred: (n,) labels from the old model.
        new_pred: (n,) labels from the new model for the same samples.
        target: (n,) labels.

    Raises:
        UserError: bad labels, unequal lengths.

    Examples:
        >>> negative_flip_rate([1, 1, 2, 2], [1, 2, 2, 1], [1, 1, 2, 1])
        0.25
    """
    old, new, wanted = labels(old_pred=old_pred, new_pred=new_pred, target=target)
    return _mean((old == wanted) & (new != wanted))


@dataclass(frozen=True)
class ByClass:
    """Accuracy by class.

    Attributes:
        label: (classes,) the classes, ascending (in numpy for strings).
        accuracy: (classes,) share of hits among the rows of a class.
        count: (classes,) rows.
    """

    label: tuple[Any, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def balanced(self) -> float:
        """The mean over classes: each class counts the same."""
        return sum(self.accuracy) / len(self.accuracy)


def class_accuracy(pred: Array, target: Array) -> ByClass:
    """Return the accuracy on each class that occurs in ``target``.

    Args:
        pred: (n,) labels.
        target: (n,) labels.

    Raises:
        UserError: bad labels, unequal lengths.

    Examples:
        >>> by_class = class_accuracy([1, 1, 2], [1, 2, 2])
        >>> by_class.label, by_class.accuracy, by_class.balanced
        ((1, 2), (1.0, 0.5), 0.75)
    """
    given, wanted = labels(pred=pred, target=target)
    codes, place, count = torch.unique(wanted, return_inverse=True, return_counts=True)
    right = torch.bincount(place[given == wanted], minlength=len(codes))
    names = codes.tolist()
    host = None if isinstance(target, Tensor) else np.asarray(target)
    if host is not None and host.dtype.kind in "USO" and isinstance(host.flat[0], str):
        names = np.unique(host.astype(str)).tolist()
    return ByClass(tuple(names), tuple((right.double() / count.double()).tolist()), tuple(count.tolist()))


def longtail_accuracy(
    pred: Array, target: Array, train_labels: Array, edges: tuple[int, int] = (20, 100)
) -> dict[str, float]:
    """Return the accuracy on head, middle and tail classes, by how often a class was seen in training.

    Head: more than ``edges[1]`` times; tail: fewer than ``edges[0]`` times; middle: between (Liu et al. 2019, arXiv
    1904.05160, many/medium/few shot). Each row counts the same.

    Args:
        pred: (n,) labels.
        target: (n,) labels.
        train_labels: (m,) every label seen in training, in any order.
        edges: the two frequencies.

    Returns:
        "head", "middle" and "tail" -> accuracy, NaN where no row belongs there.

    Raises:
        UserError: bad labels, unequal lengths, descending edges.

    Examples:
        >>> longtail_accuracy([1, 2, 2], [1, 2, 3], train_labels=[1] * 9 + [2] * 5 + [3], edges=(2, 6))
        {'head': 1.0, 'middle': 1.0, 'tail': 0.0}
    """
    low, high = edges
    if not low <= high:
        raise UserError(f"edges={edges} given; two ascending frequencies are expected")
    if len(pred) != len(target):
        raise UserError(f"columns must be equally long; given pred: {len(pred)}, target: {len(target)}")
    given, wanted, trained = _three(pred, target, train_labels)
    _, place = torch.unique(torch.cat([wanted, trained]), return_inverse=True)
    often = torch.bincount(place[len(wanted) :], minlength=int(place.max()) + 1)[place[: len(wanted)]]
    hits = (given == wanted).double()
    groups = {"head": often > high, "middle": (often >= low) & (often <= high), "tail": often < low}
    return {name: float(hits[rows].mean()) for name, rows in groups.items()}


def _three(pred: Array, target: Array, other: Array) -> tuple[Tensor, Tensor, Tensor]:
    """Number the labels of two equally long columns and a third of any length together."""
    columns: list[Any] = [value if isinstance(value, Tensor) else np.asarray(value) for value in (pred, target, other)]
    bounds = np.cumsum([len(value) for value in columns])[:-1].tolist()
    if all(isinstance(value, Tensor) for value in columns):
        joined: Any = torch.cat(columns)
    else:
        joined = np.concatenate([v.cpu().numpy() if isinstance(v, Tensor) else v for v in columns])
    (codes,) = labels(labels=joined)
    first, second, third = codes.tensor_split(bounds)
    return first, second, third


def calibration_error(confidence: Array, hits: Array, bins: int = 15, norm: str = "l1") -> float:
    """Return the expected calibration error of the confidence in the predicted label (by torchmetrics).

    Args:
        confidence: (n,) in [0, 1], of the predicted label.
        hits: (n,) bool, whether it was right.
        bins: how many bins of equal width.
        norm: "l1" (expected), "l2" (root mean square) or "max".

    Raises:
        UserError: confidences outside [0, 1], unequal lengths.

    Examples:
        >>> round(calibration_error([0.9, 0.9, 0.9, 0.9], [1, 1, 1, 0]), 3)
        0.15
    """
    from torchmetrics.functional.classification import binary_calibration_error

    sure, right = together(confidence=floats("confidence", confidence), hits=booleans("hits", hits))
    if bool(((sure < 0) | (sure > 1)).any()):
        row = _first((sure < 0) | (sure > 1))
        raise UserError(f"confidence holds {float(sure[row])} at row {row}; numbers in [0, 1] are expected")
    if norm not in ("l1", "l2", "max"):
        raise UserError(f"norm={norm!r} given; 'l1', 'l2' or 'max' is expected")
    return float(binary_calibration_error(sure, right.long(), n_bins=bins, norm=norm))  # type: ignore[arg-type]
