"""Numbers and findings put into words: what stands in the cells of a table and in the sentences beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from budgetcl.metrics.stats import Interval
from budgetcl.report.boards import Board
from budgetcl.report.runs import FLOPS, Run
from budgetcl.report.tables import Column, Comparison, Row


def shown(column: Column, interval: Interval | None) -> str:
    """Return a mean and its interval for reading: "53.2 ± 0.6" (percent), "1.23 T" (FLOPs), "4.1 MB"."""
    if interval is None:
        return "–"
    if column.unit != "percent":
        return quantity(interval.estimate, column.unit)
    mean = f"{100 * interval.estimate:.1f}".replace("-", "−")
    if column.better == 0 or math.isnan(interval.low):
        return mean
    return f"{mean} ± {50 * (interval.high - interval.low):.1f}"


def shown_difference(interval: Interval | None) -> str:
    """Return a paired difference in points: "−2.8 ± 0.3 ▼"; ▲ or ▼ where its interval excludes 0."""
    if interval is None:
        return ""
    sign = "−" if round(100 * interval.estimate, 1) < 0 else "+"
    text = f"{sign}{abs(100 * interval.estimate):.1f}"
    if math.isnan(interval.low):
        return text
    return f"{text} ± {50 * (interval.high - interval.low):.1f}{mark(interval)}"


def mark(interval: Interval | None) -> str:
    """Return " ▲" or " ▼" where an interval excludes 0, else nothing."""
    if interval is None or math.isnan(interval.low) or not interval.differs:
        return ""
    return " ▲" if interval.estimate > 0 else " ▼"


def quantity(value: float, unit: str) -> str:
    """Return a number with its unit, three digits: "1.23 T" FLOPs, "4.10 MB", "12,345" updates."""
    if not math.isfinite(value):
        return "–"
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "times":
        return f"{value:.2f}"
    if unit == "seconds":
        return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"
    if unit == "percent":
        return f"{100 * value:.1f}"
    if unit == "bytes":
        return _scaled(value, ("B", "kB", "MB", "GB", "TB"))
    if unit == "flops/s" and value == 0:
        return "–"
    if unit == "flops/s":
        return _scaled(value, ("", "k", "M", "G", "T", "P", "E")) + "/s"
    return _scaled(value, ("", "k", "M", "G", "T", "P", "E", "Z"))


def _scaled(value: float, names: Sequence[str]) -> str:
    place = 0
    while abs(value) >= 999.5 and place < len(names) - 1:
        value, place = value / 1000, place + 1
    digits = 0 if place == 0 else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {names[place]}".strip()


def heading(column: Column) -> str:
    """Return a column's title with its unit."""
    return f"{column.title} (%)" if column.unit == "percent" else column.title


def findings(table: Comparison) -> list[str]:
    """Return what a comparison shows and what it does not, as sentences."""
    said = [_against_baseline(table, column) for column in table.accuracy if column.key in _TOLD]
    said += [_against_blind(table, "online", "Online"), _against_blind(table, "near_future", "Near-future")]
    return [sentence for sentence in said if sentence]


_TOLD = ("average_accuracy", "final_accuracy", "online", "near_future", "retention")


