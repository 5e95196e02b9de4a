"""What a table or a folder of pictures holds, read part by part into columns: nothing per row is done in Python."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError, nearest
from budgetcl.streams.cache import Columns, forget_others, kept, parts, place
from budgetcl.streams.packed import HEADER as PACKED
from budgetcl.streams.packed import TABLE as PACKED_TABLE
from budgetcl.streams.paths import Paths, hashes_of
from budgetcl.streams.stream import RETENTION, SETS

if TYPE_CHECKING:
    import pyarrow as pa

# What a split column and the folders of an image folder may say: the sets' own names, and the usual short ones.
SPLITS = {name: name for name in SETS if name != RETENTION} | {
    "train": "stream", "val": "validation", "preval": "prevalidation",
}  # fmt: skip
# What other tools call such folders: not read as a split, and seldom meant as classes.
_UNUSUAL = ("valid", "dev", "eval", "training", "testing")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
# First bytes of files that are met instead of a CSV file; a header may well begin with PAR1, but not with what follows.
_MAGIC = {
    b"PAR1\x15": "a parquet file", b"\x1f\x8b": "compressed", b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
_SEPARATORS = {";": "semicolons (;)", "\t": "tabs"}
_TABLES = "a comma-separated UTF-8 .csv or a .parquet is expected"
_PART = 1 << 16  # rows read at a time
_BLOCK = 1 << 22  # bytes of a CSV file read at a time


@dataclass(frozen=True)
class Rows:
    """The rows of a table, as they stand there.

    Attributes:
        name: of the table, for the stream.
        given: the path as it was given, for messages.
        root: the folder that the pictures' paths are relative to.
        home: where what is made of the table is kept, or None.
        paths: (rows,).
        label: (rows,) int32 codes.
        names: the labels by code: in numerical order where all are integers, else alphabetically.
        time: (rows,) seconds since 1970, or None.
        split: (rows,) int8 set codes, or None.
        order: (rows,) int64 places in a given order, -1 for none; or None.
        notes: what is odd and was left out.
    """

    name: str
    given: str
    root: Path
    home: Path | None
    paths: Paths
    label: NDArray[np.int32]
    names: tuple[str, ...]
    time: NDArray[np.float64] | None
    split: NDArray[np.int8] | None
    order: NDArray[np.int64] | None
    notes: tuple[str, ...] = ()

    def at(self, places: NDArray[Any]) -> Rows:
        """Return some of the rows, as a table of their own of which nothing is kept."""
        return replace(
            self,
            home=None,
            paths=self.paths.ordered(places),
            label=self.label[places],
            time=None if self.time is None else self.time[places],
            split=None if self.split is None else self.split[places],
            order=None if self.order is None else self.order[places],
        )


def read(path: str, root: str | None = None, cache: str | None = None) -> Rows:
    """Read a table (.csv, .parquet), a folder of pictures, or a packed folder.

    Args:
        path: of the file or the folder.
        root: the folder that a table's paths are relative to and must not leave; None: the table's own.
        cache: where the columns of tables are kept; None: those of large ones beside the table.

    Raises:
        UserError: there is none, or it cannot be read, or a row of it makes no sense.
    """
    if (Path(path) / PACKED).is_file():
        return replace(read(str(Path(path) / PACKED_TABLE), root, cache), name=Path(path).resolve().name)
    if Path(path).is_dir():
        if root is not None:
            raise UserError(f"root={root!r} given; path={path!r} is a folder of pictures, which is its own root")
        return _folder(path)
    file = Path(path)
    if not file.is_file():
        raise UserError(f"path={path!r} given; a table's file or a folder of pictures is expected, and there is none")
    if root is not None and not Path(root).is_dir():
        raise UserError(f"root={root!r} given; the folder that the table's paths are relative to is expected")
    at = Path(root) if root is not None else file.parent
    home = place(file, cache, os.path.abspath(at))
    columns, facts = kept(home and home / "rows", lambda columns: _fill(columns, file, os.path.abspath(at)))
    if home is not None:
        forget_others(home)
    return Rows(
        name=file.stem,
        given=path,
        root=at,
        home=home,
        paths=Paths(columns["paths"], columns["start"], columns["hash"]),
        label=columns["label"],
        names=tuple(facts["names"]),
        time=columns.get("time"),
        split=columns.get("split"),
        order=columns.get("order"),
        notes=(*_notes(file), *facts.get("notes", ())),  # columns that were kept by an earlier version have none
    )


# --- tables -----------------------------------------------------------------------------------------------------


def _fill(columns: Columns, path: Path, root: str) -> dict[str, Any]:
    """Read a table's file into columns, part by part."""
    import pyarrow as pa

    codes: dict[str, int] = {}
    seconds = _Seconds()
    row = end = 0
    for batch in _read_ahead(_batches(path)):
        part = dict(zip(batch.schema.names, batch.columns))
        try:
            data, start = _bytes(part["path"], root)
            columns.append("paths", data)
            columns.append("start", start[:-1] + end)
            columns.append("hash", hashes_of(data, start))
            columns.append("code", _coded(part["label"], codes))
            if "time" in part:
                columns.append("time", seconds(part["time"]))
            if "split" in part:
                columns.append("split", _sets(part["split"]))
            if "order" in part:
                columns.append("order", _places(part["order"]))
        except _Odd as odd:
            raise UserError(f"{path}, row {row + odd.row + 1}: {odd}") from None
        except pa.ArrowException as error:
            kinds = ", ".join(f"{name}: {column.type}" for name, column in part.items())
            raise UserError(
                f"{path}, from row {row + 1}: a column is of a kind that cannot be read ({kinds}; "
                f"{' '.join(str(error).split())}); texts or whole numbers are expected, as time also dates or numbers"
            ) from None
        row += len(batch)
        end += int(start[-1])
    if not row:
        raise UserError(f"{path} has no rows")
    pa.default_memory_pool().release_unused()
    columns.append("start", np.array([end], np.int64))
    names = _ordered(codes)
    rank = _ranks(codes, names)
    for _, code in parts(columns["code"]):
        columns.append("label", rank[code])
    columns.drop("code")
    return {"names": names, "notes": seconds.notes()}


