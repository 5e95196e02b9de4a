"""`budgetcl score`: all metrics of a prediction log from anywhere, read a part at a time."""

from __future__ import annotations

import argparse
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError, nearest
from budgetcl.metrics.blind import WINDOWS, ShiftCurve, blind_accuracy, shift_curve
from budgetcl.metrics.log import SETS
from budgetcl.metrics.scoring import LogScorer, Scores
from budgetcl.metrics.stats import Interval, bootstrap_interval
from budgetcl.report import blind as shown

_BATCH = 1 << 18  # rows read at a time
_INTEGERS = ("index", "shift", "seen", "step", "task", "origin")
_LABELS = ("pred", "target")
_COLUMNS = (*_INTEGERS, *_LABELS, "set", "top5", "confidence")
_PREFIX = 5_000_000  # labels that a shift is chosen on, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `budgetcl score`."""
    parser.add_argument(
        "log",
        type=Path,
        help="a prediction log as .parquet, .csv or .npz, or the folder of a record. Columns: pred, and as there are "
        "target, index, set, shift, seen, step, task, top5, confidence, origin",
    )
    parser.add_argument("--labels", type=Path, help="the stream's labels in order, where the log has no column target")
    parser.add_argument(
        "--shift",
        default=None,
        help="the near-future shift S: a number that the log holds, or auto: chosen on the labels of the warm-up "
        "(default: the record's own; else auto, where it can be chosen)",
    )
    parser.add_argument(
        "--column", action="append", default=[], metavar="OURS=YOURS", help="a column's name in the log: pred=y_hat"
    )
    parser.add_argument("--warmup", type=shown.share, default=0.1, help="share below 1, or number of samples (0.1)")
    parser.add_argument("--samples", type=int, help="the length of the stream (default: the largest index + 1)")
    parser.add_argument("--chunk", type=int, help="samples predicted at once (default: what the log shows)")
    parser.add_argument(
        "--out", type=Path, help="a folder for scores.json and report.html (default outputs/score/<log>)"
    )


def main(args: argparse.Namespace) -> int:
    """Print all metrics of a log; write them and a page.

    Raises:
        UserError: an unreadable or truncated file, columns that are missing or hold what they should not, with the
            first such row; a shift that the log does not hold.
    """
    path = args.log / "predictions.parquet" if args.log.is_dir() else args.log
    about = _about(args.log)
    wanted = _wanted(args.shift) if args.shift is not None else about.get("shift")
    labels = None if args.labels is None else _numbered(shown.read_labels(args.labels))
    samples = args.samples if args.samples is not None else about.get("stream_samples") or None
    scorer = LogScorer(warmup=args.warmup, samples=samples)
    for part in read_log(path, _renamed(args.column), labels):
        scorer.add(part)
    scores = scorer.scores()
    stream = scores.labels if labels is None else labels[: scores.samples]
    chunk = args.chunk or scores.chunk
    shift, choice, note = _near_future(scores, wanted, stream, chunk)
    result = _result(scores, shift, choice, note, _blind(scores, stream, chunk), chunk)
    _print(result, scores, choice)
    out = args.out or Path("outputs") / "score" / (args.log.name if args.log.is_dir() else path.stem)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(_plain(result), indent=1) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page(path.name, result, scores), encoding="utf-8")
    print(f"written: {out}/scores.json, report.html")
    return 0


