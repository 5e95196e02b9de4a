"""Intervals and ranks: exact cases and invariants; coverage is checked at length by scripts/simulate_statistics.py."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetcl.errors import UserError
from budgetcl.metrics import bootstrap_interval, paired_difference, rank_interval
from budgetcl.metrics.stats import _widening

ROOT = Path(__file__).parents[2]


def simulation():
    spec = importlib.util.spec_from_file_location("simulate", ROOT / "scripts" / "simulate_statistics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_interval_of_independent_steps_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(size=4000)
    interval = bootstrap_interval(values, block=1)
    error = values.std(ddof=1) / np.sqrt(4000)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_correlated_steps_widen_the_interval_as_much_as_theory_says():
    rng, phi = np.random.default_rng(0), 0.5
    values = simulation().correlated(rng, (8000,), phi)
    plain, blocked = bootstrap_interval(values, block=1), bootstrap_interval(values)
    ratio = (blocked.high - blocked.low) / (plain.high - plain.low)
    assert ratio == pytest.approx(np.sqrt((1 + phi) / (1 - phi)), rel=0.12)


def test_seeds_that_differ_give_students_interval_of_their_means():
    seeds = np.array([0.1, 0.5, 0.9, 0.4])
    interval = bootstrap_interval(seeds[:, None] + np.zeros((4, 50)), resamples=20_000)
    half = 3.1824 * seeds.std(ddof=1) / 2  # t with 3 degrees of freedom at 97.5 %
    assert interval.low == pytest.approx(interval.estimate - half, rel=0.1)
    assert interval.high == pytest.approx(interval.estimate + half, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(-5, 5), st.floats(0.1, 10))
def test_intervals_move_and_scale_with_the_values(seed, offset, scale):
    values = np.random.default_rng(seed).normal(size=(2, 12))
    one, two = (bootstrap_interval(x, resamples=50) for x in (values, offset + scale * values))
    assert (two.low, two.estimate, two.high) == pytest.approx(
        tuple(offset + scale * x for x in (one.low, one.estimate, one.high)), abs=1e-9
    )


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(0)
    shared = 10 * rng.normal(size=(3, 60))
    first, second = (shared + rng.normal(size=(3, 60)) * 0.1 for _ in range(2))
    difference = paired_difference(first + 0.2, second)
    assert difference.differs
    assert difference.p < 0.01
    assert not paired_difference(first, second).differs
    assert difference.estimate == pytest.approx((first - second).mean() + 0.2)
    swapped = paired_difference(second, first + 0.2)
    assert swapped.estimate == -difference.estimate


def test_the_draws_depend_on_the_seed_only():
    values = np.random.default_rng(0).normal(size=(3, 30))
    assert bootstrap_interval(values) == bootstrap_interval(values.copy())
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([1.0]), "two time steps"),
        (lambda: bootstrap_interval([1.0, np.nan]), "nan at"),
        (lambda: bootstrap_interval([1.0, 2.0], level=1.0), "level=1.0"),
        (lambda: bootstrap_interval([1.0, 2.0], block=2), "block=2"),
        (lambda: bootstrap_interval(np.zeros((2, 2, 2))), "3 dimensions"),
        (lambda: paired_difference([1.0, 2.0], [1.0, 2.0, 3.0]), "one shape"),
        (lambda: rank_interval([[1.0], [2.0]]), "one block"),
        (lambda: rank_interval([1.0, 2.0]), "1 dimensions"),
        (lambda: rank_interval(np.zeros((2, 3)), resamples=10), "20 / "),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_students_factor_is_right():
    tables = {1: 12.7062, 2: 4.3027, 4: 2.7764, 10: 2.2281, 100: 1.9840}
    for freedom, quantile in tables.items():
        assert _widening(0.95, freedom) * 1.959964 == pytest.approx(quantile, rel=0.003)


def test_ranks_leave_open_what_is_not_sure():
    rng = np.random.default_rng(0)
    quality = np.array([0.0, 5.0, 5.0, 9.0])
    scores = quality[:, None] + rng.normal(size=(4, 40)) + 3 * rng.normal(size=40)
    ranks = rank_interval(scores, resamples=500)
    assert ranks.low == (4, 2, 2, 1)
    assert ranks.high == (4, 3, 3, 1)
    losses = rank_interval(-scores, resamples=500, higher_is_better=False)
    assert (losses.low, losses.high) == (ranks.low, ranks.high)
    assert losses.mean == pytest.approx((-scores).mean(axis=1))
    order = [2, 0, 3, 1]
    mixed = rank_interval(scores[order], resamples=500)
    assert [mixed.low[i] for i in np.argsort(order)] == list(ranks.low)


def test_equal_entries_share_all_ranks_and_copies_never_differ():
    scores = np.random.default_rng(0).normal(size=(1, 30)).repeat(5, axis=0)
    ranks = rank_interval(scores, resamples=400)
    assert ranks.low == (1,) * 5
    assert ranks.high == (5,) * 5


def test_a_constant_advantage_is_an_advantage():
    scores = np.random.default_rng(0).normal(size=(1, 30)) + np.array([[0.0], [0.5]])
    assert rank_interval(scores, resamples=400).low == (2, 1)


def test_luck_of_seeds_is_no_difference():
    rng = np.random.default_rng(0)
    scores = 0.01 * rng.normal(size=(6, 3, 40)) + rng.normal(size=(6, 3, 1))
    assert not rank_interval(scores, resamples=400).better.any()
    assert rank_interval(scores.mean(axis=1), resamples=400).better.any()  # which one run an entry would claim


def test_the_simulation_runs_and_finds_the_promised_coverage():
    module = simulation()
    assert module.coverage(60, 3, 20, 0.5, 0.0, 0.0, False) > 0.85
    false, found = module.family_wise_error(25, 5, 1, 30, 0.0, 3)
    assert false <= 0.2
    assert found > 0.8
