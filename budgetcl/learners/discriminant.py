"""Streaming linear discriminant analysis on fixed features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from budgetcl.budget.compute import Compute
from budgetcl.budget.formulas import discriminant, linear, nearest_mean, scatter
from budgetcl.errors import between
from budgetcl.learners.means import ClassMeans, grown


class StreamingDiscriminant:
    """One Gaussian for each class, all with one covariance (streaming LDA, Hayes & Kanan, CVPR workshops 2020).

    score_c(x) = w_c x - w_c m_c / 2 with w_c = ((1 - s) S + s I)^-1 m_c, for class means m_c, the covariance S within
    the classes and the shrinkage s. S is (sum of x x' - sum of n_c m_c m_c') / n: exact, whatever the order of the
    samples, where the paper updates it with means that still move. It is factorised (Cholesky) once a step; the
    paper's explicit inverse would cost eight times as much. Everything is float64.

    Args:
        shrinkage: s, above 0, so that fewer samples than features will do.
    """

    def __init__(self, shrinkage: float = 1e-4) -> None:
        between(1e-9, 1, **{"classifier.shrinkage": shrinkage})
        self.shrinkage, self._means = shrinkage, ClassMeans()
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)  # the sum of x x'
        self._weight, self._bias = torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)

    def begin(self, dim: int, classes: int, device: torch.device) -> None:
        """Make room."""
        self._means.begin(dim, classes, device)
        self._scatter = grown(self._scatter, (dim, dim), device)
        solved = len(self._bias)
        self._weight, self._bias = grown(self._weight, (classes, dim), device), grown(self._bias, (classes,), device)
        self._bias[solved:] = -torch.inf  # until the next solution

    def price(self, n: int) -> int:
        """Return the FLOPs of adding n features."""
        dim = len(self._scatter)
        return nearest_mean(n, dim, 0) + scatter(n, dim)

    def kept(self, allowance: int) -> int:
        """Return the FLOPs of solving for the weights."""
        return discriminant(len(self._scatter), len(self._means.counts))

    def learn(self, x: Tensor, y: Tensor, compute: Compute) -> None:
        """Add features to the means and to the scatter."""
        compute.work("train", self.price(len(x)), lambda: self._add(x.to(self._scatter), y))

    def _add(self, x: Tensor, y: Tensor) -> None:
        self._means.add(x, y)
        self._scatter += x.T @ x

    def finish(self, step: int, compute: Compute) -> None:
        """Solve for the weights."""
        compute.work("train", self.kept(0), self._solve)

    def _solve(self) -> None:
        means, counts = self._means.means, self._means.counts
        covariance = (self._scatter - self._means.sums.T @ means) / counts.sum()
        covariance.mul_(1 - self.shrinkage).diagonal().add_(self.shrinkage)
        self._weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(covariance)).T.contiguous()
        self._bias = ((self._weight * means).sum(1) / -2).masked_fill(counts == 0, -torch.inf)

    def scores(self, x: Tensor, compute: Compute) -> Tensor:
        """Return the scores: a linear layer."""
        x = x.to(self._weight)
        product = compute.work("predict", linear(x.shape, self._weight.shape), lambda: x @ self._weight.T)
        assert product is not None
        return product + self._bias

    def state_dict(self) -> Mapping[str, Any]:
        """Return sums, counts, scatter and weights."""
        return {
            **self._means.state_dict(),
            "scatter": self._scatter.clone(),
            "weight": self._weight.clone(),
            "bias": self._bias.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._means.load_state_dict(state)
        self._scatter, self._weight, self._bias = (state[name].clone() for name in ("scatter", "weight", "bias"))

    def nbytes(self) -> int:
        """Return the bytes of sums, counts, scatter and weights."""
        return self._means.nbytes + self._scatter.nbytes + self._weight.nbytes + self._bias.nbytes
