"""Regularisers: a penalty on how far the weights move from where the last step left them."""

from __future__ import annotations

from torch import Tensor

from budgetcl.companions.companion import Companion
from budgetcl.models.network import Network


class Regulariser(Companion):
    """No penalty."""

    def penalty(self, network: Network) -> Tensor | None:
        """Return a scalar that is added to the loss, or None."""
        return None
