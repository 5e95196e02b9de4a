"""Work out what the runs of reproduce_claims.py show, and write docs/claims.md with its plots.

Differences are paired by seed. An interval is that of budgetcl.metrics.stats.paired_difference over the seeds' numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from claims_plan import (
    APART,
    AT_C,
    BLIND,
    BUDGETS,
    CLAIMS,
    CLASSES,
    COSTLY,
    FIRST_SEEDS,
    FROZEN,
    HEADS,
    MORE_SEEDS,
    PAPERS,
    PRICED,
    SPLIT,
    SPLITS,
    STEPS,
    STREAMED,
    STRENGTHS,
    STRONGER,
    SWEPT,
    TOTAL,
    TRAINED,
    UPDATES,
    WEAK_PASSES,
    Setting,
    jobs_of,
    neighbours,
    planned,
)

from budgetcl.metrics.stats import Interval, paired_difference
from budgetcl.report.blind import new_figure, svg
from budgetcl.report.plots import styles

DOCS = Path(__file__).parent.parent / "docs"
SHOWN, NOT_SHOWN, CONTRADICTED, MISSING = "shown", "not shown", "contradicted on this data", "not measured"
MARGIN = 0.01  # a gain of less than a point is none
COLLAPSED = 0.5  # of naive's accuracy
AVERAGE = "average_accuracy"
FAMILIES = {
    "sampling": "Sampling",
    "distillation": "Distillation",
    "head": "Head correction",
    "partial": "Partial fine-tuning",
}
INK, BLUE, RED, GREY = "#1c2430", "#0072b2", "#d55e00", "#8a919c"

Found = Mapping[tuple[str, str, str, int], Mapping[str, Any]]


class Measured:
    """The numbers of all runs that there are."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def numbers(self, setting: Setting, method: str, key: str = AVERAGE, control: str = "") -> dict[int, float]:
        """Return seed -> number."""
        cells = {}
        for (folder, name, kind, seed), summary in self._found.items():
            if (folder, name, kind) == (setting.folder, method, control) and summary.get(key) is not None:
                cells[seed] = float(summary[key])
        return dict(sorted(cells.items()))

    def __len__(self) -> int:
        return len(self._found)

    def mean(self, setting: Setting, method: str, key: str = AVERAGE, control: str = "") -> float:
        """Return the mean over seeds, NaN where there is none."""
        numbers = list(self.numbers(setting, method, key, control).values())
        return float(np.mean(numbers)) if numbers else float("nan")

    def group(self, method: str) -> str:
        """Return what a method is filed under."""
        return next(
            (str(s["group"]) for (_, name, kind, _), s in self._found.items() if name == method and not kind), ""
        )

    def has(self, claim: str) -> tuple[int, int]:
        """Return how many runs of a claim there are, of how many."""
        keys = [job.key for job in jobs_of(claim, (*FIRST_SEEDS, *MORE_SEEDS))]
        return sum(key in self._found for key in keys), len(keys)


@dataclass(frozen=True)
class Gap:
    """A paired difference: its interval, and how many seeds are behind it."""

    interval: Interval
    seeds: int

    def __str__(self) -> str:
        return shown(self.interval) + ("" if self.seeds == 5 else f" ({self.seeds})")

    @property
    def above(self) -> bool:
        """Whether it is surely above zero."""
        return self.interval.low > 0

    @property
    def below(self) -> bool:
        """Whether it is surely below zero."""
        return self.interval.high < 0


def gap(first: Mapping[int, float], second: Mapping[int, float], level: float = 0.95) -> Gap | None:
    """Return the difference over the seeds that both have; None for fewer than two."""
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return None
    left, right = ([[numbers[seed]] for seed in seeds] for numbers in (first, second))
    resamples = max(4000, int(40 / (1 - level)))
    return Gap(paired_difference(left, right, level=level, resamples=resamples), len(seeds))


