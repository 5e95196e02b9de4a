"""Herding against iCaRL's algorithm written out; k-means against its definition and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as Reference
from sklearn.cluster import kmeans_plusplus

from budgetcl.errors import UserError
from budgetcl.memory.diverse import Herding, KMeans, herd, kmeans
from budgetcl.randomness import generator


def random_features(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)) + 0.5


def herded(features, picks):
    """Algorithm 4 of iCaRL, line by line, each sample once."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, chosen = features.mean(0), []
    for k in range(1, picks + 1):
        distance = [
            np.inf if x in chosen else np.linalg.norm(mean - (features[x] + features[chosen].sum(0)) / k)
            for x in range(len(features))
        ]
        chosen.append(int(np.argmin(distance)))
    return chosen


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_each_pick_is_what_the_algorithm_picks(n, d, seed):
    features = random_features(n, d, seed)
    unit, before = features / np.linalg.norm(features, axis=1, keepdims=True), []
    for row in herd(torch.from_numpy(features), n).tolist():
        distance = [np.linalg.norm(unit.mean(0) - unit[[*before, x]].mean(0)) for x in range(n)]
        assert row not in before
        assert distance[row] <= min(distance[x] for x in range(n) if x not in before) + 1e-9  # or one of several
        before.append(row)


def test_herded_means_are_nearer_than_random_ones():
    features = random_features(300, 16)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mine = np.linalg.norm(unit[herd(torch.from_numpy(features), 20)].mean(0) - unit.mean(0))
    others = [np.linalg.norm(unit[np.random.default_rng(i).choice(300, 20)].mean(0) - unit.mean(0)) for i in range(20)]
    assert mine < 0.3 * min(others)


def test_more_picks_than_rows_are_refused_and_none_are_none():
    with pytest.raises(UserError, match="4 picks were asked of 3 rows"):
        herd(torch.ones(3, 2), 4)
    assert herd(torch.ones(3, 2), 0).tolist() == []


def test_k_means_ends_where_no_row_and_no_centre_moves():
    features = random_features(400, 5)
    found = kmeans(torch.from_numpy(features), 12, 300, generator(0, "test"))
    assert found.iterations < 300
    distance = ((features[:, None] - found.centres.numpy()) ** 2).sum(2)
    np.testing.assert_array_equal(found.cluster, distance.argmin(1))
    np.testing.assert_allclose(found.distance, distance.min(1), atol=1e-9)
    for c in range(12):
        np.testing.assert_allclose(found.centres[c], features[found.cluster == c].mean(0), atol=1e-9)


def test_k_means_is_as_good_as_scikit_learns_over_twenty_starts():
    features = random_features(500, 8)
    mine = [kmeans(torch.from_numpy(features), 10, 20, generator(i, "test")).distance.sum() for i in range(20)]
    theirs = [
        Reference(10, n_init=1, max_iter=20, random_state=i, algorithm="lloyd").fit(features).inertia_
        for i in range(20)
    ]
    assert abs(np.mean(mine) - np.mean(theirs)) < 4 * np.sqrt((np.var(mine) + np.var(theirs)) / 20)


def test_the_start_is_as_good_as_scikit_learns():
    """One iteration over points that lie on the centres' number of places leaves the start as it was."""
    places = 100 * random_features(30, 4)
    features = np.repeat(places, 3, axis=0)
    mine = kmeans(torch.from_numpy(features), 30, 1, generator(0, "test"))
    assert mine.distance.sum() < 1e-6
    assert len(np.unique(kmeans_plusplus(features, 30, random_state=0)[0], axis=0)) == 30  # so does theirs
    assert mine.iterations == 1


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 5), (3, 10), (6, 6)])
def test_fewer_rows_than_clusters_are_clusters_of_their_own(n, k):
    found = kmeans(torch.from_numpy(random_features(n, 3)), k, 5, generator(0, "test"))
    assert sorted(found.cluster.tolist()) == list(range(n))
    assert found.distance.max() < 1e-12


def test_equal_rows_fill_one_cluster_and_the_others_stay_empty():
    found = kmeans(torch.ones(9, 2), 3, 5, generator(0, "test"))
    assert len(set(found.cluster.tolist())) == 1
    assert torch.isfinite(found.centres).all()


@pytest.mark.parametrize("setting", [(0, 1), (1, 0)])
def test_no_cluster_and_no_iteration_are_refused(setting):
    with pytest.raises(UserError, match="an integer of at least 1"):
        kmeans(torch.ones(3, 2), *setting, generator(0, "test"))


# --- as samplers ------------------------------------------------------------------------------------------------------


