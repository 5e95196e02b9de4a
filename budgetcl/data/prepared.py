"""Writing the table of a published stream: each piece of it looked at as it passes, memory bounded.

The table is a parquet file with the columns ``path``, ``label``, ``split`` and, where they are known, ``order`` (the
place of a streamed sample, -1 elsewhere) and ``time``. Beside it lies a JSON file that says what was read, by which
settings, in which order, and how what came out compares with what was published.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from budgetcl.errors import UserError, one_of
from budgetcl.streams.parsing import buffers
from budgetcl.streams.paths import hashes_of

if TYPE_CHECKING:
    import pyarrow

SPLITS = ("pretrain", "preval", "pretest", "prefix", "train", "val", "test")
NAMED = 5  # offenders that an error names
NOTES = "budgetcl.notes"  # of the parquet file's metadata: what a user of the stream should be told
WORKERS = 32  # threads that look for files: they wait for the disk, not for the processor


@dataclass(frozen=True)
class Check:
    """A number that is published, and what came out.

    Attributes:
        name: what is counted.
        expected: the published value, or ``(low, high)`` where only a rounded one is known.
        got: what came out.
    """

    name: str
    expected: Any
    got: Any

    @property
    def agrees(self) -> bool:
        """Whether what came out is what was published."""
        if isinstance(self.expected, tuple):
            return bool(self.expected[0] <= self.got <= self.expected[1])
        return bool(self.expected == self.got)

    def __str__(self) -> str:
        """Return one line of a report."""
        expected = (
            " to ".join(map(_shown, self.expected)) if isinstance(self.expected, tuple) else _shown(self.expected)
        )
        verdict = "agrees" if self.agrees else f"differs: {expected} is published"
        return f"  {self.name:<34} {_shown(self.got):>12}  {verdict}"


class Prepared:
    """A table in the making. Nothing of it is left where it is not finished.

    Args:
        path: the .parquet file to write.
        root: the folder that the pictures' paths are relative to.
        missing: "refuse" pictures that are not there, "drop" them, or "trust" the lists without looking.
        ordered: whether the stream has an order; else runs choose one.

    Attributes:
        counts: split -> label -> samples, both in the order of their first appearance.
        dropped: how many pictures were not there.
        train_sum: a number that the train pictures give, in whatever order they come.
    """

    def __init__(self, path: Path, root: Path, missing: str = "refuse", ordered: bool = True) -> None:
        from pyarrow import parquet

        one_of(("refuse", "drop", "trust"), missing=missing)
        if path.suffix != ".parquet":
            raise UserError(f"output={str(path)!r} given; the name of a .parquet file is expected")
        if not root.is_dir():
            raise UserError(f"root={str(root)!r} given; the folder of the pictures is expected, and there is none")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"output={str(path)!r} given; its folder cannot be made ({error.strerror or error}): name another"
            ) from error
        self.counts: dict[str, Counter[Any]] = {}
        self.dropped = 0
        self.train_sum = 0
        self._path, self._root, self._missing, self._ordered = path, root, missing, ordered
        self._partial = path.with_name(path.name + ".partial")
        self._absent: list[str] = []
        self._hashes: list[np.ndarray] = []
        self._order = hashlib.sha256()
        self._streamed = 0
        self._parquet = parquet
        self._writer: Any = None
        self._schema: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()
        self._partial.unlink(missing_ok=True)

    def add(self, split: str, batches: Iterable[pyarrow.RecordBatch]) -> None:
        """Append the samples of a split; those of "train" are streamed in the order in which they come.

        Raises:
            UserError: a path is empty or leaves the root; some samples have times and others have none.
        """
        one_of(SPLITS, split=split)
        for batch in batches:
            self._append(split, batch)

    def _append(self, split: str, batch: pyarrow.RecordBatch) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        paths = pc.utf8_ltrim(pc.utf8_trim_whitespace(batch["path"]), "/")
        odd = pc.match_substring_regex(paths, r"^$|(^|/)\.\.(/|$)|^[A-Za-z]:|\\")
        if pc.any(odd).as_py():
            first = batch["path"].filter(odd)[0].as_py()
            raise UserError(f"the list of {split} names {first!r}; a path below the pictures' folder is expected")
        columns = {"path": paths, **{name: batch[name] for name in ("label", "time") if name in batch.schema.names}}
        there = self._there(paths)
        if there is not None:
            columns = {name: column.filter(pa.array(there)) for name, column in columns.items()}
        n = len(columns["path"])
        self._hashes.append(_hashed(columns["path"]))
        counts = self.counts.setdefault(split, Counter())
        for pair in pc.value_counts(columns["label"]):
            counts[pair["values"].as_py()] += pair["counts"].as_py()
        order = np.full(n, -1, np.int64)
        if split == "train":
            order[:] = np.arange(self._streamed, self._streamed + n)
            self._streamed += n
            self.train_sum = (self.train_sum + int(self._hashes[-1].sum())) % (1 << 64)
            nothing, line = (pa.scalar(text, pa.large_binary()) for text in (b"", b"\n"))
            lines = pc.binary_join_element_wise(_bytes(columns["path"]), nothing, line)
            self._order.update(buffers(lines)[0].tobytes())
        columns["split"] = pa.repeat(pa.scalar(split), n)
        if self._ordered:
            columns["order"] = pa.array(order)
        self._write(columns)

    def _write(self, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa

        batch = pa.RecordBatch.from_pydict(dict(columns))
        if self._writer is None:
            self._schema = batch.schema
            self._writer = self._parquet.ParquetWriter(
                self._partial, batch.schema, compression="zstd", use_dictionary=["label", "split"]
            )
        if batch.schema != self._schema:
            raise UserError(
                "the lists do not go together: some have times and others none, or labels are numbers in some and text "
                "in others"
            )
        self._writer.write_batch(batch)

    def _there(self, paths: Any) -> np.ndarray | None:
        """Return which pictures are there, or None where none is to be left out."""
        if self._missing == "trust":
            return None
        root = os.fspath(self._root)
        names = paths.to_pylist()
        with ThreadPoolExecutor(WORKERS) as pool:
            there = np.fromiter(pool.map(lambda name: os.path.isfile(f"{root}/{name}"), names, chunksize=512), bool)
        absent = np.flatnonzero(~there)
        self._absent += [names[i] for i in absent[: NAMED - min(NAMED, len(self._absent))]]
        self.dropped += len(absent)
        return there if len(absent) and self._missing == "drop" else None

    def finish(
        self,
        made_by: str,
        ordering: str,
        settings: Mapping[str, Any],
        checks: Sequence[Check] = (),
        notes: Sequence[str] = (),
        **more: Any,
    ) -> dict[str, Any]:
        """Put the table in its place and write its JSON file.

        Args:
            made_by: the script.
            ordering: what the order of the stream is: streams of different orderings must not be compared.
            settings: by which the table was made, those that are assumed among them.
            checks: what came out against what was published.
            notes: what a user should be told.
            more: further entries of the JSON file.

        Returns:
            What the JSON file holds.

        Raises:
            UserError: nothing is streamed, pictures are missing, or one is named twice, in one split or in two.
        """
        if self._writer is not None:  # so that a run says it too
            self._writer.add_key_value_metadata({NOTES: json.dumps([f"order: {ordering}", *notes])})
        self._close()
        if self._absent and self._missing == "refuse":
            raise UserError(
                f"{self.dropped} pictures are not below {self._root}: {_several(self._absent, self.dropped)}; "
                "missing=drop leaves them out (another stream), missing=trust does not look"
            )
        if not self._streamed:
            raise UserError("there is nothing to stream: no picture of the split 'train'")
        self._refuse_repeats()
        said = {
            "table": self._path.name,
            "made_by": made_by,
            "ordering": ordering,
            "order_sha256": self._order.hexdigest(),
            "samples": {split: sum(counts.values()) for split, counts in self.counts.items()},
            "classes": {split: len(counts) for split, counts in self.counts.items()},
            "dropped": self.dropped if self._missing != "trust" else None,
            "settings": dict(settings),
            "notes": list(notes),
            "checks": [{**vars(check), "agrees": check.agrees} for check in checks],
            **more,
        }
        os.replace(self._partial, self._path)
        self._path.with_suffix(".json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        return said

    def _refuse_repeats(self) -> None:
        """Find equal hashes, and then, reading the table again, equal paths among them."""
        hashes = np.empty(sum(map(len, self._hashes)), np.uint64)
        end = len(hashes)
        while self._hashes:  # parts are let go one by one: of 40 million paths, all of them twice are 0.6 GiB
            part = self._hashes.pop()
            hashes[end - len(part) : end] = part
            end -= len(part)
        hashes.sort()
        again = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        del hashes
        if not len(again):
            return
        where = dict[str, list[str]]()
        for batch in self._parquet.ParquetFile(self._partial).iter_batches(columns=["path", "split"]):
            suspects = np.flatnonzero(np.isin(_hashed(batch["path"]), again))
            for pair in batch.take(suspects).to_pylist():
                where.setdefault(pair["path"], []).append(pair["split"])
        repeated = {path: splits for path, splits in where.items() if len(splits) > 1}
        if not repeated:
            return
        leaks = [f"{path} ({', '.join(dict.fromkeys(s))})" for path, s in repeated.items() if len(set(s)) > 1]
        if leaks:
            raise UserError(f"{len(leaks)} pictures stand in two splits, a leak: {_several(leaks, len(leaks))}")
        raise UserError(f"{len(repeated)} pictures are named twice: {_several(list(repeated), len(repeated))}")

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def add_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Declare what all scripts that prepare a table share."""
    parser.add_argument("--output", type=Path, help=f"the table to write (default: {output} in the pictures' folder)")
    parser.add_argument(
        "--missing", choices=("refuse", "drop", "trust"), default="refuse",
        help="pictures that are not there: refuse them, leave them out (another stream), or do not look",
    )  # fmt: skip
    parser.add_argument(
        "--expect", choices=("published", "none"), default="published",
        help="compare with the published numbers; the exit status is 1 where they differ",
    )  # fmt: skip


