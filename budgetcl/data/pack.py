"""`budgetcl data pack`: a table's pictures, short side 256, in a few large files that are read at the decoder's speed.

Files are written one after the other, each whole before the next; what was written stays in ``<out>.partial`` when the
command is stopped, and the same command goes on from there. ``<out>`` itself appears when it is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetcl.data.prepared import NOTES
from budgetcl.errors import UserError, at_least, one_of
from budgetcl.records.claim import Busy, claimed
from budgetcl.streams.decoding import QUALITY, Damaged, shrunk
from budgetcl.streams.images import Pictures
from budgetcl.streams.packed import FORMAT, HEADER, OFFSETS, TABLE, pictures_of, sha256_of
from budgetcl.streams.prefetch import Pending, Workers, ahead
from budgetcl.streams.rows import Rows, makers_notes, read
from budgetcl.streams.stream import SETS
from budgetcl.streams.table import refuse_repeated

SHORT_SIDE = 256
PER_FILE = 65_536  # pictures, unless a number of files is asked for: some 2 GB
PLAN = "plan.json"
_BLOCK = 64  # pictures that are encoded before they are written together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `budgetcl data pack`."""
    parser.add_argument("path", help="a .csv or .parquet table, or a folder of pictures")
    parser.add_argument("--out", required=True, help="the folder to write; stream.path=OUT streams it")
    parser.add_argument("--root", help="the folder that a table's paths are relative to")
    parser.add_argument("--short-side", type=int, default=SHORT_SIDE, help="larger pictures are shrunk to it (256)")
    parser.add_argument("--files", type=int, help=f"how many files to write (one for each {PER_FILE:,} pictures)")
    parser.add_argument("--jobs", type=int, help="threads (as many as there are processors, at most 16)")
    parser.add_argument("--damaged", default="stop", help="stop at pictures that cannot be read, or drop their rows")


def main(options: argparse.Namespace) -> int:
    """Pack, and say what was packed.

    Raises:
        UserError: bad input, or damaged pictures.
    """
    out = Path(options.out)
    rows = read(options.path, options.root)
    header = pack(rows, out, options.short_side, options.files, options.jobs, options.damaged)
    size = sum(file["bytes"] for file in header["files"])
    print(f"{header['pictures']:,} pictures, {size / 2**20:,.1f} MiB, {len(header['files'])} files: {out}")
    if header["dropped"]:
        print(f"{len(header['dropped']):,} damaged pictures were dropped with their rows, listed in {out / HEADER}")
    print(f"to stream them: budgetcl run stream=table stream.path={out}")
    return 0


def pack(
    rows: Rows,
    out: Path,
    short_side: int = SHORT_SIDE,
    files: int | None = None,
    jobs: int | None = None,
    damaged: str = "stop",
) -> dict[str, Any]:
    """Write a packed folder (budgetcl.streams.packed).

    Args:
        rows: the table.
        out: the folder; there must be none yet.
        short_side: what larger pictures are shrunk to, in pixels.
        files: how many files hold the pictures; None: one for each 65,536.
        jobs: threads that encode; None: as many as there are processors, at most 16.
        damaged: "stop" at pictures that cannot be read, after counting those of the same file; or "drop" their rows.

    Returns:
        What ``pack.json`` says.

    Raises:
        UserError: bad input; damaged pictures; a folder that cannot be written, or that another process is at.
    """
    count = len(rows.paths)
    at_least(8, **{"--short-side": short_side})
    one_of(("stop", "drop"), **{"--damaged": damaged})
    if jobs is not None:
        at_least(1, **{"--jobs": jobs})
    if files is not None:
        at_least(1, **{"--files": files})
        if files > count:
            raise UserError(f"--files={files} given; at most {count} are expected, the pictures of the table")
    with _alone(out):
        refuse_repeated(rows)
        pictures = pictures_of(rows.root, rows.paths, np.arange(count))
        cuts = np.linspace(0, count, (files or -(-count // PER_FILE)) + 1).astype(np.int64)
        plan = {"format": FORMAT, "short_side": short_side, "quality": QUALITY, "pictures": pictures.digest()}
        partial = out.with_name(out.name + ".partial")
        _take_up(partial, {**plan, "cuts": cuts.tolist()})
        workers, parts = Workers(jobs), []
        with _bar(count) as done:
            for number, (low, high) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist())):
                parts.append(_part(partial, number, pictures, range(low, high), short_side, workers, done))
                if parts[-1]["damaged"] and damaged == "stop":
                    raise UserError(
                        f"{parts[-1]['damaged']} of {high - low:,} pictures cannot be read, the first: "
                        f"{parts[-1]['first']}; --damaged drop goes on without their rows"
                    )
        table = np.concatenate([np.load(partial / part["table"]) for part in parts])
        whole = np.flatnonzero(table["bytes"])
        if not len(whole):
            raise UserError(f"{rows.given}: none of the {count} pictures can be read")
        np.save(partial / OFFSETS, np.concatenate([[0], np.cumsum(table["bytes"][whole])]))
        _write_table(rows, whole, partial / TABLE)
        header = {
            **plan,
            "pictures": len(whole),
            "of": rows.name,
            "dropped": [_printable(rows.paths[int(row)]) for row in np.flatnonzero(table["bytes"] == 0)],
            "files": [{name: part[name] for name in ("name", "bytes", "sha256")} for part in parts],
            "offsets": {"name": OFFSETS, "sha256": sha256_of(partial / OFFSETS)},
            "table": {"name": TABLE, "sha256": sha256_of(partial / TABLE)},
            # Of the pictures, not of the files: it does not change with their number.
            "digest": hashlib.sha256(table["digest"][whole].tobytes()).hexdigest(),
        }
        _write(partial / HEADER, header)
        for left in (*partial.glob("part-*"), partial / PLAN):
            left.unlink()
        os.replace(partial, out)
    return header


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Let no other process write the same folder meanwhile; refuse one that is there."""
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(out.parent / f".{out.name}.lock"))
        except Busy as error:
            raise Busy(f"--out={out} given: {error}") from None
        except UserError as error:
            because = getattr(error.__cause__, "strerror", None) or error
            raise UserError(f"--out={out} given; {out.parent} cannot be written ({because}): name another") from error
        if out.exists():
            raise UserError(
                f"--out={out} given; a folder that does not exist yet is expected: remove it, or name another"
            )
        yield


def _take_up(partial: Path, plan: dict[str, Any]) -> None:
    """Make the folder to work in; what was written there by another plan, or for other pictures, goes."""
    try:
        if (partial / PLAN).is_file() and json.loads((partial / PLAN).read_text(encoding="utf-8")) == plan:
            return
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        _write(partial / PLAN, plan)
    except OSError as error:
        raise UserError(f"--out: {partial} cannot be written ({error.strerror}): name another folder") from error


def _part(
    partial: Path,
    number: int,
    pictures: Pictures,
    places: range,
    short_side: int,
    workers: Workers,
    done: Callable[[int], None],
) -> dict[str, Any]:
    """Write one file of pictures, unless it was written before, and return what is known of it."""
    facts = partial / f"part-{number:05d}.json"
    if facts.is_file():
        done(len(places))
        return json.loads(facts.read_text(encoding="utf-8"))
    part: dict[str, Any] = {"name": f"pictures-{number:05d}.bin", "table": f"part-{number:05d}.npy", "damaged": 0}
    table = np.zeros(len(places), [("bytes", "<i8"), ("digest", "V16")])
    file_hash, at = hashlib.sha256(), 0

    def begin(block: range) -> Pending[list[bytes | str]]:
        made: list[bytes | str] = [""] * len(block)

        def encode(place: int) -> None:
            row = block[place]
            try:
                made[place] = shrunk(pictures.source(row), lambda: pictures.name(row), short_side)
            except Damaged as damage:
                made[place] = str(damage)

        return workers.each(len(block), encode).then(lambda _: made)

    blocks = (places[i : i + _BLOCK] for i in range(0, len(places), _BLOCK))
    with open(partial / part["name"], "wb") as file, closing(ahead(blocks, begin, 2)) as results:
        for made in results:
            for picture in made:
                if isinstance(picture, str):
                    part["damaged"] += 1
                    part.setdefault("first", picture)
                else:
                    file.write(picture)
                    file_hash.update(picture)
                    table[at] = len(picture), hashlib.sha256(picture).digest()[:16]
                at += 1
            done(len(made))
        part |= {"bytes": file.tell(), "sha256": file_hash.hexdigest()}
    np.save(partial / part["table"], table)
    _write(facts, part)
    return part


def _write_table(rows: Rows, whole: NDArray[np.int64], path: Path) -> None:
    """Write the rows whose pictures were packed, as a table that reads back as the same rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for low in range(0, len(whole), PER_FILE):
        part = pa.table(_columns(rows, whole[low : low + PER_FILE]))
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    assert writer is not None
    if notes := makers_notes(Path(rows.given)):  # those that reading makes are made again
        writer.add_key_value_metadata({NOTES: json.dumps(notes)})
    writer.close()


def _columns(rows: Rows, part: NDArray[np.int64]) -> dict[str, Any]:
    import pyarrow as pa

    columns = {
        "path": pa.array([os.fsencode(rows.paths[row]) for row in part.tolist()], pa.large_binary()),
        "label": pa.DictionaryArray.from_arrays(pa.array(rows.label[part]), pa.array(rows.names)),
    }
    if rows.time is not None:
        columns["time"] = pa.array(rows.time[part])
    if rows.split is not None:
        columns["split"] = pa.DictionaryArray.from_arrays(pa.array(rows.split[part]), pa.array(SETS))
    if rows.order is not None:
        columns["order"] = pa.array(rows.order[part])
    return columns


def _write(path: Path, facts: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    os.replace(partial, path)


def _printable(path: str) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")


@contextmanager
def _bar(count: int) -> Iterator[Callable[[int], None]]:
    """Show how far the work is, on a terminal; yield what to call with the pictures that are done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("packing", total=count)
        yield lambda more: progress.advance(task, more)
