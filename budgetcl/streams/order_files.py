"""Order files: the samples of a published stream, in its order. Read and written in pieces of bounded size.

A piece is a pyarrow record batch with the columns ``path`` (text), ``label`` (text, or int64 from HDF5) and, where the
file has it, ``time`` (float64 seconds). Formats:

- text, one ``path`` a line, whose parent folder is the class (ImageNet2K of BudgetCL, CVPR 2023);
- text, ``label<TAB>path`` or ``label<TAB>path<TAB>time`` a line (CGLM of BudgetCL and EvalOCL, ICCV 2023);
- HDF5, ``<partition>_image_paths.hdf5`` and ``<partition>_labels.hdf5``, each with one array ``store_list``
  (the authors' download site: ImageNet2K, CGLM, CLOC).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budgetcl.errors import UserError

if TYPE_CHECKING:
    import pyarrow

CHUNK = 1 << 19  # samples a piece of HDF5
BLOCK = 1 << 25  # bytes a piece of text
STORE = "store_list"
COLUMNS = {1: ("path",), 2: ("label", "path"), 3: ("label", "path", "time")}


@dataclass(frozen=True)
class OrderFiles:
    """A folder of order files.

    Args:
        folder: where they lie.
        text: partition -> the names that its text file may have; ``<partition>.txt`` where it is not listed.
        times: whether a third column of text is the time of the sample; otherwise it is ignored.
    """

    folder: Path
    text: Mapping[str, Sequence[str]]
    times: bool = True

    def files(self, partition: str) -> tuple[Path, ...]:
        """Return the files of a partition: two of HDF5, or one of text, or none.

        Raises:
            UserError: one of the two HDF5 files is missing, or there are several lists of the partition.
        """
        pair = tuple(self.folder / f"{partition}_{what}.hdf5" for what in ("image_paths", "labels"))
        there = [path for path in pair if path.is_file()]
        if len(there) == 1:
            absent = next(path for path in pair if path not in there)
            raise UserError(f"{there[0]} is there and {absent.name} is not; both are expected")
        names = self.text.get(partition, (f"{partition}.txt",))
        found = [tuple(there)] if there else []
        found += [(self.folder / name,) for name in names if (self.folder / name).is_file()]
        if len(found) > 1:
            raise UserError(f"{self.folder} holds {' and '.join(files[0].name for files in found)}: leave one of them")
        return found[0] if found else ()

    def rows(self, partition: str, ordered: bool = False) -> Iterator[pyarrow.RecordBatch]:
        """Yield a partition in pieces.

        Args:
            partition: its name.
            ordered: whether its times, if it has them, must not decrease.

        Raises:
            UserError: it is not there, cannot be read, or is not in the order of its times.
        """
        files = self.files(partition)
        if not files:
            names = ", ".join((*self.text.get(partition, (f"{partition}.txt",)), f"{partition}_image_paths.hdf5"))
            raise UserError(f"{self.folder} has no list of the partition {partition!r}; one of {names} is expected")
        return hdf5_rows(*files) if len(files) == 2 else text_rows(files[0], self.times, ordered)


def text_rows(path: Path, times: bool = True, ordered: bool = False, block: int = BLOCK) -> Iterator[Any]:
    """Yield the samples of a text file in pieces of ``block`` bytes.

    Raises:
        UserError: the file is empty or not UTF-8, a line has another number of columns than the first, a path has no
            parent folder to be its class, a time cannot be read, or times that must be in order are not.
    """
    import pyarrow as pa
    from pyarrow import csv

    try:
        with path.open("rb") as file:
            tabs = file.readline().count(b"\t")
        names = COLUMNS.get(tabs + 1)
        if names is None:
            raise UserError(f"{path}: {tabs + 1} columns in its first line; path, or label, path and time are expected")
        reader = csv.open_csv(
            path,
            csv.ReadOptions(column_names=list(names), block_size=block, use_threads=False),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(column_types={name: pa.string() for name in names}),
        )
        line, last = 0, -np.inf
        for batch in reader:
            columns = {"path": batch["path"]}
            columns["label"] = batch["label"] if tabs else _folder(batch["path"], path, line)
            if times and "time" in names:
                seconds = seconds_of(batch["time"], path, line)
                falls = np.flatnonzero(np.diff(seconds, prepend=last) < 0)
                if ordered and len(falls):
                    raise UserError(
                        f"{path}, line {line + falls[0] + 1}: earlier than the line before; lines in the order of "
                        "their times are expected"
                    )
                columns["time"], last = pa.array(seconds), seconds[-1]
            line += len(batch)
            yield pa.RecordBatch.from_pydict(columns)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as an order file ({' '.join(str(error).split())})") from error


def hdf5_rows(paths: Path, labels: Path, chunk: int = CHUNK) -> Iterator[Any]:
    """Yield the samples of a pair of HDF5 files, ``chunk`` at a time.

    Raises:
        UserError: h5py is not installed, a file is no HDF5, has no ``store_list``, or one of another kind or length.
    """
    import pyarrow as pa

    with ExitStack() as opened:
        path, label = (opened.enter_context(_hdf5(file)) for file in (paths, labels))
        names, codes = _stored(path, paths, "SO", "paths"), _stored(label, labels, "iu", "integer labels")
        if len(names) != len(codes):
            raise UserError(f"{paths.name} has {len(names)} entries, {labels.name} {len(codes)}; as many are expected")
        for low in range(0, len(names), chunk):
            try:
                piece = names[low : low + chunk]
                text = pa.array(piece.astype(object), pa.binary()).cast(pa.string())
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{paths}, entries from {low} on: no UTF-8 paths ({error})") from error
            yield pa.RecordBatch.from_pydict(
                {"path": text, "label": pa.array(codes[low : low + chunk].astype(np.int64, copy=False))}
            )


def write_text(path: Path, rows: Iterable[pyarrow.RecordBatch], labels: bool = False) -> None:
    """Write samples as text: their paths, or with ``labels`` also their labels and times."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for batch in rows:
            columns = ["path"] if not labels else [name for name in COLUMNS[3] if name in batch.schema.names]
            lines = zip(*(map(_plain, batch[name].to_pylist()) for name in columns))
            file.writelines("\t".join(line) + "\n" for line in lines)


