"""Check by simulation that the intervals hold what they promise: coverage, and the family-wise error of ranks.

    python scripts/simulate_statistics.py [--trials 1000] [--out docs/benchmarks/statistics.md]

Scores are simulated as an entry's quality + a seed's luck + what all entries share in a time block + noise that is
correlated from step to step (autoregressive). The truth is known, so is whether an interval holds it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from budgetcl.metrics.stats import bootstrap_interval, paired_difference, rank_interval


def correlated(rng: np.random.Generator, shape: tuple[int, ...], phi: float) -> np.ndarray:
    """Return noise of variance 1 whose last axis is autoregressive with coefficient ``phi``."""
    noise = rng.normal(size=shape)
    for t in range(1, shape[-1]):
        noise[..., t] = phi * noise[..., t - 1] + np.sqrt(1 - phi**2) * noise[..., t]
    return noise


def coverage(trials: int, seeds: int, steps: int, luck: float, phi: float, shared: float, paired: bool) -> float:
    """Return how often a 95 % interval holds the truth; ``shared`` is the variance that all seeds have in common."""
    held = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)

        def scores(rng: np.random.Generator = rng) -> np.ndarray:
            own = correlated(rng, (seeds, steps), phi) * np.sqrt(1 - shared)
            return own + np.sqrt(shared) * correlated(rng, (1, steps), phi) + luck * rng.normal(size=(seeds, 1))

        options = {"resamples": 500, "seed": trial, "shared_steps": shared > 0}
        if paired:
            common = 3 * correlated(rng, (seeds, steps), phi)
            interval = paired_difference(scores() + common, scores() + common, **options)
        else:
            interval = bootstrap_interval(scores(), **options)
        held += interval.low <= 0 <= interval.high
    return held / trials


def family_wise_error(
    trials: int, entries: int, seeds: int, blocks: int, luck: float, distinct: int
) -> tuple[float, float]:
    """Return (share of trials with a false difference, share of true differences found) at level 0.95.

    The first ``distinct`` entries are better by steps of one (seven standard errors of a mean over 50 blocks), the
    others equal.
    """
    quality = np.zeros(entries)
    quality[:distinct] = np.arange(distinct, 0, -1)
    equal = quality[:, None] == quality
    false, found = 0, 0.0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        scores = rng.normal(size=(entries, seeds, blocks)) + 2 * rng.normal(size=(1, 1, blocks))
        scores += luck * rng.normal(size=(entries, seeds, 1)) + quality[:, None, None]
        better = rank_interval(scores, resamples=400, seed=trial).better
        false += bool((better & equal).any())
        true = quality[:, None] > quality
        found += float(better[true].mean()) if true.any() else 0.0
    return false / trials, found / trials


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.time()
    lines = [
        f"Made by `scripts/simulate_statistics.py --trials {options.trials}`.",
        "",
        "Coverage of 95 % intervals (the seeds' luck in units of the noise of one step):",
        "",
        "| what | seeds | steps | luck | correlation of steps | shared steps | coverage % |",
        "|---|---|---|---|---|---|---|",
    ]
    for seeds, steps, luck, phi, shared, paired in (
        (1, 20, 0.0, 0.0, 0.0, False),
        (1, 100, 0.0, 0.0, 0.0, False),
        (1, 100, 0.0, 0.5, 0.0, False),
        (1, 1000, 0.0, 0.5, 0.0, False),
        (3, 20, 0.0, 0.0, 0.0, False),
        (3, 20, 0.5, 0.0, 0.0, False),
        (3, 100, 0.5, 0.5, 0.0, False),
        (5, 20, 0.0, 0.0, 0.0, False),
        (5, 20, 0.2, 0.0, 0.0, False),
        (5, 20, 0.5, 0.0, 0.0, False),
        (5, 100, 0.5, 0.5, 0.0, False),
        (5, 100, 0.2, 0.5, 0.5, False),
        (3, 20, 0.5, 0.0, 0.0, True),
        (5, 20, 0.2, 0.0, 0.0, True),
        (5, 100, 0.2, 0.5, 0.0, True),
    ):
        share = coverage(options.trials, seeds, steps, luck, phi, shared, paired)
        name = "paired_difference" if paired else "bootstrap_interval"
        lines.append(
            f"| {name} | {seeds} | {steps} | {luck} | {phi} | {'yes' if shared else 'no'} | {100 * share:.1f} |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        "Ranks at level 0.95: how often any false difference is found (promised: at most 5 %), and which share of the",
        "true ones (of one step's noise) is:",
        "",
        "| entries | of them distinct | seeds | blocks | luck | false % | found % |",
        "|---|---|---|---|---|---|---|",
    ]
    for entries, distinct, seeds, blocks, luck in (
        (2, 0, 1, 20, 0.0),
        (10, 0, 1, 20, 0.0),
        (10, 0, 1, 50, 0.0),
        (40, 0, 1, 50, 0.0),
        (10, 5, 1, 50, 0.0),
        (10, 0, 5, 50, 0.0),
        (10, 0, 5, 50, 0.3),
        (10, 5, 5, 50, 0.1),
    ):
        trials = max(1, options.trials // (1 if entries <= 10 else 4))
        false, found = family_wise_error(trials, entries, seeds, blocks, luck, distinct)
        right = f"{100 * found:.1f}" if distinct else "-"
        lines.append(f"| {entries} | {distinct} | {seeds} | {blocks} | {luck} | {100 * false:.1f} | {right} |")
        print(lines[-1], flush=True)
    print(f"{time.time() - start:.0f} s")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("# How sure the intervals are\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
