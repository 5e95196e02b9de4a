"""What a table or a folder of pictures holds, read part by part into columns: nothing per row is done in Python."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError, nearest
from budgetcl.streams.cache import Columns, forget_others, kept, parts, place
from budgetcl.streams.packed import HEADER as PACKED
from budgetcl.streams.packed import TABLE as PACKED_TABLE
from budgetcl.streams.parsing import SPLITS, Odd, Seconds, coded, joined, ordered, places_of, ranks, sets_of
from budgetcl.streams.paths import Paths, hashes_of
from budgetcl.streams.stream import SETS

if TYPE_CHECKING:
    import pyarrow as pa

# What other tools call such folders: not read as a split, and seldom meant as classes.
_UNUSUAL = ("valid", "dev", "eval", "training", "testing")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
# First bytes of files that are met instead of a CSV file; a header may well begin with PAR1, but not with what follows.
_MAGIC = {
    b"PAR1\x15": "a parquet file", b"\x1f\x8b": "compressed", b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
_SEPARATORS = {";": "semicolons (;)", "\t": "tabs", "|": "bars (|)"}
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
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"path={path!r} given; a table's file or a folder of pictures is expected")
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
        notes=(*makers_notes(file), *facts["notes"]),
    )


# --- tables -----------------------------------------------------------------------------------------------------


def _fill(columns: Columns, path: Path, root: str) -> dict[str, Any]:
    """Read a table's file into columns, part by part."""
    import pyarrow as pa

    codes: dict[str, int] = {}
    seconds = Seconds()
    row = end = 0
    for batch in _read_ahead(_batches(path)):
        part = dict(zip(batch.schema.names, batch.columns))
        try:
            data, start = joined(part["path"], root)
            columns.append("paths", data)
            columns.append("start", start[:-1] + end)
            columns.append("hash", hashes_of(data, start))
            columns.append("code", coded(part["label"], codes))
            if "time" in part:
                columns.append("time", seconds(part["time"]))
            if "split" in part:
                columns.append("split", sets_of(part["split"]))
            if "order" in part:
                columns.append("order", places_of(part["order"]))
        except Odd as odd:
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
    names = ordered(codes)
    rank = ranks(codes, names)
    for _, code in parts(columns["code"]):
        columns.append("label", rank[code])
    columns.drop("code")
    return {"names": names, "notes": seconds.notes()}


def makers_notes(path: Path) -> tuple[str, ...]:
    """Return what the maker of a table has to say to those who stream it; see :mod:`budgetcl.data.prepared`."""
    import pyarrow.parquet as pq

    said = pq.read_metadata(path).metadata if path.is_file() and _is_parquet(path) else None
    return tuple(json.loads((said or {}).get(b"budgetcl.notes", b"[]")))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


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
            signs = [sign for sign in _SEPARATORS if sign in columns[0]]
            meant = [sign for sign in signs if len(columns) == 1 or "path" in ",".join(columns).split(sign)]
            if meant:
                sign = _SEPARATORS[meant[0]]
                raise UserError(f"{path} cannot be read as a table (its columns are separated by {sign}); {_TABLES}")
            if any(category(letter) in ("Cc", "Cs") for letter in "".join(columns)):  # control signs, undecodable bytes
                raise UserError(f"{path} cannot be read as a table (the names of its columns are no text); {_TABLES}")
            raise UserError(f"{path} has no column '{column}'; its columns are {columns}: {nearest(column, columns)}")
    known: list[str] = [column for column in ("path", "label", "time", "split", "order") if column in columns]
    for column in known:
        if columns.count(column) > 1:
            raise UserError(f"{path} has {columns.count(column)} columns '{column}'; one is expected")
    return known


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
    names = ordered(set(labels))
    return Rows(
        name=root.resolve().name,
        given=path,
        root=root,
        home=None,
        paths=Paths.of(found),
        label=ranks(labels, names),
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
