"""Learners that never look at an image: what a benchmark's labels give away by their order alone (EvalOCL, ICCV 2023).

They go through the same loop, on the same clock, and spend nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from budgetcl.budget.compute import Compute
from budgetcl.errors import UserError, at_least
from budgetcl.learners.learner import Predictions
from budgetcl.metrics.blind import BlindMode
from budgetcl.streams.batch import Query
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import TimeStep


class Blind:
    """Answers the mode of the last labels; ties go to the label seen last.

    Args:
        window: how many of the last labels: 1 is the last label; None is everything seen, the running majority;
            "chosen" is the window that the stream chose on its tuning prefix.
    """

    def __init__(self, window: int | None | str) -> None:
        if window is not None and window != "chosen":
            at_least(1, **{"learner.window": window})
        self.window = window
        self._mode: BlindMode | None = None

    def fit(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        """Take note of the labels revealed."""
        if self._mode is None:
            if self.window == "chosen" and revealed.window is None:
                raise UserError(
                    "learner.window=chosen given, but this stream has no tuning prefix to choose it on: give a number"
                )
            window = revealed.window if self.window == "chosen" else self.window
            self._mode = BlindMode(window)
        self._mode.update(revealed.labels(revealed.new))

    def predict(self, query: Query, compute: Compute) -> Predictions:
        """Answer the mode, whatever the images are."""
        answer = self._mode.predict() if self._mode is not None else None
        ranking = np.array([] if answer is None else [answer], dtype=np.int64)
        return Predictions.constant(len(query), ranking, 1.0 if len(ranking) else 0.0)

    def state_dict(self) -> Mapping[str, Any]:
        """Return what is remembered of the labels."""
        return {} if self._mode is None else self._mode.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._mode = BlindMode.from_state_dict(state) if state else None

    def nbytes(self) -> Mapping[str, int]:
        """Return the bytes of the labels remembered."""
        return {"memory": 0 if self._mode is None else self._mode.nbytes}


class Constant:
    """Always answers the most frequent class of the first reveal, pretraining samples included; the smallest wins ties."""

    def __init__(self) -> None:
        self._answer: int | None = None

    def fit(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        """Choose at the first reveal, and stay."""
        if self._answer is None:
            self._answer = int(np.bincount(revealed.labels(revealed.indices)).argmax())

    def predict(self, query: Query, compute: Compute) -> Predictions:
        """Answer the class chosen."""
        ranking = np.array([] if self._answer is None else [self._answer], dtype=np.int64)
        return Predictions.constant(len(query), ranking, 1.0 if len(ranking) else 0.0)

    def state_dict(self) -> Mapping[str, Any]:
        """Return the class chosen."""
        return {"answer": self._answer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._answer = state["answer"]

    def nbytes(self) -> Mapping[str, int]:
        """Return the bytes of the one number."""
        return {"memory": 8}
