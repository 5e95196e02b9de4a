"""What a memory of limited capacity keeps, against the laws and the algorithms of the papers."""

from collections import Counter
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetcl import randomness
from budgetcl.memory.capped import BalancedReservoir, Greedy, Newest, Reservoir
from budgetcl.memory.memory import Memory
from budgetcl.randomness import lots

ALL = (Reservoir, BalancedReservoir, Greedy, Newest)


def streamed(keep, capacity, labels, cuts=(), seed=0, index=None):
    """Send samples through a memory that settles after each part."""
    memory, labels = Memory(capacity, keep), np.asarray(labels)
    index = np.arange(len(labels)) if index is None else np.asarray(index)
    for rows in np.split(np.arange(len(labels)), cuts):
        memory.add(index[rows], labels[rows])
        memory.settle(seed)
    return memory


# --- lots -------------------------------------------------------------------------------------------------------------


def test_lots_are_the_published_numbers_of_splitmix64(monkeypatch):
    """The n-th lot is the n-th output of the generator seeded with the key: here, of a published example."""
    monkeypatch.setattr(randomness, "_key", lambda seed, purpose: 1234567)
    published = (
        *(6457827717110365317, 3203168211198807973, 9817491932198370423),
        *(4593380528125082431, 16408922859458223821),
    )
    assert lots(0, "a", np.arange(1, 6)).tolist() == list(published)


def test_a_lot_belongs_to_its_sample_seed_and_purpose_and_to_nothing_else():
    index = np.arange(100_000)
    drawn = lots(0, "a", index)
    assert drawn.dtype == np.uint64
    assert len(np.unique(drawn)) == len(index)
    order = np.random.default_rng(0).permutation(index)[:500]
    assert np.array_equal(lots(0, "a", order), drawn[order])
    for other in (lots(1, "a", index), lots(0, "b", index)):
        assert not (other == drawn).any()
        assert abs(np.corrcoef(other.astype(float), drawn.astype(float))[0, 1]) < 0.02


@pytest.mark.parametrize("shift", [0, 30, 60])
def test_lots_of_neighbouring_samples_are_uniform_and_independent(shift):
    """Chi-square over 16 values of four bits, and over pairs of neighbours: 0.001 of honest draws exceed the bound."""
    bits = (lots(3, "a", np.arange(64_000)) >> np.uint64(shift) & np.uint64(15)).astype(np.int64)
    for values, kinds, bound in ((bits, 16, 37.7), (16 * bits[::2] + bits[1::2], 256, 330.5)):
        expected = len(values) / kinds
        assert ((np.bincount(values, minlength=kinds) - expected) ** 2 / expected).sum() < bound


# --- the reservoir ----------------------------------------------------------------------------------------------------


def algorithm_r(n, capacity, random):
    """Vitter, ACM TOMS 1985: the t-th sample replaces a random place with probability capacity / t."""
    kept = list(range(capacity))
    for t in range(capacity, n):
        place = int(random.integers(t + 1))
        if place < capacity:
            kept[place] = t
    return kept


def test_every_sample_seen_is_kept_with_the_same_probability():
    n, capacity, seeds = 20, 6, 500
    memories = [streamed(Reservoir(), capacity, np.zeros(n, int), (7, 8, 15), seed) for seed in range(seeds)]
    kept = np.array([memory.index for memory in memories])
    assert kept.shape == (seeds, capacity)
    assert (np.diff(kept) > 0).all()
    often, p = np.bincount(kept.ravel(), minlength=n), capacity / n
    # Inclusions of a fixed number are negatively correlated: this is chi-square with n - 1 degrees of freedom.
    statistic = ((often - seeds * p) ** 2).sum() / (seeds * p * (1 - p)) * (n - 1) / n
    assert statistic < 43.8  # exceeded by 0.001 of honest reservoirs


def test_whole_sets_are_as_frequent_as_those_of_algorithm_r():
    """Two samples of three out of six: each of the 20 sets, by both, in a chi-square test of homogeneity."""
    n, capacity, seeds = 6, 3, 600
    random = np.random.default_rng(0)
    ours, theirs = Counter(), Counter()
    for seed in range(seeds):
        ours[tuple(streamed(Reservoir(), capacity, np.zeros(n, int), (4, 5), seed).index.tolist())] += 1
        theirs[tuple(sorted(algorithm_r(n, capacity, random)))] += 1
    assert len(ours) == len(theirs) == comb(n, capacity)
    assert sum((ours[s] - theirs[s]) ** 2 / (ours[s] + theirs[s]) for s in ours) < 43.8
    assert sum((ours[s] - seeds / 20) ** 2 / (seeds / 20) for s in ours) < 43.8


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.sets(st.integers(1, 39)), st.integers(0, 99))
def test_a_reservoir_keeps_the_same_whatever_the_size_of_the_steps(capacity, n, cuts, seed):
    index = np.random.default_rng(seed).permutation(1000)[:n]  # samples need not come in the order of their indices
    labels = index % 5
    whole = streamed(Reservoir(), capacity, labels, (), seed, index)
    parts = streamed(Reservoir(), capacity, labels, sorted(c for c in cuts if c < n), seed, index)
    assert len(whole) == min(n, capacity)
    assert np.array_equal(whole.index, parts.index)
    assert np.array_equal(whole.label, parts.label)


# --- equal shares -----------------------------------------------------------------------------------------------------


