"""Columns of a large table as files that are mapped and not read: made once, opened in no time by every later run."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from budgetcl.errors import UserError

VERSION = 2  # of what the columns mean
LARGE = 1 << 25  # bytes of a table whose columns are kept without being asked for; smaller ones are read in a second
_END = 1 << 16  # bytes at both ends of a table that are part of its identity


def parts(column: NDArray[Any], size: int = 1 << 20) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (where it begins, a part of a column) from first to last.

    The pages of a mapped column are given back after each part, so that a pass over it takes the memory of one.
    """
    for low in range(0, len(column), size):
        yield low, column[low : low + size]
        release(column)


def release(column: NDArray[Any]) -> None:
    """Give the pages of a mapped column back to the system; they are read again when they are looked at."""
    holder: Any = column
    while isinstance(holder, np.ndarray):
        holder = holder.base
    if isinstance(holder, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        holder.madvise(mmap.MADV_DONTNEED)


class Columns:
    """Named columns that grow part by part: in memory, or as files of a folder.

    Args:
        folder: where the files lie; None: in memory.
        types: the columns that lie there already, by name.
    """

    def __init__(self, folder: Path | None = None, types: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self.types = dict(types or {})
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self._files: dict[str, BinaryIO] = {}

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Add values to the end of a column."""
        self.types.setdefault(name, values.dtype.str)
        if self._folder is None:
            self._parts.setdefault(name, []).append(values)
        else:
            if name not in self._files:
                self._files[name] = open(self._folder / name, "ab")  # noqa: SIM115 (closed when it is looked at)
            np.ascontiguousarray(values).tofile(self._files[name])

    def get(self, name: str) -> NDArray[Any] | None:
        """Return a column as ``[name]`` does, or None where there is none."""
        return self[name] if name in self.types else None

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column, read-only; from a file it is mapped anew."""
        if self._folder is None:
            if len(self._parts[name]) != 1:
                self._parts[name] = [np.concatenate(self._parts[name])]
            column = self._parts[name][0].view()
        elif (self._folder / name).stat().st_size == 0 and name not in self._files:
            column = np.empty(0, self.types[name])
        else:
            if name in self._files:
                self._files.pop(name).close()
            column = np.memmap(self._folder / name, np.dtype(self.types[name]), "r").view(np.ndarray)
        column.setflags(write=False)
        return column

    def drop(self, name: str) -> None:
        """Forget a column."""
        del self.types[name]
        if self._folder is None:
            del self._parts[name]
        else:
            (self._folder / name).unlink()

    def close(self) -> None:
        """Write out what is still open."""
        while self._files:
            self._files.popitem()[1].close()


def place(path: Path, cache: str | None, *keys: object) -> Path | None:
    """Return the folder for what is kept of a table's file; None where nothing should be.

    It lies beside the table, or in the folder ``cache``, and its name tells the file's size, time of change and both
    ends, so that a changed table is read again; what was kept of its earlier state is then removed.

    Args:
        path: the table's file.
        cache: the folder for all tables' columns; None: beside the table, if it is large.
        keys: what else the columns depend on.
    """
    status = path.stat()
    if cache is None and status.st_size < LARGE:
        return None
    home = Path(f"{path}.cache")
    if cache is not None:
        home = Path(cache) / f"{path.name}-{hash_of(os.path.abspath(path))}"
    with open(path, "rb") as file:
        ends = file.read(_END)
        file.seek(-min(_END, status.st_size), os.SEEK_END)
        ends += file.read(_END)
    return home / hash_of(VERSION, status.st_size, status.st_mtime_ns, ends, *keys)


def kept(folder: Path | None, make: Callable[[Columns], Mapping[str, Any]]) -> tuple[Columns, Mapping[str, Any]]:
    """Return columns and facts about them, made only where the folder does not hold them yet.

    Args:
        folder: where they are kept; None: they are made in memory.
        make: fills the columns and returns the facts, which JSON must be able to hold.

    Raises:
        UserError: the folder cannot be written, or read; and what ``make`` raises, after which nothing is kept.
    """
    if folder is None:
        columns = Columns()
        return columns, make(columns)
    facts = _facts(folder)
    if facts is None:
        try:
            _make(folder, make)
        except OSError as error:
            raise UserError(
                f"'{folder}' cannot be written ({error.strerror or error}); the columns of a large table are kept "
                "there: set stream.cache to a folder that can (data check: --cache)"
            ) from error
        facts = _facts(folder)
        assert facts is not None
    return Columns(folder, facts["types"]), facts["facts"]


def forget_others(folder: Path) -> None:
    """Remove what is kept of a table's earlier states; a run that has it mapped may go on."""
    for other in folder.parent.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _facts(folder: Path) -> dict[str, Any] | None:
    """Return what was written when the columns were complete, or None where they are not yet."""
    try:
        return json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise UserError(
            f"'{folder}' cannot be read ({error.strerror or error}); another user keeps the table's columns there: set "
            "stream.cache=FOLDER to one of your own (data check: --cache), or have it made readable (chmod -R a+rX)"
        ) from error


def _make(folder: Path, make: Callable[[Columns], Mapping[str, Any]]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(8)}.partial")
    partial.mkdir()  # not by tempfile, whose folders only their maker can read
    columns = Columns(partial)
    try:
        facts = make(columns)
        columns.close()
        (partial / "facts.json").write_text(json.dumps({"types": columns.types, "facts": facts}), encoding="utf-8")
        try:
            os.rename(partial, folder)
        except OSError:
            if not (folder / "facts.json").exists():  # else another process was first, with the same columns
                raise
    finally:
        columns.close()
        shutil.rmtree(partial, ignore_errors=True)


def hash_of(*values: object) -> str:
    """Return a short hash of values, by what ``repr`` says of them."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
