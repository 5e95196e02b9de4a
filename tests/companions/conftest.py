"""A network small enough for arithmetic by hand, and a step in the middle of a tiny stream."""

from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from budgetcl.memory.sampler import Place
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.streams.revealed import Revealed


class Flat(nn.Module):
    """Four pixels -> two features: a linear layer and a normalisation with statistics."""

    feature_dim = 2
    mean, std = (0.0,), (1 / 255,)

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.layer(x.flatten(1)))


@pytest.fixture
def small():
    """(classes, head=LinearHead, seed=0) -> a network with weights of ordinary size, all of them trained."""

    def make(classes=3, head=LinearHead, seed=0):
        torch.manual_seed(seed)
        network = Network(Flat(), head(2))
        network.grow(classes, np.random.default_rng(seed))
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        network.set_trainable([network])
        return network

    return make


@pytest.fixture
def moved():
    """(network, by) -> adds a number to each of its trained weights."""

    @torch.no_grad()
    def move(network, by=1.0):
        for p in network.parameters():
            if p.requires_grad:
                p += by

    return move


def at(network, progress=0.0):
    """A place that knows of a network and of how far the step is."""
    return SimpleNamespace(network=network, compute=SimpleNamespace(ledger=SimpleNamespace(progress=progress)))


@pytest.fixture(name="at")
def _at():
    return at


@pytest.fixture
def opened(tiny):
    """(number, calibration, *overrides) -> the place of a step that is open for 40 updates, its samples taken in.

    Classes: 10 of pretraining and 3 a step. Samples: 80 of pretraining and 24 a step.
    """
    with ExitStack() as stack:

        def make(number=1, calibration=None, *overrides):
            parts = tiny("glyphs", "naive", "budget.updates=40", *overrides)
            revealed, learner = Revealed(parts.source), parts.learner
            learner.calibration = calibration or learner.calibration
            for step in list(parts.source.stream)[: number + 1]:
                revealed.reveal(step)
                learner._take_in(step, revealed, parts.compute)
            stack.enter_context(parts.compute.step(step))
            return Place(0, number, learner.memory, revealed, learner.network, parts.compute)

        yield make


@pytest.fixture
def charged():
    """(place, category) -> FLOPs charged so far."""

    def read(place, category):
        rows = place.compute.ledger.rows()
        return sum(f for name, f in zip(rows["category"], rows["charged"]) if name == category)

    return read
