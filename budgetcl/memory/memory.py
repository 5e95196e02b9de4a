"""The memory: what was seen, as columns. Images stay where they are; storage is not the scarce thing, compute is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from budgetcl.errors import UserError, at_least
from budgetcl.memory.by_class import RowsByClass
from budgetcl.memory.by_use import RowsByUse
from budgetcl.streams.stream import IntArray

_NONE: IntArray = np.empty(0, np.int64)
_COLUMN = np.int32  # half the bytes, and two thousand million samples; labels stay as torch's losses want them
_DTYPE = {"logits": torch.float16}  # of stored tensors; others are float32


class Keep(Protocol):
    """Chooses what a memory of limited capacity keeps."""

    def __call__(self, memory: Memory, capacity: int, seed: int) -> IntArray:
        """Return the rows to keep, ascending, at most ``capacity``."""
        ...


class Memory:
    """Everything revealed so far, or what a limited capacity keeps of it; rows are in the order of reveal.

    What the current step reveals is there in full beside what was kept. When the step ends, :meth:`settle` forgets what
    exceeds the capacity. Columns grow in place by doubling, so that revealing costs in proportion to what is revealed
    and not to the past.

    Args:
        capacity: how many samples are kept between steps; None: all.
        keep: chooses them.
        early: new samples must win their place before they are trained on, not after (GDumb, ECCV 2020).

    Attributes:
        new: the number of rows revealed in the current step; they are the last ones.

    Raises:
        UserError: a capacity without a choice of what to keep, or the reverse.
    """

    def __init__(self, capacity: int | None = None, keep: Keep | None = None, early: bool = False) -> None:
        if capacity is not None:
            at_least(1, **{"memory.capacity": capacity})
        if (capacity is None) != (keep is None):
            raise UserError(
                f"memory.capacity={capacity} given {'without' if keep is None else 'with'} memory.keep; both or "
                "neither are expected: choose memory=reservoir, for instance"
            )
        self.capacity, self.early, self._keep = capacity, early, keep
        self._clear()

    def _clear(self) -> None:
        self._size = 0
        self.new = 0
        self._index = np.empty(1024, _COLUMN)
        self._label = np.empty(1024, np.int64)
        self._used = np.empty(1024, _COLUMN)
        self._classes = RowsByClass(_COLUMN)
        self._uses: RowsByUse | None = None  # from when it is first asked for
        self._stored: dict[str, tuple[Tensor, IntArray]] = {}  # (rows, width), and how wide each row is; 0: nothing

    def __len__(self) -> int:
        return self._size

    def add(self, index: IntArray, label: IntArray) -> None:
        """Append samples just revealed.

        Args:
            index: (n,) their indices in the stream.
            label: (n,) their classes, numbered in the order of reveal.

        Raises:
            UserError: more samples than a column can number.
        """
        n = len(index)
        end = self._size + n
        if n and index.max() > np.iinfo(_COLUMN).max:
            raise UserError(f"sample {index.max():,} given; a memory numbers samples up to {np.iinfo(_COLUMN).max:,}")
        if end > len(self._index):
            capacity = max(end, 2 * len(self._index))
            self._index, self._label, self._used = (
                np.concatenate([column[: self._size], np.empty(capacity - self._size, column.dtype)])
                for column in (self._index, self._label, self._used)
            )
        rows = np.arange(self._size, end)
        self._index[rows], self._label[rows], self._used[rows] = index, label, -1
        self._size, self.new = end, n
        self._classes.add(rows, label)

    @property
    def index(self) -> IntArray:
        """(len,) the samples' indices in the stream."""
        return self._index[: self._size]

    @property
    def label(self) -> IntArray:
        """(len,) their classes."""
        return self._label[: self._size]

    @property
    def last_used(self) -> IntArray:
        """(len,) the step in which each sample was last drawn, or -1."""
        return self._used[: self._size]

    @property
    def class_counts(self) -> IntArray:
        """(classes,) how many samples of each class are held."""
        return self._classes.counts

    def rows_of(self, label: int) -> IntArray:
        """Return the rows of one class, oldest first."""
        return self._classes.of(label)

    def rows_at(self, labels: IntArray, places: IntArray) -> IntArray:
        """Return (n,) rows: of each class, the one at the place, counted from the oldest, 0."""
        return self._classes.at(labels, places)

    def used(self, rows: IntArray, step: int) -> None:
        """Note that rows were drawn in a step."""
        if self._uses is not None:
            self._uses.add(np.unique(rows[self._used[rows] != step]), step)
        self._used[rows] = step

    def by_use(self, step: int) -> RowsByUse:
        """Return the rows that were used, by when that was; it is kept up to date until the memory forgets."""
        if self._uses is None:
            self._uses = RowsByUse(self.last_used)
        self._uses.join(step, self.last_used)
        return self._uses

    def settle(self, seed: int) -> None:
        """Forget what exceeds the capacity; ``seed``: of the lots that decide."""
        if self._keep is not None and self.capacity is not None and self._size > self.capacity:
            self._select(self._keep(self, self.capacity, seed))

    def _select(self, rows: IntArray) -> None:
        state, new = self.state_dict(), int((rows >= self._size - self.new).sum())
        columns = {name: state[name][rows] for name in ("index", "label", "used")}
        stored = {}
        for name, (tensor, widths) in state["stored"].items():
            there = rows[rows < len(widths)]  # the last rows may have nothing stored yet
            stored[name] = tensor[torch.from_numpy(there)], widths[there]
        self.load_state_dict({**columns, "stored": stored, "new": new})

    # --- stored tensors -------------------------------------------------------------------------------------------

    def store(self, name: str, rows: IntArray, values: Tensor) -> None:
        """Keep a tensor of each row, (n, width); it may be wider every time, as logits are while a head grows.

        Logits are kept as float16, everything else as float32; their bytes count.
        """
        tensor, widths = self._stored.get(name, (torch.zeros(0, 0, dtype=_DTYPE.get(name, torch.float32)), _NONE))
        if len(tensor) < self._size or tensor.shape[1] < values.shape[1]:
            larger = torch.zeros(len(self._index), max(tensor.shape[1], values.shape[1]), dtype=tensor.dtype)
            larger[: len(tensor), : tensor.shape[1]] = tensor
            widths = np.concatenate([widths, np.zeros(len(larger) - len(widths), np.int64)])
            tensor = larger
        tensor[torch.from_numpy(rows), : values.shape[1]] = values.detach().cpu().to(tensor.dtype)
        widths[rows] = values.shape[1]
        self._stored[name] = tensor, widths

    def stored(self, name: str, rows: IntArray, width: int) -> tuple[Tensor, IntArray]:
        """Return (n, width) stored tensors as float32, zeros where there is none, and (n,) how wide each is, or 0."""
        values, found = torch.zeros(len(rows), width), np.zeros(len(rows), np.int64)
        if name in self._stored:
            tensor, widths = self._stored[name]
            there = np.flatnonzero(rows < len(widths))
            values[torch.from_numpy(there), : tensor.shape[1]] = tensor[torch.from_numpy(rows[there])].float()
            found[there] = widths[rows[there]]
        return values, found

    # --- state ----------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of what is held, without the room to grow: equal for equal rows, however they came."""
        columns = self.index.nbytes + self.label.nbytes + self.last_used.nbytes + self._classes.nbytes
        columns += self._uses.nbytes if self._uses is not None else 0
        return columns + sum(
            tensor[: self._size].nbytes + widths[: self._size].nbytes for tensor, widths in self._stored.values()
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the columns."""
        size = self._size
        return {
            "index": self.index.copy(),
            "label": self.label.copy(),
            "used": self.last_used.copy(),
            "stored": {name: (t[:size].clone(), widths[:size].copy()) for name, (t, widths) in self._stored.items()},
            "new": self.new,
            **({"uses": self._uses.state_dict()} if self._uses is not None else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the columns of another memory."""
        self._clear()
        self.add(state["index"], state["label"])
        self._used[: self._size] = state["used"]
        self._stored = {name: (tensor.clone(), widths.copy()) for name, (tensor, widths) in state["stored"].items()}
        self.new = state["new"]
        self._uses = RowsByUse.of_state(state["uses"]) if "uses" in state else None
