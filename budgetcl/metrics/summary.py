"""What a run's summary says. A metric is an object: a run's tables -> numbers by name; add one with a small yaml."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from budgetcl.budget.formulas import maf
from budgetcl.errors import between
from budgetcl.metrics.functional import forgetting

Columns = Mapping[str, NDArray[Any]]


class Run(Protocol):
    """The tables of one run, as numpy columns (see :class:`budgetcl.records.record.Results`)."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What ``run.json`` says: steps, shift, stream_samples, ..."""
        ...

    @property
    def predictions(self) -> Columns:
        """The prediction log (:mod:`budgetcl.metrics.log`)."""
        ...

    @property
    def stream(self) -> Columns:
        """index, label, step, set, ..., by sample."""
        ...

    @property
    def steps(self) -> Columns:
        """allowance, spent, updates, stored, ..., by time step."""
        ...

    @property
    def ledger(self) -> Columns:
        """step, category, price, count, flops, charged."""
        ...

    @property
    def prices(self) -> Mapping[str, Mapping[str, Any]]:
        """Price id -> its itemised bill (:class:`budgetcl.budget.prices.Price`)."""
        ...


class Metric(Protocol):
    """Turns a run into numbers."""

    def __call__(self, run: Run) -> Mapping[str, float]:
        """Return numbers by name; NaN where one does not apply to the run."""
        ...


