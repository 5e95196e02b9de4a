"""Online, near-future and blind accuracy as torchmetrics classes; the arithmetic is in the functions they call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from budgetcl.errors import UserError, at_least
from budgetcl.metrics import functional
from budgetcl.metrics._arrays import Array, integers, together, warmup_end
from budgetcl.metrics._classes import RowMetric
from budgetcl.metrics.blind import _check, blind_accuracy


class NearFutureAccuracy(RowMetric):
    """Share of hits ``shift`` samples ahead; see :func:`budgetcl.metrics.near_future_accuracy`.

    ``update(pred, target, index, seen)`` takes rows in any order and of any leads; of those for one index the one with
    the smallest lead of at least the shift counts. Keeps 17 bytes a row.

    Args:
        shift: S, in samples; 0 is online accuracy.
        warmup: what does not count: a share of the stream below 1, or a number of samples.
        samples: the length of the stream; None: the largest index + 1.
        top_k: with scores, how many guesses count.
        kwargs: for :class:`torchmetrics.Metric`.

    Raises:
        UserError: as the function, in ``update`` what a batch shows (types, lengths), in ``compute`` the rest.

    Examples:
        >>> metric = NearFutureAccuracy(shift=2, warmup=0)
        >>> metric.update(torch.tensor([2, 2]), torch.tensor([2, 2]), index=torch.tensor([4, 5]),
        ...               seen=torch.tensor([2, 2]))
        >>> metric.update(torch.tensor([1, 1]), torch.tensor([1, 2]), index=torch.tensor([2, 3]),
        ...               seen=torch.tensor([0, 0]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(
        self, shift: int, *, warmup: float = 0.1, samples: int | None = None, top_k: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        at_least(0, shift=shift)
        at_least(1, top_k=top_k)
        if samples is not None:
            at_least(1, samples=samples)
        warmup_end(samples or 1 << 62, warmup)
        self.shift, self.warmup, self.samples, self.top_k = shift, warmup, samples, top_k
        # torchmetrics shares the states of metrics that are equal after one batch: hits of another k need another name.
        self._hits = f"hits_at_{top_k}"
        self._columns(**{self._hits: torch.bool, "index": torch.int64, "seen": torch.int64})

    def update(self, pred: Array, target: Array, index: Array, seen: Array) -> None:
        """Take rows: (n,) labels or (n, classes) scores, (n,) labels, positions and numbers of known labels."""
        hits, index, seen = together(
            pred=functional._hits(pred, target, self.top_k),
            index=integers("index", index),
            seen=integers("seen", seen),
        )
        functional._rows(hits, index, seen, self.samples)
        self._append(**{self._hits: hits, "index": index, "seen": seen})

    def _at(self, shifts: Sequence[int]) -> list[float]:
        hits, index, seen = self._column(self._hits), self._column("index"), self._column("seen")
        if len(hits) == 0:
            return [float("nan")] * len(shifts)
        rows = functional._rows(hits, index, seen, self.samples)
        if not self._one_batch:
            start = max(max(shifts), warmup_end(rows.samples, self.warmup))
            return [functional._average(*functional._at_shift(rows, shift), start) for shift in shifts]
        values = []
        for shift in shifts:
            far = rows.index - rows.seen >= shift
            first = far.clone()
            first[1:] &= ~(far[:-1] & (rows.index[1:] == rows.index[:-1]))
            counted = rows.hits[first & (rows.index >= self._start(rows.samples, shifts))]
            values.append(functional._mean(counted) if len(counted) else float("nan"))
        return values

    def _start(self, samples: int, shifts: Sequence[int]) -> int:
        end = self.warmup * samples if isinstance(self.warmup, float) else self.warmup
        return max(max(shifts), math.ceil(end - 1e-9))

    def compute(self) -> Tensor:
        """Return the accuracy, a float64 scalar; NaN before any row."""
        return self._value(self._at([self.shift])[0])


class OnlineAccuracy(NearFutureAccuracy):
    """Share of hits when each sample is predicted just before its label; see :func:`budgetcl.metrics.online_accuracy`.

    Args:
        warmup: what does not count: a share of the stream below 1, or a number of samples.
        samples: the length of the stream; None: the largest index + 1.
        top_k: with scores, how many guesses count.
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = OnlineAccuracy(warmup=0)
        >>> metric(torch.tensor([5, 5, 6]), torch.tensor([5, 6, 6]), index=torch.arange(3), seen=torch.arange(3))
        tensor(0.6667, dtype=torch.float64)
    """

    def __init__(self, *, warmup: float = 0.1, samples: int | None = None, top_k: int = 1, **kwargs: Any) -> None:
        super().__init__(0, warmup=warmup, samples=samples, top_k=top_k, **kwargs)


class NearFutureCurve(NearFutureAccuracy):
    """Near-future accuracy at several shifts over the same positions; see :func:`budgetcl.metrics.near_future_curve`.

    Args:
        shifts: the shifts S; ``compute`` returns their accuracies in this order.
        warmup: what does not count: a share of the stream below 1, or a number of samples.
        samples: the length of the stream; None: the largest index + 1.
        top_k: with scores, how many guesses count.
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = NearFutureCurve([0, 2], warmup=0)
        >>> index, seen = torch.tensor([0, 1, 2, 3, 2, 3]), torch.tensor([0, 1, 2, 3, 0, 1])
        >>> metric.update(torch.tensor([5, 5, 6, 6, 5, 6]), torch.tensor([5, 6, 6, 6, 6, 6]), index, seen)
        >>> metric.compute()
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        shifts: Sequence[int],
        *,
        warmup: float = 0.1,
        samples: int | None = None,
        top_k: int = 1,
        **kwargs: Any,
    ) -> None:
        if not len(shifts):
            raise UserError("no shift given; at least one is expected")
        super().__init__(max(shifts), warmup=warmup, samples=samples, top_k=top_k, **kwargs)
        for shift in shifts:
            at_least(0, shift=shift)
        self.shifts = tuple(shifts)

    def compute(self) -> Tensor:
        """Return the (shifts,) accuracies, float64; NaN before any row."""
        return torch.tensor(self._at(self.shifts), dtype=torch.float64, device=self.device)


class BlindAccuracy(RowMetric):
    """What a blind classifier scores on the labels seen; see :func:`budgetcl.metrics.blind_accuracy`.

    ``update(target, index)``: put beside :class:`OnlineAccuracy` it shows what the stream gives away. Labels are
    integers; all positions from 0 on must have come by ``compute``, in any order. Keeps 16 bytes a row.

    Args:
        window: how many of the last known labels vote; None: all.
        delay: the shift S, in samples.
        chunk: how many samples are predicted at once.
        warmup: what does not count: a share of the stream below 1, or a number of samples.
        kwargs: for :class:`torchmetrics.Metric`.

    Raises:
        UserError: bad labels; at ``compute`` a position that is missing or came twice.

    Examples:
        >>> metric = BlindAccuracy(window=1, warmup=0)
        >>> metric.update(torch.tensor([4, 4, 4, 9]), index=torch.arange(4))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(
        self, window: int | None = None, delay: int = 0, chunk: int = 1, *, warmup: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        _check([window], [delay], chunk)
        self.window, self.delay, self.chunk, self.warmup = window, delay, chunk, warmup
        self._columns(label=torch.int64, place=torch.int64)

    def update(self, target: Array, index: Array) -> None:
        """Take rows: (n,) labels and their positions in the stream."""
        label, place = together(target=integers("target", target), index=integers("index", index))
        self._append(label=label, place=place)

    def compute(self) -> Tensor:
        """Return the accuracy, a float64 scalar; NaN before any row, or on a single batch."""
        if self._one_batch or len(self._column("place")) == 0:
            return self._value(float("nan"))
        place, order = self._column("place").sort()
        expected = torch.arange(len(place), device=place.device)
        wrong = place != expected
        if bool(wrong.any()):
            at = functional._first(wrong)
            what = "came twice" if int(place[at]) < at else "is missing"
            raise UserError(
                f"position {min(at, int(place[at]))} of the stream {what}; a blind classifier needs each once"
            )
        labels = self._column("label")[order]
        return self._value(
            float(blind_accuracy(labels, [self.window], [self.delay], self.chunk, warmup=self.warmup)[0, 0])
        )
