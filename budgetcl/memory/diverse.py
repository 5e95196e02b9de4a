"""Selection by features: candidates that together stand for all of them. Herding and k-means.

The two algorithms are functions of a table of features; nothing they keep is quadratic in its rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from budgetcl.budget import formulas
from budgetcl.errors import UserError, at_least, one_of
from budgetcl.memory.selection import Selection
from budgetcl.memory.uniform import fill_evenly
from budgetcl.streams.stream import IntArray

_ROWS = 1 << 14  # rows of distances held at once


def herd(features: Tensor, picks: int) -> IntArray:
    """Return rows whose mean stays near the mean of all, one after another (iCaRL, CVPR 2017, algorithm 4).

    With mu the mean of all rows, the k-th pick is argmin_x |mu - (phi(x) + sum of the picks so far) / k| among the
    rows not picked yet; as rows have length 1, that is argmax_x phi(x) . (k mu - sum of the picks so far).

    Args:
        features: (n, d); they are scaled to length 1 first, as in the paper.
        picks: how many, at most n.

    Returns:
        (picks,) rows, the first pick first.
    """
    if not 0 <= picks <= len(features):
        raise UserError(f"{picks} picks were asked of {len(features)} rows: ask for at most as many as there are")
    features = F.normalize(features)
    mean = features.mean(0)
    target, free = mean.clone(), features.new_zeros(len(features))
    chosen = torch.empty(picks, dtype=torch.int64, device=features.device)
    for k in range(picks):
        row = torch.addmv(free, features, target).argmax()
        chosen[k] = row
        free[row] = -torch.inf
        target += mean - features[row]
    return chosen.cpu().numpy()


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
        centres: (k, d).
        cluster: (n,) each row's nearest centre.
        distance: (n,) the squared distance to it.
        iterations: how many were made.
    """

    centres: Tensor
    cluster: IntArray
    distance: np.ndarray
    iterations: int


def kmeans(features: Tensor, k: int, iterations: int, random: np.random.Generator) -> Clusters:
    """Cluster rows: Lloyd's algorithm from a greedy k-means++ start (Arthur & Vassilvitskii, SODA 2007).

    It ends when no row changes its cluster. A cluster that loses all its rows keeps its centre.

    Args:
        features: (n, d).
        k: how many clusters; at most n are made.
        iterations: how many at most.
        random: of the start.
    """
    at_least(1, clusters=k, iterations=iterations)
    k = min(k, len(features))
    squares = torch.linalg.vector_norm(features, dim=1).square()
    centres, cluster, distance = _start(features, squares, k, random)
    made = 0
    while made < iterations:
        made += 1
        sums = torch.zeros_like(centres).index_add_(0, cluster, features)
        counts = torch.bincount(cluster, minlength=k)[:, None]
        centres = torch.where(counts > 0, sums / counts, centres)
        before = cluster
        cluster, distance = _nearest(features, squares, centres)
        if torch.equal(cluster, before):
            break
    return Clusters(centres, cluster.cpu().numpy(), distance.cpu().numpy(), made)


