"""The tables of a report: from runs to rows of means, intervals over seeds and paired differences. Nothing is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from budgetcl.metrics.stats import Interval
from budgetcl.report.boards import CONTROLS, Board
from budgetcl.report.runs import BlindGrid, Run
from budgetcl.report.student import student_interval


@dataclass(frozen=True)
class Column:
    """A number of the runs' summaries, and how it is shown.

    Attributes:
        key: its name in a summary.
        title: its name in a table.
        unit: "percent" (of 0..1), "flops", "flops/s", "bytes", "seconds", "times" or "count".
        better: +1 where more is better, -1 where less is, 0 where neither.
    """

    key: str
    title: str
    unit: str
    better: int = 0


ACCURACY = (
    Column("average_accuracy", "average", "percent", 1),
    Column("final_accuracy", "final", "percent", 1),
    Column("final_new", "final, new", "percent", 1),
    Column("final_old", "final, old", "percent", 1),
    Column("final_pretrain", "final, pretraining", "percent", 1),
    Column("forgetting", "forgetting", "percent", -1),
    Column("online", "online", "percent", 1),
    Column("near_future", "near-future", "percent", 1),
    Column("retention", "retention", "percent", 1),
)
COST = (
    Column("updates", "updates", "count"),
    Column("utilisation", "used", "percent"),
    Column("flops", "FLOPs", "flops"),
    Column("tuning_flops", "FLOPs of tuning", "flops"),
    Column("predict_flops", "FLOPs a prediction", "flops"),
    Column("bytes", "stored", "bytes"),
    Column("seconds", "wall clock", "seconds"),
    Column("flops_per_second", "speed", "flops/s"),
)
# What was spent, in whatever an allowance may be counted in, and what may be capped beside.
SPENT = (
    Column("updates", "iterations (updates)", "count"),
    Column("flops", "FLOPs", "flops"),
    Column("adjusted_flops", "memory-adjusted FLOPs", "flops"),
    Column("delay", "delay (reference updates to an update)", "times"),
    Column("missed", "steps without an update", "percent"),
    Column("learning_seconds", "time of learning, here", "seconds"),
    Column("bytes", "stored", "bytes"),
)
# What summary.csv begins with.
CSV_COLUMNS = (
    "method", "seed", "stream", "average_accuracy", "final_accuracy", "online", "near_future", "retention", "updates",
    "flops", "adjusted_flops", "learning_seconds", "utilisation", "predict_flops", "bytes", "currency", "control",
)  # fmt: skip
# The blind classifiers that every time-stamped board shows; the window "chosen" is the one of the tuning prefix.
BLIND_ROWS: tuple[tuple[str, int | str | None], ...] = (
    ("last_label", 1),
    ("recent_mode", "chosen"),
    ("majority", None),
)


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: the method.
        group: baseline, sampling, distillation, partial, blind, ...
        seeds: the seeds behind it.
        values: column key -> mean and interval over seeds; NaN ends where there is one seed.
        differences: column key -> this row minus the baseline, paired by seed.
        computed: whether it was computed from the stream's labels, without a run.
        control: which kind of control it is, and of which row; such a row is no entry and is not ranked.
    """

    name: str
    group: str
    seeds: tuple[int, ...]
    values: Mapping[str, Interval]
    differences: Mapping[str, Interval] = field(default_factory=dict)
    computed: bool = False
    control: tuple[str, str] | None = None


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        title: what stands above it.
        heads: of the columns.
        rows: as many texts each; the first names the row, the last may be a sentence.
        caption: what stands below it.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


@dataclass(frozen=True)
class Comparison:
    """The rows of a board.

    Attributes:
        rows: the baseline first, then the others by the primary column, blind rows last; each with its controls below.
        accuracy: the accuracy columns that are not empty.
        cost: the cost columns that are not empty.
        spent: what was spent, in each currency that is known of.
        primary: the column that rows are ordered by, or None where there is no accuracy at all.
        baseline: the row that differences are to, or None.
        notes: what must be said beside the table.
    """

    rows: tuple[Row, ...]
    accuracy: tuple[Column, ...]
    cost: tuple[Column, ...]
    spent: tuple[Column, ...]
    primary: Column | None
    baseline: str | None
    notes: tuple[str, ...]

    @property
    def entries(self) -> tuple[Row, ...]:
        """The rows that are no controls."""
        return tuple(row for row in self.rows if row.control is None)

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)


