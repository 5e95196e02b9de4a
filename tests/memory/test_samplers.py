from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from budgetcl.errors import UserError
from budgetcl.memory.memory import Memory
from budgetcl.memory.power_law import PowerLaw
from budgetcl.memory.recency import HalfRecent, RecencyBiased, Recent, untaken
from budgetcl.memory.sampler import Place
from budgetcl.memory.uniform import ClassBalanced, Uniform, distinct_places, fill_evenly
from budgetcl.memory.weighted import distinct
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


SAMPLERS = [
    Uniform, ClassBalanced, lambda: Recent(None), lambda: Recent(7), lambda: HalfRecent(0.5, 5), RecencyBiased,
    lambda: RecencyBiased(3), PowerLaw,
]  # fmt: skip


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


# --- with replacement -------------------------------------------------------------------------------------------------


def test_with_replacement_draws_are_independent():
    where = place(np.zeros(20, int))
    rows = np.array(draws(Uniform(replacement=True), where, 20, 500))
    counts = np.bincount(rows.ravel(), minlength=20)
    assert chisquare(counts).pvalue > 1e-3
    distinct = np.mean([len(set(row)) for row in rows.tolist()])
    assert abs(distinct - 20 * (1 - 0.95**20)) < 0.3  # 12.8 of 20, as with independent draws
    assert len(draws(Uniform(replacement=True), place([0, 0]), 7, 1)[0]) == 7


def test_an_empty_memory_and_a_word_for_replacement_are_refused():
    sampler = Uniform(replacement=True)
    sampler.begin(place())
    with pytest.raises(UserError, match="the memory, which holds 0"):
        sampler.draw(1, 0)
    with pytest.raises(UserError, match="replacement='yes' given; true or false"):
        Uniform(replacement="yes")


# --- class-balanced, many and few classes -----------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=9), st.integers(0, 99))
def test_places_are_distinct_within_each_holder(holders, seed):
    shares, counts = (np.array(column) for column in zip(*[(share, share + more) for share, more in holders]))
    parts = np.split(distinct_places(shares, counts, generator(seed, "test")), np.cumsum(shares)[:-1])
    for places, share, count in zip(parts, shares, counts):
        assert len(set(places.tolist())) == share == len(places)
        assert places.min() >= 0
        assert places.max() < count


@pytest.mark.parametrize("holders", [2, 4])  # one way where shares exceed the holders, another where they do not
def test_all_sets_of_places_are_equally_likely(holders):
    shares, counts = np.full(holders, 3), np.full(holders, 5)
    sets = {}
    for seed in range(1500):
        key = frozenset(distinct_places(shares, counts, generator(seed, "test"))[-3:].tolist())
        sets[key] = sets.get(key, 0) + 1
    assert len(sets) == 10
    assert chisquare(list(sets.values())).pvalue > 1e-3


# --- weights by age ---------------------------------------------------------------------------------------------------


def frequencies(sampler, where, n, updates):
    """How often each row came, and its standard error at most."""
    counts = np.bincount(np.concatenate(draws(sampler, where, n, updates)), minlength=len(where.memory))
    return counts / updates


def fits(frequency, probability, updates):
    return chisquare(frequency * updates, probability * updates).pvalue > 1e-3


@pytest.mark.parametrize(("size", "scale"), [(30, 7), (250, 40)])  # weighed as a whole; by inverting the distribution
def test_recency_falls_exponentially_with_age(size, scale):
    where = place(np.zeros(size, int))
    weight = np.exp(-np.arange(size)[::-1] / scale)
    assert fits(frequencies(RecencyBiased(scale), where, 1, 4000), weight / weight.sum(), 4000)


def test_recency_counts_ages_by_what_the_step_revealed():
    where, weight = place(np.zeros(40, int), np.zeros(10, int)), np.exp(-np.arange(50)[::-1] / 10)
    assert fits(frequencies(RecencyBiased(), where, 1, 4000), weight / weight.sum(), 4000)


def test_a_short_scale_still_fills_a_batch_and_prefers_the_newest():
    where = place(np.zeros(100_000, int))
    batches = draws(RecencyBiased(1), where, 64, 50)
    assert all(len(set(rows.tolist())) == 64 for rows in batches)
    assert min(rows.min() for rows in batches) > 100_000 - 64 - 40
    assert all(99_999 in rows for rows in batches)


def used(where, *uses):
    for step, rows in uses:
        where.memory.used(np.array(rows), step)
    return where


@pytest.mark.parametrize("size", [24, 600])  # weighed as a whole; by rejection
def test_power_law_weights_are_powers_of_the_steps_since_use(size):
    # In step 3: a quarter each was used in step 0, in steps 0 and 2, never, and is new.
    quarter = size // 4
    where = place(np.zeros(3 * quarter, int), np.zeros(quarter, int), step=3)
    used(where, (0, np.arange(2 * quarter)), (2, np.arange(quarter, 2 * quarter)))
    age = np.repeat([4, 2, 5, 1], quarter)
    for exponent in (0.0, 1.0, 2.5):
        weight = age**-exponent
        frequency = frequencies(PowerLaw(exponent), where, 1, 1500)
        mine, expected = (column.reshape(8, -1).sum(1) for column in (frequency, weight / weight.sum()))
        assert fits(mine, expected, 1500)