def test_herding_takes_equal_shares_of_the_classes_each_by_the_algorithm(place, answers, drawn):
    features, label = answers[1], place.memory.label
    rows = drawn(Herding(spend=1, keep=0.25), place, 8, 150)
    counts = np.bincount(label[list(rows)], minlength=16)
    assert counts.tolist() == [2] * 16
    for c in range(16):
        mine = np.flatnonzero(label == c)
        # The sampler sees the candidates in another order; without ties that does not matter.
        assert {r for r in rows if label[r] == c} == set(mine[herded(features[mine], 2)].tolist())


def test_global_herding_is_the_algorithm_on_all_candidates(place, answers, drawn):
    rows = drawn(Herding(spend=1, keep=0.125, per_class=False), place, 8, 100)
    assert rows == set(herded(answers[1], 16))


def test_herding_is_priced_by_class_or_as_a_whole(place, spent):
    sizes, d = place.memory.class_counts, 64
    for per_class in (True, False):
        before = spent("select")
        sampler = Herding(spend=1, keep=0.5, per_class=per_class)
        sampler.begin(place)
        sampler.draw(8, 0)
        # Every class holds 8 candidates and gives 4: the mean, then a product with all for each pick, and its update.
        by_hand = 16 * (8 * d + 4 * (2 * 8 * d + 2 * d)) if per_class else 128 * d + 64 * (2 * 128 * d + 2 * d)
        assert spent("select") - before == by_hand
    assert sizes.tolist() == [8] * 16
    assert spent("score") == 2 * 128 * place.price()


@pytest.mark.parametrize("pick", ["nearest", "random"])
def test_k_means_takes_equal_shares_of_the_clusters(place, answers, drawn, pick):
    sampler = KMeans(spend=1, keep=0.25, clusters=8, pick=pick)
    rows = drawn(sampler, place, 8, 150)
    order = place.random("candidates", 0).choice(128, 128, replace=False, shuffle=False)
    features = torch.from_numpy(answers[1][order]).float()
    found = kmeans(features, 8, 20, place.random("clusters", 0))
    cluster, distance = np.empty(128, int), np.empty(128)
    cluster[order], distance[order] = found.cluster, found.distance
    sizes, counts = np.bincount(cluster, minlength=8), np.bincount(cluster[list(rows)], minlength=8)
    full = counts == sizes
    assert counts.sum() == 32
    assert counts[~full].max() - counts[~full].min() <= 1
    nearest = all(
        distance[[r for r in rows if cluster[r] == c]].max() <= np.sort(distance[cluster == c])[counts[c] - 1] + 1e-3
        for c in np.flatnonzero(counts)
    )
    assert nearest == (pick == "nearest")


def test_k_means_pays_for_the_iterations_that_it_made(place, spent, answers):
    n, k, d = 128, 8, 64
    sampler = KMeans(spend=1, clusters=k, iterations=50)
    sampler.begin(place)
    sampler.draw(8, 0)
    order = place.random("candidates", 0).choice(n, n, replace=False, shuffle=False)
    made = kmeans(torch.from_numpy(answers[1][order]).float(), k, 50, place.random("clusters", 0)).iterations
    assert 1 < made < 50
    seeding = 2 * n * d + (k - 1) * (2 + 2) * (2 * n * d + 3 * n)  # floor(ln 8) = 2
    once = 2 * n * k * d + 3 * n * k + 2 * k * d + n * d + k * d
    assert spent("select") == seeding + 2 * n * d + made * once
    assert spent("score") == n * place.price()


def test_more_clusters_than_candidates_are_as_many_as_candidates(place, drawn):
    assert len(drawn(KMeans(spend=1, candidates=10, clusters=50, keep=1), place, 4, 40)) == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KMeans(clusters=0), "clusters=0 given; an integer of at least 1"),
        (lambda: KMeans(iterations=0), "iterations=0 given"),
        (lambda: KMeans(pick="closest"), "pick='closest' given"),
        (lambda: Herding(per_class="yes"), "per_class='yes' given; true or false"),
    ],
)
def test_settings_that_are_none_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_an_estimate_keeps_the_largest_number_of_iterations(place, spent):
    place.compute._dry = True
    sampler = KMeans(spend=1, clusters=8)
    sampler.begin(place)
    sampler.draw(8, 0)
    once = 2 * 128 * 8 * 64 + 3 * 128 * 8 + 2 * 8 * 64 + 128 * 64 + 8 * 64
    assert spent("select") == 2 * 128 * 64 + 7 * 4 * (2 * 128 * 64 + 3 * 128) + 2 * 128 * 64 + 20 * once
