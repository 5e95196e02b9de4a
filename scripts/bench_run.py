"""Whether a run's memory grows with its stream: a whole run, its record on disk, over blank pictures.

    python scripts/bench_run.py [--samples 4000000,16000000] [--chunk 4096] [--times 1]

The learner answers the last label, so that what is kept is what the loop, the ledger and the record keep. Printed is
the anonymous memory (RssAnon) beside what imports and stream take, after each eighth of the stream, and the most while
the record was finished. Each case runs in a process of its own. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from budgetcl.budget.allowance import Budget, Reference
from budgetcl.budget.compute import Compute
from budgetcl.budget.prices import Prices
from budgetcl.learners.baselines import Blind
from budgetcl.loop import Progress, run
from budgetcl.models.backbones import SmallResNet
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.records.record import Record
from budgetcl.streams.batch import Source
from budgetcl.streams.stream import SETS, STREAM, IntArray, Stream

CLASSES, PARTS = 713, 8


class Blank:
    """Pictures without anything on them."""

    shape = (1, 8, 8)
    fingerprint = "blank"

    def __call__(self, indices: IntArray, augment: np.random.Generator | None = None) -> torch.Tensor:
        """Return zeros."""
        return torch.zeros(len(indices), *self.shape, dtype=torch.uint8)


def stream_of(samples: int, chunk: int, times: int) -> Stream:
    """Return a stream of random labels that is predicted so many times ahead."""
    none = np.full(samples, -1, np.int32)
    shifts = tuple(chunk * i for i in range(times))
    return Stream(
        name="blank",
        label=np.random.default_rng(0).integers(CLASSES, size=samples).astype(np.int32),
        set=np.full(samples, SETS.index(STREAM), np.int8),
        bounds=np.append(np.arange(0, samples, chunk), samples),
        time=np.arange(samples, dtype=np.float64),
        group=none,
        origin=none,
        label_names=tuple(map(str, range(CLASSES))),
        source=Blank.fingerprint,
        shifts=shifts,
        shift=shifts[-1],
        heldout=(),
    )


def measure(samples: int, chunk: int, times: int) -> dict[str, list[int] | int]:
    """Make a run and return its memory in bytes: after each eighth of the stream, and the most of what followed."""
    prices, pixels = Prices(), Blank()
    backbone = SmallResNet(1, (8,))
    network = Network(backbone, LinearHead(backbone.feature_dim))
    compute = Compute(
        prices, Budget(updates=1), Reference(network, CrossEntropy(), 32, pixels.shape, prices), torch.device("cpu")
    )
    stream = stream_of(samples, chunk, times)
    steps, held = len(stream), []
    with tempfile.TemporaryDirectory() as folder:
        record = Record(Path(folder) / "run", "", {}, stream)
        base = anonymous()

        def narrate(progress: Progress) -> None:
            if (progress.step + 1) * PARTS // steps > progress.step * PARTS // steps:
                held.append(anonymous() - base)

        highest, over = 0, threading.Event()

        def watch() -> None:
            nonlocal highest
            while not over.wait(0.02):
                if len(held) == PARTS:
                    highest = max(highest, anonymous() - base)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            run(Source(stream, pixels), Blind(1), compute, record, 0, narrate, query_size=chunk)
        finally:
            over.set()
            watcher.join()
    return {"held": held, "finishing": highest}


def anonymous() -> int:
    """Return the bytes of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) * 1024


def main() -> None:
    """Measure each case in a process, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default="4000000,16000000")
    parser.add_argument("--chunk", type=int, default=4096, help="samples of a step")
    parser.add_argument("--times", type=int, default=1, help="how many times each sample is predicted")
    parser.add_argument("--do", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        print(json.dumps(measure(options.do, options.chunk, options.times)))
        return
    for samples in map(int, options.samples.split(",")):
        command = [sys.executable, __file__, "--do", str(samples)]
        command += ["--chunk", str(options.chunk), "--times", str(options.times)]
        started = time.perf_counter()
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(printed.splitlines()[-1])
        print(f"{samples:,} samples in steps of {options.chunk:,}, predicted {options.times} x, in ", end="")
        print(f"{time.perf_counter() - started:.0f} s: MiB after each eighth of the stream ", end="")
        print(" ".join(f"{value / 2**20:.0f}" for value in found["held"]), end="")
        print(f"; while the record is finished at most {found['finishing'] / 2**20:.0f}")


if __name__ == "__main__":
    main()
