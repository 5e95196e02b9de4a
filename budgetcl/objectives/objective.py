"""What an objective is: the scalar that an update descends."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from torch import Tensor

from budgetcl.models.network import Network, Outputs
from budgetcl.streams.batch import Batch


class Objective(Protocol):
    """A loss of a network on a batch. It may call the network more than once; each call is part of its price.

    Objectives use masks and slices, not boolean indexing, so that they can be priced from shapes alone.

    Attributes:
        key: what tells two configurations of it apart; prices are kept by it.
        teacher: whether ``batch.extra["teacher"]``, a teacher's logits (n, old classes), is wanted where there are any.
    """

    @property
    def key(self) -> Hashable:
        """What tells two configurations apart."""
        ...

    @property
    def teacher(self) -> bool:
        """Whether a teacher is wanted."""
        ...

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the scalar loss and the network's outputs on the batch."""
        ...
