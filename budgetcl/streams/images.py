"""Pictures of a table: index -> tensor, decoded by several threads, kept in memory where they fit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from budgetcl.errors import UserError, at_least, one_of
from budgetcl.streams.decoding import MODES, Damaged, decoded
from budgetcl.streams.paths import Paths
from budgetcl.streams.pinned import wanted
from budgetcl.streams.prefetch import Pending, Shown, Workers
from budgetcl.streams.stream import IntArray
from budgetcl.streams.transforms import AUGMENTS, Numbers, drawn, shifted

VERSION = 2  # of the way from a file to pixels


class Pictures(Protocol):
    """Encoded pictures, by row: files of a folder, or a packed folder (budgetcl.streams.packed)."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Return what to call a picture when it is refused."""
        ...

    def source(self, row: int) -> str | BytesIO:
        """Return what the decoder opens."""
        ...

    def size(self, row: int) -> int:
        """Return how many bytes an encoded picture has; -1 where it is not to be had."""
        ...

    def digest(self) -> str:
        """Return a hash of what the pictures are, in their order."""
        ...


class Files:
    """Pictures that are files of a folder.

    Args:
        folder: what the paths are relative to.
        paths: one for each row.
    """

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        self._prefix = str(folder / "_")[:-1]  # joined to a path at each use
        self._paths = paths if isinstance(paths, Paths) else Paths.of(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, row: int) -> str:
        """Return the path."""
        return self._prefix + self._paths[row]

    source = name

    def size(self, row: int) -> int:
        """Return the file's size."""
        try:
            return os.stat(self.name(row)).st_size
        except (OSError, ValueError):
            return -1

    def digest(self) -> str:
        """Return the hash of the paths: of the names, not of what the files hold."""
        return self._paths.digest()


