"""The stream "uploads": time-stamped, bursty, long-tailed (CGLM in BudgetCL; EvalOCL, ICCV 2023).

A few uploaders are active. Each slot picks one of them, who uploads a picture of one character in one face, and now
and then turns to another. So the next label is easy to guess without looking, which is what near-future accuracy and
blind classifiers are about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError, at_least, between, one_of
from budgetcl.randomness import generator
from budgetcl.streams.batch import Source
from budgetcl.streams.cuts import by_chunk, evenly
from budgetcl.streams.glyphs import RETAKEN, UPLOADED, character_name, view_number
from budgetcl.streams.prefix import check_shifts, chosen_shift, chosen_window
from budgetcl.streams.rendering import HALF, GlyphPixels, atlas
from budgetcl.streams.stream import PREFIX, RETENTION, SETS, STREAM, IntArray, Stream

SLOWEST, FASTEST = 32_000, 8_000  # slots in which a class's popularity comes round again
DRAWN = 512  # redraws whose class shares are held at once


def label_correlation(lag: int, uploaders: int, burst: float, popularity: NDArray[np.float64]) -> float:
    """Return P(label of t + lag = label of t) of the process without drift.

    ``a + (1 - a) sum p^2`` with ``a = (1/M) (1 - 1/B) (1 - 1/(B M))^(lag - 1)``: the same uploader comes again (1/M)
    and turned to another class neither after upload t (1 - 1/B) nor, in the slots between, in any of them; otherwise
    both labels are independent draws.

    Args:
        lag: slots between the two uploads, at least 1.
        uploaders: M.
        burst: B, the mean number of uploads before an uploader turns to another class.
        popularity: (classes,) p, summing to one.
    """
    at_least(1, lag=lag, uploaders=uploaders)
    same = (1 / uploaders) * (1 - 1 / burst) * (1 - 1 / (burst * uploaders)) ** (lag - 1)
    return same + (1 - same) * float((popularity**2).sum())


def power_law(classes: int, exponent: float) -> NDArray[np.float64]:
    """Return p proportional to rank^-exponent, summing to one."""
    weight = np.arange(1, classes + 1, dtype=np.float64) ** -exponent
    return weight / weight.sum()


@dataclass(frozen=True)
class _Uploads:
    """A piece of the process: per slot the label, the face's place among the class's faces, and the uploader."""

    label: IntArray
    face: IntArray
    uploader: IntArray


@lru_cache(maxsize=4)
def _process(
    slots: int, classes: int, uploaders: int, burst: float, drift: float, exponent: float, seed: int
) -> _Uploads:
    uploader = generator(seed, "uploaders").integers(uploaders, size=slots)
    turns = generator(seed, "turns").random(slots) < 1 / burst
    # The upload after a turn begins a new burst of its uploader. Slot by slot: the slot in which its burst was drawn.
    drawn_at = np.empty(slots, np.int64)
    for person in range(uploaders):
        mine = np.flatnonzero(uploader == person)
        turned = np.where(turns[mine], mine, -1)
        drawn_at[mine] = np.maximum.accumulate(np.concatenate([[-1], turned[:-1]])) if len(mine) else mine
    first = drawn_at < 0  # an uploader's first burst is drawn before the first slot
    places, burst_of = np.unique(np.where(first, -1 - uploader, drawn_at), return_inverse=True)

    # Popularity ranks are dealt out at random, so a label's number says nothing about how frequent it is.
    rank = generator(seed, "ranks").permutation(classes)
    logarithm = np.log(power_law(classes, exponent))[rank]
    waves = generator(seed, "drift")
    period, phase = waves.uniform(FASTEST, SLOWEST, classes), waves.random(classes)
    chance = generator(seed, "classes").random(len(places))
    label = np.empty(len(places), np.int64)
    for start in range(0, len(places), DRAWN):
        part = slice(start, start + DRAWN)
        when = np.maximum(places[part], 0)[:, None]
        wave = np.sqrt(2) * np.sin(2 * np.pi * (when / period + phase))
        share = np.exp(logarithm + drift * wave).cumsum(1)
        label[part] = (share < chance[part, None] * share[:, -1:]).sum(1)
    table = atlas()
    count = np.diff(table.start)[HALF + label]
    face = generator(seed, "faces").integers(count)
    return _Uploads(label[burst_of], face[burst_of], uploader)


def uploads(
    samples: int = 8000,
    prefix: int = 8000,
    classes: int = 200,
    uploaders: int = 1,
    burst: float = 48,
    drift: float = 1.0,
    exponent: float = 1.0,
    hardness: float = 1.5,
    chunk: int = 16,
    shifts: Sequence[int] = (0, 16, 32, 64, 96, 128),
    shift: int | None = None,
    retention: int | None = None,
    occasions: int = 5,
    part: str = "stream",
    seed: int = 0,
) -> Source:
    """Return the stream of uploads.

    The process runs for ``prefix + samples`` slots. Its first part is the tuning prefix, on whose labels the
    near-future shift S and the blind classifier's window k are chosen; the stream is the rest. Classes are characters
    of the atlas's second half, which the shipped backbone never saw.

    Args:
        samples: streamed uploads.
        prefix: uploads before the stream.
        classes: 2 to 1,000.
        uploaders: how many are active, M.
        burst: the mean number of uploads before an uploader turns to another class and face, B; 1 for no bursts.
        drift: the standard deviation of the slow waves on the logarithm of a class's popularity; 0 for none.
        exponent: of the power law of popularity over rank.
        hardness: factor on the pictures' distortions, 0 to 4.
        chunk: uploads a time step reveals.
        shifts: how many uploads ahead to predict; 0 is the next chunk.
        shift: S, one of ``shifts``; None chooses it on the prefix (:func:`budgetcl.streams.prefix.chosen_shift`).
        retention: held-out fresh pictures of past uploads, spread evenly over the stream; None: one for eight.
        occasions: how often they are due, at equal distances, the last time after the last step.
        part: "stream"; or "prefix", which streams the prefix itself, for tuning.
        seed: of everything.

    Raises:
        UserError: a number out of range; a prefix in which no shift ends the label correlation.
    """
    at_least(1, samples=samples, prefix=prefix, uploaders=uploaders, chunk=chunk, occasions=occasions)
    at_least(0, seed=seed)
    at_least(2, classes=classes)
    between(2, HALF, classes=classes)
    between(1, 1_000_000, burst=burst, uploaders=uploaders)
    between(0, 5, drift=drift, exponent=exponent)
    between(0, 4, hardness=hardness)
    between(2, (1 << 24) - 1, **{"samples + prefix": samples + prefix})
    one_of(("stream", "prefix"), part=part)

    n = samples if part == "stream" else prefix
    shifts = check_shifts(shifts, shift, n)
    retention = n // 8 if retention is None else retention
    at_least(0, retention=retention)
    between(0, n, retention=retention)

    whole = _process(prefix + samples, classes, uploaders, float(burst), float(drift), float(exponent), seed)
    slots = np.arange(prefix, prefix + samples) if part == "stream" else np.arange(prefix)
    early = np.arange(prefix) if part == "stream" else np.arange(0)
    origin = (2 * np.arange(retention) + 1) * n // (2 * retention) if retention else np.arange(0)
    slot = np.concatenate([slots, slots[origin], early])
    sizes = {STREAM: n, RETENTION: retention, PREFIX: len(early)}

    label = whole.label[slot]
    character = HALF + label
    kind = np.repeat([UPLOADED, RETAKEN, UPLOADED], list(sizes.values()))
    number = view_number(0, character, slot) | (kind << 40)
    pixels = GlyphPixels(atlas().start[character] + whole.face[slot], number, seed, hardness, usual=n + retention)
    past = whole.label[:prefix]
    if shift is None:
        try:
            shift = chosen_shift(past, shifts, chunk)
        except UserError as error:
            raise UserError(f"prefix={prefix} given; set shift, or give a longer prefix: {error}") from None
    bounds = by_chunk(n, chunk)
    stream = Stream(
        name="uploads",
        label=label,
        set=np.repeat([SETS.index(name) for name in sizes], list(sizes.values())).astype(np.int8),
        bounds=bounds,
        time=slot.astype(np.float64),
        group=whole.uploader[slot],
        origin=np.concatenate([np.full(n, -1), origin, np.full(len(early), -1)]),
        label_names=tuple(character_name(int(code)) for code in atlas().characters[HALF : HALF + classes]),
        source=pixels.fingerprint,
        shifts=shifts,
        shift=shift,
        heldout=(RETENTION,) if retention else (),
        occasions=evenly(len(bounds) - 1, occasions),
        window=chosen_window(past, chunk),
    )
    return Source(stream, pixels)
