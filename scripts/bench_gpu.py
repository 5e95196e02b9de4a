"""Pictures per second on a GPU: through budgetcl, and in a bare loop on the same tensors.

    python scripts/bench_gpu.py                                  # prints the tables
    python scripts/bench_gpu.py --write docs/benchmarks.md       # and puts them into its section "GPU"

A network of torchvision learns from synthetic pictures that lie on the device, in bf16. Both loops gather the same
batches, normalise, and make the same updates; they take turns, and the clock is read with the device at rest. FLOP/s
are model FLOPs, from the price list; the share is of a large matrix product's rate, measured in the same process.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from budgetcl.budget.allowance import Budget, Reference
from budgetcl.budget.compute import Compute
from budgetcl.budget.placement import Placement
from budgetcl.budget.prices import Prices
from budgetcl.learners.gradient import GradientLearner
from budgetcl.learners.schedules import Linear
from budgetcl.memory.uniform import Uniform
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.models.parts import Everything
from budgetcl.models.pretrained import torchvision
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.streams.batch import Source
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import SETS, STREAM, IntArray, Stream

CLASSES = 100
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
WANTED = 0.98  # of the bare loop's pictures per second


class Held:
    """Pictures that lie on the device."""

    fingerprint = "held"

    def __init__(self, images: torch.Tensor) -> None:
        self.images, self.shape = images, tuple(images.shape[1:])

    def __call__(self, indices: IntArray, augment: np.random.Generator | None = None) -> torch.Tensor:
        """Gather."""
        return self.images[torch.from_numpy(indices).to(self.images.device, non_blocking=True)]


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    batch: int
    channels_last: bool
    compiled: bool | str


@dataclass(frozen=True)
class Row:
    """What was measured: pictures per second, model FLOP/s, and the most bytes of tensors at once."""

    setting: Setting
    bare: float
    ours: float
    ratio: float
    flops: float
    memory: int


def source_of(options: argparse.Namespace, batch: int, device: torch.device) -> Source:
    """Make a stream of one step of random pictures, some more than a batch."""
    n = batch + batch // 4
    shape = (n, 3, options.size, options.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    stream = Stream(
        name="bench",
        label=np.arange(n) % CLASSES,
        set=np.full(n, SETS.index(STREAM), np.int8),
        bounds=np.array([0, n]),
        time=np.arange(n, dtype=float),
        group=np.full(n, -1),
        origin=np.full(n, -1),
        label_names=tuple(map(str, range(CLASSES))),
        source="held",
    )
    return Source(stream, Held(images))


def rested(device: torch.device) -> float:
    """Return the time, once the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Ours:
    """The learner under a ledger, in a step whose allowance does not end while it is measured."""

    def __init__(self, options: argparse.Namespace, setting: Setting, source: Source, device: torch.device) -> None:
        updates = (options.rounds + 1) * (options.updates + 1) + options.warmup
        prices, backbone = Prices(), torchvision(options.name)
        yardstick = Network(torchvision(options.name), LinearHead(backbone.feature_dim))
        reference = Reference(yardstick, CrossEntropy(), setting.batch, source.pixels.shape, prices)
        self.compute = Compute(
            prices,
            Budget(updates=updates),
            reference,
            device,
            options.precision,
            placement=Placement(device, setting.channels_last, setting.compiled),
        )
        self.learner = GradientLearner(
            backbone, LinearHead, Everything(), Uniform(), CrossEntropy(), SGD, Linear(), batch=setting.batch
        )
        revealed, (step,) = Revealed(source), source.stream
        revealed.reveal(step)
        self._open = self.compute.step(step)
        self._open.__enter__()
        self._place = self.learner.begin(step, revealed, self.compute)
        self._made = 0

    def __call__(self, updates: int) -> None:
        """Make some updates."""
        for _ in range(updates):
            self.learner.update(self._place, self._made)
            self._made += 1

    @property
    def flops(self) -> float:
        """Model FLOPs of an update."""
        return self.compute.ledger.spent / self._made


