"""Pictures of characters: the atlas that ships with the package, and the random views drawn from it.

A view is a character in one face under a random affine map, contrast, brightness ramp, noise and polarity. It depends
on (key, sample) alone and is computed in integers, so its pixels are the same bits on every platform and in every
company.
"""

from __future__ import annotations

import hashlib
import io
import lzma
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetcl.assets.checked import read_asset, recorded_hash
from budgetcl.streams.stream import IntArray

ATLAS, MADE_BY = "glyphs.npy.xz", "make_glyphs.py"
HALF = 1000  # characters 0 .. HALF-1 are for pretraining, the others are streamed
VERSION = 1  # of the arithmetic below: another version draws other pixels
SIDE = 24  # of a view, in pixels; the atlas has twice as many
BLOCK = 256  # views rendered together: their arrays fit a cache

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Atlas:
    """What the atlas holds, without its images.

    Attributes:
        characters: (2000,) code points, in the fixed order of the classes.
        start: (2001,) the images of character c are ``start[c] .. start[c+1]-1``, one for each face that has it.
        face: (images,) the face of each image, 0 .. 11.
    """

    characters: IntArray
    start: IntArray
    face: IntArray


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    """Return the atlas's table.

    Raises:
        UserError: the file is missing or damaged.
    """
    with lzma.open(io.BytesIO(read_asset(ATLAS, MADE_BY))) as file:
        characters, start, face = (_array(file).astype(np.int64) for _ in range(3))
    return Atlas(characters, start, face)


def atlas_images() -> NDArray[np.uint8]:
    """Return the atlas's images, (images, 48, 48): 53 MB, read anew at each call."""
    with lzma.open(io.BytesIO(read_asset(ATLAS, MADE_BY))) as file:
        for _ in range(3):
            _array(file)
        return _array(file)


def _array(file: lzma.LZMAFile) -> np.ndarray:
    return np.lib.format.read_array(file, allow_pickle=False)


def view_key(seed: int, purpose: str) -> int:
    """Return the key of a family of views; different seeds or purposes never share a view."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little")


def words(key: int, sample: IntArray, first: int, count: int) -> Words:
    """Return random 64-bit words ``first .. first+count-1`` of each sample, (samples, count): SplitMix64 by counter."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    start = _mixed(_mixed(sample.astype(np.uint64) * golden) ^ np.uint64(key))
    place = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * golden
    return _mixed(start[:, None] + place)


