"""Which part of a network is trained. What is not trained costs no weight gradient, so it buys further updates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from torch import nn

from budgetcl.models.network import Network


class Part(Protocol):
    """Chooses what is trained, anew in each step."""

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the modules, or single parameters, that a step trains.

        Everything else is frozen; a module without a trained parameter is frozen with its statistics (BatchNorm).

        Args:
            network: the network; a part may insert parameters of its own when it first sees it.
            step: the time step's number.
            random: the part's own random numbers of this step.
        """
        ...


class Everything:
    """Train the whole network."""

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the network itself."""
        return [network]


class HeadOnly:
    """Train the classifier on a frozen backbone (partial fine-tuning, BudgetCL, CVPR 2023).

    The backbone's forward is still paid at each update: about a third of a full update's price. With cached features
    it is paid once a sample, and the features are stored.

    Args:
        cached: keep the features of every sample once it was drawn, and train on them. Only where images are not
            augmented.
    """

    def __init__(self, cached: bool = False) -> None:
        self.cached = cached

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the head."""
        return [network.head]
