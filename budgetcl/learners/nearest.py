"""Nearest class mean and nearest neighbours on fixed features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from budgetcl.budget.compute import Compute
from budgetcl.budget.formulas import knn, linear, nearest_mean
from budgetcl.errors import at_least, one_of
from budgetcl.learners.means import ClassMeans, grown
from budgetcl.randomness import generator

METRICS = ("cosine", "euclidean")
_PAIRS = 1 << 24  # distances held at once


class NearestMean:
    """The class whose mean feature is nearest (Mensink et al., TPAMI 2013; iCaRL, CVPR 2017).

    On frozen features it is the simple baseline that questions continual learning with pretrained models (Janson et
    al., NeurIPS workshop 2022). Scores: -|x - m|^2 / 2 without what all classes share, or the cosine of x and m.

    Args:
        metric: "cosine" or "euclidean".
    """

    def __init__(self, metric: str = "euclidean") -> None:
        one_of(METRICS, **{"classifier.metric": metric})
        self.metric, self._means = metric, ClassMeans()

    def begin(self, dim: int, classes: int, device: torch.device) -> None:
        """Make room."""
        self._means.begin(dim, classes, device)

    def price(self, n: int) -> int:
        """Return the FLOPs of adding n features to their sums."""
        return nearest_mean(n, self._means.sums.shape[1], 0)

    def kept(self, allowance: int) -> int:
        """Return 0."""
        return 0

    def learn(self, x: Tensor, y: Tensor, compute: Compute) -> None:
        """Add features to their sums."""
        compute.work("train", self.price(len(x)), lambda: self._means.add(x, y))

    def finish(self, step: int, compute: Compute) -> None:
        """Nothing is left to do."""

    def scores(self, x: Tensor, compute: Compute) -> Tensor:
        """Return the scores: a product with the means."""
        means = self._means.means
        x = x.to(means)
        if self.metric == "cosine":
            x, means = normalize(x), normalize(means)
        offset = 0 if self.metric == "cosine" else means.square().sum(1) / 2
        product = compute.work("predict", linear(x.shape, means.shape), lambda: x @ means.T)
        assert product is not None
        return (product - offset).masked_fill(self._means.unknown, -torch.inf)

    def state_dict(self) -> Mapping[str, Any]:
        """Return sums and counts."""
        return self._means.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._means.load_state_dict(state)

    def nbytes(self) -> int:
        """Return the bytes of sums and counts."""
        return self._means.nbytes


class NearestNeighbours:
    """The vote of the k nearest of all features stored, searched one by one; ties go to the nearest neighbour.

    Nearest neighbours (Cover & Hart, IEEE Trans. Inf. Theory 1967) on frozen features.

    Learning is free beyond the features, and everything is paid when predicting: q n (2d + 3) for q images, charged to
    the next allowance where it exceeds what is free. Confidence is the share of the votes.

    Args:
        k: neighbours asked; all of them where fewer are stored.
        metric: "cosine" or "euclidean".
        capacity: how many features are stored at most, a uniform sample of all that were seen (reservoir sampling,
            Vitter, TOMS 1985); None: all of them.
        seed: of that sample.
    """

    def __init__(self, k: int, metric: str = "cosine", capacity: int | None = None, seed: int = 0) -> None:
        at_least(1, **{"classifier.k": k})
        if capacity is not None:
            at_least(1, **{"classifier.capacity": capacity})
        one_of(METRICS, **{"classifier.metric": metric})
        self.k, self.metric, self.capacity, self._seed = k, metric, capacity, seed
        self._features, self._labels = torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)
        self._seen = self._classes = 0

    @property
    def _size(self) -> int:
        return self._seen if self.capacity is None else min(self._seen, self.capacity)

    def begin(self, dim: int, classes: int, device: torch.device) -> None:
        """Take note of the number of classes."""
        self._classes = classes
        self._make_room(len(self._labels), dim, device)

    def _make_room(self, rows: int, dim: int, device: torch.device) -> None:
        self._features = grown(self._features, (rows, dim), device)
        self._labels = grown(self._labels, (rows,), device)

    def price(self, n: int) -> int:
        """Return 0: storing is no work."""
        return 0

    def kept(self, allowance: int) -> int:
        """Return 0."""
        return 0

    def learn(self, x: Tensor, y: Tensor, compute: Compute) -> None:
        """Store features."""
        places, chosen = self._places(len(x))
        self._seen += len(x)
        if self._size > len(self._labels):  # by doubling, so that a long stream does not copy them at each step
            self._make_room(max(self._size, 2 * len(self._labels)), x.shape[1], x.device)
        self._features[places] = self._scaled(x)[chosen]
        self._labels[places] = y[chosen]

    def _places(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the rows that some of n new features take, each row once, and which of them they are."""
        places = np.arange(self._seen, self._seen + n)
        chosen = np.arange(n)
        if self.capacity is not None and self._seen + n > self.capacity:
            drawn = generator(self._seed, "reservoir", update=self._seen).integers(places + 1)
            places = np.where(places < self.capacity, places, drawn)
            places, last = np.unique(places[::-1], return_index=True)  # of several for one row the last one stays
            places, chosen = places[places < self.capacity], n - 1 - last[places < self.capacity]
        return torch.from_numpy(places), torch.from_numpy(chosen)

    def finish(self, step: int, compute: Compute) -> None:
        """Nothing is left to do."""

    def scores(self, x: Tensor, compute: Compute) -> Tensor:
        """Return the votes."""
        near = compute.work("predict", knn(len(x), self._size, x.shape[1]), lambda: self._nearest(self._scaled(x)))
        assert near is not None
        return votes(self._labels[near], self._classes)

    def _nearest(self, x: Tensor) -> Tensor:
        """Return the rows of the k nearest, the nearest first: (n, k)."""
        stored = self._features[: self._size]
        x, half = x.to(stored.device), stored.square().sum(1) / 2
        k, part = min(self.k, self._size), max(1, _PAIRS // self._size)
        return torch.cat([(rows @ stored.T - half).topk(k).indices for rows in x.split(part)])

    def _scaled(self, x: Tensor) -> Tensor:
        return normalize(x) if self.metric == "cosine" else x

    def state_dict(self) -> Mapping[str, Any]:
        """Return what is stored."""
        stored = slice(self._size)
        return {
            "features": self._features[stored].clone(),
            "labels": self._labels[stored].clone(),
            "seen": self._seen,
            "classes": self._classes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._features, self._labels = state["features"].clone(), state["labels"].clone()
        self._seen, self._classes = state["seen"], state["classes"]

    def nbytes(self) -> int:
        """Return the bytes of the features and labels stored."""
        return self._features[: self._size].nbytes + self._labels[: self._size].nbytes


def votes(labels: Tensor, classes: int) -> Tensor:
    """Return (n, classes) scores of the classes of neighbours, (n, k), the nearest first, -1 where there is none.

    A score is the logarithm of the number of votes, so that the softmax is the share of the votes. A neighbour counts
    for a millionth more than one, and each further one for half as much more: that decides between equal numbers.
    """
    weight = 1 + 1e-6 * 0.5 ** torch.arange(labels.shape[1], dtype=torch.float64, device=labels.device)
    count = torch.zeros(len(labels), classes, dtype=torch.float64, device=labels.device)
    return count.scatter_add_(1, labels.clamp(min=0), weight.where(labels >= 0, 0.0)).log()