def _notes(path: Path) -> tuple[str, ...]:
    """Return what the maker of a table has to say to those who stream it; see :mod:`budgetcl.data.prepared`."""
    import pyarrow.parquet as pq

    said = pq.read_metadata(path).metadata if _is_parquet(path) else None
    return tuple(json.loads((said or {}).get(b"budgetcl.notes", b"[]")))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


class _Odd(Exception):
    """A row that makes no sense; ``row`` counts within its part."""

    def __init__(self, row: Any, text: str) -> None:
        super().__init__(text)
        self.row = int(row)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield a table's rows, part by part; of its columns those that mean something here."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    try:
        if _is_parquet(path):
            file = pq.ParquetFile(path, pre_buffer=False)
            yield from file.iter_batches(_PART, columns=_known(file.schema_arrow.names, path))
            return
        with open(path, "rb") as raw:
            head = raw.read(max(map(len, _MAGIC)))
        for magic, kind in _MAGIC.items():
            if head.startswith(magic):
                raise UserError(f"{path} cannot be read as a table (it is {kind} by its first bytes); {_TABLES}")
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as text:
            known = _known(next(csv.reader(text), []), path)
        # Bytes, as paths may be no UTF-8; what is no text elsewhere is refused with its row.
        convert = pa_csv.ConvertOptions(
            check_utf8=False, column_types=dict.fromkeys(known, pa.binary()), include_columns=known
        )
        yield from pa_csv.open_csv(path, pa_csv.ReadOptions(block_size=_BLOCK), convert_options=convert)
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({' '.join(str(error).split())})") from error


def _read_ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches, the next of which another thread reads meanwhile: an eighth of the time of a large table."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = reader.submit(next, batches, None)
            yield batch


def _known(columns: list[str], path: Path) -> list[str]:
    if not columns:
        raise UserError(f"{path} cannot be read as a table (it is empty)")
    for column in ("path", "label"):
        if column not in columns:
            separator = next((name for sign, name in _SEPARATORS.items() if sign in columns[0]), None)
            if len(columns) == 1 and separator is not None:
                raise UserError(
                    f"{path} cannot be read as a table (its columns are separated by {separator}); {_TABLES}"
                )
            if not all(name.isprintable() for name in columns):
                raise UserError(f"{path} cannot be read as a table (the names of its columns are no text); {_TABLES}")
            raise UserError(f"{path} has no column '{column}'; its columns are {columns}: {nearest(column, columns)}")
    known: list[str] = [column for column in ("path", "label", "time", "split", "order") if column in columns]
    for column in known:
        if columns.count(column) > 1:
            raise UserError(f"{path} has {columns.count(column)} columns '{column}'; one is expected")
    return known


def _plain(part: pa.Array) -> pa.Array:
    """Return an array that is no dictionary."""
    import pyarrow as pa

    return part.cast(part.type.value_type) if pa.types.is_dictionary(part.type) else part


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _trimmed(part: pa.Array) -> pa.Array:
    """Return texts without white space around them; those of a CSV file come as bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.utf8_trim_whitespace(part.cast(pa.string()))
    except pa.ArrowInvalid:
        raise _Odd(*_first(part, pa.string(), "a text that is no UTF-8")) from None


def _first(part: pa.Array, kind: pa.DataType, text: str) -> tuple[int, str]:
    """Return the first row that Arrow cannot cast, of a part that has one, and what is to be said of it."""
    import pyarrow as pa

    low, high = 0, len(part)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            part.slice(low, middle - low).cast(kind)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low, f"{part[low].as_py()!r} is {text}"


def _bytes(part: pa.Array, root: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return paths relative to the root, one after the other, and where each begins."""
    import pyarrow as pa
    import pyarrow.compute as pc

    part = _plain(part)
    if not _is_text(part.type):
        part = part.cast(pa.string())
    part = part.cast(pa.large_binary()).fill_null(b"")
    for prefix in (os.fsencode(root).rstrip(b"/") + b"/", b"./"):
        starts = pc.starts_with(part, prefix)
        if pc.any(starts).as_py():
            part = pc.replace_with_mask(part, starts, pc.binary_slice(part.filter(starts), len(prefix)))
    data, start = buffers(part)
    if not (np.diff(start) > 0).all():
        raise _Odd(np.argmin(np.diff(start) > 0), "the path is empty")
    if not data.all():
        raise _Odd(np.searchsorted(start, np.argmin(data), "right") - 1, "the path holds a zero byte")
    # Only a path with a dot or a slash at its start or behind a slash can be other than it looks.
    slash, dot = ord("/"), ord(".")
    at = np.flatnonzero((data[:-1] == slash) & ((data[1:] == slash) | (data[1:] == dot)))
    first = data[start[:-1]]
    odd = np.union1d(np.searchsorted(start, at, "right") - 1, np.flatnonzero((first == slash) | (first == dot)))
    if len(odd):
        mended = []
        for row in odd.tolist():
            given = data[start[row] : start[row + 1]].tobytes()
            path = os.path.normpath(given)
            if path.startswith(b"/") or path.split(b"/")[0] == b"..":
                raise _Odd(
                    row, f"the path {os.fsdecode(given)!r} leaves the root of the pictures, {root}: set stream.root"
                )
            mended.append(path)
        mask = np.zeros(len(part), bool)
        mask[odd] = True
        data, start = buffers(pc.replace_with_mask(part, pa.array(mask), pa.array(mended, pa.large_binary())))
    return data, start


def buffers(part: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of large texts without nulls, one after the other, and where each begins."""
    if not len(part):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, starts, data = part.buffers()
    start = np.frombuffer(starts, np.int64)[part.offset : part.offset + len(part) + 1]
    held = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return held[start[0] : start[-1]], start - start[0]


def _words(part: pa.Array) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return a code for each row, and the text of each code: what is done per text is done once."""
    encoded = part.dictionary_encode()
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False).astype(np.int64)
    values = [*encoded.dictionary.to_pylist(), None]
    words: dict[int, str] = {}
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        value = values[code]
        try:
            missing = value is None or value != value  # a column of numbers may hold NaN instead of null
            text = value.decode() if isinstance(value, bytes) else "" if missing else str(value)
        except UnicodeDecodeError:
            raise _Odd(np.argmax(codes == code), f"{value!r} is a text that is no UTF-8") from None
        words[code] = text.strip()
    return codes, words


def _mapped(codes: NDArray[np.int64], values: dict[int, int], kind: Any) -> NDArray[Any]:
    table = np.zeros(max(values, default=0) + 1, kind)
    table[list(values)] = list(values.values())
    return table[codes]


def _coded(part: pa.Array, known: dict[str, int]) -> NDArray[np.int32]:
    """Return labels as codes in the order in which they are met; new ones are added to the known."""
    codes, words = _words(part)
    for code, word in words.items():
        if not word:
            raise _Odd(np.argmax(codes == code), "the label is empty")
    return _mapped(codes, {code: known.setdefault(word, len(known)) for code, word in words.items()}, np.int32)


