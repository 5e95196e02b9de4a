"""Pictures from disk: PNG and JPEG files, decoded when they are first looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from budgetcl.errors import UserError, one_of
from budgetcl.streams.stream import IntArray

VERSION = 1  # of the way from a file to pixels
MODES = {1: "L", 3: "RGB"}


def decoded(path: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """Read a PNG or JPEG file: turned upright, transparency on white, the short side resized to ``size``, centre crop.

    Args:
        path: the file.
        size: side of the square picture, in pixels.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        (channels, size, size) uint8.

    Raises:
        UserError: the file is missing or no readable PNG or JPEG.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            image.draft(MODES[channels], (2 * size, 2 * size))  # lets a large JPEG be decoded at a lower resolution
            picture = _opaque(ImageOps.exif_transpose(image)).convert(MODES[channels])
            picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: paths are relative to the folder of the table") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no readable PNG or JPEG ({error})") from error
    return np.asarray(picture).reshape(size, size, channels).transpose(2, 0, 1)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey: keep the upper eight
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


class ImagePixels:
    """The pictures of a table: decoded at first use, kept as uint8 where all of them fit, else decoded at each use.

    Args:
        folder: what the paths are relative to.
        paths: one for each row.
        size: side of the square pictures.
        channels: 1 or 3.
        augment: "none"; "crop", shifted by up to an eighth of the side, the border repeated; or "crop_flip", mirrored
            half of the time besides.
        memory: bytes that the kept pictures may take.
    """

    def __init__(
        self, folder: Path, paths: Sequence[str], size: int, channels: int, augment: str = "none", memory: int = 1 << 30
    ) -> None:
        one_of(("none", "crop", "crop_flip"), augment=augment)
        if channels not in MODES:
            raise UserError(f"channels={channels!r} given; 1 (grey) or 3 (RGB) is expected")
        self.shape = (channels, size, size)
        self._folder, self._paths, self._augment = folder, tuple(paths), augment
        text = "\0".join((f"images/{VERSION}/{size}/{channels}", *self._paths))
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._keep = len(self._paths) * channels * size * size <= memory
        self._kept: Tensor | None = None
        self._known = np.zeros(len(self._paths), bool)

    def __call__(self, indices: IntArray, augment: np.random.Generator | None = None) -> Tensor:
        """Return the pictures as uint8 (len(indices), channels, size, size).

        Raises:
            UserError: a file is missing or unreadable.
        """
        indices = np.array(indices, np.int64)
        if self._keep:
            if self._kept is None:
                self._kept = torch.zeros((len(self._paths), *self.shape), dtype=torch.uint8)
            for index in indices[~self._known[indices]]:
                self._kept[index] = self._decoded(int(index))
                self._known[index] = True
            x = self._kept[torch.from_numpy(indices)]
        else:
            pictures = [self._decoded(int(index)) for index in indices]
            x = torch.stack(pictures) if pictures else torch.zeros((0, *self.shape), dtype=torch.uint8)
        if augment is None or self._augment == "none":
            return x
        return shifted(x, augment, flip=self._augment == "crop_flip")

    def check_files(self) -> None:
        """Look whether all files are there, without decoding them.

        Raises:
            UserError: files are missing; the message counts them and names the first.
        """
        missing = [path for path in self._paths if not (self._folder / path).is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self._paths)} pictures are missing, the first is {self._folder / missing[0]}: "
                "paths are relative to the folder of the table"
            )

    def _decoded(self, index: int) -> Tensor:
        return torch.from_numpy(decoded(self._folder / self._paths[index], self.shape[1], self.shape[0]).copy())


def shifted(x: Tensor, rng: np.random.Generator, flip: bool) -> Tensor:
    """Shift each picture by up to an eighth of its side, repeating its border; mirror half of them where ``flip``.

    Args:
        x: (n, channels, size, size).
        rng: where the shifts come from; three numbers a picture.
        flip: whether to mirror.
    """
    n, _, _, size = x.shape
    reach = size // 8
    down, across = rng.integers(-reach, reach + 1, (2, n, 1))
    mirrored = rng.random((n, 1)) < (0.5 if flip else 0)
    place = np.arange(size)[None]
    rows = (place + down).clip(0, size - 1)
    columns = (np.where(mirrored, size - 1 - place, place) + across).clip(0, size - 1)
    picked = x[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