def write_hdf5(folder: Path, partition: str, rows: Iterable[pyarrow.RecordBatch]) -> None:
    """Write samples with integer labels as a pair of HDF5 files."""
    h5py = _h5py()
    kinds = {"image_paths": ("path", h5py.string_dtype()), "labels": ("label", np.int64)}
    with ExitStack() as opened:
        arrays = {}
        for what, (name, kind) in kinds.items():
            file = opened.enter_context(h5py.File(folder / f"{partition}_{what}.hdf5", "w"))
            arrays[name] = file.create_dataset(STORE, (0,), kind, maxshape=(None,), chunks=(1 << 14,))
        for batch in rows:
            for name, array in arrays.items():
                array.resize((len(array) + len(batch),))
                array[len(array) - len(batch) :] = batch[name].to_numpy(zero_copy_only=False)


def seconds_of(column: Any, source: Path | str, before: int = 0) -> np.ndarray:
    """Return times as seconds, as :func:`parsed`.

    Args:
        column: (n,) a pyarrow array of text.
        source: where they come from, for errors.
        before: lines before the first, for errors.

    Raises:
        UserError: one of them cannot be read.
    """
    seconds = parsed(column)
    wrong = np.flatnonzero(np.isnan(seconds))
    if len(wrong):
        raise UserError(
            f"{source}, line {before + wrong[0] + 1}: time {column[int(wrong[0])].as_py()!r} given; seconds, or a date "
            "as in 2010-05-31T12:00:00Z, are expected, one notation for the whole file"
        )
    return seconds


def parsed(column: Any) -> np.ndarray:
    """Return times as seconds, nan where they cannot be read; the first decides between numbers and dates.

    Numbers are seconds. Dates are ISO 8601, without a zone UTC, or as in EXIF, ``2010:05:31 12:00:00``.
    """
    import pandas as pd
    import pyarrow.compute as pc

    column = pc.utf8_trim_whitespace(column)
    texts = column.to_pandas()
    if len(texts) and pd.notna(pd.to_numeric(texts[:1], errors="coerce")).all():
        seconds = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, copy=True)
        seconds[~np.isfinite(seconds)] = np.nan
        return seconds
    dates = pc.replace_substring_regex(column, r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3").to_pandas()
    moments = pd.to_datetime(dates, utc=True, format="ISO8601", errors="coerce")
    seconds = moments.to_numpy("datetime64[us]").astype(np.float64) / 1e6
    seconds[moments.isna().to_numpy()] = np.nan
    return seconds


def _folder(paths: Any, source: Path, before: int) -> Any:
    import pyarrow.compute as pc

    found = pc.extract_regex(paths, r"(?P<folder>[^/]+)/[^/]+$")
    if found.null_count:
        row = int(np.argmin(found.is_valid().to_numpy(zero_copy_only=False)))
        raise UserError(
            f"{source}, line {before + row + 1}: {paths[row].as_py()!r} has no parent folder to be its class"
        )
    return pc.struct_field(found, "folder")


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError("h5py is needed for HDF5 order files: pip install 'budgetcl[hdf5]'") from error
    return h5py


def _hdf5(path: Path) -> Any:
    h5py = _h5py()
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read as HDF5 ({' '.join(str(error).split())})") from error


def _stored(file: Any, path: Path, kinds: str, what: str) -> Any:
    if STORE not in file:
        raise UserError(f"{path} has no array {STORE!r}; it holds {sorted(file) or 'nothing'}")
    array = file[STORE]
    if getattr(array, "ndim", None) != 1 or array.dtype.kind not in kinds:
        told = f"{array.dtype} of shape {array.shape}" if hasattr(array, "dtype") else "a group"
        raise UserError(f"{path}: {STORE!r} is {told}; one row of {what} is expected")
    return array
