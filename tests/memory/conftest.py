"""A step in the middle of a tiny stream, and the network's answers computed beside the package."""

import numpy as np
import pytest
import torch

from budgetcl.memory.sampler import Place
from budgetcl.streams.revealed import Revealed


@pytest.fixture
def place(tiny):
    """128 samples of 16 classes in memory, 24 of them new; the allowance of 40 updates is open."""
    parts = tiny("glyphs", "naive", "budget.updates=40")
    revealed, learner = Revealed(parts.source), parts.learner
    steps = list(parts.source.stream)
    for step in steps[:2]:
        revealed.reveal(step)
        learner._take_in(step, revealed, parts.compute)
    with parts.compute.step(steps[1]):
        yield Place(0, 1, learner.memory, revealed, learner.network, parts.compute)


@pytest.fixture
def answers(place):
    """Logits and features of the whole memory, as double-precision arrays."""
    with torch.no_grad():
        outputs = place.network.eval()(place.revealed.images(place.memory.index))
    return outputs.logits.double().numpy(), outputs.features.double().numpy()


@pytest.fixture
def spent(place):
    """category -> FLOPs charged so far."""

    def read(category):
        rows = place.compute.ledger.rows()
        return sum(f for name, f in zip(rows["category"], rows["charged"]) if name == category)

    return read


@pytest.fixture
def drawn():
    """(sampler, place, n, updates) -> the set of all rows drawn; each batch is checked to be exact and distinct."""

    def draw(sampler, place, n, updates):
        sampler.begin(place)
        batches = [sampler.draw(n, update) for update in range(updates)]
        assert all(len(rows) == n == len(set(rows.tolist())) for rows in batches)
        return set(np.concatenate(batches).tolist())

    return draw
