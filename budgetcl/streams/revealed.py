"""What a learner gets of a stream: images and labels of what was revealed, and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from budgetcl.errors import Unrevealed
from budgetcl.streams.batch import Batch, Source
from budgetcl.streams.stream import PRETRAIN, IntArray, TimeStep


class Revealed:
    """The learner's window on a stream.

    Classes are numbered in the order of their reveal (within one reveal: by label code), so that a head needs a row
    for each class revealed and a learner cannot tell how many there will be.

    Args:
        source: the stream and its pixels. Pretraining rows are revealed from the start.

    Attributes:
        new: the indices that the current step revealed.
        window: the blind classifier's window that was chosen on the stream's tuning prefix, or None.
    """

    def __init__(self, source: Source) -> None:
        stream = source.stream
        self._pixels = source.pixels
        self._label = stream.label
        self._known = np.zeros(len(stream.label), bool)
        self._new = np.zeros(len(stream.label), bool)
        self._class_of = np.full(len(stream.label_names), -1, np.int64)
        self._code_of: list[int] = []
        self.window = stream.window
        self.new: IntArray = np.empty(0, np.int64)
        self._add(stream.rows(PRETRAIN))
        self.new = np.empty(0, np.int64)
        self._new[:] = False

    def reveal(self, step: TimeStep) -> None:
        """Reveal a step's samples."""
        self._new[self.new] = False
        self._add(step.revealed)

    def _add(self, rows: IntArray) -> None:
        self._known[rows] = self._new[rows] = True
        self.new = rows
        codes = np.unique(self._label[rows])
        codes = codes[self._class_of[codes] < 0]
        self._class_of[codes] = np.arange(len(self._code_of), len(self._code_of) + len(codes))
        self._code_of += codes.tolist()

    @property
    def classes(self) -> int:
        """The number of classes with a revealed label."""
        return len(self._code_of)

    @property
    def indices(self) -> IntArray:
        """The indices of everything revealed, ascending."""
        return np.flatnonzero(self._known)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self._pixels.shape

    def labels(self, indices: IntArray) -> IntArray:
        """Return the classes of samples, numbered in the order of reveal.

        Raises:
            Unrevealed: the label of one of them was not revealed yet.
        """
        self._check(indices)
        return self._class_of[self._label[indices]]

    def images(self, indices: IntArray, augment: np.random.Generator | None = None) -> Tensor:
        """Return images as uint8 (n, channels, height, width); augmented where a generator is given.

        Raises:
            Unrevealed: one of them was not revealed yet.
        """
        self._check(indices)
        return self._pixels(indices, augment)

    def batch(self, indices: IntArray, augment: np.random.Generator | None = None) -> Batch:
        """Return a labelled batch.

        Raises:
            Unrevealed: one of its samples was not revealed yet.
        """
        y = self.labels(indices)
        return Batch(self._pixels(indices, augment), torch.from_numpy(y), indices, torch.from_numpy(self._new[indices]))

    def codes(self, classes: IntArray) -> IntArray:
        """Return the stream's label codes of classes numbered in the order of reveal; -1 stays -1 (no answer)."""
        return np.append(np.asarray(self._code_of, dtype=np.int64), -1)[classes]

    def _check(self, indices: IntArray) -> None:
        known = self._known[indices]
        if not known.all():
            raise Unrevealed(
                f"sample {indices[np.argmin(known)]} is not revealed yet: learn only from what was revealed"
            )
