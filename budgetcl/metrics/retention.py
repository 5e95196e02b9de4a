"""What is kept of the past, as torchmetrics classes; the arithmetic is in the functions they call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from budgetcl.errors import UserError
from budgetcl.metrics import functional
from budgetcl.metrics._arrays import Array, floats, integers, labels, together
from budgetcl.metrics._classes import RowMetric


class InformationRetention(RowMetric):
    """Accuracy of the last model on the whole past; see :func:`budgetcl.metrics.information_retention`.

    ``update(pred, target, origin, seen)``; rows of the largest ``seen`` count. Keeps 17 bytes a row.

    Args:
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = InformationRetention()
        >>> metric.update([1, 2, 3, 9], [1, 2, 3, 4], origin=[9, 6, 3, 0], seen=[10] * 4)
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._columns(hits=torch.bool, origin=torch.int64, seen=torch.int64)

    def update(self, pred: Array, target: Array, origin: Array, seen: Array) -> None:
        """Take rows: (n,) labels or (n, classes) scores, (n,) labels, positions re-taken, numbers of known labels."""
        hits, past, known = together(
            pred=functional._hits(pred, target, 1), origin=integers("origin", origin), seen=integers("seen", seen)
        )
        self._append(hits=hits, origin=past, seen=known)

    def _retention(self, bins: int | Sequence[float]) -> functional.Retention | None:
        hits = self._column("hits")
        if len(hits) == 0:
            return None
        ones = torch.ones_like(hits).long()
        return functional.information_retention(hits.long(), ones, self._column("origin"), self._column("seen"), bins)

    def compute(self) -> Tensor:
        """Return the accuracy, a float64 scalar; NaN before any row."""
        kept = self._retention(1)
        return self._value(float("nan") if kept is None else kept.accuracy)


class RetentionByAge(InformationRetention):
    """The same by age: ``compute`` returns the accuracy in each age bin, NaN where no row lies.

    Args:
        bins: how many bins of equal width over the ages 0 to ``seen``, or their edges.
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = RetentionByAge(bins=2)
        >>> metric.update([1, 2, 3, 9], [1, 2, 3, 4], origin=[9, 6, 3, 0], seen=[10] * 4)
        >>> metric.compute()
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, bins: int | Sequence[float] = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins

    def compute(self) -> Tensor:
        """Return the (bins,) accuracies, float64."""
        kept = self._retention(self.bins)
        count = self.bins if isinstance(self.bins, int) else len(self.bins) - 1
        values = [float("nan")] * count if kept is None else list(kept.by_age)
        return torch.tensor(values, dtype=torch.float64, device=self.device)


class _ByStep(RowMetric):
    """Keeps hits and rows by time step and task: a few numbers a batch."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._columns(step=torch.int64, task=torch.int64, right=torch.int64, count=torch.int64)

    def _add(self, pred: Array, target: Array, step: Array, task: Array | None) -> None:
        hits, steps, tasks = together(
            pred=functional._hits(pred, target, 1),
            step=integers("step", step),
            task=None if task is None else integers("task", task),
        )
        tasks = torch.zeros_like(steps) if tasks is None else tasks
        cells, place, count = torch.unique(torch.stack([steps, tasks]), dim=1, return_inverse=True, return_counts=True)
        right = torch.bincount(place[hits], minlength=cells.shape[1])
        self._append(step=cells[0], task=cells[1], right=right, count=count)

    def _matrix(self) -> Tensor | None:
        """Return (steps, tasks) accuracies, NaN where nothing was tested; None before any row."""
        step, task, right, count = (self._column(name) for name in ("step", "task", "right", "count"))
        kept = task >= 0
        if not bool(kept.any()):
            return None
        steps, row = torch.unique(step[kept], return_inverse=True)
        cells = torch.zeros(2, len(steps), int(task.max()) + 1, dtype=torch.int64, device=step.device)
        cells[0].index_put_((row, task[kept]), right[kept], accumulate=True)
        cells[1].index_put_((row, task[kept]), count[kept], accumulate=True)
        return cells[0].double() / cells[1].double()


