"""`budgetcl blind`: what a sequence of labels gives away without images, and the shift at which it no longer does."""

from __future__ import annotations

import argparse
import html
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError
from budgetcl.metrics.blind import DELAYS, WINDOWS, ShiftCurve, blind_accuracy, shift_curve

_SUFFIXES = (".npy", ".txt", ".csv", ".tsv", ".parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `budgetcl blind`."""
    parser.add_argument("labels", type=Path, help="labels in the order of the stream: .npy, .txt, .csv or .parquet")
    parser.add_argument(
        "--column", help="the column of a table that holds the labels (default: label, or the only one)"
    )
    parser.add_argument("--windows", type=_numbers, help="windows, as 1,5,100,all (default: the paper's)")
    parser.add_argument("--delays", type=_numbers, help="delays, as 0,16,64 (default: the paper's, up to n / 4)")
    parser.add_argument("--chunk", type=int, default=1, help="samples predicted at once (default 1)")
    parser.add_argument("--warmup", type=share, default=0.1, help="share below 1, or number of samples, left out (0.1)")
    parser.add_argument(
        "--prefix",
        type=share,
        default=None,
        help="choose the shift on this share below 1, or number, of the labels only (default: all of them; never "
        "choose it on a stream that is scored)",
    )
    parser.add_argument("--block", type=int, help="length of the blocks the null is shuffled in (default: n / 16)")
    parser.add_argument("--margin", type=float, default=0.01, help="accuracy above the null that passes (0.01)")
    parser.add_argument("--shuffles", type=int, default=100, help="shuffles of the null (100; 0: choose no shift)")
    parser.add_argument("--out", type=Path, help="a folder for blind.json, grid.csv and blind.svg")


def share(text: str) -> float:
    """Read a share (with a point) or a number of samples (without)."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share below 1 nor a number of samples") from None


def _numbers(text: str) -> list[int | None]:
    try:
        return [None if part.strip() == "all" else int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,5,100") from None


def main(args: argparse.Namespace) -> int:
    """Print the grid, the shift and a plot; write them where asked.

    Raises:
        UserError: unreadable labels, bad arguments. That no tested delay passes is an answer and no error.
    """
    labels = read_labels(args.labels, args.column)
    n = len(labels)
    windows: list[int | None] = args.windows or [window for window in WINDOWS if window <= n]
    delays = [delay for delay in (args.delays or DELAYS) if args.delays or 4 * delay <= n]
    if None in delays:
        raise UserError("--delays takes numbers only; 'all' is a window")
    grid = blind_accuracy(labels, windows, delays, args.chunk, warmup=args.warmup)
    unknown = min(n, args.chunk)
    print(
        f"{n:,} labels, {_classes(labels):,} classes; the first {unknown} have no past: misses, unless in the warm-up"
    )
    _print_grid(windows, delays, grid)
    curve = _curve(args, labels, windows, delays) if args.shuffles else None
    if args.out:
        _write(args.out, windows, delays, grid, curve)
    return 0


def _curve(
    args: argparse.Namespace, labels: NDArray[Any], windows: Sequence[int | None], delays: Sequence[int]
) -> ShiftCurve:
    size = len(labels)
    if args.prefix is not None:
        size = int(args.prefix if args.prefix >= 1 else args.prefix * size)
    prefix = labels[:size]
    if len(prefix) < 64:
        raise UserError(f"a prefix of {len(prefix)} labels is too short to choose a shift on; give at least 64")
    fitting = [delay for delay in delays if delay < len(prefix)]
    with progress_bar("shuffling") as advance:
        curve = shift_curve(
            prefix, windows, fitting, args.block, args.margin, args.chunk,
            warmup=args.warmup, shuffles=args.shuffles, progress=advance,
        )  # fmt: skip
    print_curve(curve)
    return curve


def _classes(labels: NDArray[Any]) -> int:
    return len(np.unique(labels))


def read_labels(path: Path, column: str | None = None) -> NDArray[Any]:
    """Return labels from a file, in its order: integers or strings.

    Args:
        path: .npy; .txt with one label a line; .csv or .tsv with a header; .parquet.
        column: the table's column; None: "label" or "target" where there is one, or the only column.

    Raises:
        UserError: no such file, an unknown kind, a truncated file, no such column, gaps.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; give labels as {', '.join(_SUFFIXES)}")
    if path.suffix not in _SUFFIXES:
        raise UserError(f"{path.name} is none of {', '.join(_SUFFIXES)}; save the labels as one of them")
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.ndim != 1:
                raise UserError(f"{path.name} has the shape {array.shape}; one dimension is expected")
            return array
        return _column(path, column)
    except UserError:
        raise
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path.name} cannot be read: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _column(path: Path, column: str | None) -> NDArray[Any]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix == ".parquet":
        file = pa.parquet.ParquetFile(path)
        name = _choose(file.schema_arrow.names, column, path)
        values = file.read(columns=[name]).column(0)
    elif path.suffix == ".txt":
        options = pa.csv.ReadOptions(column_names=["label"])
        # Nothing in such a file is a separator.
        values = pa.csv.read_csv(path, options, pa.csv.ParseOptions(delimiter="\x01", quote_char=False)).column(0)
    else:
        table = pa.csv.read_csv(
            path, parse_options=pa.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
        )
        values = table.column(_choose(table.column_names, column, path))
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise UserError(f"{path.name} has no label at row {row}")
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return np.asarray(values.to_pylist(), dtype=str)
    return values.to_numpy()