def _against_baseline(table: Comparison, column: Column) -> str:
    """Say which learners differ from the baseline; nothing on one seed."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for row in table.entries:
        difference = row.differences.get(column.key)
        if difference is None or row.group == "blind" or math.isnan(difference.low):
            continue
        better = (difference.estimate > 0) == (column.better > 0)
        word = "not told apart" if not difference.differs else "better" if better else "worse"
        told[word].append(f"{row.name} ({shown_difference(difference).rstrip(' ▲▼')})")
    parts = [f"{word}: {', '.join(names)}" for word, names in told.items() if names]
    if not parts:
        return ""
    return f"{column.title.capitalize()} accuracy against {table.baseline}, in points. {'; '.join(parts).capitalize()}."


def _against_blind(table: Comparison, key: str, title: str) -> str:
    """Say whether learners do better than classifiers that see no image."""
    rows = [row for row in table.entries if key in row.values]
    blind, learners = ([row for row in rows if (row.group == "blind") == wanted] for wanted in (True, False))
    if not blind or not learners:
        return ""
    guess, best = (max(some, key=lambda row: _value(row, key)) for some in (blind, learners))
    below = [row.name for row in learners if _value(row, key) < _value(guess, key)]
    ranked = (
        "every learner is above it"
        if not below
        else f"below it: {'every learner' if len(below) == len(learners) else ', '.join(below)}"
    )
    return (
        f"{title} accuracy: the best blind classifier, {guess.name}, which sees no image, reaches "
        f"{_value(guess, key):.1%}, the best learner, {best.name}, {_value(best, key):.1%}; {ranked}."
    )


def _value(row: Row, key: str) -> float:
    return row.values[key].estimate


# --- how it was run ------------------------------------------------------------------------------------------------


def how_it_was_run(board: Board) -> list[tuple[str, str]]:
    """Return what a board's runs have in common, and the audit's word, as (what, value)."""
    runs = board.with_controls().flat or board.flat
    infos = [run.info for run in runs]

    def several(key: str) -> str:
        return ", ".join(dict.fromkeys(_plain(info.get(key)) for info in infos if info.get(key) is not None)) or "–"

    def by_seed(key: str) -> str:
        values = {run.seed: _plain(run.info.get(key)) for run in sorted(runs, key=lambda run: run.seed)}
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        return ", ".join(f"{value} (seed {seed})" for seed, value in values.items())

    first = infos[0]
    total = _in_unit(float(np.mean([run.allowance for run in runs])), str(first.get("currency") or FLOPS))
    size = f"{_plain(first.get('stream_samples'))} samples of {by_seed('classes')} classes"
    cut = f"{_plain(first.get('steps'))} time steps of at most {_plain(first.get('chunk'))}"
    given = {key[7:]: value for key, value in runs[0].settings.items() if key.startswith("stream.")}
    said = {key: value for key, value in given.items() if key not in ("_target_", "seed") and value is not None}
    rows = [
        ("Stream", f"{board.stream}: {size} in {cut}"),
        ("Settings", ", ".join(f"{key}={value}" for key, value in said.items())),
        ("Told apart by", ", ".join(board.conditions) or "–"),
        ("Fingerprint", by_seed("fingerprint")),
        ("Seeds", ", ".join(map(str, board.seeds))),
        ("Allowance", f"{_allowance(runs[0])}; {total} in all; the rest of a step: {several('rest')}"),
        ("Counted in", runs[0].currency),
        ("Accounting version", several("accounting")),
    ]
    free = {run.method: _plain(run.info.get("free")) for run in runs if run.info.get("free")}
    if free:
        rows.append(("Not charged", "; ".join(f"{method}: {what}" for method, what in free.items())))
    if any(info.get("shifts") for info in infos):
        rows.append(("Predicted ahead", f"{by_seed('shifts')} samples"))
        rows.append(("Near-future shift S", f"{by_seed('shift')} samples, chosen on the tuning prefix unless set"))
        rows.append(("Blind window k", f"{by_seed('window')}, chosen on the tuning prefix"))
        rows.append(("Counted from", f"sample {runs[0].start} on (warm-up, and reached by every shift)"))
    versions = {key: value for info in infos for key, value in (info.get("versions") or {}).items()}
    rows += [
        ("Audit", audit_word(board.flat)),
        ("Device", f"{several('device')}; threads: {several('threads')}; precision: {several('precision')}"),
        ("Machine", several("machine")),
        ("Versions", ", ".join(f"{name} {value}" for name, value in versions.items()) or "–"),
        ("Commit", several("commit")),
        ("Time", f"{quantity(sum(float(info.get('seconds') or 0) for info in infos), 'seconds')} for {len(runs)} runs"),
    ]
    return [(what, value) for what, value in rows if value not in ("", "–")]


def _allowance(run: Run) -> str:
    budget = run.info.get("budget") or {}
    if budget.get("updates") is not None:
        given = f"{_plain(budget['updates'])} reference updates a time step"
    elif budget.get("passes") is not None:
        given = f"{_plain(budget['passes'])} reference passes over what a time step reveals"
    else:
        given = f"{quantity(float(budget.get('flops') or math.nan), 'flops')}FLOP a time step"
    return f"{given}; at most {quantity(budget['bytes'], 'bytes')} stored" if budget.get("bytes") else given


def _in_unit(value: float, currency: str) -> str:
    """Return an amount of what a ledger counts: "1.2 TFLOP", "150 updates"."""
    if currency.endswith("seconds"):
        return quantity(value / 1e9, "seconds")
    if currency == "iterations":
        return f"{quantity(value, 'count')} updates"
    return f"{quantity(value, 'flops')}{currency.replace('FLOPs', 'FLOP') if currency == FLOPS else f' {currency}'}"


def audit_word(runs: Sequence[Run]) -> str:
    """Return whether the audited step of each run agreed to the FLOP with what was charged."""
    audits = [(run, run.info.get("audit") or {}) for run in runs]
    wrong = [
        f"{run.method} seed {run.seed} (step {audit.get('step')}: counted {_plain(audit.get('counted'))}, "
        f"charged {_plain(audit.get('charged'))})"
        for run, audit in audits
        if audit and not audit.get("agrees")
    ]
    without = sum(not audit for _, audit in audits)
    agreeing = len(runs) - len(wrong) - without
    said = f"one time step of each run was counted while it ran: {agreeing} of {len(runs)} agree to the FLOP"
    if wrong:
        said += f"; NOT in agreement: {'; '.join(wrong)}"
    if without:
        said += f"; {without} without an audit"
    return said


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "–" if value is None else str(value)