def shown(interval: Interval) -> str:
    """Return a difference in points, with its interval."""
    return f"{100 * interval.estimate:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def percent(value: float) -> str:
    """Return an accuracy in percent, or a dash."""
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a table in Markdown; a cell that is None is a dash."""
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    return [*lines, *(f"| {' | '.join('–' if cell is None else str(cell) for cell in row)} |" for row in rows), ""]


@dataclass(frozen=True)
class Claim:
    """What became of a claim.

    Attributes:
        key: its name on the command line.
        title: what the paper says.
        verdict: one of the four words.
        why: one or two sentences.
        body: Markdown lines.
        plot: the name of its picture, or None.
    """

    key: str
    title: str
    verdict: str
    why: str
    body: list[str]
    plot: str | None = None


# --- 1: nothing beats naive --------------------------------------------------------------------------------------


def methods(measured: Measured) -> Claim:
    """No method beats uniform sampling under a budget."""
    naive = measured.numbers(AT_C, "naive")
    gaps = {}
    for method in (*PAPERS[1:], *neighbours()):
        if found := gap(measured.numbers(AT_C, method), naive):
            gaps[method] = found
    families = {}
    for family, title in FAMILIES.items():
        members = [method for method in PAPERS if method in gaps and measured.group(method) == family]
        families[title] = (members, *_family(measured, members, gaps, naive))
    verdicts = [verdict for _, verdict, _ in families.values()]
    body = table(
        ("Family of the papers", "methods", "verdict", "why"),
        [(title, len(members), verdict, why) for title, (members, verdict, why) in families.items()],
    )
    ordered = sorted(gaps, key=lambda method: -gaps[method].interval.estimate)
    rows = [
        (
            f"{_marked(measured, method)}{'' if method in PAPERS else ' (neighbour)'}",
            measured.group(method),
            percent(measured.mean(AT_C, method)),
            percent(measured.mean(AT_C, method, "final_accuracy")),
            gaps[method],
            f"{measured.mean(AT_C, method, 'updates'):,.0f}",
            _used(measured, AT_C, method),
        )
        for method in ordered
    ]
    own = ("naive", "baseline", percent(measured.mean(AT_C, "naive")))
    own += (percent(measured.mean(AT_C, "naive", "final_accuracy")), None)  # type: ignore[assignment]
    own += (f"{measured.mean(AT_C, 'naive', 'updates'):,.0f}", _used(measured, AT_C, "naive"))  # type: ignore[assignment]
    rows.insert(0, own)  # type: ignore[arg-type]
    body += table(("method", "group", "average", "final", "average minus naive's", "updates", "used, %"), rows)
    body += [
        f"† below {COLLAPSED:.0%} of naive's average accuracy: at the rate and settings chosen for it, it does not "
        "learn here, or forgets all.",
        "",
    ]
    missing = [method for method in (*PAPERS, *neighbours()) if method not in gaps and method != "naive"]
    if missing:
        body += [f"Fewer than two seeds, left out: {', '.join(missing)}.", ""]
    if upper := measured.numbers(AT_C, "naive", control="unlimited"):
        body += [f"Naive training without a limit reaches {percent(float(np.mean(list(upper.values()))))} %.", ""]
    else:
        body += ["The unlimited line was not measured (`--only unlimited`).", ""]
    verdict = _overall(verdicts)
    why = "; ".join(f"{title.lower()}: {verdict}" for title, (_, verdict, _) in families.items())
    save("claims_methods", _forest(measured, gaps, ordered))
    return Claim("methods", "No method beats uniform sampling under a budget (BudgetCL)", verdict, why, body,
                 "claims_methods")  # fmt: skip


def _family(
    measured: Measured, members: Sequence[str], gaps: Mapping[str, Gap], naive: Mapping[int, float]
) -> tuple[str, str]:
    """Return the verdict on a family: better is what is surely better when as many are compared."""
    if not members:
        return MISSING, "no runs"
    level = 1 - 0.05 / len(members)
    better = []
    for method in members:
        strict = gap(measured.numbers(AT_C, method), naive, level)
        if strict and strict.above and strict.interval.estimate > MARGIN:
            better.append(method)
    if better:
        return CONTRADICTED, ", ".join(f"{method} {gaps[method]}" for method in better)
    open_ = [method for method in members if gaps[method].interval.high > MARGIN]
    if open_:
        return NOT_SHOWN, f"a gain of a point is not excluded for {', '.join(open_)}"
    return SHOWN, "none gains a point"


def _marked(measured: Measured, method: str) -> str:
    """Return the name of a method, with a mark where it collapsed."""
    return f"{method} †" if _collapsed(measured, AT_C, method) else method


def _collapsed(measured: Measured, setting: Setting, method: str) -> bool:
    return measured.mean(setting, method) < COLLAPSED * measured.mean(setting, "naive")


def _overall(verdicts: Sequence[str]) -> str:
    for verdict in (CONTRADICTED, NOT_SHOWN, SHOWN):
        if verdict in verdicts:
            return verdict
    return MISSING


# --- 2: the gap and the budget -----------------------------------------------------------------------------------


def budget(measured: Measured) -> Claim:
    """The gap widens as C shrinks, and closes with unlimited compute."""
    names = {0.25: "C/4", 1.0: "C", 4.0: "4 C", 16.0: "16 C"}
    gaps: dict[str, dict[float, Gap]] = {}
    for method in SWEPT[1:]:
        each = {c: gap(measured.numbers(s, method), measured.numbers(s, "naive")) for c, s in BUDGETS.items()}
        gaps[method] = {c: found for c, found in each.items() if found}
    rows: list[Sequence[object]] = [
        ("naive, %", *(percent(measured.mean(setting, "naive")) for setting in BUDGETS.values()), None)
    ]
    narrowed = {}
    for method, each in gaps.items():
        if len(each) > 1:
            low, high = BUDGETS[min(each)], BUDGETS[max(each)]
            narrowed[method] = gap(_minus_naive(measured, high, method), _minus_naive(measured, low, method))
        rows.append((method, *(each.get(c) for c in BUDGETS), narrowed.get(method)))
    body = table(("minus naive", *names.values(), "gap at the largest less at the smallest"), rows)
    body += table(("used, %", *names.values()), [(m, *(_used(measured, s, m) for s in BUDGETS.values())) for m in gaps])
    costly = [method for method in ("kd_mse", "herding", "max_loss") if narrowed.get(method)]
    wider = [method for method in costly if narrowed[method].above]  # type: ignore[union-attr]
    other = [method for method in costly if narrowed[method].below]  # type: ignore[union-attr]
    closed = [m for m in costly if gaps[m][max(gaps[m])].interval.high >= 0]
    verdict = (
        MISSING
        if not costly
        else SHOWN
        if len(wider) == len(costly)
        else CONTRADICTED
        if other and not wider
        else NOT_SHOWN
    )
    why = (
        f"of {_listed(costly)}, the gap is surely wider at the smallest budget for {_listed(wider)}, surely narrower "
        f"for {_listed(other)}; at the largest measured it is closed (the interval reaches 0) for {_listed(closed)}"
    )
    why = why if costly else "runs are missing"
    save("claims_budget", _curves(gaps, names, "budget"))
    title = "The gap widens as the budget shrinks, and closes with much compute (BudgetCL)"
    return Claim("budget", title, verdict, why, body, "claims_budget")


def _minus_naive(measured: Measured, setting: Setting, method: str) -> dict[int, float]:
    own, naive = measured.numbers(setting, method), measured.numbers(setting, "naive")
    return {seed: own[seed] - naive[seed] for seed in own.keys() & naive.keys()}


def _used(measured: Measured, setting: Setting, method: str) -> str:
    """Return the share of the allowances that a method spends, in percent, or a dash."""
    return percent(measured.mean(setting, method, "utilisation"))


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names)) or "none"


# --- 3: few and many steps ---------------------------------------------------------------------------------------


def steps(measured: Measured) -> Claim:
    """The conclusion holds from few to many steps at the same total compute."""
    gaps: dict[str, dict[int, Gap]] = {}
    for method in SPLIT[1:]:
        each = {n: gap(measured.numbers(s, method), measured.numbers(s, "naive")) for n, s in SPLITS.items()}
        gaps[method] = {n: found for n, found in each.items() if found}
    rows: list[Sequence[object]] = [("naive, %", *(percent(measured.mean(s, "naive")) for s in SPLITS.values()))]
    for method, each in gaps.items():
        marks = {n: " †" if _collapsed(measured, setting, method) else "" for n, setting in SPLITS.items()}
        rows.append((method, *(f"{each[n]}{marks[n]}" if n in each else None for n in SPLITS)))
    body = [*table(("minus naive", *(f"{n} steps" for n in SPLITS)), rows), "† as above.", ""]
    used = [(method, *(_used(measured, s, method) for s in SPLITS.values())) for method in gaps]
    body += table(("used, %", *(f"{n} steps" for n in SPLITS)), used)
    cells = [(method, n, found) for method, each in gaps.items() for n, found in each.items()]
    better = [f"{method} at {n}" for method, n, found in cells if found.above and found.interval.estimate > MARGIN]
    open_ = [f"{method} at {n}" for method, n, found in cells if found.interval.high > MARGIN]
    verdict = MISSING if not cells else CONTRADICTED if better else NOT_SHOWN if open_ else SHOWN
    why = f"of {len(cells)} differences, surely better than naive: {_listed(better)}; a gain of a point not excluded: "
    why = why + _listed(open_) if cells else "runs are missing"
    save("claims_steps", _curves(gaps, {n: str(n) for n in SPLITS}, "time steps"))
    return Claim("steps", f"It holds from few to many time steps, {TOTAL} updates in all (BudgetCL)", verdict,
                 why, body, "claims_steps" if cells else None)  # fmt: skip


# --- 4: idea or price --------------------------------------------------------------------------------------------


def price(measured: Measured) -> Claim:
    """Costly sampling and distillation lose by their price."""
    naive = measured.numbers(AT_C, "naive")
    rows, cells = [], {}
    for method in COSTLY:
        own, free = measured.numbers(AT_C, method), measured.numbers(AT_C, method, control="uncharged")
        charged, uncharged = gap(own, naive), gap(free, naive)
        if not charged or not uncharged:
            continue
        cells[method] = charged, uncharged
        same = gap(own, measured.numbers(AT_C, method, control="same_updates")) if method in PRICED else None
        rows.append((_marked(measured, method), charged, uncharged, gap(free, own), same, _cause(charged, uncharged)))
    header = ("minus naive", "charged", "uncharged", "its price: uncharged less charged",
              "charged, less naive with its updates", "loses")  # fmt: skip
    body = [*table(header, rows), "† as above.", ""]
    causes = {method: _cause(*pair) for method, pair in cells.items()}
    losing = [method for method, (charged, _) in cells.items() if charged.below]
    by_price = [method for method in losing if causes[method] == "by its price"]
    verdict = (
        MISSING if not cells else NOT_SHOWN if not losing else SHOWN if by_price == losing else
        NOT_SHOWN if by_price else CONTRADICTED
    )  # fmt: skip
    why = (
        f"surely below naive: {_listed(losing)}; of these no longer so when only training is charged: "
        f"{_listed(by_price)}; the others are below it even then, by their idea"
    )
    why = why if cells else "runs are missing"
    save("claims_price", _dumbbells(cells))
    return Claim("price", "Costly sampling and distillation lose by their price (BudgetCL)", verdict, why, body,
                 "claims_price")  # fmt: skip


def _cause(charged: Gap, uncharged: Gap) -> str:
    if not charged.below:
        return "not surely"
    return "even uncharged" if uncharged.below else "by its price"


# --- 5: head only ------------------------------------------------------------------------------------------------


FLOOR = 0.05  # below it nothing has been learned, and differences say nothing


def backbone(measured: Measured) -> Claim:
    """Head-only training catches up only with a strong backbone."""
    names = {
        "shipped": "shipped weights",
        "weak": f"weak: {WEAK_PASSES:,} of 160,000 pictures",
        "scratch": "from scratch",
    }
    rows, cells = [], {}
    for times, settings in (("C", STRENGTHS), ("4 C", STRONGER)):
        for strength, setting in settings.items():
            each = [gap(measured.numbers(setting, m), measured.numbers(setting, "naive")) for m in HEADS[1:]]
            means = [measured.mean(setting, method) for method in HEADS[:2]]
            learned = max(means) > FLOOR
            cells[strength, times] = each[0] if learned else None
            rows.append((f"{names[strength]}{'' if learned else ' ‡'}", times, *map(percent, means), *each))
    header = ("backbone", "budget", "naive", "head_only", *(f"{method} minus naive" for method in HEADS[1:]))
    body = table(header, rows)
    if any("‡" in str(row[0]) for row in rows):
        body += [f"‡ below {FLOOR:.0%}: nothing was learned, which says nothing of the claim.", ""]
    votes = []
    for times in ("C", "4 C"):
        strong, weaker = cells["shipped", times], [cells.get((s, times)) for s in ("weak", "scratch")]
        known = [found for found in weaker if found]
        if strong and known:
            votes.append(
                SHOWN if not strong.below and all(found.below for found in known)
                else CONTRADICTED if strong.below or all(found.above for found in known) else NOT_SHOWN
            )  # fmt: skip
    verdict = MISSING if not votes else votes[0] if len(set(votes)) == 1 else NOT_SHOWN
    told = [f"{found} at {times}, {names[strength]}" for (strength, times), found in cells.items() if found]
    why = f"head_only minus naive: {'; '.join(told) or 'runs are missing'}"
    return Claim("backbone", "Head-only training catches up only with a strong backbone (BudgetCL)", verdict, why, body)


# --- 6: online ---------------------------------------------------------------------------------------------------

_LEARNERS = (*TRAINED, *FROZEN)


def online(measured: Measured) -> list[Claim]:
    """Return the four claims about time-stamped streams, each over the knobs."""
    knobs = {name: setting for name, setting in STREAMED.items() if measured.numbers(setting, "naive", "online")}
    header = ["uploaders", "burst", "momentum", "S"]
    rows_of: dict[str, list[Sequence[object]]] = {"blind": [], "retain": [], "reuse": [], "order": []}
    votes: dict[str, list[str]] = {key: [] for key in rows_of}
    for knob, setting in knobs.items():
        base = knob if not knob[2] else (*knob[:2], 0)  # blind and frozen learners have no momentum
        at = (*knob, setting.overrides[-1].split("=")[1] if not knob[2] else STREAMED[base].overrides[-1].split("=")[1])

        def of(method: str, key: str, setting: Setting = setting, base: Any = base) -> dict[int, float]:
            return measured.numbers(setting if method in TRAINED else STREAMED[base], method, key)

        ahead = {key: gap(of("last_label", key), of("naive", key)) for key in ("online", "near_future")}
        level = gap(of("last_label", "near_future"), of("majority", "near_future"))
        blind = (percent(_mean(of("last_label", key))) for key in ("online", "near_future"))
        rows_of["blind"].append((*at, next(blind), ahead["online"], next(blind), ahead["near_future"], level))
        votes["blind"].append(_vote([ahead["online"], _turned(ahead["near_future"])]))
        online_gap = gap(of("fifo", "online"), of("naive", "online"))
        for key, other in (("retain", "retention"), ("order", "near_future")):
            found = gap(of("fifo", other), of("naive", other))
            rows_of[key].append((*at, online_gap, found, _rank_correlation(of, other)))
            votes[key].append(_opposed(online_gap, found))
        reuse = [gap(of(method, "near_future"), of("fifo", "near_future")) for method in ("naive", "er")]
        rows_of["reuse"].append((*at, *(percent(_mean(of(m, "near_future"))) for m in ("fifo", "naive", "er")), *reuse))
        votes["reuse"].append(_vote(reuse))
    if knobs:
        save("claims_online", _knobs(measured, knobs))
    claims = []
    for key, title, more in (
        ("blind", "Blind classifiers reach high online accuracy and collapse at S (EvalOCL)",
         ("last_label online", "minus naive's", "last_label at S", "minus naive's", "minus majority's")),
        ("retain", "Methods with high online accuracy retain badly (EvalOCL)",
         ("fifo minus naive, online", "fifo minus naive, retention", "rank correlation over learners")),
        ("order", "Near-future accuracy orders methods otherwise than online accuracy (EvalOCL)",
         ("fifo minus naive, online", "fifo minus naive, at S", "rank correlation over learners")),
        ("reuse", "Under near-future accuracy, keeping and reusing past data wins (EvalOCL)",
         ("fifo at S", "naive at S", "er at S", "naive minus fifo", "er minus fifo")),
    ):  # fmt: skip
        n = len(votes[key])
        counts = {word: votes[key].count(word) for word in (SHOWN, NOT_SHOWN, CONTRADICTED)}
        verdict = (
            MISSING if not sum(counts.values()) else SHOWN if counts[SHOWN] == n else
            CONTRADICTED if counts[CONTRADICTED] > n / 2 else NOT_SHOWN
        )  # fmt: skip
        told = ", ".join(f"{word} at {count}" for word, count in counts.items() if count)
        why = f"of {n} settings of the knobs: {told or 'none with enough runs'}"
        claims.append(Claim("online", title, verdict, why, table((*header, *more), rows_of[key]),
                            "claims_online" if key == "blind" and knobs else None))  # fmt: skip
    return claims


def _mean(numbers: Mapping[int, float]) -> float:
    return float(np.mean(list(numbers.values()))) if numbers else float("nan")


def _turned(found: Gap | None) -> Gap | None:
    if not found:
        return None
    i = found.interval
    return Gap(Interval(-i.estimate, -i.high, -i.low, i.level, i.p), found.seeds)


def _vote(gaps: Sequence[Gap | None]) -> str:
    """Return whether all differences are surely above zero, or all surely below."""
    known = [found for found in gaps if found]
    if len(known) < len(gaps):
        return MISSING
    return SHOWN if all(f.above for f in known) else CONTRADICTED if all(f.below for f in known) else NOT_SHOWN


def _opposed(online_gap: Gap | None, other: Gap | None) -> str:
    """Return whether what is surely ahead online is surely behind in another number, or ahead there as well."""
    if not online_gap or not other:
        return MISSING
    if online_gap.below:
        online_gap, other = _turned(online_gap), _turned(other)
        assert online_gap
        assert other
    if not online_gap.above:
        return NOT_SHOWN
    return SHOWN if other.below else CONTRADICTED if other.above else NOT_SHOWN


def _rank_correlation(of: Callable[[str, str], dict[int, float]], other: str) -> str | None:
    """Return Spearman's correlation over the learners, mean over the seeds, and of how many."""
    values, counts = [], []
    for seed in sorted(of("naive", "online").keys() & of("fifo", "online").keys()):
        pairs = [(of(method, "online").get(seed), of(method, other).get(seed)) for method in _LEARNERS]
        whole = np.array([pair for pair in pairs if None not in pair], dtype=float)
        if len(whole) >= 4:
            ranks = whole.argsort(0).argsort(0)
            values.append(float(np.corrcoef(ranks.T)[0, 1]))
            counts.append(len(whole))
    if not values:
        return None
    learners = f"{min(counts)}-{max(counts)}" if min(counts) < max(counts) else f"{min(counts)}"
    return f"{np.mean(values):+.2f} ({learners} learners)"