def conclude(said: Mapping[str, Any], checks: Sequence[Check], output: Path, root: Path) -> int:
    """Print what a finished table is and return the script's exit status: 1 where published numbers differ."""
    splits = ", ".join(f"{split} {count:,}" for split, count in said["samples"].items())
    lines = [f"{output.with_name(said['table'])}: {splits}"]
    if output.parent.resolve() != root.resolve():
        lines.append(f"  paths are relative to another folder: stream it with stream.root={root}")
    lines.append(f"  order: {said['ordering']} ({said['order_sha256'][:16]})")
    if said["dropped"]:
        lines.append(f"  {said['dropped']:,} pictures of the lists are not there and were left out")
    lines += [str(check) for check in checks]
    differing = sum(not check.agrees for check in checks)
    if differing:
        lines.append(f"  {differing} of {len(checks)} published numbers differ: this is not the published stream")
    print("\n".join(lines + [f"  note: {note}" for note in said["notes"]]))
    return int(differing > 0)


def script(
    main: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> int:
    """Run a script: what the user can mend is said in one line, with exit status 2; 1 is of numbers that differ."""
    try:
        return main(parser.parse_args(arguments))
    except UserError as error:
        said = str(error)
    except OSError as error:
        said = (
            f"{error.filename2 or error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
        )
    print(f"{parser.prog}: {said}", file=sys.stderr)
    return 2


def _hashed(paths: pyarrow.Array) -> np.ndarray:
    return hashes_of(*buffers(_bytes(paths)))


def _bytes(texts: pyarrow.Array) -> pyarrow.Array:
    import pyarrow as pa

    return texts.cast(pa.large_binary())


def _several(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:NAMED]) + (f" and {count - NAMED} more" if count > NAMED else "")


def _shown(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= 20 else text[:12] + "..."
