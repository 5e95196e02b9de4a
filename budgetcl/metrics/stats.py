"""How sure a number is: block bootstraps over time, nested in seeds. Checked by `scripts/simulate_statistics.py`."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError, at_least
from budgetcl.metrics._arrays import Array, floats
from budgetcl.randomness import generator


@dataclass(frozen=True)
class Interval:
    """An estimate and how sure it is.

    Attributes:
        estimate: the mean.
        low: lower end of the interval.
        high: upper end.
        level: how often such an interval holds the truth.
        p: for a difference, the two-sided p-value of "there is none"; else None.
    """

    estimate: float
    low: float
    high: float
    level: float
    p: float | None = None

    @property
    def differs(self) -> bool:
        """Whether zero lies outside the interval."""
        return not self.low <= 0 <= self.high


def bootstrap_interval(
    values: Array,
    *,
    level: float = 0.95,
    block: int | None = None,
    shared_steps: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean of values over seeds and time steps, with a bootstrap interval.

    Within a seed, time steps are drawn as circular blocks, which keeps their correlation (what blocks cut off at their
    ends is put back: "lugsail", Vats and Flegal 2022). Between seeds, drawing plainly would count the variation of the
    steps twice and that of few seeds too low; so the seeds' own variance component is estimated and drawn from a normal
    (the nested bootstrap of Davison and Hinkley 1997, section 3.8), and the interval is widened by Student's t with as
    many degrees of freedom as the larger source of variation has: seeds - 1 wherever the seeds vary more than their
    steps explain.

    Args:
        values: (steps,) or (seeds, steps), e.g. the accuracy of each block of a stream.
        level: how often the interval shall hold the truth.
        block: how many steps are drawn together; None: 2 * steps ** (1/3), at most half of them.
        shared_steps: whether all seeds saw the same samples in the same steps (a fixed stream); then a draw takes the
            same steps for all of them. False: each seed has its own stream.
        resamples: how many bootstrap samples.
        seed: of the draws.

    Raises:
        UserError: fewer than two steps and seeds, NaN, a level outside (0, 1), a block longer than half of the steps.

    Examples:
        >>> interval = bootstrap_interval([[0.50, 0.52, 0.48, 0.50], [0.60, 0.61, 0.59, 0.60]])
        >>> round(interval.estimate, 3), interval.low < 0.5, interval.high > 0.6
        (0.55, True, True)
    """
    table = _table(values)
    deviations, freedom = _deviations(table, block, shared_steps, resamples, level, seed)
    estimate = float(table.mean())
    tail = (1 - level) / 2
    low, high = np.quantile(deviations, [tail, 1 - tail]) * _widening(level, freedom)
    return Interval(estimate, estimate + float(low), estimate + float(high), level)