class ImagePixels:
    """The pictures of a table: decoded at first use, kept as uint8 where all of them fit, else decoded at each use.

    Args:
        pictures: one for each row of the stream.
        size: side of the square pictures.
        channels: 1 or 3.
        augment: "none"; "crop", shifted by up to an eighth of the side, the border repeated; "crop_flip", mirrored
            half of the time besides; or "random_resized_crop", a random part of the picture as it was stored
            (:func:`budgetcl.streams.transforms.random_box`), mirrored half of the time, decoded at each use.
        memory: bytes that the kept pictures may take.
        resize: what the short side is resized to before the central square is cut; None: to ``size``.
        workers: threads that decode; None: as many as there are processors, at most 16; 0: none beside the caller.
        damaged: "stop" at a picture that cannot be shown; or "replace" it, which is for the caller to do: its row is
            left empty and named (:class:`budgetcl.streams.prefetch.Shown`).

    Attributes:
        pictures: as given.
        augments: whether pictures that are asked for with a generator are random views.

    Raises:
        UserError: a setting that there is not.
    """

    def __init__(
        self,
        pictures: Pictures,
        size: int,
        channels: int,
        augment: str = "none",
        memory: int = 1 << 30,
        resize: int | None = None,
        workers: int | None = None,
        damaged: str = "stop",
    ) -> None:
        one_of(AUGMENTS, augment=augment)
        one_of(("stop", "replace"), damaged=damaged)
        if channels not in MODES:
            raise UserError(f"channels={channels!r} given; 1 (grey) or 3 (RGB) is expected")
        if resize is not None:
            at_least(size, resize=resize)
        if workers is not None:
            at_least(0, workers=workers)
        self.shape = (channels, size, size)
        self.augments = augment != "none"
        self.pictures, self._augment, self._damaged = pictures, augment, damaged
        self._share = size / (resize or size)
        text = f"images/{VERSION}/{size}/{resize or size}/{channels}/{pictures.digest()}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._keep = len(pictures) * channels * size * size <= memory
        self._kept = torch.empty(0)
        self._known = np.zeros(len(pictures) if self._keep else 0, bool)
        self._workers = Workers(workers)
        Image.preinit()  # not by the first thread: what is imported in it stays among its memory and slows it by 5 %

    def __call__(self, indices: IntArray, augment: np.random.Generator | None = None) -> Tensor:
        """Return the pictures as uint8 (len(indices), channels, size, size), laid out channels last.

        Raises:
            Damaged: a picture is missing or unreadable.
        """
        shown = self.begin(indices, augment).result()
        if shown.damaged:
            raise Damaged(shown.damaged)
        return shown.x

    def begin(self, indices: IntArray, augment: np.random.Generator | None = None) -> Pending[Shown]:
        """Begin to decode pictures; ``result()`` returns them, as uint8 (len(indices), channels, size, size).

        The random numbers are drawn here, before any thread has its turn.

        Raises:
            Damaged: by ``result()``, where a picture is missing or unreadable and ``damaged`` is "stop".
        """
        indices = np.array(indices, np.int64)
        numbers = None if augment is None or self._augment == "none" else drawn(augment, len(indices))
        if numbers is not None and self._augment == "random_resized_crop":
            return self._decoded(indices, numbers).then(self._allowed)
        pending = (self._remembered(indices) if self._keep else self._decoded(indices, None)).then(self._allowed)
        if numbers is None:
            return pending
        flip = self._augment == "crop_flip"
        return pending.then(lambda shown: Shown(shifted(shown.x, numbers, flip), shown.damaged))

    def _allowed(self, shown: Shown) -> Shown:
        if shown.damaged and self._damaged == "stop":
            raise Damaged(shown.damaged, "; stream.damaged=replace goes on without them")
        return shown

    def _remembered(self, indices: IntArray) -> Pending[Shown]:
        if not len(self._kept):
            self._kept = self._empty(len(self._known), pinned=False)
        new = np.unique(indices[~self._known[indices]])

        def gathered(fresh: Shown) -> Shown:
            self._known[np.delete(new, list(fresh.damaged))] = True
            broken = {int(new[place]): reason for place, reason in fresh.damaged.items()}
            damaged = {place: broken[row] for place, row in enumerate(indices.tolist()) if row in broken}
            x = self._empty(len(indices))
            kept, rows = self._kept.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)  # gathered as they lie
            torch.index_select(kept, 0, torch.from_numpy(indices), out=rows)
            return Shown(x, damaged if broken else {})

        return self._decoded(new, None, into=(self._kept, new)).then(gathered)

    def _empty(self, count: int, pinned: bool = True) -> Tensor:
        """Return room for pictures, laid out channels last: as decoders write them, and as convolutions read them.

        Where CUDA is in use it is pinned, so that it can be copied to the device without waiting; but for what is kept,
        which is copied into a batch first. Elsewhere numpy gives it: torch asks for aligned memory, for which glibc
        takes new pages even where a batch of the same size was just freed.
        """
        channels, height, width = self.shape
        size = (count, height, width, channels)
        if pinned and wanted():
            return torch.empty(size, dtype=torch.uint8, pin_memory=True).permute(0, 3, 1, 2)
        return torch.from_numpy(np.empty(size, np.uint8)).permute(0, 3, 1, 2)

    def _decoded(
        self, indices: IntArray, numbers: Numbers | None, into: tuple[Tensor, IntArray] | None = None
    ) -> Pending[Shown]:
        """Decode pictures into new rows, or into the given rows of a tensor."""
        x, rows = (self._empty(len(indices)), None) if into is None else into
        out: NDArray[np.uint8] = x.numpy()
        damaged: dict[int, str] = {}
        channels, size, _ = self.shape

        def decode(place: int) -> None:
            row, at = int(indices[place]), place if rows is None else rows[place]
            part = None if numbers is None else numbers[place]
            try:
                name = partial(self.pictures.name, row)
                out[at] = decoded(self.pictures.source(row), name, size, channels, self._share, part)
            except Damaged as damage:
                damaged[place] = damage.reasons[0]
                out[at] = 0

        return self._workers.each(len(indices), decode).then(lambda _: Shown(x, dict(sorted(damaged.items()))))
