"""What crosses from the stream to a learner: labelled batches to learn from, unlabelled queries to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from budgetcl.budget.ranks import ALONE, Ranks
from budgetcl.streams.pinned import moved
from budgetcl.streams.prefetch import Pending, Shown, begin
from budgetcl.streams.stream import IntArray, Stream


class Pixels(Protocol):
    """Index -> tensor for one stream: decodes and augments, knows no label.

    Attributes:
        shape: (channels, height, width) of an image.
        fingerprint: a hash of where the pixels come from.
    """

    shape: tuple[int, int, int]
    fingerprint: str

    def __call__(self, indices: IntArray, augment: np.random.Generator | None = None) -> Tensor:
        """Return the images as uint8 of shape (len(indices), *shape); augmented where a generator is given."""
        ...


@dataclass(frozen=True)
class Source:
    """What a stream component returns: the table and the images it speaks of."""

    stream: Stream
    pixels: Pixels


@dataclass(frozen=True)
class Batch:
    """A labelled batch.

    Attributes:
        x: (n, channels, height, width), uint8.
        y: (n,) int64, the class's row in the head: classes are numbered in the order of their reveal.
        index: (n,) the samples' indices, on the host.
        is_new: (n,) bool, revealed in this step.
        extra: further tensors whose first dimension is n, by name: "teacher" logits, stored logits, a second view.
    """

    x: Tensor
    y: Tensor
    index: IntArray
    is_new: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def first(self, n: int) -> Batch:
        """Return the first n samples."""
        return self.rows(slice(n))

    def rows(self, part: slice) -> Batch:
        """Return a slice of the samples."""
        extra = {name: value[part] for name, value in self.extra.items()}
        return Batch(self.x[part], self.y[part], self.index[part], self.is_new[part], extra)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, without waiting for the copy."""
        if all(value.device == device for value in (self.x, self.y, self.is_new, *self.extra.values())):
            return self
        extra = {name: moved(value, device) for name, value in self.extra.items()}
        return Batch(moved(self.x, device), moved(self.y, device), self.index, moved(self.is_new, device), extra)

    def adding(self, **extra: Tensor) -> Batch:
        """Return the batch with further tensors."""
        return replace(self, extra={**self.extra, **extra})


class Query:
    """Images to predict: neither their labels nor their indices. They are decoded when first looked at, or begun."""

    def __init__(self, pixels: Pixels, indices: IntArray, ranks: Ranks = ALONE) -> None:
        self._begin = lambda part: begin(pixels, indices, part=part)
        self._pending: Pending[Shown] | None = None
        self._length, self._ranks = len(indices), ranks

    def __len__(self) -> int:
        return self._length

    def begin(self) -> None:
        """Let the images be decoded in the background."""
        if self._pending is None:
            self._pending = self._begin(self._ranks.part(self._length))

    @property
    def looked_at(self) -> bool:
        """Whether somebody asked for the images."""
        return bool({"_own", "_all"} & vars(self).keys())

    @property
    def x(self) -> Tensor:
        """(n, channels, height, width), uint8; zeros where an image cannot be read and the stream goes on without."""
        return self._all.x

    @property
    def own(self) -> Tensor:
        """As :attr:`x`, but blank in the rows of other processes: for ``Compute.forward``, which leaves them to those.

        In one process it is all of them.
        """
        return self._own.x

    @property
    def damaged(self) -> Mapping[int, str]:
        """Position -> why the image cannot be read; of images that nobody looked at nothing is known."""
        return (self._all if "_all" in vars(self) else self._own).damaged if self.looked_at else {}

    @cached_property
    def _all(self) -> Shown:
        return self._begin(None).result() if self._ranks.several else self._own

    @cached_property
    def _own(self) -> Shown:
        self.begin()
        assert self._pending is not None
        shown = self._pending.result()
        return replace(shown, damaged=self._ranks.merged(shown.damaged))