# --- pictures ----------------------------------------------------------------------------------------------------


def save(name: str, figure: Any) -> None:
    """Write a picture; None writes nothing."""
    if figure is not None:
        (DOCS / "img" / f"{name}.svg").write_text(svg(figure), encoding="utf-8")


def _bars(found: Sequence[Gap]) -> np.ndarray:
    """Return the lengths of error bars, (2, n), in points."""
    return 100 * np.array(
        [[f.interval.estimate - f.interval.low, f.interval.high - f.interval.estimate] for f in found]
    ).T  # fmt: skip


def _forest(measured: Measured, gaps: Mapping[str, Gap], ordered: Sequence[str]) -> Any:
    if not ordered:
        return None
    figure, axes = new_figure(6.4, 0.9 + 0.19 * len(ordered))
    groups = {method: measured.group(method) for method in ordered}
    kinds = list(dict.fromkeys(groups.values()))
    looks = styles({kind: kind for kind in kinds})
    for kind in kinds:
        rows = [row for row, method in enumerate(ordered) if groups[method] == kind]
        found = [gaps[ordered[row]] for row in rows]
        look = looks[kind]
        axes.errorbar([100 * f.interval.estimate for f in found], rows, xerr=_bars(found), fmt=look.marker or "o",
                      color=look.colour, markersize=4, linewidth=1, label=kind)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(ordered)), ordered, fontsize=7)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_xlabel("average accuracy minus naive's, points, 95 % interval")
    axes.legend(fontsize=7, loc="lower right")
    return figure