def paired_difference(
    first: Array,
    second: Array,
    *,
    level: float = 0.95,
    block: int | None = None,
    shared_steps: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return ``first - second``, paired by seed and time step, with a bootstrap interval and a p-value.

    What both have in common (easy and hard stretches of the stream, lucky seeds) cancels before anything is drawn.

    Args:
        first: (steps,) or (seeds, steps).
        second: the same shape: the same seeds, the same steps.
        level: how often the interval shall hold the truth.
        block: how many steps are drawn together; None: 2 * steps ** (1/3), at most half of them.
        shared_steps: as in :func:`bootstrap_interval`.
        resamples: how many bootstrap samples; the p-value cannot be below 1 / (resamples + 1).
        seed: of the draws.

    Raises:
        UserError: two shapes; as in :func:`bootstrap_interval`.

    Examples:
        >>> difference = paired_difference([0.60, 0.71, 0.52, 0.61], [0.50, 0.60, 0.40, 0.52], block=1)
        >>> round(difference.estimate, 3), difference.differs
        (0.105, True)
    """
    left, right = _table(first), _table(second)
    if left.shape != right.shape:
        raise UserError(f"paired values must have one shape; given {left.shape} and {right.shape}")
    table = left - right
    deviations, freedom = _deviations(table, block, shared_steps, resamples, level, seed)
    estimate = float(table.mean())
    wide = deviations * _widening(level, freedom)
    low, high = np.quantile(wide, [(1 - level) / 2, (1 + level) / 2])
    p = (1 + int((np.abs(wide) >= abs(estimate)).sum())) / (1 + resamples)
    return Interval(estimate, estimate + float(low), estimate + float(high), level, p)


@dataclass(frozen=True)
class Ranks:
    """Where each entry stands, with what is not sure left open.

    Attributes:
        mean: (entries,) the scores' means.
        low: (entries,) the best rank an entry may have: 1 + the number of entries significantly better.
        high: (entries,) the worst: the number of entries less those significantly worse.
        level: how sure all of it is at once.
        better: (entries, entries) bool, whether the row is significantly better than the column.
    """

    mean: tuple[float, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    level: float
    better: NDArray[np.bool_]


def rank_interval(
    scores: Array,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    higher_is_better: bool = True,
) -> Ranks:
    """Return the ranks that entries of a leaderboard may have, all comparisons at once.

    All entries were scored on the same time blocks. One bootstrap draws blocks (the same ones for everybody, which
    keeps what entries have in common) and, where there are several, seeds (each entry its own). For every pair the
    difference is divided by its standard error, in the sample and in each draw; the largest of these over all pairs
    bounds the family-wise error, and pairs found different are taken out step by step until no further one is (Romano
    and Wolf 2005, "Exact and approximate stepdown methods"). One run of it serves any number of entries, where separate
    tests, corrected for their number, would need resamples in proportion to it.

    Args:
        scores: (entries, blocks), or (entries, seeds, blocks): the accuracy of each entry on each block of the stream.
            Blocks should be longer than the stream's bursts; ten or more of them.
        level: the chance that not one of the differences found is false.
        resamples: how many bootstrap samples; at least 20 / (1 - level).
        seed: of the draws.
        higher_is_better: whether rank 1 has the highest mean.

    Raises:
        UserError: fewer than two blocks, NaN, too few resamples for the level.

    Examples:
        >>> noise = np.random.default_rng(1).normal(0, 0.01, (3, 20))
        >>> ranks = rank_interval(noise + np.array([[0.5], [0.7], [0.501]]))
        >>> ranks.low, ranks.high
        ((2, 1, 2), (3, 1, 3))
    """
    dimensions = np.ndim(scores) if not hasattr(scores, "ndim") else scores.ndim
    if dimensions not in (2, 3):
        raise UserError(
            f"scores have {dimensions} dimensions; (entries, blocks) or (entries, seeds, blocks) is expected"
        )
    table = floats("scores", scores, dimensions).cpu().numpy()
    table = (table if higher_is_better else -table).reshape(len(table), -1, table.shape[-1])
    entries, _, blocks = table.shape
    if blocks < 2:
        raise UserError("the scores have one block; at least two, better ten, are expected")
    if not 0 < level < 1 or resamples < 20 / (1 - level):
        raise UserError(f"level={level!r} and resamples={resamples!r} given; at least 20 / (1 - level) are expected")
    mean = table.mean(axis=(1, 2))
    observed, drawn = _statistics(table, resamples, seed)
    first, second = np.triu_indices(entries, 1)
    different = np.zeros(len(first), dtype=bool)
    while not different.all():
        critical = np.quantile(drawn[:, ~different].max(axis=1), level, method="higher")
        found = ~different & (observed > critical)
        if not found.any():
            break
        different |= found
    better = np.zeros((entries, entries), dtype=bool)
    sign = mean[first] > mean[second]
    better[first[different & sign], second[different & sign]] = True
    better[second[different & ~sign], first[different & ~sign]] = True
    low, high = 1 + better.sum(axis=0), entries - better.sum(axis=1)
    shown = mean if higher_is_better else -mean
    return Ranks(tuple(shown.tolist()), tuple(low.tolist()), tuple(high.tolist()), level, better)


def _statistics(table: NDArray[np.float64], resamples: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return |t| of each pair (i < j) in the sample, (pairs,), and centred in each draw, (resamples, pairs)."""
    entries, seeds, blocks = table.shape
    rng = generator(seed, "ranks")
    pairs = np.triu_indices(entries, 1)
    by_block, by_seed = table.mean(axis=1), table.mean(axis=2)
    mean = by_block.mean(axis=1)

    def t_values(shift: NDArray[Any], across: NDArray[Any], between: NDArray[Any]) -> NDArray[Any]:
        """Divide the pairs' differences by their errors: blocks have covariances, seeds of two entries have none."""
        own = across.diagonal() / blocks + between / seeds
        error = np.sqrt(np.maximum(own[pairs[0]] + own[pairs[1]] - 2 * across[pairs] / blocks, 0))
        gap = np.abs(shift[pairs[0]] - shift[pairs[1]])
        tiny = 1e-12 * (1 + np.abs(mean).max())
        return np.where(error > tiny, gap / np.maximum(error, tiny), np.where(gap > tiny, np.inf, 0.0))

    def spread(of: NDArray[Any]) -> NDArray[Any]:
        return of.var(axis=1, ddof=1) if seeds > 1 else np.zeros(entries)

    centred = by_block - mean[:, None]
    observed = t_values(mean, centred @ centred.T / (blocks - 1), spread(by_seed))
    drawn = np.empty((resamples, len(pairs[0])), dtype=np.float32)
    for i in range(resamples):
        take = rng.integers(blocks, size=blocks)
        sample = centred[:, take]
        offset = sample.mean(axis=1)
        sample = sample - offset[:, None]
        between = np.zeros(entries)
        if seeds > 1:
            chosen = np.take_along_axis(by_seed, rng.integers(seeds, size=(entries, seeds)), axis=1)
            offset = offset + (chosen.mean(axis=1) - mean) * np.sqrt(seeds / (seeds - 1))
            between = spread(chosen)
        drawn[i] = t_values(offset, sample @ sample.T / (blocks - 1), between)
    return observed, drawn


def _table(values: Array) -> NDArray[np.float64]:
    dimensions = np.ndim(values) if not hasattr(values, "ndim") else values.ndim
    if dimensions not in (1, 2):
        raise UserError(f"values have {dimensions} dimensions; (steps,) or (seeds, steps) is expected")
    table = floats("values", values, dimensions).cpu().numpy()
    return np.atleast_2d(table)


def _deviations(
    table: NDArray[np.float64], block: int | None, shared: bool, resamples: int, level: float, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Return (resamples,) draws of the mean's error and their degrees of freedom."""
    seeds, steps = table.shape
    at_least(1, resamples=resamples)
    if not 0 < level < 1:
        raise UserError(f"level={level!r} given; a number between 0 and 1 is expected")
    if seeds < 2 and steps < 2:
        raise UserError("one value given; an interval needs at least two time steps or two seeds")
    longest = max(1, steps // 2)
    block = min(longest, int(np.ceil(2 * steps ** (1 / 3)))) if block is None else block
    if not 1 <= block <= longest:
        raise UserError(f"block={block} given; a length from 1 to half of the {steps} steps is expected")
    rng = generator(seed, "bootstrap")

    # Within seeds: means of circular blocks, drawn until the steps are full. Blocks cut the steps' correlation at their
    # ends; what half as long blocks miss says how much (Vats and Flegal 2022, "lugsail"). Few blocks vary too little.
    blocks = -(-steps // block)
    means = table.mean(axis=1, keepdims=True)
    of_block = _block_means(table - means, block)
    signal = (table - means).mean(axis=0, keepdims=True) if shared else table - means
    together = _block_means(signal, block)
    if shared:
        within = together[0][rng.integers(steps, size=(resamples, blocks))].mean(axis=1)
    else:
        within = np.zeros(resamples)
        for row in of_block:
            within += row[rng.integers(steps, size=(resamples, blocks))].mean(axis=1) / seeds
    inflation = np.sqrt(blocks / (blocks - 1)) if blocks > 1 else 0.0
    long = block * together.var(axis=1).mean()
    if block > 1 and long > 0:
        short = block // 2 * _block_means(signal, block // 2).var(axis=1).mean()
        inflation *= np.sqrt(1 + max(0.0, 1 - short / long) * (block // 2) / (block - block // 2))
    within *= inflation
    of_step = float(of_block.var(axis=1).mean() / blocks) * inflation**2  # variance of one seed's mean
    of_mean = float(together.var(axis=1).mean() / blocks) * inflation**2 / len(together)
    freedom_within = max(1, blocks - 1) * len(together)
    if seeds < 2:
        return within, freedom_within

    # Between seeds: what their means vary more than the steps explain. So few numbers cannot show a shape: normal, and
    # as uncertain as a variance of so few is.
    spread = float(means.var(ddof=1))
    between = spread - (of_step - of_mean if shared else of_step)
    if between <= 0:
        return within, freedom_within
    return within + rng.normal(size=resamples) * np.sqrt(between / seeds), seeds - 1


def _block_means(centred: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Return (seeds, steps): the mean of the circular block that starts at each step."""
    around = np.concatenate([centred, centred[:, : block - 1]], axis=1)
    sums = np.cumsum(np.pad(around, ((0, 0), (1, 0))), axis=1)
    return (sums[:, block:] - sums[:, :-block]) / block


def _widening(level: float, freedom: float) -> float:
    """Return by how much Student's t is wider than the normal (Cornish and Fisher's expansion; exact for 1 and 2)."""
    tail = (1 + level) / 2
    z = NormalDist().inv_cdf(tail)
    if freedom < 1.5:
        return float(np.tan(np.pi * (tail - 0.5))) / z
    if freedom < 2.5:
        return (2 * tail - 1) / float(np.sqrt(2 * tail * (1 - tail))) / z
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / freedom**i for i, term in enumerate(terms))) / z
