"""Classifier heads that grow with the classes revealed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from budgetcl.errors import UserError, between


class LinearHead(nn.Module):
    """A linear classifier with one row per class revealed.

    New rows are 0.001 x Xavier-uniform with zero bias (BudgetCL, CVPR 2023), so that a class just revealed does not
    drown the others. Where weights of the pretraining classes are given, the rows of these classes start from them.

    Args:
        feature_dim: d of the (n, d) features.
        scale: factor on the Xavier initialisation of new rows.
        pretrained: whether the pretraining classes' rows start from ``weight`` and ``bias``.
        weight: (k, d) rows for the first k classes, or None.
        bias: (k,), or None.
    """

    biased = True

    def __init__(
        self,
        feature_dim: int,
        scale: float = 0.001,
        pretrained: bool = True,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        between(0, 1e3, **{"head.scale": scale})
        if not isinstance(pretrained, bool):
            raise UserError(f"head.pretrained={pretrained!r} given; true or false is expected")
        if weight is not None and weight.shape[1] != feature_dim:
            raise UserError(
                f"the head's weights have {weight.shape[1]} columns; the backbone has {feature_dim} features"
            )
        self.scale = scale
        self._known = (weight, bias) if pretrained and weight is not None and bias is not None else None
        self.weight = nn.Parameter(torch.empty(0, feature_dim))
        self.bias = nn.Parameter(torch.empty(0)) if self.biased else None

    @property
    def classes(self) -> int:
        """The number of rows."""
        return self.weight.shape[0]

    @property
    def known(self) -> int:
        """For how many of the first classes trained rows came with the backbone."""
        return len(self._known[0]) if self._known is not None else 0

    def forward(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, classes)."""
        return nn.functional.linear(features, self.weight, self.bias)

    def grow(self, classes: int, generator: np.random.Generator, known: bool = False) -> None:
        """Append rows up to ``classes``; rows that exist are kept to the bit.

        Args:
            classes: the number of rows wanted.
            generator: of new rows.
            known: whether these are the backbone's own pretraining classes, in their order, whose trained rows came
                with it. Any other class starts afresh, however many trained rows there are.

        Raises:
            UserError: fewer classes than rows: a head never forgets a class.
        """
        rows, dim = self.weight.shape
        if classes < rows:
            raise UserError(f"a head of {rows} classes cannot shrink to {classes}")
        if classes == rows:
            return
        bound = self.scale * math.sqrt(6 / (dim + classes))
        weight = torch.from_numpy(generator.uniform(-bound, bound, (classes - rows, dim)).astype(np.float32))
        bias = torch.zeros(classes - rows)
        if known and rows < self.known:
            assert self._known is not None
            trained = slice(rows, min(classes, self.known))
            weight[: trained.stop - rows] = self._known[0][trained]
            bias[: trained.stop - rows] = self._known[1][trained]
        self.weight = _appended(self.weight, weight)
        if self.bias is not None:
            self.bias = _appended(self.bias, bias)

    def extra_repr(self) -> str:
        """Name the shape, without the number of classes, which the parameters tell."""
        return f"features={self.weight.shape[1]}"


class CosineHead(LinearHead):
    """A classifier by angle: logits = s x cos(features, row), s a learned scale (LUCIR, CVPR 2019, eq. 4).

    Rows are not biased by their norms, so classes with few samples are not drowned by those with many. New rows have
    random directions; rows that came with the backbone are taken without their bias.

    Args:
        feature_dim: d of the (n, d) features.
        temperature: s at the start.
        pretrained: whether the pretraining classes' rows start from ``weight``.
        weight: (k, d) rows for the first k classes, or None.
        bias: (k,), or None; angles make no use of it.
    """

    biased = False

    def __init__(
        self,
        feature_dim: int,
        temperature: float = 10.0,
        pretrained: bool = True,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        between(0, 1e3, **{"head.temperature": temperature})
        super().__init__(feature_dim, 1.0, pretrained, weight, bias)
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))

    def forward(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, classes)."""
        cosine = nn.functional.linear(nn.functional.normalize(features), nn.functional.normalize(self.weight))
        return self.temperature * cosine


def _appended(old: nn.Parameter, rows: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat([old.data, rows.to(old.device, old.dtype)]), requires_grad=old.requires_grad)
