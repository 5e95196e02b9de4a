"""What choosing samples costs: herding and k-means on 200,000 x 512 features, draws from 10 million samples.

Draws are also timed after 10 and after 4,000 steps, from as many samples.

    python scripts/bench_samplers.py [threads]

Each line has the same work beside it as scikit-learn, or numpy written the obvious way, does it. Wall and CPU seconds,
best of three where that is short; on a busy machine look at CPU seconds, and at the ratio.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # scikit-learn's, too; read when it is loaded

import numpy as np  # noqa: E402
import torch  # noqa: E402

from budgetcl.memory.diverse import herd, kmeans  # noqa: E402
from budgetcl.memory.memory import Memory  # noqa: E402
from budgetcl.memory.power_law import PowerLaw  # noqa: E402
from budgetcl.memory.recency import HalfRecent, RecencyBiased  # noqa: E402
from budgetcl.memory.sampler import Place, Sampler  # noqa: E402
from budgetcl.memory.uniform import ClassBalanced, Uniform  # noqa: E402
from budgetcl.randomness import generator  # noqa: E402

ROWS, WIDTH, CLASSES, PICKS = 200_000, 512, 100, 20
MEMORY, BATCH = 10_000_000, 128
LIVED, STEPS = 1_000_000, (10, 4_000)


def seconds(work: Callable[[], Any], repeat: int = 1) -> tuple[float, float]:
    """Return wall and CPU seconds, the best of several."""
    wall = cpu = float("inf")
    for _ in range(repeat):
        started, worked = time.perf_counter(), time.process_time()
        work()
        wall = min(wall, time.perf_counter() - started)
        cpu = min(cpu, time.process_time() - worked)
    return wall, cpu


def line(name: str, mine: tuple[float, float], other: str = "", theirs: tuple[float, float] | None = None) -> None:
    """Print times, and those of the other way beside them."""

    def text(pair: tuple[float, float]) -> str:
        unit, factor = ("s ", 1.0) if pair[0] >= 0.1 else ("ms", 1e3)
        return f"{pair[0] * factor:8.2f} {unit} wall {pair[1] * factor:8.2f} {unit} CPU"

    beside = f" {text(theirs)}, ratio of CPU {mine[1] / theirs[1]:.3f}" if theirs is not None else ""
    beside = f"   {other}{beside}"
    print(f"{name:<46}{text(mine)}{beside}".rstrip(), flush=True)


def herd_by_numpy(features: np.ndarray, picks: int) -> list[int]:
    """Herding as its formula reads: all distances anew for each pick."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    chosen: list[int] = []
    mean, total = features.mean(0), np.zeros(features.shape[1], np.float32)
    for k in range(1, picks + 1):
        distance = np.linalg.norm(mean - (features + total) / k, axis=1)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
        total += features[chosen[-1]]
    return chosen


def algorithms() -> None:
    """Herding and k-means."""
    from sklearn.cluster import KMeans

    features = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).abs_()
    array = features.numpy()
    members = np.array_split(np.random.default_rng(0).permutation(ROWS), CLASSES)
    line(
        f"herding per class, {CLASSES} x {PICKS} picks",
        seconds(lambda: [herd(features[rows], PICKS) for rows in members]),
        "numpy",
        seconds(lambda: [herd_by_numpy(array[rows], PICKS) for rows in members]),
    )
    part = ROWS // 4  # the obvious way holds several copies of the features
    line(
        f"global herding of {part:,} rows, 10 picks",
        seconds(lambda: herd(features[:part], 10)),
        "numpy",
        seconds(lambda: herd_by_numpy(array[:part], 10)),
    )
    line(f"global herding of {ROWS:,} rows, 50 picks", seconds(lambda: herd(features, 50)))
    line(
        f"k-means, k = {CLASSES}, 20 iterations",
        seconds(lambda: kmeans(features, CLASSES, 20, generator(0, "bench"))),
        "scikit-learn",
        seconds(lambda: KMeans(CLASSES, n_init=1, max_iter=20, tol=0, random_state=0, algorithm="lloyd").fit(array)),
    )


def draws() -> None:
    """One batch from ten million samples."""
    label = np.random.default_rng(0).integers(0, 10 * CLASSES, MEMORY)
    memory = Memory()
    for part in np.array_split(label, 20):
        memory.add(np.arange(len(memory), len(memory) + len(part)), part)
    # As after 20 steps: some rows were used in each.
    for step in range(20):
        memory.used(np.random.default_rng(step).integers(0, MEMORY, MEMORY // 100), step)
    place = Place(0, 20, memory, SimpleNamespace(), SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    weight = 1 / np.bincount(label)[label]
    obvious = seconds(lambda: np.random.default_rng(0).choice(MEMORY, BATCH, p=weight / weight.sum()))
    for sampler in (Uniform(), ClassBalanced(), HalfRecent(), RecencyBiased(), PowerLaw()):
        sampler.begin(place)
        wall, cpu = seconds(partial(_batches, sampler), 3)
        line(
            f"a batch of {BATCH}: {type(sampler).__name__}",
            (wall / 100, cpu / 100),
            *(("numpy", obvious) if isinstance(sampler, ClassBalanced) else ()),
        )


def lives() -> None:
    """One batch, and the first of a step, from a million samples that were revealed and used in few or many steps."""
    for steps in STEPS:
        for make in (Uniform, ClassBalanced, HalfRecent, RecencyBiased, PowerLaw):
            sampler, memory, first = make(), Memory(), 0.0
            random = np.random.default_rng(0)
            for step, rows in enumerate(np.array_split(np.arange(LIVED), steps)):
                memory.add(rows, random.integers(0, 10 * CLASSES, len(rows)))
                place = Place(0, step, memory, SimpleNamespace(), SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
                started = time.process_time()
                sampler.begin(place)
                drawn = sampler.draw(BATCH, 0)
                first += time.process_time() - started
                memory.used(drawn, step)
            wall, cpu = seconds(partial(_batches, sampler), 3)
            line(
                f"after {steps:,} steps, of {LIVED:,}: {make.__name__}",
                (wall / 100, cpu / 100),
                f"first of a step, mean of all: {first / steps * 1e3:.2f} ms CPU",
            )


def _batches(sampler: Sampler) -> None:
    for update in range(100):
        sampler.draw(BATCH, update)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(THREADS)
    print(f"{THREADS} threads, load {os.getloadavg()[0]:.1f}, {ROWS:,} x {WIDTH} features, memory of {MEMORY:,}")
    algorithms()
    draws()
    lives()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