class Bare:
    """The obvious loop."""

    def __init__(self, options: argparse.Namespace, setting: Setting, source: Source, device: torch.device) -> None:
        backbone = torchvision(options.name)
        self.network = Network(backbone, LinearHead(backbone.feature_dim))
        self.network.grow(CLASSES, np.random.default_rng(0))
        Placement(device, setting.channels_last, setting.compiled)(self.network)
        self.network.train()
        self.optimiser = SGD(self.network.parameters())
        self._label = torch.from_numpy(source.stream.label.copy()).to(device)
        self._images, self._batch, self._device = source.pixels, setting.batch, device
        self._random, self._bf16 = np.random.default_rng(0), options.precision == "bf16"

    def __call__(self, updates: int) -> None:
        """Make some updates."""
        for _ in range(updates):
            rows = self._random.choice(len(self._label), self._batch, replace=False)
            x, y = self._images(rows), self._label[torch.from_numpy(rows).to(self._device, non_blocking=True)]
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                loss = nn.functional.cross_entropy(self.network(x).logits.float(), y)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()


def rate(loop: Callable[[int], None], updates: int, batch: int, device: torch.device) -> float:
    """Return the pictures per second of a loop."""
    started = rested(device)
    loop(updates)
    return updates * batch / (rested(device) - started)


def measure(options: argparse.Namespace, setting: Setting, device: torch.device) -> Row:
    """Let both loops take turns."""
    source = source_of(options, setting.batch, device)
    ours, bare = Ours(options, setting, source, device), Bare(options, setting, source, device)
    for loop in (bare, ours):
        loop(options.warmup)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rounds = [
        tuple(rate(loop, options.updates, setting.batch, device) for loop in (bare, ours))
        for _ in range(options.rounds)
    ]
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    b, o = (statistics.median(column) for column in zip(*rounds))
    ratio = statistics.median(o / b for b, o in rounds)
    return Row(setting, b, o, ratio, ours.flops / setting.batch * o, memory)


def product_rate(size: int, device: torch.device, rounds: int = 20) -> float:
    """Return the FLOP/s of a bf16 matrix product."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    for _ in range(3):
        a @ b
    started = rested(device)
    for _ in range(rounds):
        a @ b
    return rounds * 2 * size**3 / (rested(device) - started)


def hardware(device: torch.device) -> str:
    """Name the device and torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    return f"the {device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(options: argparse.Namespace, rows: Sequence[Row], product: float, device: torch.device) -> str:
    """Return the section of the documentation."""
    what = f"{options.name}, {options.size} px, {options.precision}, pictures on the device; {hardware(device)}."
    yardstick = f"A bf16 matrix product of side {options.product} runs at {product / 1e12:.3g} TFLOP/s."
    how = f"Medians of {options.rounds} rounds of {options.updates} updates of each loop, in turns."
    peak = "The peak memory is that of both loops' networks and optimisers, and of one update."
    lines = [
        f"{what} {yardstick} {how} {peak}",
        "",
        "| batch | channels last | compiled | bare, pictures/s | budgetcl, pictures/s | ratio | wanted | TFLOP/s "
        "| share of the product's rate | peak memory, GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = f"{row.memory / 2**30:.1f}" if row.memory else "not measured"
        lines.append(
            f"| {row.setting.batch:,} | {'yes' if row.setting.channels_last else 'no'} "
            f"| {'yes' if row.setting.compiled else 'no'} | {row.bare:,.0f} | {row.ours:,.0f} | {row.ratio:.3f} "
            f"| {WANTED} | {row.flops / 1e12:.3g} | {row.flops / product:.1%} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def write(section: str, path: Path) -> None:
    """Put the section in the place of the one that is there."""
    text = path.read_text(encoding="utf-8")
    before, _, after = text.partition("## GPU\n")
    rest = re.search(r"^## ", after, re.MULTILINE)
    end = after[rest.start() :] if rest else ""
    path.write_text(f"{before.rstrip()}\n\n## GPU\n\n{section}{end and chr(10)}{end}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each setting and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--name", default="resnet50", help="an architecture of torchvision")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1500])
    parser.add_argument("--updates", type=int, default=20, help="of each loop in a round")
    parser.add_argument("--warmup", type=int, default=10, help="updates before the clock runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--product", type=int, default=8192, help="side of the matrix product")
    parser.add_argument("--compile", default="inductor", help="torch.compile's backend; none: leave compilation out")
    parser.add_argument("--write", type=Path, help="the document whose section GPU becomes the table")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device: this is a benchmark of GPUs; --device cpu runs it all the same")
    product = product_rate(options.product, device)
    ways: list[tuple[bool, bool | str]] = [(False, False), (True, False)]
    ways += [] if options.compile == "none" else [(True, options.compile)]
    settings = [Setting(batch, last, compiled) for batch in options.batches for last, compiled in ways]
    section = table(options, [measure(options, setting, device) for setting in settings], product, device)
    print(section)
    if options.write:
        write(section, options.write)


if __name__ == "__main__":
    main()
