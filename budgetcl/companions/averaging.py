"""Between updates and between steps: averages of weights to predict with, and resets."""

from __future__ import annotations

from budgetcl.companions.companion import Companion
from budgetcl.models.network import Network


class Averaging(Companion):
    """No average: the network that is trained is the one that predicts."""

    def predictor(self, network: Network) -> Network:
        """Return the network to predict with."""
        return network
