"""Calibration: what is fitted, against brute force, SciPy and scikit-learn; what is held out; what it costs."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.covariance import shrunk_covariance
from sklearn.neighbors import NearestCentroid

from budgetcl.companions.calibration import (
    BiasCorrection,
    Calibration,
    GaussianAlignment,
    NearestMean,
    Temperature,
    WeightAligning,
)
from budgetcl.errors import UserError
from budgetcl.memory.memory import Memory
from budgetcl.models.network import Outputs

HELD = (Temperature, BiasCorrection)
EXEMPLARS = (NearestMean, GaussianAlignment)


def outputs(logits):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    return Outputs(logits, torch.zeros(len(logits), 2))


def loss(logits, y):
    return -log_softmax(np.asarray(logits, np.float64), axis=1)[np.arange(len(y)), y].mean()


def noisy(n, classes, scale, seed):
    """Logits that are right more often than not, but by another scale than they should be."""
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=n)
    return (random.normal(size=(n, classes)) + 1.5 * np.eye(classes)[y]) * scale, y


def few(place, rows):
    memory = Memory()
    memory.add(place.memory.index[rows], place.memory.label[rows])
    return replace(place, memory=memory)


class Metered:
    """Stands where a compute does while predicting: runs work and adds up its price."""

    def __init__(self):
        self.flops = 0

    def work(self, category, flops, function):
        assert category == "predict"
        self.flops += flops
        return function()


def test_without_calibration_nothing_is_held_out_and_nothing_corrected(small):
    index = np.arange(5)
    assert not Calibration().hold_out(index, index, np.random.default_rng(0)).any()
    given_ = outputs([[1.0, 2.0]])
    assert Calibration().logits(given_, None) is given_.logits


# --- weight aligning --------------------------------------------------------------------------------------------------


def test_new_rows_get_the_old_ones_mean_norm(opened, charged):
    place, aligning = opened(1), WeightAligning()
    aligning._known = 13  # of the step before
    aligning.begin(place)
    price = 2 * 16 * 64
    assert place.compute.ledger.reserved == price
    with torch.no_grad():
        place.network.head.weight[13:] *= 1000
    before = place.network.head.weight.detach().numpy().astype(np.float64)
    bias = place.network.head.bias.detach().clone()
    aligning.end(place)
    norms = np.linalg.norm(before, axis=1)
    expected = before.copy()
    expected[13:] *= norms[:13].mean() / norms[13:].mean()
    np.testing.assert_allclose(place.network.head.weight.detach().numpy(), expected, rtol=1e-5)
    assert torch.equal(place.network.head.bias, bias)
    assert (charged(place, "calibrate"), place.compute.ledger.reserved) == (price, 0)
    aligning.begin(place)  # a step without new classes
    kept = place.network.head.weight.detach().clone()
    aligning.end(place)
    assert torch.equal(place.network.head.weight, kept)
    assert charged(place, "calibrate") == price


def test_in_the_first_step_the_classes_of_pretraining_are_the_old_ones(opened):
    place, aligning = opened(0), WeightAligning()
    aligning.begin(place)
    aligning.end(place)
    norms = place.network.head.weight.detach().norm(dim=1)
    assert float(norms[10:].mean()) == pytest.approx(float(norms[:10].mean()), rel=1e-5)


def test_a_first_step_without_old_classes_is_not_corrected(opened, charged):
    place = opened(0)
    alone = replace(place, revealed=SimpleNamespace(indices=np.arange(3), new=np.arange(3)))
    for calibration in (WeightAligning(), BiasCorrection()):
        before = place.network.head.weight.detach().clone()
        calibration.begin(alone)
        calibration.end(alone)
        assert torch.equal(place.network.head.weight, before)
        assert charged(place, "calibrate") == place.compute.ledger.reserved == 0


@pytest.mark.parametrize("clamp", [True, False])
def test_the_clamp_keeps_the_heads_weights_at_zero_or_above(clamp, small):
    network = small(3)
    before = network.head.weight.detach().clone()
    assert (before < 0).any()
    bias = network.head.bias.detach().clone()
    WeightAligning(clamp).follow(network)
    assert torch.equal(network.head.weight, before.clamp(min=0) if clamp else before)
    assert torch.equal(network.head.bias, bias)


def test_new_rows_of_zeros_stay_zeros(opened):
    place, aligning = opened(1), WeightAligning()
    aligning._known = 13
    with torch.no_grad():
        place.network.head.weight[13:] = 0
    aligning.begin(place)
    aligning.end(place)
    assert place.network.head.weight[13:].abs().max() == 0


def test_weight_aligning_goes_on_from_its_state(small):
    one, other = WeightAligning(), WeightAligning()
    one._known = 7
    other.load_state_dict(one.state_dict(), small())
    assert other.state_dict() == {"known": 7}
    with pytest.raises(UserError, match=r"calibration\.clamp='yes' given"):
        WeightAligning("yes")


# --- what is held out -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=60), st.floats(1e-9, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_share_of_each_class_is_held_out_but_never_all_of_it(labels, share, seed):
    label, index = np.array(labels, np.int64), np.arange(len(labels)) + 100
    calibration = Temperature(share=share)
    held = calibration.hold_out(index, label, np.random.default_rng(seed))
    assert held.dtype == bool
    assert sorted(calibration._held.index.tolist()) == index[held].tolist()
    np.testing.assert_array_equal(calibration._held.label, label[calibration._held.index - 100])
    for c in set(labels):
        n, chosen = labels.count(c), int(held[label == c].sum())
        assert min(int(share * n), n - 1) <= chosen <= min(int(share * n) + 1, n - 1)


def test_what_is_held_out_is_drawn_uniformly_with_the_share_as_its_mean():
    label, times = np.repeat([0, 1], [7, 5]), np.zeros(12)
    for seed in range(1500):
        times += Temperature(share=0.3).hold_out(np.arange(12), label, np.random.default_rng(seed))
    np.testing.assert_allclose(times / 1500, 0.3, atol=0.05)  # four standard deviations


def test_held_out_samples_are_not_in_the_memory(opened):
    calibration = Temperature(share=0.4)
    place = opened(1, calibration)
    held = set(calibration._held.index.tolist())
    assert len(held) > 30
    assert not held & set(place.memory.index.tolist())
    assert len(held) + len(place.memory) == 128


@pytest.mark.parametrize("make", HELD)
def test_the_fit_is_reserved_bounded_and_spent_to_the_flop(make, opened, charged):
    calibration = make(share=0.4, samples=12, spend=0.2, iterations=3)
    place = opened(1, calibration)
    each = place.price() + 10 * 3 * 16
    if make is BiasCorrection:
        calibration._scale, calibration._shift = torch.ones(13), torch.zeros(13)
    calibration.begin(place)
    chosen = calibration._held.label[calibration._chosen]
    assert len(set(calibration._chosen.tolist())) == 12
    assert np.bincount(chosen).max() <= 1 + np.bincount(chosen, minlength=16)[np.unique(calibration._held.label)].min()
    assert place.compute.ledger.reserved == 12 * each
    calibration.end(place)
    assert charged(place, "calibrate") == 12 * each
    assert place.compute.ledger.reserved == 0
    if make is Temperature:  # the share of the allowance bounds the samples
        calibration.spend = 4.5 * each / place.compute.spare
        calibration.begin(place)
        assert len(calibration._chosen) == 4


@pytest.mark.parametrize("make", HELD)
@pytest.mark.parametrize("short_of", ["samples", "compute"])
def test_without_a_sample_to_look_at_nothing_is_spent_and_nothing_corrected(make, short_of, opened, charged):
    calibration = make(share=1e-9) if short_of == "samples" else make(share=0.4, spend=1e-9)
    place = opened(1, calibration)
    calibration.begin(place)
    calibration.end(place)
    assert charged(place, "calibrate") == place.compute.ledger.reserved == 0
    logits = torch.randn(4, 16)
    assert torch.equal(calibration.logits(outputs(logits), None), logits)


# --- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "classes"), [(1.0, 3), (5.0, 3), (0.1, 10), (20.0, 10)])
def test_the_temperature_has_the_smallest_cross_entropy(scale, classes):
    logits, y = noisy(200, classes, scale, seed=classes)
    calibration = Temperature()
    calibration._fit(torch.from_numpy(logits).float(), torch.from_numpy(y))
    best = minimize_scalar(lambda t: loss(logits / np.exp(t), y), bounds=(np.log(0.01), np.log(100)), method="bounded")
    assert np.log(calibration.temperature) == pytest.approx(best.x, abs=0.01)
    grid = min(loss(logits / t, y) for t in np.geomspace(0.01, 100, 400))
    assert loss(logits / calibration.temperature, y) <= grid + 1e-6
    corrected = calibration.logits(outputs(logits), None).numpy()
    np.testing.assert_allclose(corrected, logits / calibration.temperature, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(corrected.argmax(1), logits.argmax(1))


@pytest.mark.parametrize(
    ("logits", "y"),
    [
        ([[3.0, 0.0]], [0]),  # one sample, right: as sure as may be
        ([[3.0, 0.0]], [1]),  # wrong: as unsure as may be
        ([[2.0], [5.0]], [0, 0]),  # one class
        ([[0.0, 0.0, 0.0]], [2]),
        ([[1e4, -1e4], [-1e4, 1e4]], [0, 0]),
    ],
)
def test_the_temperature_stays_finite_and_within_bounds(logits, y):
    calibration = Temperature()
    calibration._fit(torch.tensor(logits), torch.tensor(y))
    assert 0.0099 < calibration.temperature < 100.01
    assert loss(np.array(logits) / calibration.temperature, y) <= loss(logits, y) + 1e-9


# --- bias correction --------------------------------------------------------------------------------------------------


def test_bias_correction_comes_near_the_best_two_numbers_of_a_grid():
    logits, y = noisy(300, 6, 1.0, seed=1)
    logits[:, 4:] = 2.5 * logits[:, 4:] + 1.5  # the newest classes are preferred
    calibration = BiasCorrection(iterations=300)
    calibration._old, calibration._scale, calibration._shift = 4, torch.ones(6), torch.zeros(6)
    calibration._fit(torch.from_numpy(logits).float(), torch.from_numpy(y))
    grid = {}
    for alpha in np.linspace(0, 1.5, 61):
        for beta in np.linspace(-2, 1, 61):
            corrected = logits.copy()
            corrected[:, 4:] = alpha * corrected[:, 4:] + beta
            grid[alpha, beta] = loss(corrected, y)
    alpha, beta = min(grid, key=grid.get)
    assert calibration._scale.tolist() == pytest.approx([1] * 4 + [alpha] * 2, abs=0.03)
    assert calibration._shift.tolist() == pytest.approx([0] * 4 + [beta] * 2, abs=0.06)
    corrected = calibration.logits(outputs(logits), None).numpy()
    assert loss(corrected, y) <= grid[alpha, beta] + 1e-3 < loss(logits, y) - 0.1
    np.testing.assert_allclose(corrected[:, :4], logits[:, :4], rtol=1e-6)


def test_each_step_corrects_its_own_classes_on_top_of_the_earlier_ones():
    logits, y = noisy(200, 4, 3.0, seed=2)
    calibration = BiasCorrection()
    calibration._old, calibration._scale, calibration._shift = 3, torch.tensor([1.0, 1.0, 0.5, 1.0]), torch.zeros(4)
    calibration._fit(torch.from_numpy(logits).float(), torch.from_numpy(y))
    assert calibration._scale[:3].tolist() == [1.0, 1.0, 0.5]
    assert calibration._scale[3] != 1
    wider = torch.randn(2, 6)  # classes that came since keep their logits
    assert torch.equal(calibration.logits(outputs(wider), None)[:, 4:], wider[:, 4:])


def test_bias_correction_knows_pretraining_classes_and_only_corrects_where_classes_are_new(opened, charged):
    calibration = BiasCorrection(share=0.4, samples=20, spend=1.0, iterations=5)
    place = opened(0, calibration)
    calibration.begin(place)
    calibration.end(place)
    assert calibration._scale[:10].tolist() == [1.0] * 10
    assert len(set(calibration._scale[10:].tolist())) == 1
    assert calibration._scale[12] != 1
    spent, numbers = charged(place, "calibrate"), calibration._scale.clone()
    calibration.begin(place)
    calibration.end(place)
    assert charged(place, "calibrate") == spent > 0
    assert torch.equal(calibration._scale, numbers)


# --- nearest mean -----------------------------------------------------------------------------------------------------


def test_the_nearest_mean_is_that_of_scikit_learn(opened, charged):
    place = opened(1)
    calibration = NearestMean(samples=1000, spend=1.0)
    calibration.begin(place)
    price = 128 * (place.price() + 64)  # a forward and an addition to a mean, each
    assert place.compute.ledger.reserved == price
    calibration.end(place)
    assert charged(place, "calibrate") == price
    with torch.no_grad():
        found = place.network.eval()(place.revealed.images(place.memory.index))
    unit = found.features.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    reference = NearestCentroid().fit(unit, place.memory.label)
    means = reference.centroids_ / np.linalg.norm(reference.centroids_, axis=1, keepdims=True)
    metered = Metered()
    logits = calibration.logits(found, metered)
    distances = ((unit[:, None] - means[None]) ** 2).sum(2)
    np.testing.assert_allclose(logits.numpy(), -distances, atol=1e-4)
    assert metered.flops == 2 * 128 * 64 * 16
    assert (logits.numpy().argmax(1) != found.logits.numpy().argmax(1)).any()


def test_classes_without_an_exemplar_come_last(opened):
    place = opened(1)
    calibration = NearestMean(samples=1000, spend=1.0)
    before = outputs(torch.randn(2, 16))
    assert calibration.logits(before, None) is before.logits
    known = few(place, np.flatnonzero(place.memory.label != 5))
    calibration.begin(known)
    calibration.end(known)
    logits = calibration.logits(Outputs(torch.zeros(3, 18), torch.randn(3, 64)), Metered())
    assert logits.shape == (3, 18)
    assert (logits[:, [5, 16, 17]] == -4).all()
    assert (logits[:, :5] > -4).all()


# --- Gaussians --------------------------------------------------------------------------------------------------------


def blobs(n, classes, d, seed):
    random = np.random.default_rng(seed)
    means = 3 * random.normal(size=(classes, d))
    mixing = random.normal(size=(d, d))
    y = np.arange(n) % classes
    return means[y] + random.normal(size=(n, d)) @ mixing, y


def spied(calibration, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        calibration, "_train", lambda place, classes, means, root: seen.update(c=classes, m=means, r=root)
    )
    return seen


def test_one_covariance_for_all_classes_with_a_tenth_of_shrinkage(monkeypatch, small):
    features, y = blobs(60, 3, 2, seed=0)
    calibration = GaussianAlignment()
    seen = spied(calibration, monkeypatch)
    calibration._fit(SimpleNamespace(network=small(4)), torch.from_numpy(features).float(), torch.from_numpy(y))
    means = np.stack([features[y == c].mean(0) for c in range(3)])
    off = features - means[y]
    expected = shrunk_covariance(off.T @ off / 60, shrinkage=0.1)
    np.testing.assert_allclose((seen["r"] @ seen["r"].T).numpy(), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(seen["m"][:3].numpy(), means, rtol=1e-3, atol=1e-4)
    assert seen["c"].tolist() == [0, 1, 2]


def test_a_sample_a_class_is_a_gaussian_without_width(monkeypatch, small):
    calibration = GaussianAlignment()
    seen = spied(calibration, monkeypatch)
    calibration._fit(SimpleNamespace(network=small(2)), torch.eye(2), torch.arange(2))
    assert float(seen["r"].abs().max()) < 0.01


def test_alignment_mends_a_head_that_forgot_old_classes(opened):
    """On the features themselves: rows of old classes pushed down come back."""
    place = opened(1)
    with torch.no_grad():
        place.network.head.bias[:10] -= 20
        found = place.network.eval()(place.revealed.images(place.memory.index))
    y = torch.from_numpy(place.memory.label)

    def accuracy():
        with torch.no_grad():
            return float((place.network.head(found.features).argmax(1) == y)[y < 10].float().mean())

    before, backbone = accuracy(), {n: p.clone() for n, p in place.network.backbone.state_dict().items()}
    calibration = GaussianAlignment(samples=128, spend=1.0, draws=20, rate=0.1, batch=64)
    calibration.begin(place)
    calibration.end(place)
    assert before < 0.2
    assert accuracy() > 0.8
    assert all(torch.equal(p, backbone[n]) for n, p in place.network.backbone.state_dict().items())
    assert all(p.grad is None for p in place.network.head.parameters())


def test_a_frozen_head_is_left_as_it_is(opened):
    place = opened(1)
    place.network.set_trainable([place.network.backbone])
    before = place.network.head.weight.clone()
    calibration = GaussianAlignment(samples=16)
    calibration.begin(place)
    calibration.end(place)
    assert torch.equal(place.network.head.weight, before)


def test_alignment_is_reserved_and_spent_to_the_flop(opened, charged):
    place = opened(1)
    calibration = GaussianAlignment(samples=20, spend=0.9, draws=3, batch=16)
    calibration.begin(place)
    d, row = 64, 64 * 16
    # forward, covariance; of each of 3 draws its product with the root, the head's update, a part of the optimiser's
    each = place.price() + 2 * d**2 + 3 * (2 * d**2 + 6 * row + 6 * row // 16)
    assert place.compute.ledger.reserved == 20 * each + d**3 // 3
    calibration.end(place)
    assert charged(place, "calibrate") == 20 * each + d**3 // 3
    assert place.compute.ledger.reserved == 0
    calibration.spend = (3.5 * each + d**3 // 3) / place.compute.spare
    calibration.begin(place)
    assert calibration._count == 3


@pytest.mark.parametrize("make", EXEMPLARS)
def test_an_allowance_too_small_for_one_exemplar_buys_none(make, opened, charged):
    place, calibration = opened(1), make(spend=1e-9)
    before = place.network.head.weight.detach().clone()
    calibration.begin(place)
    calibration.end(place)
    assert charged(place, "calibrate") == place.compute.ledger.reserved == 0
    assert torch.equal(place.network.head.weight, before)
    given_ = outputs(torch.randn(2, 16))
    assert calibration.logits(given_, None) is given_.logits


@pytest.mark.parametrize("make", EXEMPLARS)
def test_exemplars_of_one_class_and_one_sample_do(make, opened):
    place = opened(1)
    for rows in (np.flatnonzero(place.memory.label == 3)[:4], np.array([5])):
        calibration = make(spend=1.0)
        calibration.begin(few(place, rows))
        calibration.end(few(place, rows))
        assert torch.isfinite(place.network.head.weight).all()
    classes = np.unique(place.memory.label, return_index=True)[1]  # a sample a class
    calibration = make(spend=1.0)
    calibration.begin(few(place, classes))
    calibration.end(few(place, classes))
    assert torch.isfinite(place.network.head.weight).all()


def test_exemplars_are_shared_evenly_among_the_classes(opened):
    place = opened(1)
    calibration = NearestMean(samples=32, spend=1.0)
    calibration.begin(place)
    _, y = calibration._features(place)
    assert np.bincount(y.numpy()).tolist() == [2] * 16


# --- states and runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Temperature, BiasCorrection, NearestMean, GaussianAlignment])
def test_a_calibration_goes_on_from_its_state(make, opened):
    settings = {"share": 0.4} if make in HELD else {"samples": 32}
    calibration, other = make(**settings, spend=1.0), make(**settings, spend=1.0)
    place = opened(0, calibration)
    calibration.begin(place)
    calibration.end(place)
    other.load_state_dict(calibration.state_dict(), place.network)
    given_ = Outputs(torch.randn(5, 13), torch.randn(5, 64))
    mine, theirs = calibration.logits(given_, Metered()), other.logits(given_, Metered())
    assert torch.equal(mine, theirs)
    assert torch.equal(mine, given_.logits) == (make is GaussianAlignment)  # which changes the head itself
    assert other.nbytes() == calibration.nbytes()
    if make in HELD:
        assert sorted(other._held.index.tolist()) == sorted(calibration._held.index.tolist()) != []


def test_images_that_a_calibration_may_look_at_are_stored_bytes(go):
    """What is held out is kept beside the memory; exemplars come from all of it, whatever the sampler draws from."""
    everything = go("glyphs", "naive").parts.learner.nbytes()["samples"]
    held = go("glyphs", "bias_correction", "calibration.share=0.4").parts.learner
    assert held.nbytes()["samples"] == everything
    assert len(held.memory) * held._image_bytes < everything
    assert go("glyphs", "fifo").parts.learner.nbytes()["samples"] < everything
    for whole in ("calibration=nearest_mean", "regulariser=ewc", "regulariser=mas"):
        assert go("glyphs", "fifo", whole).parts.learner.nbytes()["samples"] == everything
    assert go("glyphs", "fifo", "regulariser=l2").parts.learner.nbytes()["samples"] < everything


@pytest.mark.parametrize("method", ["weight_aligning", "temperature", "bias_correction", "nearest_mean", "slca"])
def test_a_run_that_trains_until_it_is_refused_pays_for_its_calibration_and_answers_otherwise(go, method):
    share = ("calibration.share=0.4",) if method in ("temperature", "bias_correction") else ()
    run, naive = go("glyphs", method, *share), go("glyphs", "naive")
    assert (np.array(run.category("calibrate")) > 0).all()
    assert (run.steps["spent"] <= run.steps["allowance"]).all()
    assert not np.array_equal(run.predictions["confidence"], naive.predictions["confidence"])


@pytest.mark.parametrize(
    ("make", "values", "key"),
    [
        (Temperature, {"share": 1.5}, "share"),
        (Temperature, {"samples": 0}, "samples"),
        (Temperature, {"iterations": 0}, "iterations"),
        (BiasCorrection, {"spend": -1}, "spend"),
        (BiasCorrection, {"rate": -1}, "rate"),
        (NearestMean, {"samples": 0}, "samples"),
        (NearestMean, {"spend": 2}, "spend"),
        (GaussianAlignment, {"draws": 0}, "draws"),
        (GaussianAlignment, {"batch": 0}, "batch"),
        (GaussianAlignment, {"rate": 11}, "rate"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, values, key):
    with pytest.raises(UserError, match=rf"calibration\.{key}"):
        make(**values)


@pytest.mark.parametrize("make", [*HELD, *EXEMPLARS])
@pytest.mark.parametrize("name", ["share", "spend"])
def test_a_share_of_nothing_is_refused(make, name):
    if make in HELD or name == "spend":
        with pytest.raises(UserError, match=f"calibration.{name}=0 given: nothing would be calibrated"):
            make(**{name: 0})
