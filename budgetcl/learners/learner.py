"""What a learner is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from budgetcl.budget.compute import Compute
from budgetcl.streams.batch import Query
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import IntArray, TimeStep


@dataclass(frozen=True)
class Predictions:
    """A learner's answers to a query of n images. Classes are numbered in the order of their reveal.

    Attributes:
        classes: (n,) the answers; -1 for no answer.
        top: (n, k) the k <= 5 best classes, best first; -1 where there is none.
        confidence: (n,) the probability given to the answer.
    """

    classes: IntArray
    top: IntArray
    confidence: NDArray[np.float32]

    @staticmethod
    def constant(n: int, ranking: IntArray, confidence: float) -> Predictions:
        """Return the same answer for each image: the classes of ``ranking``, best first."""
        top = np.asarray(ranking[:5] if len(ranking) else [-1], dtype=np.int64)
        return Predictions(
            np.full(n, top[0]), np.broadcast_to(top, (n, len(top))), np.full(n, confidence, dtype=np.float32)
        )


class Learner(Protocol):
    """Learns from what is revealed, predicts what is asked; runs networks through ``compute`` only."""

    def fit(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        """Learn from what was revealed until the allowance is spent."""
        ...

    def predict(self, query: Query, compute: Compute) -> Predictions:
        """Answer. Nothing may change: neither weights, nor statistics, nor what is remembered."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything that later steps depend on: tensors, arrays and numbers, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        ...

    def nbytes(self) -> Mapping[str, int]:
        """Return what is stored between steps, in bytes, by kind: samples, memory, network, teacher, optimiser."""
        ...
