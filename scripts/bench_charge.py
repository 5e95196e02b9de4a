"""What pricing and charging cost: a cached price, a derived one, a traced one, and a line in the ledger.

    python scripts/bench_charge.py

Minima over repetitions, one thread, in this machine's microseconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budgetcl.budget.ledger import Ledger
from budgetcl.budget.prices import Prices
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.randomness import generator
from budgetcl.streams.batch import Batch


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = channels == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, out, h / stride, w / stride)."""
        return F.relu(self.path(x) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three stages of one block each, (n, 3, h, w) -> (n, 64)."""

    feature_dim, mean, std = 64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return self.stages(x).mean((2, 3))


def best(work: Callable[[], object], repeat: int = 20, number: int = 1) -> float:
    """Return the shortest time of one call, in microseconds."""
    shortest = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        for _ in range(number):
            work()
        shortest = min(shortest, (time.perf_counter() - started) / number)
    return shortest * 1e6


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    network = Network(SmallResNet(), LinearHead(64))
    network.grow(10, generator(0, "head"))
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    objective = CrossEntropy()
    x, y = torch.zeros(64, 3, 32, 32, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64)
    batch = Batch(x, y, np.arange(64), torch.zeros(64, dtype=torch.bool))

    def traced() -> object:
        return Prices().update(objective, network, batch, optimiser)

    traced()  # torch's own first time
    lines = [("a traced price of an update", best(traced, 10))]

    prices = Prices()
    prices.update(objective, network, batch, optimiser)
    derived = []
    for classes in range(11, 400):
        network.grow(classes, generator(0, "head"))
        assert network.skeleton  # is kept while the head grows
        derived.append(best(lambda: prices.update(objective, network, batch, optimiser), 1))
    lines.append(("a derived price of an update, median of 388", sorted(derived)[len(derived) // 2]))
    lines.append(
        ("a cached price of an update", best(lambda: prices.update(objective, network, batch, optimiser), 20, 1000))
    )
    lines.append(("a cached price of a forward", best(lambda: prices.forward(network, x), 20, 1000)))

    ledger = Ledger()
    ledger.open(0, 10**17)
    one, two = (("train", 1000, "u"),), (("train", 1000, "u"), ("teacher", 300, "t"))
    lines.append(("a charge", best(lambda: ledger.charge(one), 20, 1000)))
    lines.append(("a charge of two entries", best(lambda: ledger.charge(two), 20, 1000)))
    lines.append(("progress", best(lambda: ledger.progress, 20, 1000)))

    def charged() -> None:
        price = prices.update(objective, network, batch, optimiser)
        ledger.charge((("train", price.total, price.id),))

    lines.append(("a cached price and its charge", best(charged, 20, 1000)))
    for name, microseconds in lines:
        print(f"{name:<48}{microseconds:>12,.1f} us")
    for indent in (None, 1):
        started = time.perf_counter()
        text = json.dumps(prices.to_json(), indent=indent)
        seconds = time.perf_counter() - started
        print(f"prices.json of {len(prices.to_json())} prices, indent={indent}: {len(text):,} bytes, {seconds:.3f} s")


if __name__ == "__main__":
    main()
