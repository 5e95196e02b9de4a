"""Sums and counts by class: what most learners without gradient descent keep of the features they saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ClassMeans:
    """The mean feature of each class, in float64, so that the order of the samples hardly matters.

    Attributes:
        sums: (classes, d).
        counts: (classes,) int64; 0 for a class of which nothing was learnt yet.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(0, 0, dtype=torch.float64)
        self.counts = torch.zeros(0, dtype=torch.int64)

    def begin(self, dim: int, classes: int, device: torch.device) -> None:
        """Make room for so many classes."""
        self.sums, self.counts = grown(self.sums, (classes, dim), device), grown(self.counts, (classes,), device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add features (n, d) of classes (n,)."""
        self.sums.index_add_(0, y.to(self.sums.device), x.to(self.sums))
        self.counts += torch.bincount(y.to(self.sums.device), minlength=len(self.counts))

    @property
    def means(self) -> Tensor:
        """(classes, d); zero for a class of which nothing was learnt."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    @property
    def unknown(self) -> Tensor:
        """(classes,) bool: nothing was learnt of these."""
        return self.counts == 0

    @property
    def nbytes(self) -> int:
        """Bytes of sums and counts."""
        return self.sums.nbytes + self.counts.nbytes

    def state_dict(self) -> dict[str, Tensor]:
        """Return sums and counts."""
        return {"sums": self.sums.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.sums, self.counts = state["sums"].clone(), state["counts"].clone()


def grown(old: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a tensor of a larger shape with the old values in its corner and zeros elsewhere.

    It lies on ``device``, except that what is to be exact (float64) stays on the CPU where the device has no float64.
    """
    device = torch.device("cpu") if device.type == "mps" else device
    if old.shape == shape:
        return old.to(device)
    new = torch.zeros(shape, dtype=old.dtype, device=device)
    new[tuple(slice(size) for size in old.shape)] = old.to(device)
    return new
