"""Ridge regression on fixed features, learnt recursively: analytic continual learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from budgetcl.budget.compute import Compute
from budgetcl.budget.formulas import linear, recursive_least_squares
from budgetcl.errors import UserError
from budgetcl.learners.means import grown


class RecursiveRidge:
    """Least squares on one-hot targets with a ridge, by recursion (ACIL, NeurIPS 2022; G-ACIL, arXiv 2403.15706).

    After any batches it equals the joint solution W = (X'X + ridge I)^-1 X'Y on everything seen, classes may come and
    come again. With R = (X'X + ridge I)^-1 so far, a batch (x, y) gives, by Woodbury's identity,

        K = I + x R x',    R <- R - R x' K^-1 x R,    W <- W + R x' (y - x W)  with the new R;

    a new class is a column of zeros. K = L L' (Cholesky), so that R stays symmetric; all is float64. Scores are x W.

    Args:
        ridge: the penalty on W, above 0.
    """

    def __init__(self, ridge: float = 1.0) -> None:
        if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 < ridge < 1e12:
            raise UserError(f"classifier.ridge={ridge!r} given; a number above 0 is expected")
        self.ridge = ridge
        self._inverse = torch.zeros(0, 0, dtype=torch.float64)  # R
        self._weight = torch.zeros(0, 0, dtype=torch.float64)  # W', (classes, d)
        self._counts = torch.zeros(0, dtype=torch.int64)

    def begin(self, dim: int, classes: int, device: torch.device) -> None:
        """Make room."""
        if not len(self._inverse):
            self._inverse = torch.eye(dim, dtype=torch.float64) / self.ridge
        self._inverse = grown(self._inverse, (dim, dim), device)
        self._weight, self._counts = (
            grown(self._weight, (classes, dim), device),
            grown(self._counts, (classes,), device),
        )

    def price(self, n: int) -> int:
        """Return the FLOPs of one batch of n."""
        return recursive_least_squares(n, len(self._inverse), len(self._weight))

    def kept(self, allowance: int) -> int:
        """Return 0."""
        return 0

    def learn(self, x: Tensor, y: Tensor, compute: Compute) -> None:
        """Learn a batch."""
        compute.work("train", self.price(len(x)), lambda: self._learn(x.to(self._inverse), y.to(self._counts)))

    def _learn(self, x: Tensor, y: Tensor) -> None:
        target = one_hot(y, len(self._weight))
        product = x @ self._inverse
        kernel = product @ x.T
        kernel.diagonal().add_(1)
        factor = torch.linalg.cholesky(kernel)
        error = torch.linalg.solve_triangular(factor, target - x @ self._weight.T, upper=False)
        product = torch.linalg.solve_triangular(factor, product, upper=False)
        self._inverse -= product.T @ product
        self._weight += error.T @ product
        self._counts += target.sum(0)

    def finish(self, step: int, compute: Compute) -> None:
        """Nothing is left to do: the solution is ready after each batch."""

    def scores(self, x: Tensor, compute: Compute) -> Tensor:
        """Return the scores: a linear layer."""
        x = x.to(self._weight)
        product = compute.work("predict", linear(x.shape, self._weight.shape), lambda: x @ self._weight.T)
        assert product is not None
        return product.masked_fill(self._counts == 0, -torch.inf)

    def state_dict(self) -> Mapping[str, Any]:
        """Return R, W and the counts."""
        return {
            "inverse": self._inverse.clone(),
            "weight": self._weight.clone(),
            "counts": self._counts.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._inverse, self._weight, self._counts = (state[name].clone() for name in ("inverse", "weight", "counts"))

    def nbytes(self) -> int:
        """Return the bytes of R, W and the counts."""
        return self._inverse.nbytes + self._weight.nbytes + self._counts.nbytes