def _nearest(features: Tensor, squares: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    norms = centres.square().sum(1)
    parts = [torch.addmm(norms, rows, centres.T, alpha=-2).min(1) for rows in features.split(_ROWS)]
    values, cluster = (torch.cat(column) for column in zip(*parts))
    return cluster, (values + squares).clamp_(min=0)


def _start(features: Tensor, squares: Tensor, k: int, random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return k rows as centres, each the best of a few drawn by their squared distance to those before.

    Returns:
        (k, d) the centres, (n,) each row's nearest, (n,) the squared distance to it.
    """
    trials = 2 + int(np.log(k))
    chosen = random.integers(len(features), size=1)
    nearest = _distances(features, squares, chosen)[:, 0]
    cluster = torch.zeros_like(nearest, dtype=torch.int64)
    for i in range(1, k):
        sums = nearest.double().cpu().numpy().cumsum()
        # By inverting the distribution function; no distance is left where all rows lie on the centres.
        tries = np.searchsorted(sums, random.random(trials) * sums[-1], side="right").clip(max=len(sums) - 1)
        distances = _distances(features, squares, tries)
        best = int(torch.minimum(nearest[:, None], distances).sum(0).argmin())
        cluster[distances[:, best] < nearest] = i
        nearest = torch.minimum(nearest, distances[:, best])
        chosen = np.append(chosen, tries[best])
    return features[torch.from_numpy(chosen).to(features.device)], cluster, nearest


def _distances(features: Tensor, squares: Tensor, rows: IntArray) -> Tensor:
    """Squared distances (n, len(rows)) of all rows to some of them."""
    index = torch.from_numpy(rows).to(features.device)
    return torch.addmm(squares[index], features, features[index].T, alpha=-2).add_(squares[:, None]).clamp_(min=0)


class Herding(Selection):
    """Learn from the candidates whose mean feature stays nearest to that of all candidates (iCaRL, CVPR 2017).

    Args:
        spend: see :class:`Selection`.
        keep: see :class:`Selection`.
        candidates: see :class:`Selection`.
        refresh: see :class:`Selection`.
        per_class: herd each class by itself, with equal shares of what is kept (iCaRL); else all candidates as one.
    """

    def __init__(
        self,
        spend: float = 1 / 6,
        keep: float = 1 / 3,
        candidates: int | None = None,
        refresh: int = 1,
        per_class: bool = True,
    ) -> None:
        super().__init__(spend, keep, candidates, refresh)
        if not isinstance(per_class, bool):
            raise UserError(f"per_class={per_class!r} given; true or false is expected")
        self.per_class = per_class

    def price(self, n: int, kept: int) -> int:
        """Return the FLOPs at most: all candidates as one class, or as many as the largest class has in each."""
        largest = min(n, int(self._place.memory.class_counts.max())) if self.per_class else n
        d = self._place.network.feature_dim
        return formulas.herding(n, d, 0) + formulas.herding(largest, d, kept) - formulas.herding(largest, d, 0)

    def select(self, candidates: IntArray, kept: int) -> IntArray:
        """Return the rows herded."""
        place, features = self._place, self.features(candidates)
        groups = [np.arange(len(candidates))]
        if self.per_class:
            label = place.memory.label[candidates]
            order = np.argsort(label, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
        sizes = np.array([len(group) for group in groups])
        shares = fill_evenly(kept, sizes, place.random("shares", self._selections)).tolist()
        flops = sum(formulas.herding(len(group), features.shape[1], n) for group, n in zip(groups, shares))
        picks = place.compute.work(
            "select", flops, lambda: [group[herd(features[group], n)] for group, n in zip(groups, shares)]
        )
        assert picks is not None
        return candidates[np.concatenate(picks)]


class KMeans(Selection):
    """Learn from equal shares of the clusters that k-means finds among the candidates' features (BudgetCL, CVPR 2023).

    Each cluster gives the same number of samples, one that has fewer gives all it has. The largest number of
    iterations is charged first; what was not needed is refunded.

    Args:
        spend: see :class:`Selection`.
        keep: see :class:`Selection`.
        candidates: see :class:`Selection`.
        refresh: see :class:`Selection`.
        clusters: how many; None: as many as classes were seen. There are never more than candidates.
        iterations: of Lloyd's algorithm, at most.
        pick: "nearest" to the centre, or "random" in the cluster.
    """

    def __init__(
        self,
        spend: float = 1 / 6,
        keep: float = 1 / 3,
        candidates: int | None = None,
        refresh: int = 1,
        clusters: int | None = None,
        iterations: int = 20,
        pick: str = "nearest",
    ) -> None:
        super().__init__(spend, keep, candidates, refresh)
        at_least(1, iterations=iterations)
        if clusters is not None:
            at_least(1, clusters=clusters)
        one_of(("nearest", "random"), pick=pick)
        self.clusters, self.iterations, self.pick = clusters, iterations, pick

    def price(self, n: int, kept: int) -> int:
        """Return the FLOPs with all iterations made."""
        return self._price(n, self.iterations)

    def select(self, candidates: IntArray, kept: int) -> IntArray:
        """Return the rows picked from the clusters."""
        place, features = self._place, self.features(candidates)
        random, n = place.random("clusters", self._selections), len(candidates)
        most, k = self.price(n, kept), self._clusters(n)
        found = place.compute.work("select", most, lambda: kmeans(features, k, self.iterations, random))
        assert found is not None
        place.compute.refund("select", most - self._price(n, found.iterations))
        order = np.lexsort((found.distance if self.pick == "nearest" else random.random(n), found.cluster))
        sizes = np.bincount(found.cluster, minlength=k)
        rank = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the cluster
        return candidates[order[rank < np.repeat(fill_evenly(kept, sizes, random), sizes)]]

    def _clusters(self, n: int) -> int:
        return min(n, self.clusters or self._place.network.head.classes)

    def _price(self, n: int, iterations: int) -> int:
        k, d = self._clusters(n), self._place.network.feature_dim
        return formulas.kmeans_seeding(n, k, d) + formulas.kmeans(n, k, d, iterations)
