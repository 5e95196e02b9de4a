"""What the metric classes share: columns as list states, gathered over processes. Imports torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class RowMetric(Metric):
    """A metric that keeps compact rows, so that neither the order of updates nor the number of processes matters.

    A batch alone cannot always be judged (``forward`` on rows inside the warm-up): its value is then NaN. The whole,
    at ``compute``, is held to all the rules of the function that it calls.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    _types: dict[str, torch.dtype]

    def _columns(self, **types: torch.dtype) -> None:
        """Declare the states: one list of tensors a column."""
        self._types = types
        self._one_batch = False
        for name in types:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _append(self, **columns: Tensor) -> None:
        for name, values in columns.items():
            getattr(self, name).append(values.detach().to(self.device, self._types[name]))

    def _column(self, name: str) -> Tensor:
        parts = getattr(self, name)
        if isinstance(parts, Tensor):  # gathered from all processes
            return parts
        return torch.cat(parts) if parts else torch.empty(0, dtype=self._types[name], device=self.device)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update, and return the value on this batch alone."""
        self._one_batch = True
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._one_batch = False

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, several, or (None) that of now; returns (figure, axes). Needs matplotlib."""
        return self._plot(val, ax)

    def _value(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # torchmetrics sends an empty float for a process without rows; the other processes send integers.
        for name, dtype in self._types.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **kwargs)
