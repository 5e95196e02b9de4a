"""What budgetcl adds to a bare PyTorch loop that makes the same updates, on batches of the same sizes.

    python scripts/bench_overhead.py

Both run in one process on one thread, interleaved; CPU seconds, medians of several rounds. Three cases: the embedded
network on `glyphs`; a linear probe (3x32x32, 10 steps x 16 updates, batch 128); the probe with 100 steps x 2 updates,
whose evaluation is measured apart.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from budgetcl.budget.allowance import Budget, Reference
from budgetcl.budget.compute import Compute
from budgetcl.budget.prices import Prices
from budgetcl.learners.gradient import GradientLearner
from budgetcl.learners.schedules import Linear
from budgetcl.loop import run
from budgetcl.memory.uniform import Uniform
from budgetcl.models.backbones import SmallResNet
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.models.parts import Everything
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.records.record import Record
from budgetcl.streams.batch import Source
from budgetcl.streams.stream import SETS, STREAM, TEST, Stream

ROUNDS = 5


class Flat(nn.Module):
    """A backbone that only flattens: with a linear head, a linear probe."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.mean, self.std = (0.5,) * shape[0], (0.25,) * shape[0]
        self.feature_dim = int(np.prod(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) -> (n, c h w)."""
        return x.flatten(1)


class Stored:
    """Images in memory."""

    fingerprint = "stored"

    def __init__(self, images: torch.Tensor) -> None:
        self.images, self.shape = images, tuple(images.shape[1:])

    def __call__(self, indices: np.ndarray, augment: np.random.Generator | None = None) -> torch.Tensor:
        """Gather."""
        return self.images[torch.from_numpy(indices)]


@dataclass
class Case:
    """One comparison."""

    name: str
    shape: tuple[int, int, int]
    backbone: Callable[[], nn.Module]
    steps: int
    updates: int
    batch: int
    classes: int = 100
    per_step: int = 1000
    test: int = 64
    evaluation: bool = False
    limit: float = 1.0


CASES = [
    Case("embedded network", (1, 24, 24), SmallResNet, steps=10, updates=50, batch=64, limit=1.05),
    Case("linear probe", (3, 32, 32), lambda: Flat((3, 32, 32)), 10, 16, 128, limit=1.3),
    Case("linear probe, 100 short steps", (3, 32, 32), lambda: Flat((3, 32, 32)), 100, 2, 128, per_step=200, limit=1.5),
    Case(
        "linear probe, evaluation apart",
        (3, 32, 32),
        lambda: Flat((3, 32, 32)),
        20,
        0,
        128,
        test=4096,
        evaluation=True,
        limit=1.3,
    ),
]


def source_of(case: Case) -> Source:
    """Make a stream of random images: all classes at the first step, held-out images where the case has some."""
    n, random = case.steps * case.per_step, np.random.default_rng(0)
    label = np.concatenate([np.arange(n) % case.classes, np.arange(case.test) % case.classes])
    sets = np.concatenate([np.full(n, SETS.index(STREAM)), np.full(case.test, SETS.index(TEST))]).astype(np.int8)
    images = torch.from_numpy(random.integers(0, 256, (len(label), *case.shape), dtype=np.uint8))
    stream = Stream(
        name="bench",
        label=label.astype(np.int64),
        set=sets,
        bounds=np.arange(case.steps + 1) * case.per_step,
        time=np.arange(len(label), dtype=float),
        group=np.full(len(label), -1),
        origin=np.full(len(label), -1),
        label_names=tuple(map(str, range(case.classes))),
        source="stored",
    )
    return Source(stream, Stored(images))


SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def ours(case: Case, source: Source, folder: Path) -> float:
    """Return the CPU seconds of learning (or, for a case with held-out images, of evaluation) through budgetcl."""
    prices = Prices()
    backbone = case.backbone()
    reference = Reference(
        Network(case.backbone(), LinearHead(backbone.feature_dim)), CrossEntropy(), case.batch, case.shape, prices
    )
    budget = Budget(updates=max(1, case.updates))
    compute = Compute(prices, budget, reference, torch.device("cpu"))
    learner = GradientLearner(
        backbone, LinearHead, Everything(), Uniform(), CrossEntropy(), SGD, Linear(), batch=case.batch
    )
    record = Record(folder / "record", "", {}, source.stream)
    spent = 0.0
    fit = learner.fit

    def timed(function: Callable[..., object], *arguments: object) -> object:
        nonlocal spent
        started = time.process_time()
        answer = function(*arguments)
        spent += time.process_time() - started
        return answer

    learner.fit = lambda *a: timed(fit, *a)  # type: ignore[method-assign, assignment]
    if case.evaluation:
        started = time.process_time()
        run(source, learner, compute, record, 0)
        return time.process_time() - started - spent
    run(source, learner, compute, record, 0)
    assert compute.updates == case.steps * case.updates
    return spent


def bare(case: Case, source: Source) -> float:
    """Return the CPU seconds of the obvious loop: the same number of updates, or the same evaluation."""
    network = Network(case.backbone(), LinearHead(case.backbone().feature_dim))
    network.grow(case.classes, np.random.default_rng(0))
    optimiser = SGD(network.parameters())
    images, random = source.pixels.images, np.random.default_rng(0)  # type: ignore[attr-defined]
    label = torch.from_numpy(source.stream.label.copy())
    test = torch.from_numpy(source.stream.rows(TEST).copy())
    started = time.process_time()
    for step in range(case.steps):
        if case.evaluation:
            network.eval()
            with torch.no_grad():
                for part in test.split(512):
                    logits = network(images[part]).logits
                    (logits.topk(5).indices[:, 0] == label[part]).sum().item()
                    logits.softmax(1).max(1).values.numpy()
            continue
        seen = (step + 1) * case.per_step
        network.train()
        for update in range(case.updates):
            rows = torch.from_numpy(random.choice(seen, case.batch, replace=False))
            for group in optimiser.param_groups:
                group["lr"] = 0.01 * (1 - update / case.updates)
            loss = nn.functional.cross_entropy(network(images[rows]).logits, label[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return time.process_time() - started


def main() -> None:
    """Run all cases and print the ratios."""
    torch.set_num_threads(1)
    print(f"{'case':<34}{'bare s':>9}{'ours s':>9}{'ratio':>8}{'limit':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            source = source_of(case)
            bare(case, source)  # warm up
            pairs = [(bare(case, source), ours(case, source, Path(folder))) for _ in range(ROUNDS)]
            b, o = (statistics.median(column) for column in zip(*pairs))
            ratio = statistics.median(o / b for b, o in pairs)
            print(f"{case.name:<34}{b:>9.3f}{o:>9.3f}{ratio:>8.2f}{case.limit:>8.2f}")


if __name__ == "__main__":
    main()