def step_accuracy(run: Run) -> dict[str, NDArray[np.float64]]:
    """Return the accuracy on held-out samples after each step at which they were due.

    Returns:
        ``step``: (k,) the steps; and (k,) accuracies, NaN where there is no such sample: ``all`` classes seen, those
        of the ``stream`` and of ``pretrain``; ``new``, streamed classes first revealed in the step, and ``old``, those
        of earlier steps. ``tasks``: (k, steps) the accuracy on the classes first revealed in each step.
    """
    log = run.predictions
    rows = np.flatnonzero(log["set"] == "heldout")
    step, hit = log["step"][rows], (log["pred"][rows] == log["target"][rows])
    pretrain = np.isin(run.stream["set"], ("pretest", "prevalidation"))[log["index"][rows]]
    first = _first_step(run)[log["target"][rows]]
    when, at = np.unique(step, return_inverse=True)

    def mean(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        count = np.bincount(at[mask], minlength=len(when))
        return _ratio(np.bincount(at[mask], hit[mask], minlength=len(when)), count)

    steps, streamed = int(run.info["steps"]), ~pretrain
    cells = at[streamed] * steps + first[streamed]
    count = np.bincount(cells, minlength=len(when) * steps)
    tasks = _ratio(np.bincount(cells, hit[streamed], minlength=len(when) * steps), count)
    return {
        "step": when,
        "all": mean(np.ones(len(rows), bool)),
        "stream": mean(streamed),
        "pretrain": mean(pretrain),
        "new": mean(streamed & (first == step)),
        "old": mean(streamed & (first < step)),
        "tasks": tasks.reshape(len(when), steps),
    }


def ahead_rows(run: Run, shift: int, warmup: float) -> NDArray[np.int64]:
    """Return the log's rows predicted at a shift whose indices come after the warm-up and are reached by every shift.

    Online and near-future accuracy are so averaged over the same indices.

    Args:
        run: the run.
        shift: the shift of the rows wanted.
        warmup: the share of the stream that is left out at its start.
    """
    log = run.predictions
    start = max(math.ceil(warmup * int(run.info["stream_samples"])), max(run.info["shifts"], default=0))
    return np.flatnonzero((log["set"] == "ahead") & (log["shift"] == shift) & (log["index"] >= start))


class StepAccuracy:
    """Accuracy on held-out samples: averaged over steps, after the last one, and forgetting.

    ``average_accuracy`` and ``final_accuracy`` are over all classes seen, those of pretraining included;
    ``forgetting`` is the mean over steps of what the classes revealed there lost since their best (Chaudhry et al.,
    ECCV 2018).
    """

    def __call__(self, run: Run) -> Mapping[str, float]:
        """Return the numbers; NaN where nothing is held out."""
        groups = {"accuracy": "all", "stream": "stream", "pretrain": "pretrain", "new": "new", "old": "old"}
        if not (run.predictions["set"] == "heldout").any():
            return {f"{kind}_{name}": math.nan for kind in ("average", "final") for name in groups} | {
                "forgetting": math.nan
            }
        curve = step_accuracy(run)
        tasks = curve["tasks"][:, ~np.isnan(curve["tasks"]).all(0)]
        return {
            **{f"average_{name}": _mean(curve[group]) for name, group in groups.items()},
            **{f"final_{name}": float(curve[group][-1]) for name, group in groups.items()},
            "forgetting": float(forgetting(tasks)) if len(tasks) > 1 and tasks.shape[1] > 1 else math.nan,
        }


class AheadAccuracy:
    """Online accuracy (the next samples) and near-future accuracy (S samples later), over the same indices.

    Args:
        warmup: the share of the stream left out at its start.
    """

    def __init__(self, warmup: float = 0.1) -> None:
        between(0, 0.9, warmup=warmup)
        self.warmup = warmup

    def __call__(self, run: Run) -> Mapping[str, float]:
        """Return ``online`` and ``near_future``; NaN where nothing is predicted ahead, or no S was to be had."""
        shift = run.info["shift"]
        return {
            "online": self._accuracy(run, 0 if 0 in run.info["shifts"] else None),
            "near_future": self._accuracy(run, shift),
        }

    def _accuracy(self, run: Run, shift: int | None) -> float:
        if shift is None:
            return math.nan
        rows, log = ahead_rows(run, shift, self.warmup), run.predictions
        return _mean(log["pred"][rows] == log["target"][rows])


class Retention:
    """Accuracy on fresh pictures of the whole past, at the last occasion (EvalOCL, ICCV 2023)."""

    def __call__(self, run: Run) -> Mapping[str, float]:
        """Return ``retention``; NaN where the stream has no such pictures."""
        log = run.predictions
        rows = np.flatnonzero(log["set"] == "retention")
        rows = rows[log["step"][rows] == log["step"][rows].max(initial=-1)]
        return {"retention": _mean(log["pred"][rows] == log["target"][rows])}


class Spending:
    """What the run spent and stored.

    Whatever the allowance was counted in, all that one may count is said. ``updates``, ``flops`` and ``adjusted_flops``
    (FLOPs x bytes needed at once / those of the reference update; see budgetcl.budget.currencies) are totals, free
    predictions left out; ``utilisation`` is the share of the allowances spent; ``predict_flops`` is per row predicted,
    free or not; ``bytes`` is the most stored between two steps. ``learning_seconds``, which leave out predicting and
    evaluating, ``seconds`` and ``flops_per_second``, the speed reached while learning, hold for this machine alone.
    """

    def __call__(self, run: Run) -> Mapping[str, float]:
        """Return the numbers."""
        steps, ledger = run.steps, run.ledger
        predict = ledger["category"] == "predict"
        learning = int(ledger["flops"][~predict].sum())
        seconds, paid = float(steps["learning_seconds"].sum()), int(steps["paid"].sum())
        return {
            "updates": int(steps["updates"].sum()),
            "flops": learning + paid,
            "adjusted_flops": _adjusted(run, ~predict) + paid,
            "utilisation": float(steps["spent"].sum() / max(1, steps["allowance"].sum())),
            "predict_flops": float(ledger["flops"][predict].sum() / len(run.predictions["index"])),
            "bytes": int(steps["stored"].max()),
            "learning_seconds": seconds,
            "seconds": float(steps["seconds"].sum()),
            "flops_per_second": learning / seconds if seconds else math.nan,
        }


def _adjusted(run: Run, chosen: NDArray[np.bool_]) -> int:
    """Return the memory-adjusted FLOPs of rows of the ledger, each charge rounded down; formulas count as they are."""
    reference = dict(zip(run.steps["step"].tolist(), run.steps["reference_memory"].tolist()))
    total = 0
    columns = (run.ledger[name][chosen].tolist() for name in ("step", "price", "count", "flops"))
    for step, price, count, flops in zip(*columns):
        if price in run.prices:
            total += count * maf(flops // count, run.prices[price]["memory"], reference[step])
        else:
            total += flops
    return total


def _first_step(run: Run) -> NDArray[np.int64]:
    """Return for each label the step that first reveals it among the streamed samples; ``steps`` for none."""
    streamed = run.stream["step"] >= 0
    first = np.full(int(run.stream["label"].max()) + 1, int(run.info["steps"]))
    np.minimum.at(first, run.stream["label"][streamed], run.stream["step"][streamed])
    return first


def _ratio(hits: NDArray[Any], count: NDArray[Any]) -> NDArray[np.float64]:
    return np.divide(hits, count, out=np.full(len(count), np.nan), where=count > 0)


def _mean(values: NDArray[Any]) -> float:
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan
