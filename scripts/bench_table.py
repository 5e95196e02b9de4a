"""A table of 39 million pictures: how long until its stream is ready, how much memory, how long a batch takes to draw.

    python scripts/bench_table.py [--rows 39000000] [--shuffled] [--csv] [--folder outputs/bench_table]

The table is made up in the shape of CLOC: nested paths, 713 classes in bursts, upload times in seconds with ties;
sorted by time, as such lists are, or shuffled. No picture is needed. Each case runs in a process of its own. Peak
memory is the process's largest resident size (VmHWM): mapped files that were looked at count, though the system takes
them back when it needs room. Beside the seconds on the clock stand those of the processor, as others may be using the
machine. Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

CLASSES, BURST, PART, BATCH = 713, 8, 1_000_000, 1500


def write(path: Path, rows: int, shuffled: bool) -> None:
    """Write the table, part by part."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    place = rng.permutation(rows) if shuffled else np.arange(rows)
    label = np.repeat(rng.integers(CLASSES, size=rows), rng.geometric(1 / BURST, rows))[:rows]
    schema = pa.schema([("path", pa.string()), ("label", pa.int32()), ("time", pa.int64())])
    make = pq.ParquetWriter if path.suffix == ".parquet" else pa.csv.CSVWriter
    with make(path, schema) as writer:
        for low in range(0, rows, PART):
            part = place[low : low + PART]
            paths = [f"{i % 256:02x}/{i // 256 % 256:02x}/{i:010d}_photo.jpg" for i in part.tolist()]
            columns = [pa.array(paths), pa.array(label[part], pa.int32()), pa.array(1_100_000_000 + part // 3)]
            writer.write_table(pa.table(columns, schema=schema))


def ready(path: str) -> None:
    """Make the stream and print how long it took; the imports do not count."""
    from budgetcl.streams.table import table

    base, started, worked = _peak(), time.perf_counter(), time.process_time()
    stream = table(path, order="time", chunk=128).stream
    fingerprint = stream.fingerprint()
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    print(json.dumps({"seconds": seconds, "cpu": worked, "peak": _peak(), "base": base, "print": fingerprint}))


def walk(path: str) -> None:
    """Go through the stream's time steps as a run does, and print the memory at its tenths."""
    from budgetcl.streams.revealed import Revealed
    from budgetcl.streams.table import table

    source = table(path, order="time", chunk=128)
    revealed, started, held = Revealed(source), time.perf_counter(), []
    for step in source.stream:
        revealed.reveal(step)
        if step.number % max(1, len(source.stream) // 10) == 0:
            held.append(_status("RssAnon"))
    seconds = (time.perf_counter() - started) / len(source.stream)
    print(json.dumps({"step": seconds, "private": held, "peak": _peak()}))


def draw(path: str) -> None:
    """Fill a memory with the whole stream and print how long a batch takes to draw."""
    from budgetcl.memory.memory import Memory
    from budgetcl.memory.uniform import ClassBalanced, Uniform
    from budgetcl.streams.table import table

    stream = table(path, order="time", chunk=128).stream
    memory = Memory()
    for low in range(0, stream.samples, PART):
        high = min(low + PART, stream.samples)
        memory.add(np.arange(low, high), stream.label[low:high])
    result = {"rows": len(memory), "nbytes": memory.nbytes, "peak": _peak()}
    for sampler in (Uniform(), ClassBalanced()):
        sampler.begin(SimpleNamespace(memory=memory, random=lambda purpose, update: np.random.default_rng(update)))
        times = []
        for update in range(200):
            started = time.perf_counter()
            sampler.draw(BATCH, update)
            times.append(time.perf_counter() - started)
        result[type(sampler).__name__] = statistics.median(times)
    print(json.dumps(result))


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    """Return one of the sizes, in bytes, that Linux tells of a process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024


def _in_process(what: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--do", what, "--table", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Write the table, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=39_000_000)
    parser.add_argument("--shuffled", action="store_true", help="rows in no order")
    parser.add_argument("--csv", action="store_true", help="a CSV file instead of parquet")
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench_table"))
    parser.add_argument("--keep", action="store_true", help="leave the table for the next time")
    parser.add_argument("--do", choices=("ready", "walk", "draw"), help=argparse.SUPPRESS)
    parser.add_argument("--table", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        {"ready": ready, "walk": walk, "draw": draw}[options.do](options.table)
        return
    name = f"{'shuffled' if options.shuffled else 'sorted'}-{options.rows}"
    path = options.folder / f"{name}.{'csv' if options.csv else 'parquet'}"
    options.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write(path, options.rows, options.shuffled)
    shutil.rmtree(f"{path}.cache", ignore_errors=True)
    print(f"{options.rows:,} rows, {path.suffix[1:]}, {name.split('-')[0]}, {path.stat().st_size / 1e9:.2f} GB")
    first, again = _in_process("ready", path), _in_process("ready", path)
    assert first["print"] == again["print"]
    for what, case in (("first time", first), ("again", again)):
        print(f"{what}: ready in {case['seconds']:.1f} s ({case['cpu']:.1f} s of processor), ", end="")
        print(f"peak {case['peak'] / 2**30:.2f} GiB (of which imports {case['base'] / 2**30:.2f})")
    kept = sum(file.stat().st_size for file in Path(f"{path}.cache").rglob("*") if file.is_file())
    print(f"kept beside the table: {kept / 1e9:.2f} GB")
    steps = _in_process("walk", path)
    print(f"a time step: {1e6 * steps['step']:.1f} us; private memory at each tenth of the stream, MiB: ", end="")
    print(" ".join(f"{value / 2**20:.0f}" for value in steps["private"]))
    drawn = _in_process("draw", path)
    print(f"memory of {drawn['rows']:,} rows: {drawn['nbytes'] / 2**30:.2f} GiB")
    for sampler in ("Uniform", "ClassBalanced"):
        print(f"{sampler}: a batch of {BATCH} in {1e3 * drawn[sampler]:.2f} ms")
    if not options.keep:
        path.unlink()
        shutil.rmtree(f"{path}.cache", ignore_errors=True)


if __name__ == "__main__":
    main()