def _choose(names: Sequence[str], column: str | None, path: Path) -> str:
    if column is not None and column not in names:
        raise UserError(f"{path.name} has no column '{column}'; it has {', '.join(names)}")
    known = [name for name in ("label", "target") if name in names]
    chosen = column or (known[0] if known else names[0] if len(names) == 1 else None)
    if chosen is None:
        raise UserError(f"{path.name} has the columns {', '.join(names)}; name the labels' one with --column")
    return chosen


@contextmanager
def progress_bar(what: str) -> Iterator[Any]:
    """Give a function (done, total) that moves a bar on standard error; nothing is drawn where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _name(window: int | None) -> str:
    return "all" if window is None else f"{window:,}"


def _print_grid(windows: Sequence[int | None], delays: Sequence[int], grid: NDArray[np.float64]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="blind accuracy, % (rows: window; columns: delay; best of each column bold)", title_justify="left"
    )
    table.add_column("window", justify="right")
    for delay in delays:
        table.add_column(f"{delay}", justify="right", no_wrap=True)
    best = grid.argmax(axis=0)
    for i, window in enumerate(windows):
        cells = [f"{100 * value:.1f}" for value in grid[i]]
        table.add_row(_name(window), *(f"[bold]{cell}[/]" if best[j] == i else cell for j, cell in enumerate(cells)))
    console = Console()
    width = 9 + sum(max(len(str(delay)), 4) + 3 for delay in delays)
    (console if console.is_terminal else Console(width=max(80, width))).print(table)


def print_curve(curve: ShiftCurve) -> None:
    """Print the best blind accuracy at each delay against the shuffled labels, and the chosen shift."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(
        "best blind accuracy by delay (window); [dim]│[/] shuffled labels, 95th percentile, + margin; both in %"
    )
    top = max(*curve.accuracy, *curve.null, 1e-9)
    for delay, window, best, null in zip(curve.delays, curve.windows, curve.accuracy, curve.null):
        width = 40
        bar = list("█" * round(width * best / top) + " " * (width - round(width * best / top)))
        bar[min(width - 1, round(width * (null + curve.margin) / top))] = "│"
        mark = " <- S" if delay == curve.shift else ""
        console.print(f"{delay:>8} ({_name(window):>6}) {''.join(bar)} {100 * best:5.1f} {100 * null:5.1f}{mark}")
    if curve.shift is None:
        console.print(
            f"no shift: no tested delay up to {curve.block // 4} (a quarter of the block) stays, with all larger ones, "
            "within the margin; test larger delays on more labels, or give a larger --block or --margin"
        )
    else:
        console.print(f"S = {curve.shift}")


def _write(
    folder: Path,
    windows: Sequence[int | None],
    delays: Sequence[int],
    grid: NDArray[np.float64],
    curve: ShiftCurve | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [["window", *map(str, delays)]]
    rows += [["all" if w is None else str(w), *(f"{value:.6f}" for value in grid[i])] for i, w in enumerate(windows)]
    (folder / "grid.csv").write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    result: dict[str, Any] = {"windows": list(windows), "delays": list(delays), "accuracy": grid.tolist()}
    if curve is not None:
        result["choice"] = {
            "shift": curve.shift, "delays": curve.delays, "best": curve.accuracy, "windows": curve.windows,
            "null": curve.null, "margin": curve.margin, "block": curve.block,
        }  # fmt: skip
    (folder / "blind.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "blind.svg").write_text(plot(windows, delays, grid, curve), encoding="utf-8")
    print(f"written: {folder}/blind.json, grid.csv, blind.svg")


def plot(
    windows: Sequence[int | None], delays: Sequence[int], grid: NDArray[np.float64], curve: ShiftCurve | None
) -> str:
    """Return an SVG of blind accuracy against the delay, one line a window, with the null and the chosen shift."""
    figure, axes = new_figure()
    colours = _shades(len(windows))
    for i, window in enumerate(windows):
        axes.plot(delays, 100 * grid[i], color=colours[i], label=_name(window), linewidth=1.2)
    if curve is not None:
        bound = 100 * (np.asarray(curve.null) + curve.margin)
        axes.plot(curve.delays, bound, color="#222222", linestyle="--", label="shuffled + margin")
        if curve.shift is not None:
            axes.axvline(curve.shift, color="#c0392b", linewidth=1.0)
            axes.annotate(f" S = {curve.shift}", (curve.shift, axes.get_ylim()[1]), va="top", color="#c0392b")
    positive = [delay for delay in delays if delay > 0]
    if len(delays) > 3 and positive:
        axes.set_xscale("symlog", linthresh=min(positive), base=2)
        axes.set_xticks(list(delays)[:: max(1, len(delays) // 8)])
        axes.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set(xlabel="delay, samples", ylabel="accuracy, %", title="What past labels alone predict")
    axes.legend(title="window", fontsize=7, title_fontsize=8, ncols=2, frameon=False)
    return svg(figure)


def _shades(n: int) -> list[Any]:
    import matplotlib

    return [matplotlib.colormaps["viridis"](i / max(1, n - 1) * 0.9) for i in range(n)]


def new_figure(width: float = 6.4, height: float = 3.8) -> tuple[Any, Any]:
    """Return an empty figure with one pair of axes, without a window system."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def svg(figure: Any) -> str:
    """Return a figure as SVG text, the same bytes for the same data."""
    import io

    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "budgetcl", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def escape(text: object) -> str:
    """Return text that is safe inside a page."""
    return html.escape(str(text))
