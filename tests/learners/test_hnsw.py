"""Approximate neighbours: as exact ones where the search is wide, cheaper where it is not, charged by faiss's count."""

import sys

import numpy as np
import pytest
import torch

from budgetcl.errors import UserError
from budgetcl.learners.hnsw import ApproximateNeighbours
from budgetcl.learners.nearest import NearestNeighbours

faiss = pytest.importorskip("faiss")
CPU = torch.device("cpu")


def features(n, d=16, seed=0):
    random = np.random.default_rng(seed)
    y = random.integers(9, size=n)
    x = np.random.default_rng(3).normal(size=(9, d))[y] + random.normal(size=(n, d))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def taught(classifier, x, y, compute, size=50):
    for start in range(0, len(x), size):
        classifier.begin(x.shape[1], 9, CPU)
        classifier.learn(x[start : start + size], y[start : start + size], compute)
    return classifier


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_wide_search_finds_the_exact_neighbours(compute, metric):
    (x, y), (queries, _) = features(300), features(60, seed=1)
    mine = taught(ApproximateNeighbours(5, metric, breadth=300, search=300), x, y, compute).scores(queries, compute)
    exact = taught(NearestNeighbours(5, metric), x, y, compute).scores(queries, compute)
    torch.testing.assert_close(mine, exact)


def test_a_narrow_search_is_nearly_right_and_cheaper(compute, charged):
    (x, y), (queries, _) = features(2000), features(100, seed=1)
    classifier = taught(ApproximateNeighbours(5), x, y, compute, size=500)
    mine = classifier.scores(queries, compute).argmax(1)
    approximate = charged("predict")
    exact = taught(NearestNeighbours(5), x, y, compute).scores(queries, compute).argmax(1)
    assert (mine == exact).float().mean() > 0.95
    assert approximate < (charged("predict") - approximate) / 3


def test_answers_cost_what_faiss_counts(compute, charged):
    (x, y), (queries, _) = features(400), features(30, seed=1)
    classifier = taught(ApproximateNeighbours(3, "euclidean", search=20), x, y, compute)
    classifier.scores(queries, compute)
    faiss.cvar.hnsw_stats.reset()
    classifier._index.search(queries.numpy(), 3, params=faiss.SearchParametersHNSW(efSearch=20))
    assert charged("predict") == faiss.cvar.hnsw_stats.ndis * (2 * 16 + 3) > 0


def test_an_insertion_pays_for_two_searches_of_its_breadth_and_gets_the_rest_back(compute, charged):
    x, y = features(400)
    classifier = taught(ApproximateNeighbours(3, "euclidean", breadth=24), x[:350], y[:350], compute)
    before, most = charged("train"), classifier.price(50)
    assert most == 4 * 50 * 400 * (2 * 16 + 3)
    classifier.learn(x[350:], y[350:], compute)
    faiss.cvar.hnsw_stats.reset()
    classifier._index.search(x[350:].numpy(), 1, params=faiss.SearchParametersHNSW(efSearch=24))
    assert charged("train") - before == 2 * faiss.cvar.hnsw_stats.ndis * (2 * 16 + 3) < most


def test_an_insertion_costs_no_more_distances_than_are_reserved(compute):
    """Small graphs with many levels look at some features more than once."""
    for n, links in [(1, 2), (2, 2), (8, 2), (31, 4), (100, 16)]:
        x, _ = features(n, seed=n)
        classifier = ApproximateNeighbours(1, links=links)
        classifier.begin(16, 9, CPU)
        most = classifier.price(n)
        spent = compute.ledger.spent
        classifier.learn(x, torch.zeros(n, dtype=torch.int64), compute)
        assert 0 <= compute.ledger.spent - spent <= most


def test_the_graph_goes_on_from_its_state_as_if_it_had_not_stopped(compute):
    x, y = features(300)
    whole = taught(ApproximateNeighbours(5, seed=4), x, y, compute)
    half = taught(ApproximateNeighbours(5, seed=4), x[:150], y[:150], compute)
    other = ApproximateNeighbours(5, seed=4)
    other.load_state_dict(half.state_dict())
    taught(other, x[150:], y[150:], compute)
    for name, value in whole.state_dict().items():
        np.testing.assert_array_equal(value, other.state_dict()[name])
    assert whole.nbytes() == other.nbytes() > 300 * (4 * 16 + 8)
    seeded = taught(ApproximateNeighbours(5, seed=5), x, y, compute).state_dict()
    assert not np.array_equal(seeded["index"], whole.state_dict()["index"])


def test_one_sample_and_more_neighbours_than_are_stored(compute):
    x, y = features(3)
    classifier = taught(ApproximateNeighbours(10), x[:1], y[:1], compute)
    scores = classifier.scores(x, compute)
    assert scores.softmax(1)[:, y[0]].tolist() == pytest.approx([1, 1, 1])
    assert torch.isinf(scores).sum() == 3 * 8


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'budgetcl\[knn\]'"):
        ApproximateNeighbours(5)


@pytest.mark.parametrize("setting", [{"k": 0}, {"k": 1, "links": 1}, {"k": 1, "breadth": 0}, {"k": 1, "search": 0.5}])
def test_numbers_that_are_none_are_refused(setting):
    with pytest.raises(UserError, match=r"classifier\.\w+=.* given; an integer of at least"):
        ApproximateNeighbours(**setting)
