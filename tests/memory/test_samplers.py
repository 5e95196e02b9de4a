from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetcl.errors import UserError
from budgetcl.memory.memory import Memory
from budgetcl.memory.recency import HalfRecent, Recent
from budgetcl.memory.sampler import Place
from budgetcl.memory.uniform import ClassBalanced, Uniform, fill_evenly
from budgetcl.randomness import generator


def place(*reveals, seed=0, step=0):
    memory, start = Memory(), 1000
    for labels in reveals:
        memory.add(np.arange(start, start + len(labels)), np.asarray(labels, dtype=np.int64))
        start += len(labels)
    return Place(seed, step, memory, SimpleNamespace(), SimpleNamespace(), SimpleNamespace())


def draws(sampler, where, n, updates):
    sampler.begin(where)
    return [sampler.draw(n, update) for update in range(updates)]


SAMPLERS = [Uniform, ClassBalanced, lambda: Recent(None), lambda: Recent(7), lambda: HalfRecent(0.5, 5)]


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_batch_is_exact_distinct_repeatable_and_differs_by_update_step_and_seed(make):
    labels = [0, 0, 0, 1, 2, 2, 2, 2, 2, 3] * 4
    where = place([0, 1, 2, 3], labels)
    first, second, *_ = draws(make(), where, 7, 3)
    assert len(first) == 7 == len(set(first.tolist()))
    again = draws(make(), place([0, 1, 2, 3], labels), 7, 3)
    np.testing.assert_array_equal(first, again[0])
    if make is not SAMPLERS[3]:  # a window of 7 leaves a batch of 7 no choice
        others = [second, *draws(make(), place([0, 1, 2, 3], labels, seed=1), 7, 1)]
        others += draws(make(), place([0, 1, 2, 3], labels, step=1), 7, 1)
        assert all(set(other.tolist()) != set(first.tolist()) or (other != first).any() for other in others)


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_pool_as_large_as_the_batch_is_drawn_whole_and_a_smaller_one_is_refused(make):
    where = place([0, 1, 1, 2, 0])
    sampler = make()
    sampler.begin(where)
    assert sorted(sampler.draw(5, 0).tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"batch of 6 .* holds 5"):
        sampler.draw(6, 0)


def test_uniform_draws_new_and_old_samples_equally_often():
    picks = np.concatenate(draws(Uniform(), place(np.zeros(30, int), np.zeros(10, int)), 8, 1000))
    share = np.bincount(picks, minlength=40) / 1000
    assert abs(share - 8 / 40).max() < 5 * np.sqrt(0.2 * 0.8 / 1000)


def test_class_balanced_shares_differ_by_at_most_one_and_average_out():
    where = place(np.repeat([0, 1, 2], [60, 40, 20]))
    counts = np.array(
        [np.bincount(where.memory.label[rows], minlength=3) for rows in draws(ClassBalanced(), where, 10, 900)]
    )
    assert (counts.max(1) - counts.min(1) == 1).all()
    assert abs(counts.mean(0) - 10 / 3).max() < 0.1


def test_class_balanced_is_uniform_within_a_class():
    where = place(np.repeat([0, 1], [50, 5]))
    picks = np.concatenate(draws(ClassBalanced(), where, 6, 2000))
    count = np.bincount(picks, minlength=55)
    assert abs(count[:50] / 2000 - 3 / 50).max() < 5 * np.sqrt(0.06 * 0.94 / 2000)
    assert abs(count[50:] / 2000 - 3 / 5).max() < 5 * np.sqrt(0.6 * 0.4 / 2000)


def test_a_class_too_small_for_its_share_gives_all_it_has():
    where = place(np.repeat([0, 1], [50, 2]))
    for rows in draws(ClassBalanced(), where, 10, 20):
        assert np.bincount(where.memory.label[rows]).tolist() == [8, 2]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any), st.data())
def test_fill_evenly_fills_exactly_and_evenly(capacity, data):
    capacity = np.array(capacity)
    n = data.draw(st.integers(0, int(capacity.sum())))
    shares = fill_evenly(n, capacity, generator(0, "test"))
    assert shares.sum() == n
    assert (shares <= capacity).all()
    below = shares[shares < capacity]
    assert len(below) == 0 or shares.max() <= below.min() + 1


def test_recent_draws_only_from_the_window_and_by_default_from_the_step():
    where = place(np.zeros(100, int), np.zeros(9, int))
    assert set(np.concatenate(draws(Recent(), where, 4, 200))) == set(range(100, 109))
    assert set(np.concatenate(draws(Recent(20), where, 4, 400))) == set(range(89, 109))


def test_half_recent_takes_its_share_from_the_window_and_the_rest_uniformly_without_repetition():
    where = place(np.zeros(90, int), np.zeros(10, int))
    rows = np.array(draws(HalfRecent(0.5), where, 8, 3000))
    assert (rows[:, :4] >= 90).all()
    assert all(len(set(row)) == 8 for row in rows.tolist())
    # The other four fall uniformly on the 96 rows left: each old row with 4/96.
    old = np.bincount(rows[:, 4:].ravel(), minlength=100)[:90] / 3000
    assert abs(old - 4 / 96).max() < 5 * np.sqrt(4 / 96 / 3000)


def test_half_recent_fills_up_from_the_past_where_few_are_recent():
    where = place(np.zeros(50, int), np.zeros(2, int))
    rows = draws(HalfRecent(0.5), where, 8, 1)[0]
    assert {50, 51} <= set(rows.tolist())
    assert len(set(rows.tolist())) == 8
