"""Two-phase tuning with one number of trials for every method, so that none is tuned longer than another.

Phase 1 tries the learning rates, the same for all, with a method's own knobs as they stand. Phase 2 has what is left of
the trials: it tries the method's knobs one after another, each at the best found so far, and then learning rates around
the best one. So a method with many knobs has them at the price of a coarser rate, and the other way round.

Chosen is the smallest rate within one standard error of the best score (the rule of Breiman et al., Classification and
Regression Trees, 1984; here of the differences, paired by seed): the best of a short search often lies at the edge of
what still learns, and beyond it where a run is longer.

It is tuned on seeds and data that no reported number comes from. What it cost is part of its result.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from budgetcl.errors import UserError, at_least

RATE = "optimiser.lr"
RATES = (0.01, 0.03, 0.1, 0.3)
TRIALS = 8
REPORTED, SEEDS = range(5), range(100, 105)

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """One run of a trial.

    Attributes:
        seed: its seed.
        score: the metric; NaN where the run has no such number.
        learning: FLOPs of learning, whether charged or not.
        predicting: FLOPs of predictions.
    """

    seed: int
    score: float
    learning: int
    predicting: int


@dataclass(frozen=True)
class Trial:
    """One setting, tried on each tuning seed.

    Attributes:
        settings: key -> value.
        runs: one a seed; fewer where it failed.
        failed: why it has no score.
    """

    settings: Settings
    runs: tuple[Scored, ...]
    failed: str = ""

    @property
    def score(self) -> float:
        """The mean over seeds; minus infinity where it failed."""
        mean = math.fsum(run.score for run in self.runs) / len(self.runs) if self.runs and not self.failed else math.nan
        return mean if math.isfinite(mean) else -math.inf

    def near(self, best: Trial) -> bool:
        """Whether its score is within one standard error of another's: of their difference, paired by seed."""
        if self.score == -math.inf:
            return False
        differences = [other.score - mine.score for mine, other in zip(self.runs, best.runs)]
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
        return best.score - self.score <= error


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        best: of the trials within one standard error of the highest score the one with the smallest rate, the earliest
            of equal ones.
        trials: all of them, in their order.
        edges: keys whose best value is the smallest or the largest that was tried: a wider grid may have better ones.
        left_out: "key=value" of the grids, for which there was no trial left.
    """

    best: Trial
    trials: tuple[Trial, ...]
    edges: tuple[str, ...]
    left_out: tuple[str, ...]


def search(
    grids: Mapping[str, Sequence[Any]], start: Settings, trials: int, attempt: Callable[[Settings], Trial]
) -> Tuned:
    """Search the grids, the learning rate's first, in so many trials.

    Args:
        grids: key -> values to try; the learning rate's key is RATE, and is missing where a method has none.
        start: the values that knobs have before they are tried.
        trials: how often ``attempt`` may be called; it is called less often only where nothing is left to try.
        attempt: tries a setting.

    Raises:
        UserError: fewer trials than learning rates, rates that are not positive, or no trial had a score.
    """
    rates = grids.get(RATE, ())
    at_least(max(1, len(rates)), trials=trials)
    if not all(isinstance(rate, (int, float)) and 0 < rate < math.inf for rate in rates):
        raise UserError(f"{RATE}: {list(rates)} given; positive learning rates are expected")
    tried: dict[str, Trial] = {}
    left_out: list[str] = []

    def go(settings: Settings) -> bool:
        key = json.dumps(settings, sort_keys=True, default=str)
        if key not in tried and len(tried) < trials:
            tried[key] = attempt(settings)
        return key in tried

    def best() -> Trial:
        return max(tried.values(), key=lambda trial: trial.score)

    for rate in rates:
        go({**start, RATE: rate})
    if not rates:
        go(start)
    for knob, values in grids.items():
        at = best().settings
        left_out += [f"{knob}={value}" for value in values if knob != RATE and not go({**at, knob: value})]
    while rates and len(tried) < trials:
        before = len(tried)
        for rate in _around(best(), list(tried.values())):
            go({**best().settings, RATE: rate})
        if len(tried) == before:
            break
    if best().score == -math.inf:
        raise UserError(f"no trial has a score: {best().failed or 'the metric is no number'}")
    chosen = _chosen(list(tried.values()))
    return Tuned(chosen, tuple(tried.values()), _edges(chosen, list(tried.values()), grids), tuple(left_out))


def _chosen(trials: Sequence[Trial]) -> Trial:
    """Return the trial of the smallest rate within one standard error of the highest score."""
    best = max(trials, key=lambda trial: trial.score)
    return min((trial for trial in trials if trial.near(best)), key=lambda trial: trial.settings.get(RATE, 0.0))


def _around(best: Trial, trials: Sequence[Trial]) -> list[float]:
    """Return the rates to try next: halfway, on a log scale, to the best one's neighbours, the better neighbour first.

    At the edge of what was tried instead one step beyond it.
    """
    scores: dict[float, float] = {}
    for trial in trials:
        rate = trial.settings[RATE]
        scores[rate] = max(trial.score, scores.get(rate, -math.inf))
    rates, at = sorted(scores), best.settings[RATE]
    if len(rates) < 2:
        return []
    place = rates.index(at)
    below, above = rates[place - 1] if place else None, rates[place + 1] if place + 1 < len(rates) else None
    if below is None or above is None:
        inner = above if below is None else below
        assert inner is not None
        wanted = [at * at / inner]
    else:
        wanted = [math.sqrt(at * other) for other in sorted((below, above), key=lambda rate: -scores[rate])]
    return [rate for rate in (float(f"{value:.2g}") for value in wanted) if rate not in scores]


def _edges(best: Trial, trials: Sequence[Trial], grids: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    edges = []
    for key in grids:
        values = {trial.settings[key] for trial in trials if number(trial.settings.get(key))}
        if number(mine := best.settings.get(key)) and len(values) > 1 and mine in (min(values), max(values)):
            edges.append(key)
    return tuple(edges)


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that are not for tuning.

    Raises:
        UserError: none, a seed twice, a reported one, or one that is not set aside for tuning.
    """
    for seed in seeds:
        if seed in REPORTED:
            raise UserError(
                f"seeds={seed} given; seeds {REPORTED[0]}-{REPORTED[-1]} are those of reported results and not to be "
                f"tuned on: take {SEEDS[0]}-{SEEDS[-1]}"
            )
        if seed not in SEEDS:
            raise UserError(f"seeds={seed} given; the tuning seeds are {SEEDS[0]}-{SEEDS[-1]}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={list(seeds)} given; distinct tuning seeds from {SEEDS[0]}-{SEEDS[-1]} are expected")
