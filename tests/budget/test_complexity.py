"""What an update of a method costs, in updates of plain training: the relative complexities of Real-Time Evaluation.

That paper (CVPR 2023) counts forwards and backwards: ER 1, ACE 1, LwF 4/3, RWalk 2, MIR 5/2, PoLRS 3, GSS 6. Measured
here by prices: one forward is a third of an update, up to what falls out of every price: the gradient of the images,
which no update needs (1.1 % of this network's), and the optimiser's step.
"""

import pytest

from budgetcl.dry_run import simulate

STEM = 25 * 16 * 12 * 12
BODY = STEM + 2 * 9 * 256 * 144 + (9 * 16 * 32 + 9 * 32 * 32 + 512) * 36 + (9 * 32 * 64 + 9 * 64 * 64 + 2048) * 9
PARAMETERS = 25 * 16 + 2 * 9 * 256 + 9 * 512 + 9 * 1024 + 512 + 9 * 2048 + 9 * 4096 + 2048 + 2 * 336
BATCH, C = 64, 24  # samples of an update, updates of the allowance


def forward(classes):
    return 2 * (BODY + 64 * classes)


def update(classes):
    return BATCH * (3 * forward(classes) - 2 * STEM) + 6 * (PARAMETERS + 65 * classes)


@pytest.fixture
def complexity(tiny):
    """(method) -> what one of its updates costs in the last step, everything that the step spent counted."""

    def measure(method):
        size = ("reference.batch=64", "stream.train=32", "stream.pretrain_train=32", f"budget.updates={C}")
        tally = simulate(tiny("glyphs", method, *size), 0, 512)
        spent, updates, classes = (tally.steps[name][-1] for name in ("spent", "updates", "classes"))
        assert classes == 19
        return spent / updates / update(classes)

    return measure


@pytest.mark.parametrize("method", ["naive", "er", "ace", "derpp", "reservoir"])
def test_what_asks_the_network_nothing_else_costs_one(complexity, method):
    assert complexity(method) == 1


def test_distillation_costs_four_thirds(complexity):
    teacher = BATCH * forward(16)  # it knows the classes of the step before
    found = complexity("kd_kl")
    assert found == pytest.approx(1 + teacher / update(19), rel=1e-12)
    assert found == pytest.approx(4 / 3, abs=0.02)


def test_mir_costs_five_halves(complexity):
    """Half the batch is new: its gradient, and two forwards over three candidates for each of the other half."""
    half = BATCH // 2
    parameters = PARAMETERS + 65 * 19
    gradient = half * (3 * forward(19) - 2 * STEM) + 2 * parameters
    candidates = 3 * half * (2 * forward(19) + 2 * 5 * 19)
    found = complexity("mir")
    assert found > 1 + (gradient + candidates) / update(19) - 1e-9  # and what the refused update had looked at
    assert found < (1 + (gradient + candidates) / update(19)) * (1 + 1.6 / (C / 2.6))
    assert 1 + (gradient + candidates) / update(19) == pytest.approx(5 / 2, abs=0.06)


def test_polrs_costs_three_a_round(tiny):
    size = ("reference.batch=64", "stream.train=32", "stream.pretrain_train=32", f"budget.updates={C}")
    parts = tiny("glyphs", "polrs", *size)
    tally = simulate(parts, 0, 512)
    assert list(tally.steps["updates"]) == [C] * 3
    assert tally.steps["spent"][-1] / (C / len(parts.learner._members)) / update(19) == 3


def test_rwalk_costs_less_than_two(complexity):
    """There a second backward; here F and the way come from the gradients of training: 16 FLOPs a weight."""
    assert complexity("rwalk") == pytest.approx(1 + 16 * (PARAMETERS + 65 * 19) / update(19), rel=1e-12)
    assert complexity("rwalk") < 1.02


def test_gss_costs_what_it_is_given_to_spend(complexity):
    """There 6, with a gradient a sample; here it may spend a sixth of the allowance, and scores by the last layer."""
    assert 1.1 < complexity("gss") < 1 / (1 - 1 / 6 - 1 / C)
