"""FeTrIL: pseudo-features by hand, evenly drawn classes, the training's price and rates."""

from functools import partial

import numpy as np
import pytest
import torch

from budgetcl.errors import UserError
from budgetcl.learners.fetril import FeTrIL
from budgetcl.learners.schedules import Constant, Linear
from budgetcl.randomness import generator

CPU = torch.device("cpu")
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def make(**settings):
    return FeTrIL(**{"optimiser": SGD, "schedule": Linear(), "batch": 16, **settings})


def clusters(classes, n=40, d=6, seed=0):
    random = np.random.default_rng(seed)
    y = np.repeat(classes, n)
    x = 4 * np.random.default_rng(22).normal(size=(9, d))[y] + random.normal(size=(len(y), d))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


class Brief:
    """A compute whose allowance ends after so many updates."""

    def __init__(self, compute, updates):
        self._compute, self._left = compute, updates
        self.ledger = compute.ledger

    def __getattr__(self, name):
        return getattr(self._compute, name)

    def update(self, *args, **kwargs):
        if not self._left:
            self._compute.work("train", self._compute.ledger.remaining + 1)
        self._left -= 1
        return self._compute.update(*args, **kwargs)


def two_steps(compute, updates=30, **settings):
    """Classes 0, 1, 2 are learnt in the first step, 3 and 4 in the second, which is left open."""
    classifier = make(**settings)
    classifier.begin(6, 5, CPU)
    classifier.learn(*clusters([0, 1, 2]), compute)
    classifier.finish(0, Brief(compute, updates))
    classifier.begin(6, 6, CPU)
    classifier.learn(*clusters([3, 4]), compute)
    return classifier


def means_by_hand():
    x, y = clusters([0, 1, 2])
    other, labels = clusters([3, 4])
    x, y = torch.cat([x, other]), torch.cat([y, labels])
    return {c: x[y == c].double().mean(0) for c in range(5)}


def test_a_past_class_is_the_most_similar_present_one_moved_to_its_mean(compute):
    classifier = two_steps(compute)
    draw = classifier._pseudo_features(compute)
    means, (x, y) = means_by_hand(), clusters([3, 4])
    batches = [draw(np.random.default_rng(i)) for i in range(60)]
    features, labels = torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])
    assert sorted(set(labels.tolist())) == [0, 1, 2, 3, 4]  # not class 5: nothing of it was learnt
    sources = set()
    for past in range(3):
        cosines = {c: torch.cosine_similarity(means[past], means[c], dim=0) for c in (3, 4)}
        source = max(cosines, key=cosines.get)
        sources.add(source)
        moved = x[y == source] + (means[past] - means[source]).float()
        distance = torch.cdist(features[labels == past].double(), moved.double()).min(1).values
        assert distance.max() < 1e-5
    assert sources == {3, 4}  # so that the choice matters
    for present in (3, 4):
        assert torch.cdist(features[labels == present].double(), x[y == present].double()).min(1).values.max() < 1e-6
    real = torch.cat([b.is_new for b in batches])
    assert torch.equal(real, labels >= 3)


def test_classes_are_drawn_evenly_whatever_their_number_of_samples(compute):
    classifier = make(batch=500)
    classifier.begin(6, 3, CPU)
    classifier.learn(*clusters([0], n=5), compute)
    classifier.learn(*clusters([1, 2], n=80), compute)
    labels = torch.cat([classifier._pseudo_features(compute)(np.random.default_rng(i)).y for i in range(12)])
    assert (torch.bincount(labels) / 2000 - 1).abs().max() < 4 * (2 / 3 / 2000) ** 0.5


def test_the_mean_of_the_pseudo_features_is_the_past_classs_mean(compute):
    classifier = two_steps(compute, batch=4000)
    batch = classifier._pseudo_features(compute)(np.random.default_rng(0))
    for past in range(3):
        mean = batch.x[batch.y == past].double().mean(0)
        torch.testing.assert_close(mean, means_by_hand()[past], rtol=0, atol=5 / 800**0.5)


