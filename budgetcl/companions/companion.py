"""What accompanies a network's training beside its loss: teachers, regularisers, averages of weights, calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from budgetcl.memory.sampler import Place
from budgetcl.models.network import Network

NO_WORK: Mapping[str, int] = {}


class Companion:
    """Goes along with the training of one network. By itself it does nothing and costs nothing.

    The learner calls ``begin`` when a step opens, ``follow`` after each update and ``end`` after the last one. What
    ``follow`` and a penalty cost is told by ``beside`` and charged with the update; what ``end`` costs is claimed by
    ``begin`` (``place.compute.reserve``), so that a learner that trains until it is refused leaves room for it.

    Attributes:
        looks_back: whether it may look at any sample of the memory, which is then stored whole, whatever the sampler
            draws from.
    """

    looks_back = False

    def begin(self, place: Place) -> None:
        """Prepare for a step: claim what its end will cost."""

    def beside(self, network: Network) -> Mapping[str, int]:
        """Return the FLOPs, by category, that go along with each update."""
        return NO_WORK

    def follow(self, network: Network) -> None:
        """Take note of an update just made; its gradients are still there."""

    def end(self, place: Place) -> None:
        """Conclude a step, after its last update."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything that later steps depend on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Go on from a state; the network has taken up its own already."""

    def held(self) -> int:
        """Return how many samples it keeps apart from the memory."""
        return 0

    def nbytes(self) -> int:
        """Return the bytes that are stored between steps, images of samples apart."""
        return 0
