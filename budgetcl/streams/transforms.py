"""From a picture of any size to a square: which part of it is shown, and whether it is mirrored.

A transform is a box in the picture and a mirror, so that cutting, resizing and mirroring are one resampling. Its random
numbers are drawn for the whole batch before a picture is opened, the same count for each position, so that neither the
number of workers nor the rest of the batch can change what a position gets.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

AUGMENTS = ("none", "crop", "crop_flip", "random_resized_crop")
NUMBERS = 24  # uniform numbers a position may use
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of random_resized_crop

Box = tuple[float, float, float, float]
Numbers = NDArray[np.float64]


def drawn(augment: np.random.Generator, positions: int) -> Numbers:
    """Return the numbers of a batch, (positions, NUMBERS), uniform in [0, 1); those of its first k are its first k."""
    return augment.random((positions, NUMBERS))


def behind(augment: np.random.Generator, positions: int) -> np.random.Generator:
    """Return the fresh generator of an update behind so many positions: where a later part of its batch begins.

    A process that shows positions a to b of a batch draws what the whole batch would have drawn there.
    """
    augment.bit_generator.advance(positions * NUMBERS // 4)  # type: ignore[attr-defined]  # Philox: four a count
    return augment


def centre_box(width: int, height: int, share: float = 1.0) -> Box:
    """Return the square in the middle whose side is a share of the short one: (left, top, right, bottom).

    "Resize the short side to 256, crop the central 224" is the share 224/256, in one resampling.
    """
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, numbers: Numbers) -> Box:
    """Return a part of 8 % to 100 % of the area, of a ratio of 3/4 to 4/3, anywhere in the picture.

    Area and logarithm of the ratio are uniform (Szegedy et al., Going Deeper with Convolutions, CVPR 2015). The first
    of ten tries that fits is taken; where none does, the largest central part of a permitted ratio.

    Args:
        width: of the picture.
        height: of the picture.
        numbers: 22 uniform ones: ten areas, ten ratios, two for the place.
    """
    area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * numbers[:TRIES])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = np.exp(low + (high - low) * numbers[TRIES : 2 * TRIES])
    wide, tall = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    if not fits.any():
        w, h = min(width, height * RATIO[1]), min(height, width / RATIO[0])
        return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2
    first = int(fits.argmax())
    w, h = int(wide[first]), int(tall[first])
    left = int(numbers[2 * TRIES] * (width - w + 1))
    top = int(numbers[2 * TRIES + 1] * (height - h + 1))
    return left, top, left + w, top + h


def mirrored(numbers: Numbers) -> bool:
    """Return whether :func:`random_box`'s part is mirrored: half of the time."""
    return bool(numbers[2 * TRIES + 2] < 0.5)


def shifted(x: Tensor, numbers: Numbers, flip: bool) -> Tensor:
    """Shift each picture by up to an eighth of its side, repeating its border; mirror half of them where ``flip``.

    Args:
        x: (n, channels, size, size).
        numbers: (n, at least 3), uniform.
        flip: whether to mirror.
    """
    n, _, _, size = x.shape
    reach = size // 8
    down, across = (numbers[:, :2].T[:, :, None] * (2 * reach + 1)).astype(np.int64) - reach
    turned = numbers[:, 2:3] < (0.5 if flip else 0)
    place = np.arange(size)[None]
    rows = (place + down).clip(0, size - 1)
    columns = (np.where(turned, size - 1 - place, place) + across).clip(0, size - 1)
    picked = x[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
