"""What tests of single learners share."""

import pytest


@pytest.fixture
def compute(tiny):
    """A compute in an open step whose allowance is more than any test spends."""
    parts = tiny("glyphs", "naive", "budget.updates=100000")
    with parts.compute.step(next(iter(parts.source.stream))):
        yield parts.compute


@pytest.fixture
def charged(compute):
    """category -> what was charged to it so far."""

    def read(category):
        rows = compute.ledger.rows()
        return sum(flops for name, flops in zip(rows["category"], rows["charged"]) if name == category)

    return read