class AverageAccuracy(_ByStep):
    """Mean over time steps of the accuracy on everything tested; see :func:`budgetcl.metrics.average_accuracy`.

    ``update(pred, target, step)``.

    Args:
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = AverageAccuracy()
        >>> metric.update([1, 2, 2, 2], [1, 1, 2, 2], step=[0, 0, 1, 1])
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def update(self, pred: Array, target: Array, step: Array) -> None:
        """Take rows: (n,) labels or (n, classes) scores, (n,) labels and the steps after which they were predicted."""
        self._add(pred, target, step, None)

    def compute(self) -> Tensor:
        """Return a float64 scalar; NaN before any row."""
        matrix = self._matrix()
        return self._value(float("nan") if matrix is None else functional.average_accuracy(matrix[:, 0]))


class FinalAccuracy(AverageAccuracy):
    """Accuracy after the last time step; see :func:`budgetcl.metrics.final_accuracy`.

    ``update(pred, target, step)``.

    Args:
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = FinalAccuracy()
        >>> metric.update([1, 2, 2, 2], [1, 1, 2, 2], step=[0, 0, 1, 1])
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return a float64 scalar; NaN before any row."""
        matrix = self._matrix()
        return self._value(float("nan") if matrix is None else functional.final_accuracy(matrix[:, 0]))


class Forgetting(_ByStep):
    """Accuracy lost on earlier tasks; see :func:`budgetcl.metrics.forgetting`.

    ``update(pred, target, step, task)``; rows with a task below 0 do not count.

    Args:
        reference: "best" or "first".
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = Forgetting()
        >>> metric.update([1, 1, 3, 2], [1, 1, 1, 2], step=[0, 0, 1, 1], task=[0, 0, 0, 1])
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = -1.0

    def __init__(self, reference: str = "best", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if reference not in ("best", "first"):
            raise UserError(f"reference={reference!r} given; 'best' or 'first' is expected")
        self.reference = reference

    def update(self, pred: Array, target: Array, step: Array, task: Array) -> None:
        """Take rows: (n,) labels or (n, classes) scores, (n,) labels, steps and tasks."""
        self._add(pred, target, step, task)

    def compute(self) -> Tensor:
        """Return a float64 scalar; NaN before any row, or on a single batch."""
        matrix = self._matrix()
        if matrix is None or self._one_batch:
            return self._value(float("nan"))
        return self._value(functional.forgetting(matrix, self.reference))


class BackwardTransfer(Forgetting):
    """What later learning gave to earlier tasks; see :func:`budgetcl.metrics.backward_transfer`.

    ``update(pred, target, step, task)``; rows with a task below 0 do not count.

    Args:
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = BackwardTransfer()
        >>> metric.update([1, 1, 3, 2], [1, 1, 1, 2], step=[0, 0, 1, 1], task=[0, 0, 0, 1])
        >>> metric.compute()
        tensor(-1., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("first", **kwargs)

    def compute(self) -> Tensor:
        """Return a float64 scalar; NaN before any row, or on a single batch."""
        matrix = self._matrix()
        if matrix is None or self._one_batch:
            return self._value(float("nan"))
        return self._value(functional.backward_transfer(matrix))


class ForwardTransfer(Forgetting):
    """What earlier learning gives to a task before it comes; see :func:`budgetcl.metrics.forward_transfer`.

    ``update(pred, target, step, task)``; rows with a task below 0 do not count.

    Args:
        baseline: (tasks,) accuracy of an untrained model on each task.
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = ForwardTransfer(baseline=[0.5, 0.5])
        >>> metric.update([1, 2, 1, 2], [1, 2, 1, 2], step=[0, 0, 1, 1], task=[0, 1, 0, 1])
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, baseline: Array, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.baseline = tuple(floats("baseline", baseline).tolist())

    def compute(self) -> Tensor:
        """Return a float64 scalar; NaN before any row, or on a single batch."""
        matrix = self._matrix()
        if matrix is None or self._one_batch:
            return self._value(float("nan"))
        return self._value(functional.forward_transfer(matrix, self.baseline))


class NegativeFlipRate(RowMetric):
    """Share of samples that the old model had right and the new one has wrong.

    ``update(old_pred, new_pred, target)``; see :func:`budgetcl.metrics.negative_flip_rate`. Keeps two sums.

    Args:
        kwargs: for :class:`torchmetrics.Metric`.

    Examples:
        >>> metric = NegativeFlipRate()
        >>> metric.update([1, 1, 2, 2], [1, 2, 2, 1], [1, 1, 2, 1])
        >>> metric.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    higher_is_better = False
    flips: Tensor
    rows: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._columns()
        self.add_state("flips", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("rows", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, old_pred: Array, new_pred: Array, target: Array) -> None:
        """Take rows: (n,) labels each."""
        old, new, wanted = labels(old_pred=old_pred, new_pred=new_pred, target=target)
        self.flips += ((old == wanted) & (new != wanted)).sum().to(self.device)
        self.rows += len(wanted)

    def compute(self) -> Tensor:
        """Return a float64 scalar; NaN before any row."""
        return self.flips.double() / self.rows.double()
