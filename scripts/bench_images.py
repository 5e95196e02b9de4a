"""How fast pictures become batches, against the decoder alone.

    python scripts/bench_images.py [--pictures 128] [--workers 1,2] [--processes 6] [--out docs/benchmarks-images.md]

Makes JPEGs of ImageNet's usual size (500 x 375) in a temporary folder, packs them (short side 256), and decodes them
twice with the same number of threads: through ``ImagePixels`` with batches begun ahead, as a run does; and in a bare
loop, in which each thread decodes its share and throws the result away. Both call the same decoder with the same random
numbers. For files the bare loop reads them too; for packed pictures its bytes are in memory already. Both alternate in
one process, whose ratio is the median of those of neighbouring rounds, so that other work on the machine hardly counts.
Where a thread's memory lies decides a tenth of its speed, so each pass has threads of its own, which end with it: glibc
gives the next ones what they leave, and both ways decode in the same memory. Processes still differ by more than rounds
do: several are asked, and the table has the mean of their ratios, and each of them.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from budgetcl.assemble import keep_freed_memory
from budgetcl.data.pack import pack
from budgetcl.streams.decoding import decoded
from budgetcl.streams.images import Files, ImagePixels, Pictures
from budgetcl.streams.packed import Packed
from budgetcl.streams.prefetch import ahead
from budgetcl.streams.rows import read
from budgetcl.streams.transforms import drawn

SIZE, RESIZE, BATCH, DEPTH, ROUNDS = 224, 256, 64, 2, 9


@dataclass(frozen=True)
class Result:
    """One process's comparison: pictures per second of ours and of the bare loop, and their ratios (ours / bare)."""

    ours: float
    bare: float
    speed: float
    cpu: float


def write_photographs(folder: Path, count: int) -> None:
    """Write JPEGs with edges, gradients and grain, some 50 kB each, and their table."""
    rng, rows = np.random.default_rng(0), ["path,label"]
    for i in range(count):
        coarse = rng.normal(size=(48, 64, 3)).cumsum(0).cumsum(1)
        coarse = 255 * (coarse - coarse.min()) / np.ptp(coarse)
        image = Image.fromarray(coarse.astype(np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        grain = rng.integers(-12, 13, (375, 500, 3))
        Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
        rows.append(f"{i}.jpg,{i % 2}")
    (folder / "photos.csv").write_text("\n".join(rows))


def through_pixels(pictures: Pictures, count: int, workers: int, train: bool) -> Callable[[], None]:
    """Return a pass over the pictures as a run makes it: batches begun ahead."""
    augment = "random_resized_crop" if train else "none"

    def run() -> None:
        pixels = ImagePixels(pictures, SIZE, 3, augment, memory=0, resize=RESIZE, workers=workers)
        batches = (np.arange(i, min(count, i + BATCH)) for i in range(0, count, BATCH))
        numbers = np.random.default_rng(0) if train else None
        with closing(ahead(batches, lambda rows: pixels.begin(rows, numbers), DEPTH)) as results:
            for shown in results:
                assert not shown.damaged

    return run


def bare(pictures: Pictures, count: int, workers: int, train: bool, in_memory: bool) -> Callable[[], None]:
    """Return a pass over the pictures with nothing but the decoder."""
    sources = [pictures.source(row) for row in range(count)]
    data = [source.read() for source in sources if not isinstance(source, str)] if in_memory else []
    numbers = drawn(np.random.default_rng(0), count) if train else None

    def share(first: int) -> None:
        for row in range(first, count, workers):
            source = io.BytesIO(data[row]) if in_memory else sources[row]
            decoded(source, str, SIZE, 3, SIZE / RESIZE, None if numbers is None else numbers[row])

    def run() -> None:
        with ThreadPoolExecutor(workers) as executor:
            list(executor.map(share, range(workers)))

    return run


def measured(function: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds and the CPU seconds of one call; the threads that it made have ended then."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    taken = time.perf_counter() - wall, time.process_time() - cpu
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()
    return taken


def compare(folder: Path, packed: bool, count: int, workers: int, train: bool) -> Result:
    """Measure both ways in turn, in this process."""
    keep_freed_memory()  # as a run does
    rows = read(str(folder / "photos.csv"))
    pictures: Pictures = Packed(folder / "packed", rows.paths) if packed else Files(folder, rows.paths)
    ways = through_pixels(pictures, count, workers, train), bare(pictures, count, workers, train, packed)
    for way in ways:
        measured(way)
    rounds = [[measured(way) for way in (ways if i % 2 else ways[::-1])][:: 1 if i % 2 else -1] for i in range(ROUNDS)]
    return Result(
        statistics.median(count / ours[0] for ours, _ in rounds),
        statistics.median(count / alone[0] for _, alone in rounds),
        statistics.median(alone[0] / ours[0] for ours, alone in rounds),
        statistics.median(alone[1] / ours[1] for ours, alone in rounds),
    )


def told(name: str, workers: int, results: list[Result]) -> str:
    """Return a row of the table."""
    ours, bare = (statistics.mean(getattr(result, key) for result in results) for key in ("ours", "bare"))
    speed, cpu = ([getattr(result, key) for result in results] for key in ("speed", "cpu"))
    each = " ".join(f"{value:.2f}" for value in speed)
    return (
        f"| {name} | {workers} | {ours:.0f} | {bare:.0f} | {statistics.mean(speed):.2f} | {statistics.mean(cpu):.2f} | "
        f"{each} |"
    )


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table, load = [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photographs(folder, options.pictures)
        pack(read(str(folder / "photos.csv")), folder / "packed")
        for workers in map(int, options.workers.split(",")):
            cases = [(packed, train) for train in (True, False) for packed in (False, True)]
            found: list[list[Result]] = [[] for _ in cases]
            for _ in range(options.processes):
                for results, (packed, train) in zip(found, cases):
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as another:
                        given = folder, packed, options.pictures, workers, train
                        results.append(another.submit(compare, *given).result())
            for results, (packed, train) in zip(found, cases):
                name = f"{'packed' if packed else 'JPEG files'}, {'training' if train else 'evaluation'}"
                table.append(told(name, workers, results))
    lines = [
        "# Benchmarks of the pixels",
        "",
        f"Made by `scripts/bench_images.py`: {options.pictures} JPEGs of 500 x 375 to {SIZE} x {SIZE}, batches of "
        f"{BATCH}, {DEPTH} begun ahead; {os.cpu_count()} cores ({platform.machine()}, shared with other work: load "
        f"average {load:.1f} at the start), Python {platform.python_version()}, Pillow {PIL.__version__}. *Training*: "
        f"random_resized_crop, *evaluation* the middle, the short side resized to {RESIZE}. *Speed* and *CPU* are our "
        f"pictures per second and per CPU second as a share of the bare decoder's: means over {options.processes} "
        f"processes, each the median of {ROUNDS} rounds; beside them the speeds of each.",
        "",
        "| what | threads | pictures/s | bare decoder | speed | CPU | speed in each process |",
        "|---|---|---|---|---|---|---|",
        *table,
    ]
    print("\n".join(lines))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
