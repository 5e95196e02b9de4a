"""Accuracy against what was spent, as torchmetrics classes; the arithmetic is in the functions they call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgetcl.metrics import functional
from budgetcl.metrics._arrays import Array, floats, together
from budgetcl.metrics._classes import RowMetric


class AnytimeAccuracy(RowMetric):
    """Area under accuracy against what was spent; see :func:`budgetcl.metrics.anytime_accuracy`.

    ``update(pred, target, spent)``: held-out rows, each with what had been spent when it was predicted (FLOPs, 2 x MAC;
    samples; seconds). Rows of one amount make one measurement. Keeps a few numbers a batch.

    Args:
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = AnytimeAccuracy()
        >>> metric.update([1, 1, 1, 2], [1, 2, 1, 2], spent=[100.0, 100.0, 300.0, 300.0])
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._columns(spent=torch.float64, right=torch.int64, count=torch.int64)

    def update(self, pred: Array, target: Array, spent: Array) -> None:
        """Take rows: (n,) labels or (n, classes) scores, (n,) labels and amounts."""
        hits, spent = together(pred=functional._hits(pred, target, 1), spent=floats("spent", spent))
        amounts, place, count = torch.unique(spent, return_inverse=True, return_counts=True)
        self._append(spent=amounts, right=torch.bincount(place[hits], minlength=len(amounts)), count=count)

    def _curve(self) -> tuple[Tensor, Tensor] | None:
        """Return (accuracies, amounts), ascending in the amount; None before any row."""
        if len(self._column("spent")) == 0:
            return None
        amounts, place = torch.unique(self._column("spent"), return_inverse=True)
        right = torch.zeros_like(amounts).index_add_(0, place, self._column("right").double())
        count = torch.zeros_like(amounts).index_add_(0, place, self._column("count").double())
        return right / count, amounts

    def compute(self) -> Tensor:
        """Return a float64 scalar; NaN before any row."""
        curve = self._curve()
        return self._value(float("nan") if curve is None else functional.anytime_accuracy(*curve))


class AccuracyAtBudget(AnytimeAccuracy):
    """Accuracy of the last model within a budget; see :func:`budgetcl.metrics.accuracy_at_budget`.

    ``update(pred, target, spent)`` as in :class:`AnytimeAccuracy`.

    Args:
        budget: in the unit of ``spent``.
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = AccuracyAtBudget(budget=200)
        >>> metric.update([1, 1, 1, 2], [1, 2, 1, 2], spent=[100.0, 100.0, 300.0, 300.0])
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, budget: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.budget = budget

    def compute(self) -> Tensor:
        """Return a float64 scalar; NaN before any row, or on a batch beyond the budget."""
        curve = self._curve()
        if curve is None or (self._one_batch and bool(curve[1][0] > self.budget)):
            return self._value(float("nan"))
        return self._value(functional.accuracy_at_budget(*curve, self.budget))
