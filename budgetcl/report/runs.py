"""What a report needs of one record: its numbers and a few short curves. The big tables are read once and let go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError
from budgetcl.metrics.blind import blind_accuracy
from budgetcl.metrics.summary import ahead_counts, ratio, retention_counts, step_accuracy
from budgetcl.records.record import Results

Floats = NDArray[np.float64]

FLOPS = "FLOPs"  # the name of the default currency
BLOCKS = 10  # into which a stream is cut where accuracy is shown along it
AGES = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # edges of the age bins, as shares of the stream
_SHOWN_WINDOWS = (1, 5, 20, 100, 500, 2500)  # of the blind classifiers, besides the chosen one and "all"


@dataclass(frozen=True)
class Run:
    """One finished run, made small.

    Attributes:
        folder: where its record lies.
        info: what ``run.json`` says.
        settings: its configuration, flat: "stream.order" -> "class".
        seen: (steps,) streamed samples seen after each step.
        spent: (steps,) FLOPs charged since the start, after each step; where something else is counted, FLOPs done.
        spending: category -> what was charged over the whole run, in the unit of the allowance; "forfeited"; and the
            FLOPs that were not charged where a category was free.
        allowance: of the whole run, in its unit.
        accuracy: "step" and the accuracy of "all", "stream", "pretrain", "new" and "old" classes after these steps;
            empty where nothing is held out.
        future: shift -> accuracy on the samples so far ahead.
        along: "online" and "near_future": (BLOCKS,) accuracy in equal stretches of the stream; NaN in the warm-up.
        flops_along: (BLOCKS,) ``spent`` up to the end of each stretch.
        ages: (len(AGES) - 1,) accuracy at the last occasion on re-takes by age, and how many there are; or None.
        start: the position from which the stream counts.
    """

    folder: Path
    info: Mapping[str, Any]
    settings: Mapping[str, Any]
    seen: NDArray[np.int64]
    spent: Floats
    spending: Mapping[str, float]
    allowance: float
    accuracy: Mapping[str, Floats]
    future: Mapping[int, float]
    along: Mapping[str, Floats]
    flops_along: Floats
    ages: Floats | None
    start: int

    @property
    def method(self) -> str:
        """The row it belongs to, as the run was called."""
        return str(self.info["method"])

    @property
    def group(self) -> str:
        """baseline, sampling, distillation, partial, blind, ..."""
        return str(self.info.get("group") or "other")

    @property
    def control(self) -> tuple[str, str] | None:
        """What kind of control it is, and of which method, as that was called; None for an entry of its own."""
        control = self.info.get("control")
        return (str(control["kind"]), str(control["of"])) if control else None

    @property
    def currency(self) -> str:
        """What the allowance is counted in; a control may be held to a number of updates under any."""
        return str((self.info.get("budget") or {}).get("currency") or FLOPS)

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.info["seed"])

    @property
    def stream(self) -> str:
        """The stream's name."""
        return str(self.info["stream"])

    @property
    def fingerprint(self) -> str:
        """The hash of the stream."""
        return str(self.info["fingerprint"])

    @property
    def summary(self) -> Mapping[str, Any]:
        """Its numbers by name; None or NaN where one does not apply."""
        return self.info["summary"]

    def number(self, key: str) -> float:
        """Return one number of the summary, NaN where there is none."""
        value = self.summary.get(key)
        return float(value) if isinstance(value, (int, float)) else float("nan")


@dataclass(frozen=True)
class BlindGrid:
    """What the labels of a stream give away: the accuracy of blind classifiers on the learners' clock.

    Attributes:
        windows: k, how many of the last labels vote; None: all.
        shifts: how far ahead is predicted.
        accuracy: (windows, shifts).
        chosen: the window chosen on the tuning prefix, or None.
    """

    windows: tuple[int | None, ...]
    shifts: tuple[int, ...]
    accuracy: Floats
    chosen: int | None = None

    def at(self, window: int | None, shift: int) -> float:
        """Return one cell."""
        return float(self.accuracy[self.windows.index(window), self.shifts.index(shift)])


def reduce(results: Results) -> Run:
    """Read a finished record and keep what is shown.

    Raises:
        UserError: a file of it is missing or damaged, or lacks a column.
    """
    try:
        return _reduce(results)
    except KeyError as error:
        raise UserError(f"'{results.folder}' lacks {error.args[0]}: it is no whole record; run it again") from error
    except OSError as error:
        raise UserError(f"'{results.folder}' cannot be read ({error}): it is no whole record; run it again") from error