def _mixed(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def choices(key: int, sample: IntArray, options: IntArray) -> IntArray:
    """Return for each sample a uniform number from ``0 .. options-1``; word 0 is used for it."""
    high = words(key, sample, 0, 1)[:, 0] >> np.uint64(32)
    return ((high * options.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def views(images: NDArray[np.uint8], sample: IntArray, key: int, hardness: float) -> NDArray[np.uint8]:
    """Draw one view of each image.

    Args:
        images: (n, 48, 48) the characters.
        sample: (n,) the numbers of the views.
        key: of the family of views, from :func:`view_key`.
        hardness: factor on the distortions; 0 leaves them out.

    Returns:
        (n, 24, 24) uint8.
    """
    n = len(sample)
    drawn = iter(words(key, sample, 1, 12).T)

    def within(amplitude: float) -> NDArray[np.int32]:
        """Return (n, 1, 1) whole numbers, uniform in [-amplitude, amplitude]."""
        span = np.uint64(2 * round(amplitude) + 1)
        value = ((next(drawn) >> np.uint64(32)) * span) >> np.uint64(32)
        return (value.astype(np.int64) - round(amplitude)).astype(np.int32)[:, None, None]

    # From the view's pixels, in half pixels around its centre, to the atlas's, in 1/4096 of a pixel.
    turn, shear, wide, tall = (within(4096 * amplitude * hardness) for amplitude in (0.16, 0.15, 0.12, 0.12))
    place = 2 * np.arange(SIDE, dtype=np.int32) - (SIDE - 1)
    across, down = place[None, None, :], place[None, :, None]
    middle = 25 * 4096  # the pooled atlas has a border of one pixel and a half
    x = middle + within(4096 * 3.6 * hardness) + (4096 + wide) * across + (turn + shear) * down
    y = middle + within(4096 * 3.6 * hardness) + (4096 + tall) * down - turn * across
    ink = _sampled(images, x, y)

    contrast = 200 - round(min(44 * hardness, 120)) + within(min(36 * hardness, 60))
    level = (255 - contrast) // 2 + within(15 * hardness)
    ramp = (within(230 * hardness) * across + within(230 * hardness) * down) >> 7
    strength = np.abs(within(72 * hardness))
    flipped = within(1000) < 0
    raw = words(key, sample, 13, SIDE * SIDE // 4).astype("<u8").view(np.uint8).reshape(n, 2, SIDE, SIDE)
    noise = raw[:, 0].astype(np.int32) + raw[:, 1] - 255
    value = level + ((contrast * ink) >> 8) + ramp + ((strength * noise) >> 8)
    return np.where(flipped, 255 - value, value).clip(0, 255).astype(np.uint8)


def _sampled(images: NDArray[np.uint8], x: NDArray[np.int32], y: NDArray[np.int32]) -> NDArray[np.int32]:
    # A view's pixel covers 2x2 of the atlas's: average them first, then interpolate. The border stays empty.
    n, side, _ = images.shape
    wide = np.zeros((n, side + 1, side + 2), np.uint16)
    wide[:, :side, 1:-1] = images
    wide[:, 1:, 1:-1] += images
    pooled = np.zeros((n, side + 3, side + 3), np.uint8)
    pooled[:, 1:-1, 1:-1] = (wide[:, :, :-1] + wide[:, :, 1:]) >> 2
    row = side + 3
    x, y = (axis.clip(0, ((row - 1) << 12) - 1) for axis in (x, y))
    corner = (np.arange(n, dtype=np.int32) * row * row)[:, None, None] + (y >> 12) * row + (x >> 12)
    flat = pooled.reshape(-1)
    right, low = (x >> 4) & 255, (y >> 4) & 255
    taps = [flat.take(corner + step).astype(np.int32) for step in (0, 1, row, row + 1)]
    above = taps[0] * (256 - right) + taps[1] * right
    below = taps[2] * (256 - right) + taps[3] * right
    return (above * (256 - low) + below * low) >> 16


class GlyphPixels:
    """The pictures of a stream of characters: rendered at first use, then kept as uint8.

    Args:
        image: (rows,) which image of the atlas each row shows.
        sample: (rows,) the number of each row's view.
        seed: of the views.
        hardness: factor on the distortions.
        usual: the rows before this one are rendered together at first use, the ones behind it only if one of them is
            asked for; all rows where it is None.
    """

    shape = (1, SIDE, SIDE)

    def __init__(self, image: IntArray, sample: IntArray, seed: int, hardness: float, usual: int | None = None) -> None:
        self._image, self._sample, self._seed, self._hardness = image, sample, seed, float(hardness)
        self._usual = len(sample) if usual is None else usual
        digest = hashlib.sha256(f"glyphs/{VERSION}/{recorded_hash(ATLAS)}/{seed}/{float(hardness)!r}".encode())
        digest.update(image.astype("<i8").tobytes() + sample.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GlyphPixels) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __call__(self, indices: IntArray, augment: np.random.Generator | None = None) -> Tensor:
        """Return the pictures as uint8 (len(indices), 1, 24, 24). They are random views: nothing is augmented."""
        seldom = len(indices) > 0 and int(np.max(indices)) >= self._usual
        return _pictures(self, len(self._sample) if seldom else self._usual)[torch.from_numpy(np.array(indices))]

    def render(self, rows: int) -> Tensor:
        """Draw the first rows: uint8 (rows, 1, 24, 24)."""
        images, key = atlas_images(), view_key(self._seed, "stream")
        out = np.empty((rows, *self.shape), np.uint8)
        for start in range(0, rows, BLOCK):
            block = slice(start, min(rows, start + BLOCK))
            out[block, 0] = views(images[self._image[block]], self._sample[block], key, self._hardness)
        return torch.from_numpy(out)


@lru_cache(maxsize=3)
def _pictures(pixels: GlyphPixels, rows: int) -> Tensor:
    # Kept across runs: several methods meet the same stream in one process.
    return pixels.render(rows)