def _about(log: Path) -> dict[str, Any]:
    """Return what a record says of its run: the shift chosen on the prefix, and the stream's length."""
    file = log / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _wanted(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit():
        raise UserError(f"--shift {text} given; a number of samples of at least 0, or auto, is expected")
    return int(text)


def _renamed(pairs: list[str]) -> dict[str, str]:
    names = {}
    for pair in pairs:
        ours, _, theirs = pair.partition("=")
        if not theirs:
            raise UserError(f"--column {pair} given; OURS=YOURS is expected, as pred=y_hat")
        if ours not in _COLUMNS:
            raise UserError(f"--column {pair}: no column '{ours}'; {nearest(ours, _COLUMNS)}")
        names[ours] = theirs
    return names


# --- reading ----------------------------------------------------------------------------------------------------


def read_log(
    path: Path, names: Mapping[str, str] | None = None, labels: NDArray[np.int64] | None = None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the parts of a log as :meth:`budgetcl.metrics.scoring.LogScorer.add` takes them.

    Args:
        path: .parquet and .csv are read in parts; .npz holds one array a column and is read column by column.
        names: our column -> the file's.
        labels: (n,) the stream's labels by index, for a log without targets.

    Raises:
        UserError: as :func:`main`.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; give a log as .parquet, .csv or .npz, or the folder of a record")
    readers = {".parquet": _parquet, ".csv": _csv, ".npz": _npz}
    if path.suffix not in readers:
        raise UserError(f"{path.name} is none of {', '.join(readers)}; save the log as one of them")
    converter = _Converter(path.name, labels)
    try:
        for part in readers[path.suffix](path, dict(names or {})):
            yield converter.convert(part)
    except UserError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:  # pyarrow's errors are among them
        raise UserError(f"{path.name} cannot be read after row {converter.row}: {shown._line(error)}") from error


def _present(path: Path, names: Mapping[str, str], held: list[str]) -> dict[str, str]:
    """Return our column -> the file's, for those that there are."""
    for ours, theirs in names.items():
        if theirs not in held:
            raise UserError(f"{path.name} has no column '{theirs}' ({ours}); it has {', '.join(held)}")
    found = {ours: names.get(ours, ours) for ours in _COLUMNS if names.get(ours, ours) in held}
    if "pred" not in found:
        raise UserError(
            f"{path.name} has no column 'pred'; it has {', '.join(held)}: name yours with --column pred=..."
        )
    return found


def _parquet(path: Path, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:  # else it holds whole row groups twice
        found = _present(path, names, file.schema_arrow.names)
        for batch in file.iter_batches(_BATCH, columns=list(found.values())):
            yield {ours: batch.column(theirs) for ours, theirs in found.items()}


def _csv(path: Path, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    import pyarrow.csv

    with pyarrow.csv.open_csv(path) as file:
        found = _present(path, names, file.schema.names)
        for batch in file:
            yield {ours: batch.column(theirs) for ours, theirs in found.items()}


def _npz(path: Path, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    with np.load(path, allow_pickle=False) as file:
        found = _present(path, names, list(file.files))
        columns = {ours: file[theirs] for ours, theirs in found.items()}
    lengths = {ours: values.shape for ours, values in columns.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
        raise UserError(f"{path.name}: columns must be equally long rows; given {lengths}")
    for start in range(0, len(columns["pred"]), _BATCH):
        yield {ours: pa.array(values[start : start + _BATCH]) for ours, values in columns.items()}


class _Converter:
    """Turns arrow columns into checked numpy ones; remembers the row and the numbers given to strings."""

    def __init__(self, file: str, labels: NDArray[np.int64] | None) -> None:
        self.row = 0
        self._file, self._labels = file, labels
        self._number: dict[str, int] = {}
        self._text: bool | None = None

    def convert(self, part: dict[str, Any]) -> dict[str, NDArray[Any]]:
        n = len(part["pred"])
        out: dict[str, NDArray[Any]] = {}
        for name, column in part.items():
            if column.null_count:
                row = self.row + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                raise UserError(f"{self._file}: {name} has no value at row {row}")
            if name == "set":
                out[name] = self._sets(column)
            elif name == "top5":
                out[name] = self._flags(name, column)
            elif name == "confidence":
                out[name] = self._confidences(column)
            elif name in _LABELS:
                out[name] = self._label(name, column)
            else:
                out[name] = self._integers(name, column)
        out.setdefault("set", np.zeros(n, dtype=np.int8))
        out.setdefault("index", np.arange(self.row, self.row + n))
        if "target" not in out:
            out["target"] = self._targets(out)
        self.row += n
        return out

    def _targets(self, out: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        if self._labels is None:
            raise UserError(f"{self._file} has no column 'target'; give the stream's labels with --labels")
        if self._text:
            raise UserError(f"{self._file}: pred holds strings; a log without targets needs integers")
        outside = (out["index"] < 0) | (out["index"] >= len(self._labels))
        if outside.any():
            at = int(np.argmax(outside))
            raise UserError(
                f"{self._file}: row {self.row + at} has index={out['index'][at]}, but --labels has "
                f"{len(self._labels)} labels"
            )
        return self._labels[out["index"]]

    def _integers(self, name: str, column: Any) -> NDArray[Any]:
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype.kind == "f":
            wrong = ~np.isfinite(values) | (values != np.floor(values))
            if wrong.any():
                at = int(np.argmax(wrong))
                raise UserError(
                    f"{self._file}: {name} holds {values[at]} at row {self.row + at}; integers are expected"
                )
        elif values.dtype.kind not in "iu":
            raise UserError(f"{self._file}: {name} has the type {column.type}; integers are expected")
        return values.astype(np.int64, copy=False)

    def _label(self, name: str, column: Any) -> NDArray[np.int64]:
        import pyarrow as pa

        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if self._text is not None and text != self._text:
            raise UserError(f"{self._file}: {name} is of the type {kind} from row {self.row} on; other labels are not")
        self._text = text
        if not text:
            plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            return self._integers(name, plain)
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        numbers = [self._number.setdefault(value, len(self._number)) for value in coded.dictionary.to_pylist()]
        return np.asarray(numbers, dtype=np.int64)[coded.indices.to_numpy(zero_copy_only=False)]

    def _sets(self, column: Any) -> NDArray[np.int8]:
        import pyarrow as pa

        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        codes = np.full(max(1, len(column.dictionary)), -1, dtype=np.int8)
        for i, name in enumerate(column.dictionary.to_pylist()):
            codes[i] = SETS.index(name) if name in SETS else -1
        sets = codes[column.indices.to_numpy(zero_copy_only=False)]
        if (sets < 0).any():
            at = int(np.argmax(sets < 0))
            given = column[at].as_py()
            raise UserError(f"{self._file}: set is {given!r} at row {self.row + at}; known: {', '.join(SETS)}")
        return sets

    def _flags(self, name: str, column: Any) -> NDArray[np.bool_]:
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype.kind == "b":
            return values
        if values.dtype.kind in "iu" and ((values == 0) | (values == 1)).all():
            return values.astype(bool)
        raise UserError(
            f"{self._file}: {name} has the type {column.type}; booleans are expected (from row {self.row} on)"
        )

    def _confidences(self, column: Any) -> NDArray[Any]:
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype.kind not in "fiu":
            raise UserError(f"{self._file}: confidence has the type {column.type}; numbers are expected")
        wrong = ~((values >= 0) & (values <= 1))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise UserError(f"{self._file}: confidence is {values[at]} at row {self.row + at}; it lies in [0, 1]")
        return values


def _numbered(labels: NDArray[Any]) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu":
        raise UserError(f"--labels holds labels of the type {labels.dtype}; integers are expected")
    return np.asarray(labels, dtype=np.int64)


# --- what follows from the labels -------------------------------------------------------------------------------


def _near_future(
    scores: Scores, wanted: int | str | None, stream: NDArray[np.int64], chunk: int
) -> tuple[int | None, ShiftCurve | None, str]:
    """Return (S, how it was chosen, what to say where there is none)."""
    held = sorted(scores.curve)
    if isinstance(wanted, int):
        if wanted not in held:
            raise UserError(f"the log holds no rows at shift={wanted}; it holds {', '.join(map(str, held)) or 'none'}")
        return wanted, None, ""
    if wanted is None and len(held) < 2:
        return None, None, "one shift only: no near-future accuracy" if held else ""
    prefix = stream[: min(scores.start, _PREFIX)]
    if not held or len(prefix) < 64:
        note = f"a warm-up of {len(prefix)} known labels is too short to choose a shift on; give --shift or --labels"
        if wanted:
            raise UserError(note)
        return None, None, note
    windows = [window for window in WINDOWS if window <= len(prefix)]
    delays = [delay for delay in held if delay < len(prefix)]
    with shown.progress_bar("choosing the shift") as advance:
        curve = shift_curve(prefix, windows, delays, chunk=chunk, progress=advance)
    if curve.shift is None:
        note = f"no shift of the log frees the labels of the warm-up from their correlation ({curve}); give --shift"
        if wanted:
            raise UserError(note)
        return None, curve, note
    note = f"S was chosen on the {len(prefix):,} labels of the warm-up; none above {curve.block // 4} could be"
    return curve.shift, curve, note


def _blind(scores: Scores, stream: NDArray[np.int64], chunk: int) -> dict[int, tuple[int | None, float]]:
    """Return shift -> (window, accuracy) of the blind classifier whose window is best on the warm-up's labels."""
    if not scores.curve or len(stream) < scores.samples or scores.start < 16:
        return {}
    prefix = stream[: scores.start]
    windows: list[int | None] = [window for window in WINDOWS if window <= len(prefix)]
    rows = {}
    for shift in sorted(scores.curve):
        if shift < len(prefix):
            on_prefix = blind_accuracy(prefix, windows, [shift], chunk, warmup=0)[:, 0]
            window = windows[int(on_prefix.argmax())]
            value = blind_accuracy(stream, [window], [shift], chunk, warmup=scores.start)[0, 0]
            rows[shift] = (window, float(value))
    return rows


def _interval(blocks: NDArray[np.float64]) -> Interval | None:
    whole = blocks[np.isfinite(blocks)]
    return bootstrap_interval(whole) if len(whole) > 9 else None


def _result(
    scores: Scores,
    shift: int | None,
    choice: ShiftCurve | None,
    note: str,
    blind: Mapping[int, tuple[int | None, float]],
    chunk: int,
) -> dict[str, Any]:
    numbers = dict(scores.numbers)
    if shift is not None:
        numbers = {
            "online_accuracy": numbers.pop("online_accuracy", math.nan),
            "near_future_accuracy": scores.curve[shift],
        } | numbers
    numbers |= _groups(scores)
    return {
        "metrics": {name: value for name, value in numbers.items() if math.isfinite(value)},
        "shift": shift,
        "shift_note": note,
        "samples": scores.samples,
        "first_counted": scores.start,
        "chunk": chunk,
        "curve": [
            {
                "shift": at, "accuracy": value, "missing": scores.missing[at],
                **_ends(_interval(scores.along[at])), **_best(blind, at),
            }
            for at, value in scores.curve.items()
        ],
        "by_step": scores.by_step,
        "by_age": None if scores.by_age is None else scores.by_age.tolist(),
        "choice": None if choice is None else {"delays": choice.delays, "best": choice.accuracy, "null": choice.null},
    }  # fmt: skip


def _ends(interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {"low": interval.low, "high": interval.high}


def _best(blind: Mapping[int, tuple[int | None, float]], shift: int) -> dict[str, Any]:
    return {"blind": blind[shift][1], "blind_window": blind[shift][0]} if shift in blind else {}


def _groups(scores: Scores) -> dict[str, float]:
    """Return accuracy on head, middle and tail classes of the stream: a third of the classes each, by frequency."""
    if 0 not in scores.curve or len(scores.by_class) < 3:
        return {}
    table = np.array(sorted(scores.by_class.values(), reverse=True))
    parts = np.array_split(table, 3)
    return {
        f"online_{name}": float(p[:, 1].sum() / p[:, 0].sum()) for name, p in zip(("head", "middle", "tail"), parts)
    }


def _plain(value: Any) -> Any:
    """Return what JSON can say: NaN becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


# --- showing ----------------------------------------------------------------------------------------------------


def _print(result: Mapping[str, Any], scores: Scores, choice: ShiftCurve | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if scores.curve:
        console.print(
            f"{scores.samples:,} streamed samples, {result['chunk']} predicted at once; positions from "
            f"{scores.start:,} on count"
        )
    table = Table("metric", "%", box=None)
    table.columns[1].justify = "right"
    for name, value in result["metrics"].items():
        label = f"{name} (S = {result['shift']})" if name == "near_future_accuracy" else name
        table.add_row(label, f"{100 * value:.2f}")
    console.print(table)
    if result["curve"]:
        table = Table("shift", "accuracy %", "95 % interval", "blind %", "window", "rows missing", box=None)
        for column in table.columns:
            column.justify = "right"
        for row in result["curve"]:
            table.add_row(*_cells(row))
        console.print(table)
    if choice is not None:
        shown.print_curve(choice)
    if result["shift_note"]:
        console.print(f"note: {result['shift_note']}")
    lost = {row["shift"]: row["missing"] for row in result["curve"] if row["missing"]}
    if lost:
        console.print(f"note: positions without a row, by shift: {lost}; accuracy is over the others")


def _cells(row: Mapping[str, Any]) -> list[str]:
    ends = f"{100 * row['low']:.2f} to {100 * row['high']:.2f}" if "low" in row else ""
    blind = [f"{100 * row['blind']:.2f}", f"{row['blind_window']:,}"] if "blind" in row else ["", ""]
    return [f"{row['shift']}", f"{100 * row['accuracy']:.2f}", ends, *blind, f"{row['missing']:,}"]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}}
table{{border-collapse:collapse;margin:1rem 0}}
td,th{{padding:.25rem .8rem;border-bottom:1px solid #d8dce2;text-align:right}}
td:first-child,th:first-child{{text-align:left}}svg{{max-width:100%;height:auto}}.note{{color:#8a4b00}}</style>
</head><body><h1>{title}</h1>
{body}
</body></html>
"""


def page(name: str, result: Mapping[str, Any], scores: Scores) -> str:
    """Return the page: the same tables as printed, and plots as inline SVG; no script, nothing fetched."""
    parts = []
    if scores.curve:
        parts.append(
            f"<p>{scores.samples:,} streamed samples, {result['chunk']} predicted at once; positions from "
            f"{scores.start:,} on count.</p>"
        )
    rows = [(metric.replace("_", " "), f"{100 * value:.2f}") for metric, value in result["metrics"].items()]
    parts.append(_table(("metric", "%"), rows))
    if result["shift"] is not None:
        parts.append(f"<p>Near-future accuracy at S = {result['shift']}.</p>")
    if result["shift_note"]:
        parts.append(f'<p class="note">{shown.escape(result["shift_note"])}</p>')
    if result["curve"]:
        header = ("shift", "accuracy %", "95 % interval", "blind %", "window", "rows missing")
        parts.append(_table(header, [_cells(row) for row in result["curve"]]))
        parts.append(_curve_plot(result))
        parts.append(_along_plot(result, scores))
    if len(result["by_step"]) > 1:
        parts.append(_line_plot(list(result["by_step"]), list(result["by_step"].values()), "time step", "held out"))
    if result["by_age"] is not None:
        share = [10 * (i + 0.5) for i in range(len(result["by_age"]))]
        parts.append(_line_plot(share, result["by_age"], "age, % of the past", "retention"))
    return _PAGE.format(title=shown.escape(f"Scores of {name}"), body="\n".join(parts))


def _table(header: tuple[str, ...], rows: list[Any]) -> str:
    lines = ["<tr>" + "".join(f"<th>{shown.escape(cell)}</th>" for cell in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{shown.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def _curve_plot(result: Mapping[str, Any]) -> str:
    figure, axes = shown.new_figure()
    rows = result["curve"]
    shifts = [row["shift"] for row in rows]
    axes.plot(shifts, [100 * row["accuracy"] for row in rows], marker="o", color="#0072b2", label="this log")
    both = [row for row in rows if "low" in row]
    axes.fill_between(
        [row["shift"] for row in both], [100 * row["low"] for row in both], [100 * row["high"] for row in both],
        color="#0072b2", alpha=0.15, linewidth=0,
    )  # fmt: skip
    blind = [row for row in rows if "blind" in row]
    if blind:
        axes.plot(
            [row["shift"] for row in blind], [100 * row["blind"] for row in blind], marker="s", color="#8a919c",
            linestyle="--", label="blind",
        )  # fmt: skip
    if result["shift"] is not None:
        axes.axvline(result["shift"], color="#c0392b", linewidth=1)
    axes.set(xlabel="shift, samples", ylabel="accuracy, %", title="Near-future accuracy", ylim=(0, None))
    axes.legend(frameon=False)
    return shown.svg(figure)


def _along_plot(result: Mapping[str, Any], scores: Scores) -> str:
    figure, axes = shown.new_figure()
    chosen = dict.fromkeys([0, result["shift"]] if result["shift"] is not None else sorted(scores.along)[:2])
    for shift, colour in zip([shift for shift in chosen if shift in scores.along], ("#0072b2", "#d55e00")):
        blocks = scores.along[shift]
        at = np.linspace(scores.start, scores.samples, len(blocks), endpoint=False)
        axes.plot(at, 100 * blocks, color=colour, label=f"shift {shift}")
    axes.set(xlabel="position in the stream", ylabel="accuracy, %", title="Along the stream", ylim=(0, None))
    axes.legend(frameon=False)
    return shown.svg(figure)


def _line_plot(x: list[Any], y: list[float], label: str, title: str) -> str:
    figure, axes = shown.new_figure()
    axes.plot(x, [100 * value for value in y], marker="o", color="#009e73")
    axes.set(xlabel=label, ylabel="accuracy, %", title=f"Accuracy: {title}", ylim=(0, None))
    return shown.svg(figure)
