"""Calibration: what corrects a network's outputs after a step's training, out of a part of its allowance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from budgetcl.budget.compute import Compute
from budgetcl.companions.companion import Companion
from budgetcl.models.network import Outputs
from budgetcl.streams.stream import IntArray


class Calibration(Companion):
    """No correction."""

    def hold_out(self, index: IntArray, label: IntArray, random: np.random.Generator) -> NDArray[np.bool_]:
        """Choose, among samples just revealed, those to calibrate on: they are never trained on.

        Args:
            index: (n,) the samples' indices.
            label: (n,) their classes.
            random: decides.

        Returns:
            (n,) whether each is held out.
        """
        return np.zeros(len(index), bool)

    def logits(self, outputs: Outputs, compute: Compute) -> Tensor:
        """Return the corrected logits (n, classes) of a prediction."""
        return outputs.logits
