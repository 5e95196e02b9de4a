"""Whether a method loses by its idea or by its price: what its controls say, in numbers and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from budgetcl.metrics.stats import Interval
from budgetcl.report.boards import SAME_UPDATES, UNCHARGED, Board
from budgetcl.report.tables import Comparison, Grid, paired
from budgetcl.report.words import shown_difference


@dataclass(frozen=True)
class Verdict:
    """What is known of one method X; each is a difference of accuracies, paired by seed, or None where it was not run.

    Attributes:
        method: its row.
        charged: X - naive, both on the same allowance.
        idea: X uncharged - naive: the idea without its price.
        price: X - X uncharged.
        alike: X - naive with the updates that X affords: the idea after its price was paid.
    """

    method: str
    charged: Interval | None
    idea: Interval | None
    price: Interval | None
    alike: Interval | None

    @property
    def words(self) -> str:
        """What this says; "not shown" wherever an interval holds 0."""
        charged, idea, price, alike = (_sign(each) for each in (self.charged, self.idea, self.price, self.alike))
        if charged is None:
            return "Not tested: that takes naive and two seeds."
        better, worse = {idea, alike} & {1}, {idea, alike} & {-1}
        if better and worse:
            return f"{_OUTCOME[charged]} Its two controls disagree on its idea."
        by_idea = "its idea helps" if better else "its idea does harm" if worse else ""
        by_price = {-1: "its price costs it accuracy", 1: "it is better charged than uncharged"}.get(price or 0, "")
        found = " and ".join(filter(None, (by_idea, by_price)))
        if charged < 0 and worse and price == -1:
            return "Loses by its idea and by its price."
        if charged < 0 and worse:
            return f"Loses by its idea{_unsaid(price, '; that its price costs it, too, is not shown')}."
        if charged < 0 and price == -1:
            return f"Loses by its price; {by_idea or 'that its idea does harm is not shown'}."
        if charged < 0:
            return f"{_OUTCOME[charged]} {found.capitalize() + '. ' if found else ''}By what it loses is not shown."
        return f"{_OUTCOME[charged]} {(found[:1].upper() + found[1:] + '.') if found else _NOTHING}"


_OUTCOME = {1: "Better than naive.", 0: "A difference to naive is not shown.", -1: "Worse than naive."}
_NOTHING = "An effect of its idea or of its price by itself is not shown."


def verdicts(board: Board, table: Comparison) -> tuple[Verdict, ...]:
    """Return what the controls say of each method that has one, in the table's order and by its primary column."""
    if table.primary is None:
        return ()
    found, naive, key = [], board.runs.get(table.baseline or "", {}), table.primary.key
    for method in (row.name for row in table.entries):
        free, alike = board.control(UNCHARGED, method), board.control(SAME_UPDATES, method)
        if method == table.baseline or not (free or alike):
            continue
        runs = board.runs[method]
        found.append(
            Verdict(
                method,
                paired(runs, naive, key),
                paired(free, naive, key),
                paired(runs, free, key),
                paired(runs, alike, key),
            )
        )
    return tuple(found)


def idea_or_price(board: Board, table: Comparison) -> Grid | None:
    """Return the table of the verdicts; None where there are no controls."""
    found, column = verdicts(board, table), table.primary
    if not found or column is None:
        return None
    heads = ("X", "X − naive", "X uncharged − naive", "X − X uncharged", "X − naive with X's updates", "what this says")
    rows = tuple(
        (
            each.method,
            *(shown_difference(d) or "–" for d in (each.charged, each.idea, each.price, each.alike)),
            each.words,
        )
        for each in found
    )
    return Grid(
        "By its idea or by its price",
        heads,
        rows,
        f"Differences of {column.title} accuracy in points, paired by seed, with 95 % intervals (Student's t). "
        "Uncharged: all but training is free, so the idea without its price. X's updates: naive training with exactly "
        "as many updates in each step as X affords. A method that pays for nothing but training is its own uncharged "
        "control, and naive training that of one that makes as many updates: such runs are not made twice. ▲ and ▼: "
        "the interval excludes 0; whatever holds 0 is not shown, which is not the same as shown to be nothing.",
    )


def _sign(interval: Interval | None) -> int | None:
    """Return 1 or -1 where an interval excludes 0, 0 where it does not, None where there is none."""
    if interval is None or math.isnan(interval.low):
        return None
    return 0 if not interval.differs else 1 if interval.estimate > 0 else -1


def _unsaid(sign: int | None, text: str) -> str:
    return "" if sign is None else text
