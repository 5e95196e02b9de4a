"""The report: one self-contained page, the same as Markdown, a CSV of the raw numbers, and a table in the terminal."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import budgetcl
from budgetcl.errors import UserError
from budgetcl.report import plots
from budgetcl.report.boards import UNLIMITED, Board, boards, incomparable
from budgetcl.report.controls import idea_or_price
from budgetcl.report.currencies import grids as currency_grids
from budgetcl.report.plots import Style
from budgetcl.report.runs import BlindGrid, Run, blind_grid, reduce
from budgetcl.report.student import ENOUGH
from budgetcl.report.tables import Column, Comparison, Grid, Row, comparison, summary_rows
from budgetcl.report.tunings import tunings, with_tuning
from budgetcl.report.words import findings, heading, how_it_was_run, shown, shown_difference

_WIDTH = 120  # columns of a plain table

READING = (
    "Every method got the same allowance in each time step, of floating-point operations (1 FLOP is half a "
    "multiply-add) unless a section says that something else is counted, and was stopped when it was spent; scoring, "
    "teachers and selection are paid from it. So what differs between rows is what a method does with its compute, not "
    "how much it had. Controls, marked ↳, break this rule on purpose, to tell a method's idea from its price.",
    "Accuracy is the share of right answers, in percent. Average: the mean over time steps of the accuracy on held-out "
    "samples of all classes seen so far, those of pretraining included; final: after the last step. New classes are "
    "those first revealed in the step itself, old ones those streamed before. Online: the next samples, predicted "
    "before their labels. Near-future: samples S later, where knowing the last labels no longer helps. Retention: "
    "fresh pictures of the whole past, asked of the final model. Online and near-future accuracy are over the same "
    "samples.",
    "Blind classifiers look at labels only, never at a picture. What they score is what the order of the stream gives "
    "away; a learner is worth something where it is above them.",
    "The number behind ± is half of a 95 % interval over seeds (Student's t). The small line under a number is the "
    "difference to naive in points, paired by seed, with its own 95 % interval; ▲ or ▼ says that the interval excludes "
    "0. Intervals are not corrected for the number of methods: of twenty differences that are none, one is marked. "
    "Where each seed has its own stream, the ± also holds how hard those streams are, the difference does not. Bands "
    "in plots are the same intervals, point by point, and with fewer than five seeds the range of the seeds; blind "
    "classifiers are drawn without.",
    "Used: the share of the allowances that was spent. FLOPs a prediction: per answer; up to one reference forward is "
    "free, the excess is charged to the next step. Stored: the most bytes kept between two steps, samples included.",
)


@dataclass(frozen=True)
class _Plot:
    name: str
    svg: str | None
    caption: str


@dataclass(frozen=True)
class _Group:
    title: str
    plots: tuple[_Plot, ...]
    small: bool = False  # small multiples share one legend


@dataclass(frozen=True)
class _Section:
    """What is said about one board, in no format yet."""

    board: Board
    slug: str
    table: Comparison
    groups: tuple[_Group, ...]
    controls: Grid | None

    @property
    def tables(self) -> tuple[tuple[str, tuple[Column, ...], str], ...]:
        """The tables of its rows: title, columns, caption."""
        table = self.table
        return (
            ("Accuracy", table.accuracy, _accuracy_caption(table)),
            ("What it cost", table.cost, _COST_CAPTION),
            ("What the methods spent, in each currency", table.spent, _spent_caption(self.board)),
        )

    @property
    def plots(self) -> list[tuple[str, _Plot]]:
        """The plots and the names of their files."""
        return [(f"plots/{self.slug}-{plot.name}.svg", plot) for group in self.groups for plot in group.plots]


def report(paths: list[Path], out: Path | None = None) -> None:
    """Write ``report.html``, ``report.md``, ``summary.csv`` and ``plots/*.svg``, and print the comparison.

    Args:
        paths: folders of records, or folders above them; each record below them is taken once.
        out: where to write; None: the first path.

    Raises:
        UserError: no path, no finished record, a damaged one, or a folder that cannot be written.
    """
    out = out or (paths[0] if paths else Path())
    runs, grids, pictures, unfinished = _read(paths)
    found = boards(runs)
    looks = plots.styles(_groups(found, grids))
    sections = [_section(board, slug, grids, looks) for board, slug in zip(found, _slugs(found))]
    notes, across = _notes(sections, unfinished), currency_grids(found)
    files = {
        "report.html": _html(sections, looks, pictures, notes, across),
        "report.md": _markdown(sections, notes, across),
        "summary.csv": _csv(found),
        **{name: plot.svg for section in sections for name, plot in section.plots if plot.svg},
    }
    _write(out, files)
    _print(sections, notes, across)
    print(f"page: {out / 'report.html'}\ntables: {out / 'report.md'}, {out / 'summary.csv'}\nplots: {out / 'plots'}")


# --- reading ----------------------------------------------------------------------------------------------------


def _read(paths: Sequence[Path]) -> tuple[list[Run], dict[str, BlindGrid], dict[str, Path], list[Path]]:
    """Return the finished runs, by fingerprint what blind classifiers score and pictures, and the unfinished ones."""
    from budgetcl.records.record import find

    if not paths:
        raise UserError("no folder given: give the folder of a run, or one above several")
    runs: list[Run] = []
    grids: dict[str, BlindGrid] = {}
    pictures: dict[str, Path] = {}
    unfinished: list[Path] = []
    known: set[Path] = set()
    for results in find(list(paths)):
        folder = results.folder.resolve()
        if folder in known:
            continue
        known.add(folder)
        if not results.finished:
            unfinished.append(results.folder)
            continue
        run = reduce(results)
        runs.append(run)
        if run.fingerprint not in grids and (grid := blind_grid(results)):
            grids[run.fingerprint] = grid
        if (results.folder / "pictures.png").is_file():
            pictures.setdefault(run.fingerprint, results.folder / "pictures.png")
    given = ", ".join(f"'{path}'" for path in paths)
    if not runs and unfinished:
        raise UserError(f"{given} holds only unfinished runs ({len(unfinished)}): run them to their end, then report")
    if not runs:
        raise UserError(f"{given} holds no record of a run (no run.json below): run one first, with budgetcl run")
    entries = tunings(paths)
    return [with_tuning(run, entries) for run in runs], grids, pictures, unfinished


def _groups(found: Sequence[Board], grids: Mapping[str, BlindGrid]) -> dict[str, str]:
    """Return method -> group over all boards, so that a method looks the same everywhere on the page."""
    groups = {name: board.group(name) for board in found for name in board.with_controls(UNLIMITED).methods}
    learners = {name: group for name, group in groups.items() if group != "blind"}
    blind = {name: group for name, group in groups.items() if group == "blind"}
    return {**learners, **blind, **(dict.fromkeys(("last_label", "majority"), "blind") if grids else {})}


def _slugs(found: Sequence[Board]) -> list[str]:
    """Return a short name for each board, for files and anchors."""
    streams = [re.sub(r"[^a-z0-9]+", "-", board.stream.lower()).strip("-") or "stream" for board in found]
    return [
        name if streams.count(name) == 1 else f"{name}-{streams[:i].count(name) + 1}" for i, name in enumerate(streams)
    ]


def _notes(sections: Sequence[_Section], unfinished: Sequence[Path]) -> list[str]:
    notes = []
    streams = [section.board.stream for section in sections]
    for stream in dict.fromkeys(streams):
        if streams.count(stream) > 1:
            notes.append(
                f"The runs on '{stream}' were made under different conditions and are not comparable: they stand in "
                f"{streams.count(stream)} sections, each titled by what differs."
            )
    notes += incomparable([section.board for section in sections])
    if unfinished:
        names = ", ".join(path.name for path in unfinished[:5]) + (", ..." if len(unfinished) > 5 else "")
        plural = "runs are" if len(unfinished) > 1 else "run is"
        notes.append(f"{len(unfinished)} unfinished {plural} left out: {names}.")
    return notes


# --- sections ---------------------------------------------------------------------------------------------------


def _section(board: Board, slug: str, grids: Mapping[str, BlindGrid], looks: Mapping[str, Style]) -> _Section:
    own = {run.fingerprint: grids[run.fingerprint] for run in board.flat if run.fingerprint in grids}
    table, with_controls, line = comparison(board, own), board, board.with_controls(UNLIMITED)
    board = board.with_controls()  # plots show entries, and the upper line
    seeds = len(board.seeds)
    what = "the 95 % interval over seeds" if seeds >= ENOUGH else "from the lowest to the highest seed"
    bands, bars = (f" Bands: {what}.", f"Bars: {what}. ") if seeds > 1 else ("", "")
    steps = plots.accuracy_over_steps(line, looks)
    flops = _Plot(
        "accuracy-flops",
        plots.accuracy_against_flops(board, looks),
        "All that was charged: training, teachers, scoring, and what predictions cost beyond their free part.",
    )
    over_time = (
        _Plot(
            "accuracy-steps",
            steps,
            f"On held-out samples of all classes seen so far, those of pretraining included.{bands}",
        ),
        _Plot(
            "near-future-time",
            plots.along_the_stream(line, looks, "near_future"),
            f"Samples S ahead, in equal stretches of the stream; the warm-up is left out.{bands}",
        ),
        _Plot(
            "online-time",
            plots.along_the_stream(line, looks, "online"),
            f"The next samples, in the same stretches.{bands}",
        ),
        *((flops,) if steps else ()),
    )
    by_class = tuple(_Plot(f"accuracy-{name}", svg, "") for name, svg in plots.accuracy_by_class(board, looks).items())
    ahead = (
        _Plot(
            "ahead",
            plots.ahead(board, table, looks),
            f"{bars}Vertical lines: the best classifier that sees no image, dotted for online, solid for near-future "
            "accuracy.",
        ),
        _Plot(
            "shifts",
            plots.near_future_curve(board, looks, own),
            "The same samples at every shift. S (grey) is the near-future shift, chosen on tuning prefixes as the "
            "smallest from which on label correlation is gone.",
        ),
        _Plot(
            "blind",
            plots.blind_heatmap(board, own),
            "What the order of the labels gives away, predicted on the learners' clock; mean over seeds.",
        ),
        _Plot(
            "retention",
            plots.retention_by_age(board, looks),
            f"Fresh pictures of the past, asked of the final model; right is long ago.{bands}",
        ),
    )
    spent = (
        _Plot(
            "budget",
            plots.budget(board),
            "Mean over seeds; forfeited is what no longer paid for an update. Blind classifiers spend nothing and are "
            "left out.",
        ),
        *(() if steps else (flops,)),
    )
    groups = (
        _Group("Accuracy over time", over_time),
        _Group("New, old and pretraining classes", by_class, small=True),
        _Group("Online, near-future and blind", ahead),
        _Group("Where the compute went", spent),
    )
    drawn = (replace(group, plots=tuple(plot for plot in group.plots if plot.svg)) for group in groups)
    return _Section(
        with_controls,
        slug,
        table,
        tuple(group for group in drawn if group.plots),
        idea_or_price(with_controls, table),
    )


# --- the page ---------------------------------------------------------------------------------------------------


def _html(
    sections: Sequence[_Section],
    looks: Mapping[str, Style],
    pictures: Mapping[str, Path],
    notes: Sequence[str],
    across: Sequence[Grid],
) -> str:
    import jinja2
    from markupsafe import Markup

    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    )
    swatches = {name: Markup(_swatch(look)) for name, look in looks.items()}
    shown_sections = []
    for number, section in enumerate(sections):
        board, table = section.board, section.table
        strip = next((pictures[run.fingerprint] for run in board.flat if run.fingerprint in pictures), None)
        shown_sections.append(
            {
                "anchor": section.slug,
                "title": board.title,
                "pictures": _data_uri(strip) if strip else None,
                "notes": table.notes,
                "findings": findings(table),
                "tables": [
                    *(
                        _html_table(title, table, columns, swatches, caption)
                        for title, columns, caption in section.tables
                    ),
                    *([_html_grid(section.controls, swatches)] if section.controls else []),
                ],
                "legend": [{"name": name, "swatch": swatches[name]} for name in board.with_controls().methods],
                "plots": [
                    {
                        "title": group.title,
                        "small": group.small,
                        "plots": [
                            {
                                "svg": Markup(plots.inline(plot.svg or "", f"s{number}{plot.name}-")),
                                "caption": plot.caption,
                            }
                            for plot in group.plots
                        ],
                    }
                    for group in section.groups
                ],
                "facts": how_it_was_run(board),
            }
        )
    return template.render(
        title="Continual learning under one compute budget",
        subtitle=_subtitle(sections),
        notes=notes,
        reading=READING,
        across=[_html_grid(grid, swatches) for grid in across],
        sections=shown_sections,
        footer=f"budgetcl {budgetcl.__version__}. The numbers behind this page: summary.csv; each run's folder holds "
        "its predictions, ledger and itemised prices.",
    )


def _html_table(
    title: str, table: Comparison, columns: Sequence[Column], swatches: Mapping[str, Any], caption: str
) -> dict[str, Any]:
    rows, blind_before = [], False
    for row in table.rows:
        blind = row.group == "blind"
        kind = " ".join(
            ["blind"] * blind + ["first-blind"] * (blind and not blind_before) + ["control"] * bool(row.control)
        )
        blind_before = blind
        cells = [_html_cell(column, row) for column in columns]
        rows.append({"name": _name(row), "kind": kind, "swatch": swatches.get(row.name, ""), "cells": cells})
    heads = [{"title": column.title, "unit": "%" if column.unit == "percent" else ""} for column in columns]
    return {"title": title, "first": "method", "heads": heads, "rows": rows, "caption": caption}


def _html_grid(grid: Grid, swatches: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {"name": name, "kind": "", "swatch": swatches.get(name, ""), "cells": [{"text": text} for text in texts]}
        for name, *texts in grid.rows
    ]
    heads = [{"title": head, "unit": ""} for head in grid.heads[1:]]
    said = "said" if grid.heads[-1] == "what this says" else ""
    named = {"title": grid.title, "first": grid.heads[0], "caption": grid.caption, "kind": said}
    return {**named, "heads": heads, "rows": rows}


def _html_cell(column: Column, row: Row) -> dict[str, str]:
    difference = row.differences.get(column.key)
    told = difference is not None and difference.low == difference.low and difference.differs
    mood = ""
    if told and difference is not None:
        mood = "good" if (difference.estimate > 0) == (column.better > 0) else "bad"
    text = shown(column, row.values.get(column.key))
    return {"text": text, "difference": shown_difference(difference), "mood": mood}


def _accuracy_caption(table: Comparison) -> str:
    if table.baseline is None:
        return ""
    return f"Small: difference to {table.baseline}, in points, paired by seed; ▲ ▼ where its 95 % interval excludes 0."


def _spent_caption(board: Board) -> str:
    return (
        f"Means over seeds. The allowance here is counted in {board.flat[0].currency}; a run tells the others as well. "
        "Memory-adjusted FLOPs: FLOPs x bytes needed at once / those of the reference update. The time of learning, "
        "without predicting and evaluating, depends on the machine and on what else it did. Stored: the most bytes "
        "kept between two steps."
    )


_COST_CAPTION = "Means over seeds. Wall clock and speed depend on the machine; everything else does not."


def _swatch(look: Style) -> str:
    """Return a piece of a method's line, with its marker's colour."""
    dash = "" if look.dash == "-" else ' stroke-dasharray="' + " ".join(f"{2 * part:g}" for part in look.dash[1]) + '"'
    dot = f'<circle cx="15" cy="5" r="3.4" fill="{look.colour}"/>' if look.marker else ""
    line = f'<line x1="1" y1="5" x2="29" y2="5" stroke="{look.colour}" stroke-width="2.2"{dash}/>'
    return f'<svg viewBox="0 0 30 10" aria-hidden="true">{line}{dot}</svg>'


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _subtitle(sections: Sequence[_Section]) -> str:
    runs = [run for section in sections for run in section.board.flat]
    numbers = {
        "stream": list(dict.fromkeys(run.stream for run in runs)),
        "seed": [str(seed) for seed in sorted({run.seed for run in runs})],
    }
    methods = len({run.method for run in runs if not run.control})
    controls = len({run.method for run in runs if run.control})
    rows = f"{methods} method{'s' * (methods != 1)}"
    if controls:
        rows += f" and {controls} control{'s' * (controls != 1)}"
    named = (f"{name}{'s' * (len(those) > 1)} {', '.join(those)}" for name, those in numbers.items())
    return " · ".join([f"{len(runs)} runs", rows, *named])


# --- Markdown, CSV, terminal ------------------------------------------------------------------------------------


def _markdown(sections: Sequence[_Section], notes: Sequence[str], across: Sequence[Grid]) -> str:
    lines = ["# Continual learning under one compute budget", "", _subtitle(sections), ""]
    lines += [f"> {note}\n" for note in notes]
    for section in sections:
        table = section.table
        lines += [f"## {section.board.title}", ""]
        lines += [f"{note}\n" for note in table.notes]
        lines += [f"- {finding}" for finding in findings(table)] + [""]
        for title, columns, caption in section.tables:
            lines += [f"### {title}", "", *_markdown_table(table, columns), "", caption, ""]
        lines += _markdown_grid(section.controls) if section.controls else []
        lines += ["### Plots", ""]
        lines += [f"![{plot.name}]({name})\n\n{plot.caption}\n" for name, plot in section.plots]
        lines += ["### How it was run", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(what)} | {_cell(value)} |" for what, value in how_it_was_run(section.board)] + [""]
    for grid in across:
        lines += _markdown_grid(grid)
    lines += ["## How to read this", "", *(f"{paragraph}\n" for paragraph in READING)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(table: Comparison, columns: Sequence[Column]) -> list[str]:
    lines = [
        f"| method | {' | '.join(heading(column) for column in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for row in table.rows:
        cells = []
        for column in columns:
            difference = shown_difference(row.differences.get(column.key))
            cells.append(shown(column, row.values.get(column.key)) + (f" ({difference})" if difference else ""))
        lines.append(f"| {_cell(_name(row))} | {' | '.join(cells)} |")
    return lines


def _markdown_grid(grid: Grid) -> list[str]:
    lines = [f"### {grid.title}", ""]
    if grid.rows:
        lines += [f"| {' | '.join(grid.heads)} |", f"|{'---|' * len(grid.heads)}"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in grid.rows] + [""]
    return [*lines, grid.caption, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _name(row: Row) -> str:
    return f"{row.name} *" if row.computed else f"↳ {row.name}" if row.control else row.name


def _csv(found: Sequence[Board]) -> str:
    header, rows = summary_rows(found)
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return written.getvalue()


def _print(sections: Sequence[_Section], notes: Sequence[str], across: Sequence[Grid]) -> None:
    """Print one table per board: coloured in a terminal, plain text elsewhere, never wider than 120 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal or console.width > _WIDTH:
        console = Console(highlight=False, width=_WIDTH)
    for note in notes:
        console.print(Text(note))
    for section in sections:
        table, title = section.table, section.board.title
        grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        grid.padding = (0, 1, 0, 0)
        grid.add_column("\nmethod", no_wrap=True, overflow="ellipsis", min_width=12)
        columns = _terminal_columns(table)
        for column, minus in columns:
            grid.add_column(f"minus\n{table.baseline} " if minus else _broken(column), justify="right", no_wrap=True)
        for row in table.rows:
            cells = [
                _minus(row, column) if minus else shown(column, row.values.get(column.key)) for column, minus in columns
            ]
            faint = row.group == "blind" or row.control
            grid.add_row(Text(_name(row)), *map(Text, cells), style="dim" if faint else None)
        console.print(grid)
        if section.controls:
            console.print(Text(f"{section.controls.title}:"))
            for name, *_, said in section.controls.rows:
                console.print(Text(f"  {name}: {said}"))
        for note in table.notes:
            console.print(Text(note, style="dim"))
        if any(minus for _, minus in columns) and table.primary:
            told = "; ▲ ▼: its 95 % interval excludes 0" if len(section.board.seeds) > 1 else ""
            said = f"Minus {table.baseline}: {table.primary.title} accuracy, in points, paired by seed{told}."
            console.print(Text(said, style="dim"))
        console.print()
    for turning in across:
        if turning.rows:
            grid = Table(title=turning.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
            for head in turning.heads:
                grid.add_column(head)
            for row_of_texts in turning.rows:
                grid.add_row(*map(Text, row_of_texts))
            console.print(grid)
        console.print(Text(turning.caption, style="dim"))
        console.print()


def _minus(row: Row, column: Column) -> str:
    """Return a difference, as wide with a mark as without."""
    text = shown_difference(row.differences.get(column.key))
    return text if text.endswith(("▲", "▼")) else f"{text}  "


def _broken(column: Column) -> str:
    """Return a heading on two lines."""
    if column.key == "predict_flops":
        return "FLOPs per\nprediction"
    return f"{column.title}\n%" if column.unit == "percent" else f"\n{column.title}"


def _terminal_columns(table: Comparison) -> list[tuple[Column, bool]]:
    """Return the columns that fit a terminal, each with whether it shows the difference to the baseline."""
    wanted = ("average_accuracy", "final_accuracy", "online", "near_future", "retention")
    columns: list[tuple[Column, bool]] = []
    for column in table.accuracy:
        if column.key in wanted:
            columns.append((column, False))
            if column == table.primary and any(column.key in row.differences for row in table.rows):
                columns.append((column, True))
    columns += [(column, False) for column in table.cost if column.key not in ("seconds", "flops_per_second")]
    return columns


def _write(out: Path, files: Mapping[str, str]) -> None:
    try:
        for name, text in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the report cannot be written to '{out}' ({error.strerror}): give --out FOLDER") from error
