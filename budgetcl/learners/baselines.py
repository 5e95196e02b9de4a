"""Learners that never look at an image: what a stream's labels give away by their order alone (EvalOCL, ICCV 2023).

They go through the same loop, on the same clock as all the others, and spend nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from budgetcl.budget.compute import Compute
from budgetcl.errors import UserError, at_least
from budgetcl.learners.learner import Predictions
from budgetcl.metrics.blind import BlindMode, ConstantMode
from budgetcl.streams.batch import Query
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import TimeStep


class Blind:
    """Answers the mode of the last labels; ties go to the label seen last.

    Args:
        window: how many of the last labels: 1 is the last label; None is everything streamed, the running majority;
            "chosen" is the window that the stream chose on its tuning prefix.
    """

    def __init__(self, window: int | str | None) -> None:
        if window is not None and window != "chosen":
            at_least(1, **{"learner.window": window})
        self.window = window
        self._mode: BlindMode | ConstantMode | None = None

    def fit(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        """Take note of the labels revealed."""
        if self._mode is None:
            self._mode = self._begin(revealed)
        self._mode.update(revealed.labels(revealed.new))

    def _begin(self, revealed: Revealed) -> BlindMode | ConstantMode:
        if self.window != "chosen":
            return BlindMode(self.window)  # type: ignore[arg-type]
        if revealed.window is None:
            raise UserError(
                "learner.window=chosen given, but this stream has no tuning prefix to choose it on: give a number"
            )
        return BlindMode(revealed.window)

    def predict(self, query: Query, compute: Compute) -> Predictions:
        """Answer the mode, whatever the images are; nothing before the first reveal."""
        answer = self._mode.predict() if self._mode is not None else None
        ranking = np.array([] if answer is None else [answer], dtype=np.int64)
        return Predictions.constant(len(query), ranking, 1.0 if len(ranking) else 0.0)

    def state_dict(self) -> Mapping[str, Any]:
        """Return what is remembered of the labels."""
        return {} if self._mode is None else {"labels": self._mode.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._mode = None
        if state:
            self._mode = self._restored(state["labels"])
            self._mode.load_state_dict(state["labels"])

    def _restored(self, state: Mapping[str, Any]) -> BlindMode | ConstantMode:
        return BlindMode(state["window"])

    def nbytes(self) -> Mapping[str, int]:
        """Return the bytes of the labels and counts remembered, eight a number."""
        state = self._mode.state_dict() if self._mode is not None else {}
        return {"memory": 8 * (len(state.get("recent", ())) + 2 * len(state.get("count", ())) or len(state))}


class Constant(Blind):
    """Always answers the most frequent label of the first reveal, pretraining samples included."""

    def __init__(self) -> None:
        super().__init__(None)

    def _begin(self, revealed: Revealed) -> BlindMode | ConstantMode:
        return ConstantMode(revealed.labels(revealed.indices))

    def _restored(self, state: Mapping[str, Any]) -> BlindMode | ConstantMode:
        return ConstantMode()