def _curves(gaps: Mapping[str, Mapping[Any, Gap]], names: Mapping[Any, str], what: str) -> Any:
    if not any(gaps.values()):
        return None
    figure, axes = new_figure(6.4, 3.2)
    looks = styles(dict.fromkeys(gaps, "learner"))
    for at, (method, each) in enumerate((method, each) for method, each in gaps.items() if each):
        places = [list(names).index(c) + 0.06 * (at - len(gaps) / 2) for c in each]
        found = list(each.values())
        look = looks[method]
        axes.errorbar(places, [100 * f.interval.estimate for f in found], yerr=_bars(found), color=look.colour,
                      marker=look.marker, markersize=4.5, linewidth=1.3, capsize=2, label=method)  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(names)), list(names.values()))
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel(what)
    axes.set_ylabel("minus naive's, points")
    figure.legend(fontsize=8, loc="outside right upper")
    return figure


def _dumbbells(cells: Mapping[str, tuple[Gap, Gap]]) -> Any:
    if not cells:
        return None
    figure, axes = new_figure(6.4, 0.9 + 0.3 * len(cells))
    for side, colour, label, offset in ((0, BLUE, "charged", -0.12), (1, RED, "uncharged", 0.12)):
        found = [pair[side] for pair in cells.values()]
        axes.errorbar([100 * f.interval.estimate for f in found], np.arange(len(cells)) + offset, xerr=_bars(found),
                      fmt="os"[side], color=colour, markersize=4.5, linewidth=1.2, label=label)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(cells)), list(cells))
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xlabel("average accuracy minus naive's, points, 95 % interval")
    axes.legend(fontsize=8)
    return figure