def test_it_classifies_past_classes_without_their_features(compute):
    classifier = two_steps(compute, updates=60)
    classifier.finish(1, Brief(compute, 60))
    x, y = clusters(range(5), seed=1)
    scores = classifier.scores(x, compute)
    answers = scores.argmax(1)
    assert (answers[y < 3] == y[y < 3]).float().mean() > 0.9
    assert (answers == y).float().mean() > 0.9
    assert torch.isinf(scores[:, 5]).all()
    assert not classifier._present  # the features are not kept


def test_training_costs_the_linear_layers_updates_and_the_means_comparison(compute, charged):
    classifier = two_steps(compute)
    before = charged("train")
    classifier.finish(1, Brief(compute, 10))
    # 6 classes: a forward and a weight gradient of 16 features, no gradient of the features; SGD on 6 x 7 parameters
    assert charged("train") - before == 10 * (2 * 2 * 16 * 6 * 6 + 6 * 42)
    assert charged("select") == 2 * 3 * 2 * 6  # three past classes with two present ones
    assert classifier.price(7) == 7 * 6
    before = charged("predict")
    classifier.scores(clusters([0])[0], compute)
    assert charged("predict") - before == 40 * 2 * 6 * 6
    assert classifier.nbytes() == 8 * (6 * 6 + 6) + 4 * 6 * 7


@pytest.mark.parametrize(("share", "kept"), [(0.5, 501), (0.25, 751), (1.0, 0), (0.0, 1001)])
def test_the_share_says_what_features_may_cost(share, kept):
    assert make(features_share=share).kept(1001) == kept


def test_the_first_rate_is_the_peak_whatever_was_spent_on_features(tiny):
    rates = []

    class Noted(torch.optim.SGD):
        def step(self, *args):
            rates[-1].append(self.param_groups[0]["lr"])
            return super().step(*args)

    Noted.__name__ = "SGD"  # and priced as such

    def run(**settings):
        parts = tiny("glyphs", "naive", "budget.updates=0.004")
        for step in parts.source.stream:
            classifier = make(optimiser=lambda p: Noted(p, lr=0.25), **settings)
            classifier.begin(6, 5, CPU)
            rates.append([])
            with parts.compute.step(step):
                classifier.learn(*clusters([0, 1, 2, 3, 4]), parts.compute)
                parts.compute.work("train", parts.compute.ledger.remaining // 2)
                classifier.finish(step.number, parts.compute)

    run()
    for step in rates:
        assert step[0] == 0.25
        assert np.allclose(np.diff(step), np.diff(step)[0])
        assert 0 < step[-1] < 0.02
    rates.clear()
    run(schedule=Constant())
    assert {rate for step in rates for rate in step} == {0.25}


def test_the_draws_follow_seed_and_step(compute):
    drawn = [generator(seed, "pseudo-features", step).random() for seed, step in [(0, 0), (0, 1), (1, 0)]]
    assert len(set(drawn)) == 3
    weights = []
    for seed in (0, 0, 1):
        classifier = two_steps(compute, seed=seed)
        weights.append(classifier.state_dict()["network"]["head.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_one_class_and_one_sample(compute):
    classifier = make()
    classifier.begin(6, 2, CPU)
    x, _ = clusters([1], n=1)
    classifier.learn(x, torch.tensor([1]), compute)
    classifier.finish(0, Brief(compute, 3))
    assert classifier.scores(x, compute).softmax(1).tolist() == [[0, 1]]


def test_an_allowance_that_pays_for_no_update_is_refused(compute):
    classifier = make()
    classifier.begin(6, 5, CPU)
    classifier.learn(*clusters([0, 1]), compute)
    compute.work("train", compute.ledger.remaining - 100)
    with pytest.raises(UserError, match=r"step 3: what features_share=0.5 leaves does not pay for one update"):
        classifier.finish(3, compute)


@pytest.mark.parametrize(
    ("setting", "message"), [({"batch": 0}, "classifier.batch=0"), ({"features_share": 2}, "from 0 to 1")]
)
def test_settings_that_are_none_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        make(**setting)