def filled(sizes, capacity):
    """Give one place after another to a class that has fewest and has more to give: sorted shares."""
    shares = [0] * len(sizes)
    for _ in range(min(capacity, sum(sizes))):
        shares[min((s, c) for c, s in enumerate(shares) if s < sizes[c])[1]] += 1
    return sorted(shares)


@pytest.mark.parametrize("keep", [BalancedReservoir, Greedy])
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(1, 40), st.integers(0, 99))
def test_shares_are_as_even_as_the_sizes_of_the_classes_allow(keep, sizes, capacity, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    memory = streamed(keep(), capacity, labels, (), seed)
    held = np.bincount(memory.label, minlength=len(sizes))
    assert sorted(held.tolist()) == filled(sizes, capacity)
    assert (held <= sizes).all()
    assert np.array_equal(np.sort(memory.index), memory.index)
    if sum(sizes):
        assert np.array_equal(memory.class_counts, held[: len(memory.class_counts)])
        assert not held[len(memory.class_counts) :].any()


def test_within_a_class_a_balanced_reservoir_is_uniform():
    sizes, capacity, seeds = (3, 12, 30), 15, 400  # shares 3, 6 and 6
    labels = np.repeat(np.arange(3), sizes)
    often = np.zeros(45)
    for seed in range(seeds):
        memory = streamed(BalancedReservoir(), capacity, labels, (), seed)
        assert memory.class_counts.tolist() == [3, 6, 6]
        often[memory.index] += 1
    assert (often[:3] == seeds).all()
    for rows, bound in ((slice(3, 15), 31.3), (slice(15, 45), 58.3)):
        n = rows.stop - rows.start
        p = 6 / n
        assert ((often[rows] - seeds * p) ** 2).sum() / (seeds * p * (1 - p)) * (n - 1) / n < bound


@pytest.mark.parametrize("keep", [BalancedReservoir, Greedy])
def test_with_fewer_places_than_classes_lots_decide_which_keep_one(keep):
    seeds, chosen = 400, np.zeros(8)
    for seed in range(seeds):
        memory = streamed(keep(), 3, np.arange(40) % 8, (), seed)
        assert len(memory) == 3
        assert len(set(memory.label.tolist())) == 3
        chosen[memory.label] += 1
    p = 3 / 8
    assert ((chosen - seeds * p) ** 2).sum() / (seeds * p * (1 - p)) * 7 / 8 < 24.3


# --- GDumb ------------------------------------------------------------------------------------------------------------


def gdumb(labels, capacity, random):
    """Prabhu et al., ECCV 2020, algorithm 1: a sample is taken while its class has less than capacity / classes."""
    count, kept = Counter(), []
    for sample, y in enumerate(labels):
        if y not in count or count[y] < capacity / len(count):
            if len(kept) >= capacity:
                largest = max(count, key=lambda c: count[c])
                gone = random.choice([i for i in kept if labels[i] == largest])
                kept.remove(gone)
                count[largest] -= 1
            kept.append(sample)
            count[y] += 1
    return kept


@pytest.mark.parametrize("step", [1, 4, 13])
@pytest.mark.parametrize("seed", range(5))
def test_where_every_class_comes_early_the_same_samples_stay_as_by_algorithm_1(step, seed):
    """Then the algorithm never removes one at random, and each class keeps its first capacity / classes."""
    random = np.random.default_rng(seed)
    labels = [*range(4), *random.permutation(np.repeat(np.arange(4), 12)).tolist()]
    kept = gdumb(labels, 12, random)
    assert Counter(labels[i] for i in kept) == dict.fromkeys(range(4), 3)
    memory = streamed(Greedy(), 12, labels, range(step, len(labels), step), seed)
    assert memory.index.tolist() == sorted(kept)


@pytest.mark.parametrize("step", [1, 5, 20])
def test_where_classes_come_one_after_the_other_shares_shrink_as_by_algorithm_1(step):
    labels = np.repeat(np.arange(4), 20)
    for seen in (20, 40, 60, 80):
        classes = seen // 20
        kept = gdumb(labels[:seen].tolist(), 12, np.random.default_rng(0))
        memory = streamed(Greedy(), 12, labels[:seen], range(step, seen, step))
        assert (
            Counter(labels[kept].tolist())
            == Counter(memory.label.tolist())
            == dict.fromkeys(range(classes), 12 // classes)
        )
        for c in range(classes):  # first come, first kept
            assert memory.index[memory.rows_of(c)].tolist() == list(range(20 * c, 20 * c + 12 // classes))


# --- all of them ------------------------------------------------------------------------------------------------------


def test_the_newest_are_the_last_revealed():
    memory = streamed(Newest(), 5, np.arange(23) % 3, (4, 11, 12), index=np.arange(23)[::-1])
    assert memory.index.tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("keep", ALL)
def test_what_fits_is_kept_and_settling_twice_changes_nothing(keep):
    memory = streamed(keep(), 10, np.arange(10) % 3)
    assert memory.index.tolist() == list(range(10))
    memory.add(np.arange(10, 30), np.arange(20) % 3)
    memory.settle(1)
    kept = memory.index.copy()
    assert len(kept) == 10
    memory.settle(1)
    memory.settle(2)
    assert np.array_equal(memory.index, kept)


@pytest.mark.parametrize("keep", [Reservoir, BalancedReservoir])
def test_the_seed_decides_the_lots(keep):
    one, same, other = (streamed(keep(), 10, np.arange(50) % 5, (20, 30), seed).index for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("keep", ALL)
def test_a_memory_of_one_keeps_one(keep):
    assert len(streamed(keep(), 1, np.arange(9) % 4, (1, 2, 5))) == 1