def _knobs(measured: Measured, knobs: Mapping[tuple[int, int, float], Setting]) -> Any:
    columns = min(4, len(knobs))
    lines = -(-len(knobs) // columns)
    figure, axes = new_figure(2.1 * columns + 0.4, 2.2 * lines + 0.5)
    axes.remove()
    places = [*knobs.values(), *(STREAMED[*knob[:2], 0] for knob in knobs)]
    names = [m for m in (*TRAINED, *FROZEN, *BLIND) if any(measured.numbers(place, m, "online") for place in places)]
    looks = styles({method: "blind" if method in BLIND else "learner" for method in names})
    for at, (knob, setting) in enumerate(knobs.items()):
        panel = figure.add_subplot(lines, columns, at + 1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.6)
        for method in names:
            place = setting if method in TRAINED else STREAMED[*knob[:2], 0]
            x, y = (100 * measured.mean(place, method, key) for key in ("online", "near_future"))
            look = looks[method]
            panel.plot(
                [x],
                [y],
                look.marker or "x+"[BLIND.index(method)],
                color=look.colour,
                markersize=6,
                label=method,
                linestyle="none",
            )
        panel.plot([0, 100], [0, 100], color=GREY, linewidth=0.6)
        panel.set(xlim=(0, 100), ylim=(0, 100))
        panel.set_title(f"uploaders {knob[0]}, burst {knob[1]}, mom. {knob[2]:g}", fontsize=7.5)
        panel.tick_params(labelsize=7)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(9, len(names)), fontsize=7.5)
    figure.supxlabel("online accuracy, %", fontsize=9)
    figure.supylabel("near-future accuracy, %", fontsize=9)
    return figure