def _reduce(results: Results) -> Run:
    info = results.info
    for key in ("method", "seed", "stream", "fingerprint", "summary"):
        if key not in info:
            raise KeyError(f"{key} in its run.json")
    settings = flat_settings(results.config)
    steps = results.steps
    spent = np.cumsum(_flops(results))
    seen = steps["seen"].astype(np.int64)
    warmup = _warmup(settings)
    samples = int(info["stream_samples"])
    start = _start(info, warmup)
    ahead = ahead_counts(results, warmup, BLOCKS)
    along = {"online": 0, "near_future": info["shift"]}
    retained, curve = retention_counts(results, AGES), step_accuracy(results)
    ends = np.linspace(0, samples, BLOCKS + 1)[1:]
    return Run(
        folder=results.folder,
        info=info,
        settings=settings,
        seen=seen,
        spent=spent,
        spending=_spending(results),
        allowance=float(steps["allowance"].sum()),
        accuracy={name: values for name, values in curve.items() if name != "tasks" and len(curve["step"])},
        future={shift: float(ratio(counts.sum(1, keepdims=True))[0]) for shift, counts in ahead.items()},
        along={name: ratio(ahead[shift]) for name, shift in along.items() if shift in ahead},
        flops_along=np.interp(ends, np.concatenate([[0], seen]), np.concatenate([[0.0], spent])),
        ages=ratio(retained) if retained.any() else None,
        start=start,
    )


def blind_grid(results: Results) -> BlindGrid | None:
    """Return what blind classifiers score on a record's stream; None where nothing is predicted ahead."""
    info = results.info
    shifts = tuple(int(shift) for shift in info["shifts"])
    if not shifts:
        return None
    warmup = _warmup(flat_settings(results.config))
    parts = results.pieces("stream", "label", "step")
    labels = np.concatenate([part["label"][part["step"] >= 0] for part in parts])
    chosen = info.get("window")
    numbers = {k for k in (*_SHOWN_WINDOWS, *([int(chosen)] if chosen else [])) if k < len(labels)}
    windows = (*sorted(numbers), None)
    cells = blind_accuracy(labels, windows, shifts, int(info["chunk"]), warmup=_start(info, warmup))
    return BlindGrid(windows, shifts, cells, chosen)


def flat_settings(text: str) -> dict[str, Any]:
    """Return a configuration as flat data: "stream.order" -> "class". Nothing in it is interpreted or run."""
    import yaml  # type: ignore[import-untyped]

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}

    def walk(node: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(node, Mapping):
            return {prefix: node}
        return {key: value for name, child in node.items() for key, value in walk(child, f"{prefix}.{name}").items()}

    return {key[1:]: value for key, value in walk(data, "").items() if key}


def _warmup(settings: Mapping[str, Any]) -> float:
    given = settings.get("metrics.ahead.warmup")
    return 0.1 if given is None else float(given)


def _start(info: Mapping[str, Any], warmup: float) -> int:
    """Return the first index that counts ahead, as the run's metrics have it (metrics.summary.ahead_counts)."""
    return max(int(np.ceil(warmup * int(info["stream_samples"]))), max(info["shifts"], default=0))


def _flops(results: Results) -> Floats:
    """Return the FLOPs of each step."""
    steps, ledger = results.steps, results.ledger
    if results.info.get("currency", FLOPS) == FLOPS:
        return steps["spent"].astype(float)
    learning = ledger["category"] != "predict"
    order = np.searchsorted(steps["step"], ledger["step"][learning])
    done = np.bincount(order, ledger["flops"][learning].astype(float), minlength=len(steps["step"]))
    return done + steps["paid"].astype(float)


def _spending(results: Results) -> dict[str, float]:
    ledger, free = results.ledger, results.info.get("free") or ()
    spending: dict[str, float] = {}
    for category in np.unique(ledger["category"]).tolist():
        mine = ledger["category"] == category
        spending[category] = float(ledger["charged"][mine].sum())
        if category in free:
            spending[f"{category} (not charged)"] = float(ledger["flops"][mine].sum())
    spending["forfeited"] = float(results.steps["forfeited"].sum())
    return {category: flops for category, flops in spending.items() if flops > 0}
