"""Columns of a table as Arrow reads them, part by part, become arrays: paths, labels, splits, places, times."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.streams.stream import RETENTION, SETS

if TYPE_CHECKING:
    import pyarrow as pa

# What a split column and the folders of an image folder may say: the sets' own names, and the usual short ones.
SPLITS = {name: name for name in SETS if name != RETENTION} | {
    "train": "stream", "val": "validation", "preval": "prevalidation",
}  # fmt: skip


class Odd(Exception):
    """A row that makes no sense; ``row`` counts within its part."""

    def __init__(self, row: Any, text: str) -> None:
        super().__init__(text)
        self.row = int(row)


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
        raise Odd(*_first(part, pa.string(), "a text that is no UTF-8")) from None


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


def joined(part: pa.Array, root: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
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
        raise Odd(np.argmin(np.diff(start) > 0), "the path is empty")
    if not data.all():
        raise Odd(np.searchsorted(start, np.argmin(data), "right") - 1, "the path holds a zero byte")
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
                raise Odd(
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
            raise Odd(np.argmax(codes == code), f"{value!r} is a text that is no UTF-8") from None
        words[code] = text.strip()
    return codes, words


def _mapped(codes: NDArray[np.int64], values: dict[int, int], kind: Any) -> NDArray[Any]:
    table = np.zeros(max(values, default=0) + 1, kind)
    table[list(values)] = list(values.values())
    return table[codes]


def coded(part: pa.Array, known: dict[str, int]) -> NDArray[np.int32]:
    """Return labels as codes in the order in which they are met; new ones are added to the known."""
    codes, words = _words(part)
    for code, word in words.items():
        if not word:
            raise Odd(np.argmax(codes == code), "the label is empty")
    return _mapped(codes, {code: known.setdefault(word, len(known)) for code, word in words.items()}, np.int32)


def sets_of(part: pa.Array) -> NDArray[np.int8]:
    """Return the set that each row's split means."""
    codes, words = _words(part)
    for code, word in words.items():
        if word not in SPLITS:
            raise Odd(np.argmax(codes == code), f"split {word!r} given; one of {', '.join(SPLITS)} is expected")
    return _mapped(codes, {code: SETS.index(SPLITS[word]) for code, word in words.items()}, np.int8)


def places_of(part: pa.Array) -> NDArray[np.int64]:
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
        raise Odd(*_first(part, pa.int64(), text)) from None


class Seconds:
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
            raise Odd(
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


def ordered(names: Iterable[str]) -> list[str]:
    """Return labels in the order of their classes: by number where all are whole numbers, else by alphabet."""
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def ranks(codes: Iterable[str], names: list[str]) -> NDArray[np.int32]:
    """Return the place of each label among the names."""
    rank = {name: i for i, name in enumerate(names)}
    return np.array([rank[name] for name in codes], np.int32)
