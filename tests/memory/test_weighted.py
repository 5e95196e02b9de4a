"""Weighted draws against the probabilities of drawing one by one, by enumeration."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import chisquare

from budgetcl.memory.weighted import distinct, heaviest
from budgetcl.randomness import generator

WEIGHT = np.array([5.0, 1.0, 0.5, 3.0, 0.5])


def by_enumeration(weight, n):
    """Set of n -> its probability, when each next one is drawn by weight among those that are left."""
    probability = Counter()
    for order in permutations(range(len(weight)), n):
        p, left = 1.0, weight.sum()
        for i in order:
            p, left = p * weight[i] / left, left - weight[i]
        probability[frozenset(order)] += p
    return probability


def weigh_all(n, random):
    return heaviest(n, np.log(WEIGHT), random)


def propose(n, random):
    def rows(tries):
        rows = random.integers(5, size=tries)
        return rows[random.random(tries) < WEIGHT[rows] / 5]

    return distinct(n, rows)


@pytest.mark.parametrize("draw", [weigh_all, propose])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_sets_are_as_frequent_as_when_drawn_one_by_one(draw, n):
    expected = by_enumeration(WEIGHT, n)
    assert sum(expected.values()) == pytest.approx(1)
    counts = Counter(frozenset(draw(n, generator(i, "test")).tolist()) for i in range(2000))
    assert set(counts) <= set(expected)
    assert chisquare([counts[key] for key in expected], [2000 * p for p in expected.values()]).pvalue > 1e-3


@pytest.mark.parametrize("draw", [weigh_all, propose])
def test_all_are_drawn_where_all_are_asked(draw):
    assert sorted(draw(5, generator(0, "test")).tolist()) == [0, 1, 2, 3, 4]


def test_the_first_distinct_proposals_are_taken_in_their_order():
    proposals = iter([[7, 7, 3, 7], [3, 9, 1, 5]])
    assert distinct(4, lambda tries: np.array(next(proposals))).tolist() == [7, 3, 9, 1]


def test_few_acceptances_take_few_rounds():
    random, asked = generator(0, "test"), []

    def propose(tries):
        asked.append(tries)
        rows = random.integers(10**6, size=tries)
        return rows[random.random(tries) < 1e-4]

    assert len(distinct(64, propose)) == 64
    assert len(asked) < 20
    assert max(asked) <= 1 << 20