def _sets(part: pa.Array) -> NDArray[np.int8]:
    codes, words = _words(part)
    for code, word in words.items():
        if word not in SPLITS:
            raise _Odd(np.argmax(codes == code), f"split {word!r} given; one of {', '.join(SPLITS)} is expected")
    return _mapped(codes, {code: SETS.index(SPLITS[word]) for code, word in words.items()}, np.int8)


def _places(part: pa.Array) -> NDArray[np.int64]:
    """Return places in a given order; -1 where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    part = _plain(part)
    if _is_text(part.type):
        part = _trimmed(part)
        part = pc.if_else(pc.equal(part, ""), None, part)
    try:
        return part.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        text = "no place in the order: whole numbers of 64 bits, written in digits only, are expected, or nothing"
        raise _Odd(*_first(part, pa.int64(), text)) from None


class _Seconds:
    """Reads times as seconds since 1970; one column has one notation, that of its first row.

    A number among dates would else be taken for a moment in 1970.
    """

    def __init__(self) -> None:
        self._numbers: bool | None = None
        self._low, self._high = math.inf, -math.inf
        self._looks = set(_LOOKS)  # what all numbers so far look like

    def __call__(self, part: pa.Array) -> NDArray[np.float64]:
        """Return the seconds of each row. Dates without a zone are UTC."""
        import pyarrow as pa

        part = _plain(part)
        if _is_text(part.type):
            part = _trimmed(part)
            if self._numbers is None:
                self._numbers = math.isfinite(_number(part[0].as_py()))
            seconds = _numbers(part) if self._numbers else _moments(part)
        elif pa.types.is_timestamp(part.type) or pa.types.is_date(part.type):
            zone = getattr(part.type, "tz", None)
            stamps = part.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())
            seconds = stamps.to_numpy(zero_copy_only=False) / 1e6  # missing ones become NaN
        elif pa.types.is_boolean(part.type):
            raise pa.ArrowInvalid("a truth value is no time")
        else:
            self._numbers = True
            seconds = part.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if not np.isfinite(seconds).all():
            row = int(np.argmin(np.isfinite(seconds)))
            given = part[row].as_py()
            raise _Odd(
                row,
                f"time {'' if given is None else str(given)!r} given; {'seconds' if self._numbers else 'ISO 8601'} "
                f"like {'1717156800' if self._numbers else '2024-05-31T12:00:00Z'} are expected in the whole column",
            )
        if self._numbers and self._looks and len(seconds):
            self._looks = {look for look in self._looks if _LOOKS[look](seconds)}
            self._low, self._high = min(self._low, seconds.min()), max(self._high, seconds.max())
        return seconds

    def notes(self) -> list[str]:
        """Return what to say if the numbers were hardly meant as seconds."""
        if not self._numbers or not self._looks:
            return []
        read = " to ".join(_day(seconds) for seconds in (self._low, self._high))
        return [
            f"times from {self._low:.15g} to {self._high:.15g} look like {min(self._looks)} and were read as seconds "
            f"since 1970: {read}; write ISO dates like 2024-05-31T12:00:00Z if that is not meant"
        ]


def _day(seconds: float) -> str:
    if seconds > _YEAR_5000:
        return f"the year {1970 + int(seconds / 31_556_952)}" if seconds < 1e15 else "far beyond any calendar"
    return f"{np.datetime64(int(seconds), 's')}"


def _whole(seconds: NDArray[np.float64], low: int, high: int) -> bool:
    return bool(seconds.min() >= low and seconds.max() <= high and (seconds % 1 == 0).all())


def _are_days(seconds: NDArray[np.float64]) -> bool:
    if not _whole(seconds, 19000101, 21001231):
        return False
    month, day = seconds // 100 % 100, seconds % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())


_YEAR_5000 = 95_617_584_000  # in seconds
_LOOKS: dict[str, Callable[[NDArray[np.float64]], bool]] = {
    "days like 20240531": _are_days,
    "years": lambda seconds: _whole(seconds, 1900, 2100),
    "milliseconds or finer": lambda seconds: bool(seconds.min() > _YEAR_5000),
}


def _numbers(part: pa.Array) -> NDArray[np.float64]:
    import pyarrow as pa

    try:
        return part.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:  # the caller says which
        return np.array([_number(value) for value in part.to_pylist()])


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _moments(part: pa.Array) -> NDArray[np.float64]:
    import pandas as pd
    import pyarrow as pa

    for zone in (None, "UTC"):  # all without a zone, or all with one: the fast way
        try:
            stamps = part.cast(pa.timestamp("us", zone)).cast(pa.int64())
            return stamps.to_numpy(zero_copy_only=False) / 1e6
        except pa.ArrowInvalid:
            pass
    moments = pd.to_datetime(pd.Index(part.to_pylist(), dtype=object), format="ISO8601", utc=True, errors="coerce")
    return np.where(moments.isna(), np.nan, moments.as_unit("us").asi8 / 1e6)


def _ordered(names: Iterable[str]) -> list[str]:
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def _ranks(codes: Iterable[str], names: list[str]) -> NDArray[np.int32]:
    rank = {name: i for i, name in enumerate(names)}
    return np.array([rank[name] for name in codes], np.int32)


# --- folders ----------------------------------------------------------------------------------------------------


def _folder(path: str) -> Rows:
    """Read a folder of pictures: a folder each class, which may stand in folders named after the sets."""
    root = Path(path)
    top = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    split = bool(top) and all(name in SPLITS for name in top)
    if not split:
        _refuse_half_split(root, top)
    found: list[str] = []
    labels: list[str] = []
    sets: list[int] = []
    notes: list[str] = []
    others: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    loose = _inside(root, "", deep=False)[0] + [file for name in top if split for file in _inside(root, name, False)[0]]
    if loose:
        raise UserError(f"{path}: {len(loose)} pictures lie in no folder of a class, the first is {loose[0]}")
    for part in top if split else [""]:
        inner = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir())
        for label in inner if split else top:
            if label.startswith("."):
                continue
            files, left = _inside(root, f"{part}/{label}" if part else label, seen=seen)
            others += left
            if not files:
                notes.append(f"the folder of the class {label!r} holds no picture")
            if not label.isprintable():
                raise UserError(f"{path} has the folder {label!r}; its name is no text that can be a label: rename it")
            found += files
            labels += [label] * len(files)
            sets += [SETS.index(SPLITS[part])] * len(files) if split else []
    if not found:
        raise UserError(
            f"{path} holds no pictures ({', '.join(SUFFIXES)}) in folders of classes: give a folder with one folder "
            "each class, or a table"
        )
    if others:
        notes.append(f"left out as no pictures by their names: {len(others)} files, the first is {others[0]}")
    names = _ordered(set(labels))
    return Rows(
        name=root.resolve().name,
        given=path,
        root=root,
        home=None,
        paths=Paths.of(found),
        label=_ranks(labels, names),
        names=tuple(names),
        time=None,
        split=np.array(sets, np.int8) if split else None,
        order=None,
        notes=tuple(notes),
    )


def _refuse_half_split(root: Path, top: list[str]) -> None:
    """Refuse folders of folders that are named as a split's, but not all as is expected: they would become classes.

    A folder with pictures directly in it is a class, whatever its name.
    """
    meant = [
        name
        for name in top
        if name.lower() in (*SPLITS, *_UNUSUAL)
        and any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(root / name))
        and not _inside(root, name, deep=False)[0]
    ]
    if meant:
        odd = [name for name in top if name not in SPLITS]
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise UserError(
            f"{root} has the folders {meant}, which hold folders as those of a split do, and {odd[:5]}{more}, "
            f"which are no names of a split; rename or move these so that all are among {', '.join(SPLITS)}, or "
            "rename those that are classes"
        )


def _inside(
    root: Path, folder: str, deep: bool = True, seen: dict[tuple[int, int], str] | None = None
) -> tuple[list[str], list[str]]:
    """Return the pictures in and below a folder, and the other files, relative to the root, in the order of names.

    Hidden files and folders do not count. Links are followed, out of the root as well, as data sets are put into place
    by them; but not back, nor to a folder that was ``seen`` under another name, whose pictures would stand twice.
    """
    seen = {} if seen is None else seen
    pictures: list[str] = []
    others: list[str] = []
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(folder, (_identity(root / folder),))]
    while waiting:
        at, above = waiting.pop()
        other = seen.setdefault(above[-1], at)
        if other != at:
            raise UserError(
                f"{root / at} and {root / other} are the same folder, by a link: their pictures would stand twice; "
                "remove the link"
            )
        below = []
        for entry in sorted(os.scandir(root / at), key=lambda entry: entry.name):
            name = f"{at}/{entry.name}" if at else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if not deep:
                    continue
                identity = _identity(root / name)
                if identity in above:
                    raise UserError(f"{root / name} is a link that leads back to a folder above it: remove the link")
                below.append((name, (*above, identity)))
            else:
                (pictures if entry.name.lower().endswith(SUFFIXES) else others).append(name)
        waiting += reversed(below)
    return pictures, others


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
