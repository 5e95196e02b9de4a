"""Nearest means and nearest neighbours: against scikit-learn, by hand, at their price."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from budgetcl.errors import UserError
from budgetcl.learners import nearest
from budgetcl.learners.nearest import NearestMean, NearestNeighbours, votes

CPU = torch.device("cpu")


def blobs(n, d=8, classes=5, seed=0, spread=1.5):
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=n)
    x = np.random.default_rng(99).normal(size=(classes, d))[y] + spread * random.normal(size=(n, d))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def taught(classifier, x, y, compute, classes=5, sizes=(1, 30, 7)):
    """Teach in batches of these sizes, over and over; classes appear when their first sample does."""
    start = step = 0
    while start < len(x):
        end = start + sizes[step % len(sizes)]
        classifier.begin(x.shape[1], int(y[:end].max()) + 1 if end < len(x) else classes, CPU)
        classifier.learn(x[start:end], y[start:end], compute)
        start, step = end, step + 1
    classifier.finish(0, compute)
    return classifier


def test_the_nearest_mean_is_that_of_scikit_learn(compute):
    (x, y), (queries, _) = blobs(200), blobs(100, seed=1)
    scores = taught(NearestMean("euclidean"), x, y, compute).scores(queries, compute)
    expected = NearestCentroid().fit(x.numpy(), y.numpy()).predict(queries.numpy())
    np.testing.assert_array_equal(scores.argmax(1), expected)
    means = torch.stack([x[y == c].double().mean(0) for c in range(5)])
    by_hand = -(queries.double()[:, None] - means).square().sum(2) / 2
    torch.testing.assert_close(scores.softmax(1), by_hand.softmax(1))


def test_the_nearest_mean_by_cosine_is_the_largest_cosine(compute):
    (x, y), (queries, _) = blobs(200), blobs(100, seed=1)
    scores = taught(NearestMean("cosine"), x, y, compute).scores(queries, compute)
    means = torch.stack([x[y == c].double().mean(0) for c in range(5)])
    torch.testing.assert_close(scores, torch.cosine_similarity(queries.double()[:, None], means[None], dim=2))


def test_a_mean_costs_an_addition_a_value_and_its_search_a_product(compute, charged):
    x, y = blobs(200)
    classifier = taught(NearestMean(), x, y, compute)
    assert charged("train") == 200 * 8
    assert classifier.price(3) == 24
    classifier.scores(x[:10], compute)
    assert charged("predict") == 10 * 2 * 8 * 5
    assert classifier.nbytes() == 8 * 5 * 8 + 8 * 5


@pytest.mark.parametrize(("mine", "theirs"), [("euclidean", "euclidean"), ("cosine", "cosine")])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_the_neighbours_votes_are_those_of_scikit_learn(compute, mine, theirs, k):
    (x, y), (queries, _) = blobs(300, spread=2), blobs(150, seed=1, spread=2)
    scores = taught(NearestNeighbours(k, mine), x, y, compute).scores(queries, compute)
    reference = KNeighborsClassifier(k, algorithm="brute", metric=theirs).fit(x.numpy(), y.numpy())
    shares = reference.predict_proba(queries.numpy())
    np.testing.assert_allclose(scores.softmax(1), shares, atol=1e-6)
    clear = np.sort(shares)[:, -1] > np.sort(shares)[:, -2]
    np.testing.assert_array_equal(scores.argmax(1)[clear], shares.argmax(1)[clear])
    assert clear.sum() > 75


def test_equal_votes_go_to_the_nearer_neighbours():
    labels = torch.tensor([[2, 0, 0, 2], [0, 2, 2, 0], [1, 2, 0, -1], [3, -1, -1, -1]])
    scores = votes(labels, 5)
    assert scores.argmax(1).tolist() == [2, 0, 1, 3]
    np.testing.assert_allclose(scores.softmax(1)[0], [0.5, 0, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(scores.softmax(1)[2], [1 / 3, 1 / 3, 1 / 3, 0, 0], atol=1e-6)
    assert scores[3].exp().tolist() == pytest.approx([0, 0, 0, 1, 0], abs=1e-5)
    assert scores[3, 0] == -torch.inf


def test_a_search_in_parts_finds_what_one_search_finds(compute, monkeypatch):
    (x, y), (queries, _) = blobs(100), blobs(40, seed=1)
    classifier = taught(NearestNeighbours(7), x, y, compute)
    whole = classifier.scores(queries, compute)
    monkeypatch.setattr(nearest, "_PAIRS", 300)
    torch.testing.assert_close(classifier.scores(queries, compute), whole)


def test_neighbours_cost_nothing_to_store_and_each_pair_when_searched(compute, charged):
    x, y = blobs(200)
    classifier = taught(NearestNeighbours(5), x, y, compute)
    assert charged("train") == classifier.price(7) == classifier.kept(1000) == 0
    classifier.scores(x[:10], compute)
    assert charged("predict") == 10 * 200 * (2 * 8 + 3)
    assert classifier.nbytes() == 200 * (4 * 8 + 8)


def test_a_capacity_keeps_a_uniform_sample_of_all_that_was_seen(compute):
    kept = np.zeros(60)
    for seed in range(400):
        classifier = NearestNeighbours(1, "euclidean", capacity=15, seed=seed)
        x = torch.arange(1, 61, dtype=torch.float32)[:, None] * torch.tensor([1.0, 0.0])
        taught(classifier, x, torch.arange(60), compute, classes=60, sizes=(4, 20, 1))
        state = classifier.state_dict()
        assert state["labels"].tolist() == [int(value) - 1 for value in state["features"][:, 0]]
        assert len(set(state["labels"].tolist())) == 15
        kept[state["labels"]] += 1
    # each is kept with probability 1/4: 100 times in 400, with a standard deviation of 8.7
    assert abs(kept - 100).max() < 4 * 8.7
    assert abs(kept[:15].mean() - kept[-15:].mean()) < 4 * 8.7 / 15**0.5 * 2**0.5


def test_a_capacity_that_is_not_reached_changes_nothing(compute):
    x, y = blobs(50)
    one, other = (taught(NearestNeighbours(3, capacity=c), x, y, compute).state_dict() for c in (None, 50))
    assert torch.equal(one["features"], other["features"])
    assert torch.equal(one["labels"], other["labels"])


def test_a_capacity_bounds_the_price_of_a_search(compute, charged):
    x, y = blobs(200)
    classifier = taught(NearestNeighbours(5, capacity=40), x, y, compute)
    classifier.scores(x[:10], compute)
    assert charged("predict") == 10 * 40 * (2 * 8 + 3)
    assert classifier.nbytes() == 40 * (4 * 8 + 8)


@pytest.mark.parametrize("make", [lambda: NearestMean(), lambda: NearestMean("cosine"), lambda: NearestNeighbours(5)])
def test_tiny_inputs(compute, make):
    x, _ = blobs(3)
    one = taught(make(), x[:1], torch.tensor([2]), compute, classes=4)
    scores = one.scores(x, compute)
    assert scores.argmax(1).tolist() == [2, 2, 2]
    assert scores.softmax(1)[:, 2].tolist() == [1, 1, 1]
    assert torch.isinf(scores[:, [0, 1, 3]]).all()  # of these nothing was learnt
    three = taught(make(), x, torch.tensor([0, 1, 2]), compute, classes=3, sizes=(1,))
    assert three.scores(x, compute).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("k", [0, 2.5, None])
def test_a_k_that_is_none_is_refused(k):
    with pytest.raises(UserError, match=r"classifier.k=.* given; an integer of at least 1"):
        NearestNeighbours(k)


@pytest.mark.parametrize("make", [lambda: NearestMean("l1"), lambda: NearestNeighbours(5, "l1")])
def test_an_unknown_metric_is_refused(make):
    with pytest.raises(UserError, match=r"classifier.metric='l1' given"):
        make()
