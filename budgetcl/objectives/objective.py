"""What an objective is: the scalar that an update descends."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from torch import Tensor

from budgetcl.models.network import Network, Outputs
from budgetcl.streams.batch import Batch


class Objective(Protocol):
    """A loss of a network on a batch. It may call the network more than once; each call is part of its price.

    Objectives use masks and slices, not boolean indexing, so that they can be priced from shapes alone. They are
    means over the batch: how much of it is new and how much is replayed is the sampler's choice, not the loss's.

    Attributes:
        key: what tells two configurations of it apart; prices are kept by it.
        teacher: whether a teacher's outputs on the batch are wanted where there is a teacher:
            ``batch.extra["teacher"]``, its logits (n, old classes), and ``batch.extra["teacher_features"]`` (n, d).
        stores: names of the outputs that are stored with a sample when it is first trained on. "logits" come back as
            ``batch.extra["logits"]`` (n, width), padded with zeros, and ``batch.extra["logits_classes"]`` (n,): how
            many of the first columns are valid, 0 where nothing is stored.

    An objective may have one attribute more, ``pointwise``: whether the loss is the mean over the samples of a term of
    each alone. Only then can several processes share a batch; where it is not there, they refuse.
    """

    @property
    def key(self) -> Hashable:
        """What tells two configurations apart."""
        ...

    @property
    def teacher(self) -> bool:
        """Whether a teacher is wanted."""
        ...

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the outputs to store."""
        ...

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the scalar loss and the network's outputs on the batch."""
        ...