# --- the page ----------------------------------------------------------------------------------------------------


def write(found: Found, failed: Sequence[str] = ()) -> None:
    """Write docs/claims.md and its pictures from what there is, and which runs failed, and why."""
    measured = Measured(found)
    (DOCS / "img").mkdir(parents=True, exist_ok=True)
    claims = [methods(measured), price(measured), budget(measured), steps(measured), backbone(measured)]
    claims += online(measured)
    counts = {claim: measured.has(claim) for claim in CLAIMS}
    lines = [
        "# The papers' claims on the embedded streams",
        "",
        "Written by `python scripts/reproduce_claims.py`, which also makes the runs; do not edit.",
        "",
        *_how(measured),
        *table(("Claim", "verdict", "why"), [(c.title, f"**{c.verdict}**", c.why) for c in claims]),
    ]
    for claim in claims:
        lines += [f"## {claim.title}", "", f"**{claim.verdict[0].upper()}{claim.verdict[1:]}**: {claim.why}.", ""]
        if claim.plot and (DOCS / "img" / f"{claim.plot}.svg").exists():
            lines += [f"![{claim.title}](img/{claim.plot}.svg)", ""]
        lines += claim.body
    lines += ["## What there is", "", *table(("runs of", "made", "planned"), [(c, *n) for c, n in counts.items()])]
    if failed:
        lines += ["These could not be run:", "", *(f"- {line}" for line in failed)]
    (DOCS / "claims.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"written: docs/claims.md, from {len(found)} runs")


def _how(measured: Measured) -> list[str]:
    runs = len(planned((*CLAIMS, *APART)))
    seconds = measured.mean(AT_C, "naive", "seconds")
    text = f"""
**Sizes.** {CLASSES} + {CLASSES} classes, {STEPS} time steps, C = {UPDATES} updates of 64 images a step; the claim about
steps: 100 + 100 classes and {TOTAL} updates in all; `uploads`: 1,600 samples. They were chosen so that all {runs} runs
take about an hour on two free cores by the script's own estimate; {len(measured)} are made, a run of naive at C took
{seconds:.0f} s on busy ones. With so few updates a network trained whole sees each image about once, which favours
frozen backbones; larger budgets stand in the claim about them. For larger sizes change the constants at the top of
`scripts/claims_plan.py`.

**Reading.** Differences to naive are paired by seed, in points of average accuracy over all classes seen, with 95 %
intervals; reported seeds are 0-4, and where a cell has fewer, their number stands in brackets. *Shown* and
*contradicted* need intervals that exclude the opposite; whether a family has a better method is asked at a level
corrected for its size. A gain below one point counts as none.

**Rounding.** What no longer pays for an update is forfeited at the end of a step (`budget.rest=stop`), and where a step
pays for a few updates only, a method whose update costs more loses much by that: *used* is the share of the allowances
that a method spends (naive: all). It is part of what costly methods lose here, most of all at C/4 and in many short
steps; at 16 C it is small.

**Rates.** Every method has its own learning rate and settings, chosen in equally many trials at C on tuning seeds and
data ([how](tuning.md)); they are reused at other budgets, numbers of steps and backbones. The methods that are compared
on `uploads` were tuned there too; with momentum 0.9 all of them take the rate 0.01, a tenth of the usual one, which
moves as far along a constant gradient.
"""
    return [*text.strip().splitlines(), ""]
