"""Approximate nearest neighbours on fixed features: the search costs what it looks at, not everything stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from budgetcl.budget.compute import Compute
from budgetcl.budget.formulas import approximate_knn
from budgetcl.errors import UserError, at_least, one_of
from budgetcl.learners.nearest import METRICS, votes
from budgetcl.randomness import generator


class ApproximateNeighbours:
    """The vote of about the k nearest of all features seen, by a search graph (HNSW, Malkov & Yashunin, TPAMI 2020).

    As in Online Continual Learning Without the Storage Constraint (ACM, arXiv 2305.09253). The price is the number of
    distances that faiss evaluates, by its own count, times 2d + 3.

    A prediction is charged when its count is known: after the search, before its answers are given. faiss sets no limit
    to a search, and the only bound that holds beforehand, all that is stored on two levels, is twice the price of an
    exact search: to refuse what does not pay for the bound would refuse what the graph is there to make cheap. Nothing
    is had for less by that: a prediction that the next allowance does not pay for gives no answer, and ends the run.

    An insertion pays for the most there can be, and gets back what it did not need:
    faiss counts searches only, so its distances are those of a search for the same features with ``breadth``, twice:
    once to find the neighbours, once for linking them, which is the most that was measured (0.7 times a search).
    All features are stored. Confidence is the share of the votes, ties go to the nearer neighbours.

    Args:
        k: neighbours asked.
        metric: "cosine" or "euclidean".
        links: of a feature in the graph (M).
        breadth: candidates held while inserting (efConstruction).
        search: candidates held while searching (efSearch).
        seed: of the graph's levels.

    Raises:
        UserError: faiss is not installed.
    """

    def __init__(
        self, k: int, metric: str = "cosine", links: int = 16, breadth: int = 40, search: int = 32, seed: int = 0
    ) -> None:
        at_least(1, **{"classifier.k": k, "classifier.breadth": breadth, "classifier.search": search})
        at_least(2, **{"classifier.links": links})
        one_of(METRICS, **{"classifier.metric": metric})
        try:
            import faiss
        except ImportError:
            raise UserError(
                "approximate neighbours were asked for, but faiss is not installed: pip install 'budgetcl[knn]', or "
                "choose method=knn"
            ) from None
        faiss.omp_set_num_threads(1)  # the graph depends on the number of threads that insert
        self._faiss: Any = faiss
        self.k, self.metric, self.links, self.breadth, self.search = k, metric, links, breadth, search
        self._seed, self._classes = seed, 0
        self._index: Any = None
        self._labels = np.empty(0, np.int64)

    def begin(self, dim: int, classes: int, device: torch.device) -> None:
        """Take note of the number of classes."""
        self._classes = classes
        if self._index is None:
            self._index = self._faiss.IndexHNSWFlat(dim, self.links)
            self._index.hnsw.efConstruction = self.breadth

    def price(self, n: int) -> int:
        """Return what is reserved for inserting n features: all of them and all stored, on two levels, twice."""
        return approximate_knn(4 * n * (self._index.ntotal + n), self._index.d)

    def kept(self, allowance: int) -> int:
        """Return 0."""
        return 0

    def learn(self, x: Tensor, y: Tensor, compute: Compute) -> None:
        """Insert features."""
        most = self.price(len(x))
        evaluations = compute.work("train", most, lambda: self._insert(self._rows(x)))
        assert evaluations is not None
        compute.refund("train", max(0, most - approximate_knn(2 * evaluations, x.shape[1])))
        self._labels = np.concatenate([self._labels, y.cpu().numpy()])

    def _insert(self, rows: np.ndarray) -> int:
        """Insert, and return how many distances a search for the same rows evaluates."""
        # Levels are drawn from where the index stands, so that no state of a generator has to be kept.
        seed = int(generator(self._seed, "levels", update=self._index.ntotal).integers(2**31))
        self._index.hnsw.rng = self._faiss.RandomGenerator(seed)
        self._index.add(rows)
        return self._search(rows, 1, self.breadth)[1]

    def finish(self, step: int, compute: Compute) -> None:
        """Nothing is left to do."""

    def scores(self, x: Tensor, compute: Compute) -> Tensor:
        """Return the votes."""
        near, evaluations = self._search(self._rows(x), self.k, self.search)
        compute.work("predict", approximate_knn(evaluations, x.shape[1]))
        labels = np.where(near >= 0, self._labels[near], -1)
        return votes(torch.from_numpy(labels), self._classes)

    def _search(self, rows: np.ndarray, k: int, breadth: int) -> tuple[np.ndarray, int]:
        """Return the k nearest, (n, k), -1 where there are fewer, and how many distances were evaluated."""
        parameters = self._faiss.SearchParametersHNSW(efSearch=max(k, breadth))
        self._faiss.cvar.hnsw_stats.reset()
        _, near = self._index.search(rows, k, params=parameters)
        return near, int(self._faiss.cvar.hnsw_stats.ndis)

    def _rows(self, x: Tensor) -> np.ndarray:
        return (normalize(x) if self.metric == "cosine" else x).cpu().numpy()

    def state_dict(self) -> Mapping[str, Any]:
        """Return the graph, as bytes, and the labels."""
        index = None if self._index is None else self._faiss.serialize_index(self._index)
        return {"index": index, "labels": self._labels.copy(), "classes": self._classes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._index = None if state["index"] is None else self._faiss.deserialize_index(state["index"])
        self._labels, self._classes = state["labels"].copy(), state["classes"]

    def nbytes(self) -> int:
        """Return the bytes of features, labels and links."""
        if self._index is None:
            return 0
        graph = self._index.hnsw
        links = 4 * graph.neighbors.size() + 4 * graph.levels.size() + 8 * graph.offsets.size()
        return 4 * self._index.ntotal * self._index.d + links + self._labels.nbytes
