"""Which part of a network is trained. What is not trained costs no weight gradient, so it buys further updates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import nn

from budgetcl.models.network import Network


class Part(Protocol):
    """Chooses the modules to train."""

    def __call__(self, network: Network) -> Iterable[nn.Module]:
        """Return the modules whose parameters are trained; everything else is frozen, BatchNorm included."""
        ...


class Everything:
    """Train the whole network."""

    def __call__(self, network: Network) -> Iterable[nn.Module]:
        """Return the network itself."""
        return [network]


class HeadOnly:
    """Train the classifier on a frozen backbone (partial fine-tuning, BudgetCL, CVPR 2023).

    The backbone's forward is still paid at each update: about a third of a full update's price.
    """

    def __call__(self, network: Network) -> Iterable[nn.Module]:
        """Return the head."""
        return [network.head]