def comparison(board: Board, grids: Mapping[str, BlindGrid] | None = None) -> Comparison:
    """Return the rows of a board.

    Args:
        board: runs that may be compared.
        grids: fingerprint -> what blind classifiers score, for the blind rows that were not run.
    """
    baseline = board.runs[board.baseline] if board.baseline else {}
    rows = [
        replace(_row(name, board.group(name), runs, baseline), control=board.controls.get(name))
        for name, runs in board.runs.items()
    ]
    rows += _blind_rows(board, grids or {}, baseline)

    def filled(columns: Sequence[Column]) -> tuple[Column, ...]:
        return tuple(column for column in columns if any(column.key in row.values for row in rows))

    accuracy = filled(ACCURACY)
    keys = {column.key: column for column in accuracy}
    primary = keys.get("near_future") or keys.get("average_accuracy") or (accuracy[0] if accuracy else None)

    places = {row.name: i for i, row in enumerate(rows)}

    def place(row: Row) -> tuple[bool, bool, float, int, int]:
        kind, of = row.control or ("", row.name)
        head = rows[places.get(of, places[row.name])]
        value = head.values.get(primary.key) if primary else None
        by_value = -value.estimate if value else math.inf
        below = CONTROLS.index(kind) + 1 if kind else 0
        return head.group == "blind", head.name != board.baseline, by_value, places[head.name], below

    notes = list(board.notes)
    if len(board.seeds) == 1:
        notes.append(f"One seed ({board.seeds[0]}): there is no interval and nothing is tested.")
    if len(board.seeds) == 2:
        notes.append("Two seeds: Student's t has one degree of freedom, so intervals are very wide.")
    if board.baseline is None:
        notes.append("There is no naive run here, so no differences to it are shown.")
    shifts = {run.seed: run.info.get("shift") for run in sorted(board.flat, key=lambda run: run.seed)}
    if len(set(shifts.values())) > 1:
        said = ", ".join(f"{shift} (seed {seed})" for seed, shift in shifts.items())
        notes.append(f"Each seed's tuning prefix chose its own near-future shift S: {said}.")
    if any(row.computed for row in rows):
        notes.append("Blind rows marked * were not run: they are computed from the stream's labels on the same clock.")
    if board.controls:
        notes.append("Rows marked ↳ are controls of the row above them, no entries: they are not ranked.")
    ordered = tuple(sorted(rows, key=place))
    return Comparison(ordered, accuracy, filled(COST), filled(SPENT), primary, board.baseline, tuple(notes))


def _row(name: str, group: str, runs: Mapping[int, Run], baseline: Mapping[int, Run]) -> Row:
    values, differences = {}, {}
    for column in {column.key: column for column in (*ACCURACY, *COST, *SPENT)}.values():
        numbers = {seed: run.number(column.key) for seed, run in runs.items()}
        numbers = {seed: number for seed, number in numbers.items() if math.isfinite(number)}
        if not numbers:
            continue
        values[column.key] = student_interval(list(numbers.values()))
        difference = paired(runs, baseline, column.key)
        if difference and runs is not baseline and column.better:
            differences[column.key] = difference
    return Row(name, group, tuple(runs), values, differences)


def paired(runs: Mapping[int, Run], others: Mapping[int, Run], key: str) -> Interval | None:
    """Return the difference of two rows over the seeds that both have, paired by seed; None where there is none.

    Args:
        runs: seed -> run.
        others: what is subtracted.
        key: a number of the summary.
    """
    found = [runs[seed].number(key) - others[seed].number(key) for seed in runs if seed in others]
    found = [difference for difference in found if math.isfinite(difference)]
    return student_interval(found) if found else None


def _blind_rows(board: Board, grids: Mapping[str, BlindGrid], baseline: Mapping[int, Run]) -> list[Row]:
    """Return the blind rows that were not run, from the grid of each seed's stream."""
    run_of = {run.seed: run for run in board.flat}
    if not any(run.fingerprint in grids for run in run_of.values()):
        return []
    rows = []
    for name, wanted in BLIND_ROWS:
        if any(method.split("(")[0] == name for method in board.methods):
            continue
        numbers: dict[str, dict[int, float]] = {"online": {}, "near_future": {}}
        for seed, run in sorted(run_of.items()):
            grid = grids.get(run.fingerprint)
            window = grid.chosen if grid and wanted == "chosen" else wanted
            if grid is None or (wanted == "chosen" and window is None) or isinstance(window, str):
                continue
            for key, shift in (("online", 0), ("near_future", run.info.get("shift"))):
                if shift in grid.shifts and window in grid.windows:
                    numbers[key][seed] = grid.at(window, int(shift))
        values = {key: student_interval(list(each.values())) for key, each in numbers.items() if each}
        differences = {
            key: student_interval([value - baseline[seed].number(key) for seed, value in each.items()])
            for key, each in numbers.items()
            if each and all(seed in baseline and math.isfinite(baseline[seed].number(key)) for seed in each)
        }
        if values:
            rows.append(Row(name, "blind", tuple(run_of), values, differences, computed=True))
    return rows


def summary_rows(boards: Sequence[Board]) -> tuple[list[str], list[list[Any]]]:
    """Return the header and one raw row per run for ``summary.csv``."""
    runs = [run for board in boards for run in board.flat]
    further = sorted({key for run in runs for key in run.summary} - set(CSV_COLUMNS))
    header = [*CSV_COLUMNS, *further, "fingerprint", "run"]
    rows = []
    for run in runs:
        own = {"method": run.method, "seed": run.seed, "stream": run.stream, **run.summary}
        own |= {"currency": run.currency, "control": run.control[0] if run.control else None}
        cells = [own.get(key) for key in (*CSV_COLUMNS, *further)]
        rows.append([*("" if cell is None else cell for cell in cells), run.fingerprint, run.info.get("id", "")])
    return header, rows
