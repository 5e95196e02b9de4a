"""Where a ranking turns when the same runs are held to another currency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from budgetcl.metrics.stats import Interval
from budgetcl.report.boards import Board, conditions
from budgetcl.report.runs import FLOPS, Run
from budgetcl.report.student import student_interval
from budgetcl.report.tables import ACCURACY, Column, Grid, paired
from budgetcl.report.words import shown, shown_difference

DELAY = "stream delay"
_VARIED = ("currency", "budget.rest")  # a stream's delay is a currency that carries over


@dataclass(frozen=True)
class Turn:
    """Two methods in another order under two currencies.

    Attributes:
        first: the method that is ahead under the one.
        second: the method that is ahead under the other.
        under: the two currencies.
        differences: first - second under each, paired by seed.
    """

    first: str
    second: str
    under: tuple[str, str]
    differences: tuple[Interval, Interval]

    @property
    def shown(self) -> bool:
        """Whether both intervals exclude 0; otherwise the order may differ by chance."""
        return all(not math.isnan(each.low) and each.differs for each in self.differences)


@dataclass(frozen=True)
class Ranking:
    """The methods that several boards share, which differ in the currency alone.

    Attributes:
        stream: the boards' stream.
        column: what is ranked by.
        runs: currency -> method -> seed -> run, of the seeds that all have.
    """

    stream: str
    column: Column
    runs: Mapping[str, Mapping[str, Mapping[int, Run]]]

    def ranks(self, currency: str) -> dict[str, int]:
        """Return the place of each method, 1 for the highest mean; equal means share one."""
        means = {method: self.mean(currency, method).estimate for method in self.runs[currency]}
        return {method: 1 + sum(other > mean for other in means.values()) for method, mean in means.items()}

    def mean(self, currency: str, method: str) -> Interval:
        """Return a method's mean over the seeds."""
        return student_interval([run.number(self.column.key) for run in self.runs[currency][method].values()])

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The pairs whose order differs between two currencies, shown or not."""
        found = []
        for one, other in combinations(self.runs, 2):
            for a, b in combinations(self.runs[one], 2):
                first, second = (paired(self.runs[c][a], self.runs[c][b], self.column.key) for c in (one, other))
                if first is None or second is None or first.estimate * second.estimate >= 0:
                    continue
                if first.estimate > 0:
                    found.append(Turn(a, b, (one, other), (first, second)))
                else:
                    found.append(Turn(b, a, (one, other), (_negative(first), _negative(second))))
        return tuple(sorted(found, key=lambda turn: not turn.shown))


def rankings(found: Sequence[Board]) -> list[Ranking]:
    """Return one ranking for each family of boards that differ in nothing but the currency."""
    families: dict[str, list[Board]] = {}
    for board in found:
        kept = {key: value for key, value in conditions(board.flat[0]).items() if key not in _VARIED}
        families.setdefault(repr((board.stream, sorted(kept.items(), key=str))), []).append(board)
    rankings = [_ranking(family) for family in families.values() if len(family) > 1]
    return [ranking for ranking in rankings if ranking]


def _ranking(family: Sequence[Board]) -> Ranking | None:
    entries = [board.with_controls() for board in family]
    learners = [[name for name in board.methods if board.group(name) != "blind"] for board in entries]
    methods = [name for name in learners[0] if all(name in others for others in learners)]
    runs = [run for board in entries for name in methods for run in board.runs[name].values()]
    by_key = {column.key: column for column in ACCURACY}
    columns = [by_key[key] for key in ("near_future", "average_accuracy", "online")]
    column = next((each for each in columns if all(math.isfinite(run.number(each.key)) for run in runs)), None)
    common = set.intersection(*({*board.runs[name]} for board in entries for name in methods)) if methods else set()
    seeds = sorted(seed for seed in common if len({run.fingerprint for run in runs if run.seed == seed}) == 1)
    if len(methods) < 2 or column is None or not seeds:
        return None
    by_currency = {
        label: {name: {seed: board.runs[name][seed] for seed in seeds} for name in methods}
        for label, board in zip(_labels(entries), entries)
    }
    return Ranking(family[0].stream, column, by_currency) if len(by_currency) == len(family) else None


def _labels(boards: Sequence[Board]) -> list[str]:
    """Return the currencies, told apart by what becomes of the rest; FLOPs that carry over are a stream's delay."""
    firsts = [board.flat[0] for board in boards]
    if len({run.info.get("rest") for run in firsts}) == 1:
        return [run.currency for run in firsts]
    return [_label(run.currency, str(run.info.get("rest"))) for run in firsts]


def _label(currency: str, rest: str) -> str:
    if rest == "stop":
        return currency
    return DELAY if (currency, rest) == (FLOPS, "carry") else f"{currency}, {rest}"


def grids(found: Sequence[Board]) -> list[Grid]:
    """Return, for each family of boards, the ranks under each currency, and the pairs whose order differs."""
    tables = []
    for ranking in rankings(found):
        names, title = list(ranking.runs), ranking.column.title
        places = {name: ranking.ranks(name) for name in names}
        seeds = next(iter(next(iter(ranking.runs.values())).values()))
        rows = sorted(places[names[0]], key=places[names[0]].__getitem__)
        tables.append(
            Grid(
                f"{ranking.stream}: ranks under each currency",
                ("method", *names),
                tuple(
                    (m, *(f"{places[n][m]}. ({shown(ranking.column, ranking.mean(n, m))})" for n in names))
                    for m in rows
                ),
                f"Place by {title} accuracy (in brackets, in percent) over seed{'s' * (len(seeds) > 1)} "
                f"{', '.join(map(str, seeds))}. Left out: controls, blind classifiers, methods that were not run "
                f"under each.{_delay(names)}{_machine(names)}",
            )
        )
        turns = ranking.turns
        tables.append(
            Grid(
                f"{ranking.stream}: where the ranking turns",
                ("pair", "under", "difference", "under", "difference", "what this says"),
                tuple(
                    (
                        f"{turn.first} − {turn.second}",
                        *(turn.under[0], shown_difference(turn.differences[0])),
                        *(turn.under[1], shown_difference(turn.differences[1])),
                        "turns" if turn.shown else "that it turns is not shown",
                    )
                    for turn in turns
                ),
                "Pairs whose order differs, with their difference in points, paired by seed. The ranking turns where "
                "both 95 % intervals exclude 0; they are not corrected for the number of pairs."
                if turns
                else "No pair of methods stands in another order under another currency.",
            )
        )
    return tables


def _delay(currencies: Sequence[str]) -> str:
    return f" {DELAY.capitalize()}: FLOPs that arrive with each step and carry over." if DELAY in currencies else ""


def _machine(currencies: Sequence[str]) -> str:
    timed = [name for name in currencies if "seconds" in name]
    return f" What {', '.join(timed)} buy depends on the machine." if timed else ""


def _negative(interval: Interval) -> Interval:
    return Interval(-interval.estimate, -interval.high, -interval.low, interval.level)