def test_power_law_follows_what_the_step_uses():
    where = used(place(np.zeros(1000, int), np.zeros(2, int), step=8), (0, np.arange(1000)))
    sampler = PowerLaw(2.0)
    before = frequencies(sampler, where, 1, 800)
    where.memory.used(np.arange(500), 8)
    after = frequencies(sampler, where, 1, 800)
    weights = np.r_[np.full(1000, 1 / 81), 1, 1]
    assert abs(before[:500].sum() - 500 / 81 / weights.sum()) < 5 * 0.5 / np.sqrt(800)
    weights[:500] = 1
    assert abs(after[:500].sum() - 500 / weights.sum()) < 5 * 0.5 / np.sqrt(800)


def lived(size, steps, uses=5, seed=0):
    """A memory that grew for so many steps, whose rows were used in all of them, the newer ones more often."""
    random, each = np.random.default_rng(seed), size // steps
    where = place(np.zeros(size - each * (steps - 1), int), step=0)
    sampler = PowerLaw()
    for step in range(steps):
        if step:
            where.memory.add(1000 + len(where.memory) + np.arange(each), np.zeros(each, np.int64))
        where = replace(where, step=step)
        sampler.begin(where)
        for update in range(uses):
            where.memory.used(sampler.draw(2, update), step)
            where.memory.used(len(where.memory) - 1 - random.integers(0, each, 3), step)
    return where


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 3.0])
def test_power_law_draws_from_joined_windows_as_by_weighing_each_row(exponent):
    where = lived(600, 30)
    memory, step = where.memory, where.step
    age = 1 + step - np.where(np.arange(600) >= 600 - memory.new, step, memory.last_used)
    assert len(np.unique(age)) > 15
    assert len(memory.by_use(step).ends) < 10
    weight = age**-exponent
    frequency = frequencies(PowerLaw(exponent), where, 1, 2000)
    groups = np.minimum(age - 1, 20)
    mine, expected = (np.bincount(groups, column) for column in (frequency, weight / weight.sum()))
    # Few are expected of the oldest: each group has enough for the test.
    enough = expected * 2000 >= 5
    mine, expected = (np.r_[column[enough], column[~enough].sum()] for column in (mine, expected))
    mine, expected = (column[:-1] if not expected[-1] else column for column in (mine, expected))
    assert fits(mine, expected, 2000)
    # Rows of one age are alike, whatever window they are in.
    rows = np.flatnonzero(age == np.bincount(age).argmax())
    halves = [frequency[part].sum() * 2000 for part in np.array_split(rows, 2)]
    assert binomtest(round(halves[0]), round(sum(halves)), len(np.array_split(rows, 2)[0]) / len(rows)).pvalue > 1e-3


def test_power_law_goes_on_from_a_state_with_the_same_draws():
    where = lived(600, 12)
    other = Memory()
    other.load_state_dict(where.memory.state_dict())
    assert other.nbytes == where.memory.nbytes
    for memory in (where.memory, other):
        memory.add(np.arange(5000, 5020), np.zeros(20, np.int64))
    mine, theirs = (draws(PowerLaw(), replace(where, memory=memory, step=12), 4, 5) for memory in (where.memory, other))
    np.testing.assert_array_equal(mine, theirs)


def test_power_law_fills_a_batch_where_few_rows_have_nearly_all_the_weight():
    where = place(np.zeros(2000, int), np.zeros(3, int), step=60)
    rows = draws(PowerLaw(10), where, 8, 1)[0]
    assert {2000, 2001, 2002} <= set(rows.tolist())
    assert len(set(rows.tolist())) == 8


def test_power_law_asks_as_often_after_many_steps_as_after_few(monkeypatch):
    asked = []

    def count(n, propose, weigh_all):
        def counting(tries):
            asked.append(tries)
            return propose(tries)

        return distinct(n, counting, weigh_all)

    monkeypatch.setattr("budgetcl.memory.power_law.distinct", count)
    proposals = {}
    for steps in (10, 500):
        where = lived(10_000, steps, uses=1)
        asked.clear()
        draws(PowerLaw(), where, 64, 20)
        proposals[steps] = sum(asked) / 20
        assert len(where.memory.by_use(where.step).ends) <= 2 * np.log2(steps)
    assert 64 <= proposals[500] < 2 * proposals[10] < 1000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecencyBiased(0), "scale=0 given; an integer of at least 1"),
        (lambda: PowerLaw(-1), "exponent=-1 given; a number from 0 to 10"),
    ],
)
def test_settings_that_are_none_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@given(st.integers(1, 30), st.data())
def test_the_rest_is_drawn_beside_what_is_taken(size, data):
    taken = np.array(data.draw(st.lists(st.integers(0, size - 1), unique=True)), dtype=np.int64)
    n = data.draw(st.integers(0, size - len(taken)))
    rows = untaken(size, taken, n, generator(0, "test"))
    assert len(set(rows.tolist()) | set(taken.tolist())) == n + len(taken)
    assert n == 0 or (rows.min() >= 0 and rows.max() < size)


@pytest.mark.parametrize("make", SAMPLERS)
def test_only_samplers_that_ask_for_nothing_may_draw_ahead(make):
    """Draws made before their time are those made in time, whatever was used in between."""
    late, early = (place([0, 1, 2, 3], [0, 1] * 12, step=2) for _ in range(2))
    sampler = make()
    sampler.begin(early)
    if sampler.ahead:
        before = [sampler.draw(6, update) for update in range(5)]
        sampler.begin(late)
        for update in range(5):
            rows = sampler.draw(6, update)
            late.memory.used(rows, 2)
            np.testing.assert_array_equal(rows, before[update])
    else:
        assert isinstance(sampler, PowerLaw)
