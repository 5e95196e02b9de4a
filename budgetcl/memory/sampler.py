"""What a sampler is: it says which samples of the memory the next update learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from budgetcl.budget.compute import Compute
from budgetcl.errors import UserError
from budgetcl.memory.memory import Memory
from budgetcl.models.network import Network, Outputs
from budgetcl.randomness import generator
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import IntArray


@dataclass(frozen=True)
class Place:
    """Where in a run a sampler is asked: what it may look at, and what its random numbers are counted by.

    Attributes:
        seed: the run's seed.
        step: the time step's number.
        memory: everything revealed so far, one row a sample.
        revealed: images and labels of what the memory speaks of.
        network: the network being trained.
        compute: the only way to ask the network anything; what is asked is charged.
    """

    seed: int
    step: int
    memory: Memory
    revealed: Revealed
    network: Network
    compute: Compute

    def random(self, purpose: str, update: int = 0) -> np.random.Generator:
        """Return the generator of one purpose at one update of this step."""
        return generator(self.seed, purpose, self.step, update)

    def forward(
        self, rows: IntArray, category: str, size: int = 256, parameters: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[IntArray, Outputs]]:
        """Yield the network's outputs (eval mode, no gradient) on rows of the memory, ``size`` at a time, charged.

        ``parameters`` are used in place of the network's own (a virtual update).
        """
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            images = self.revealed.images(self.memory.index[part], own=True)
            yield part, self.compute.forward(self.network, images, category, parameters)

    def price(self) -> int:
        """Return the FLOPs of one image's forward; asking costs nothing."""
        return self.compute.price(self.network, torch.empty(1, *self.revealed.image_shape, dtype=torch.uint8))


class Sampler(Protocol):
    """Draws rows of the memory. ``begin`` once a step; ``draw`` once an update.

    Attributes:
        ahead: whether draws depend on the memory's rows and the update's number alone, neither on the network nor on
            what was used: then they may be made before their time.
    """

    @property
    def ahead(self) -> bool:
        """Whether draws may be made before their time."""
        ...

    def begin(self, place: Place) -> None:
        """Prepare for a step."""
        ...

    def draw(self, n: int, update: int) -> IntArray:
        """Return n rows of the memory for this update of the step, distinct unless the sampler says otherwise.

        Whatever asks the network is charged before it is asked.

        Raises:
            Exhausted: the rest of the step's allowance does not pay for asking the network.
            UserError: there are fewer than n to draw from.
        """
        ...

    def reach(self) -> int:
        """Return how many samples it may still draw from: what has to be stored for it."""
        ...


def enough(n: int, available: int, where: str) -> None:
    """Refuse a batch larger than what it is drawn from.

    Raises:
        UserError: n exceeds what is available.
    """
    if n > available:
        raise UserError(
            f"a batch of {n} distinct samples was asked of {where}, which holds {available}: "
            "lower learner.batch, reveal more per step, or widen the sampler"
        )
