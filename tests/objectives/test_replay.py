"""ACE, UER and PCR against their formulas, sample by sample in plain arithmetic."""

import math

import numpy as np
import pytest
import torch

from budgetcl.errors import UserError
from budgetcl.objectives.replay import AsymmetricCrossEntropy, ProxyContrast, UnbiasedReplay

ALL = (AsymmetricCrossEntropy, UnbiasedReplay, ProxyContrast)


def surprise(logits, y, among):
    """-log of y's softmax among these classes."""
    return math.log(sum(math.exp(logits[c]) for c in among)) - logits[y]


def test_ace_masks_the_classes_absent_from_the_new_samples_for_new_samples_only(toy):
    # Labels 0, 2, 1; samples 0 and 1 are new: they see the classes 0 and 2, the replayed one sees all.
    loss, _ = AsymmetricCrossEntropy()(toy, toy.batch(new=(True, True, False)))
    by_hand = surprise(toy.z[0], 0, (0, 2)) + surprise(toy.z[1], 2, (0, 2)) + surprise(toy.z[2], 1, (0, 1, 2))
    assert loss.item() == pytest.approx(by_hand / 3, rel=1e-6)
    gradient = toy.gradients(loss)[0]
    assert not gradient[:2, 1].any()  # a class that is absent is not pushed away
    assert gradient[2].all()
    assert gradient.isfinite().all()


def test_a_replayed_class_is_absent_unless_a_new_sample_has_it(toy):
    loss, _ = AsymmetricCrossEntropy()(toy, toy.batch(y=[0, 1, 1], new=(True, False, False)))
    by_hand = 0 + surprise(toy.z[1], 1, (0, 1, 2)) + surprise(toy.z[2], 1, (0, 1, 2))
    assert loss.item() == pytest.approx(by_hand / 3, rel=1e-6)


def test_ace_is_cross_entropy_where_nothing_is_new_or_all_classes_are(toy):
    expected = pytest.approx(toy.cross_entropies().mean(), rel=1e-6)
    assert AsymmetricCrossEntropy()(toy, toy.batch(new=(False,) * 3))[0].item() == expected
    assert AsymmetricCrossEntropy()(toy, toy.batch())[0].item() == expected


def test_ace_learns_nothing_from_new_samples_of_one_class(toy):
    loss, _ = AsymmetricCrossEntropy()(toy, toy.batch(1))
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in toy.gradients(loss))


def cosines(toy):
    return np.array([[f @ w / math.sqrt((f @ f) * (w @ w)) for w in toy.w] for f in toy.f])


def test_uer_learns_by_the_angle_and_replays_by_the_logits(toy):
    scaled = cosines(toy) / 0.5
    loss, _ = UnbiasedReplay(0.5)(toy, toy.batch(new=(True, False, True)))
    among = (0, 1, 2)
    by_hand = surprise(scaled[0], 0, among) + surprise(toy.z[1], 2, among) + surprise(scaled[2], 1, among)
    assert loss.item() == pytest.approx(by_hand / 3, rel=1e-5)


def test_the_new_samples_of_uer_do_not_move_norms(toy):
    loss, _ = UnbiasedReplay()(toy, toy.batch())
    _, features, weight = toy.gradients(loss)
    assert features.abs().max() > 1e-2
    assert (features * toy.features).sum(1).abs().max() < 1e-4  # along a vector: its norm
    assert (weight * toy.head.weight).sum(1).abs().max() < 1e-4


def test_pcr_contrasts_with_the_proxies_of_the_batch_as_often_as_they_are_in_it(toy):
    scaled, y = cosines(toy) / 0.5, (2, 0, 2)
    loss, _ = ProxyContrast(0.5)(toy, toy.batch(y=y, new=(True, False, True)))
    by_hand = sum(math.log(sum(math.exp(scaled[i, y[j]]) for j in range(3))) - scaled[i, y[i]] for i in range(3))
    assert loss.item() == pytest.approx(by_hand / 3, rel=1e-5)
    weight = toy.gradients(loss)[2]
    assert not weight[1].any()  # no sample of it, so its proxy stays
    assert weight[[0, 2]].any(1).all()


def test_pcr_on_one_class_has_no_gradient(toy):
    loss, _ = ProxyContrast()(toy, toy.batch(y=(1, 1, 1)))
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)
    assert all(gradient.abs().max() < 1e-5 for gradient in toy.gradients(loss))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_partial_batches_and_half_precision(toy, kind, n):
    batch = toy.batch(n, new=(False, True, True))
    loss, outputs = kind()(toy, batch)
    assert outputs.logits.shape == (n, 3)
    assert all(gradient.isfinite().all() for gradient in toy.gradients(loss))
    toy.logits = toy.logits.bfloat16()
    half, _ = kind()(toy, batch)
    assert half.dtype is torch.float32
    assert half.item() == loss.item()


@pytest.mark.parametrize("kind", [UnbiasedReplay, ProxyContrast])
def test_a_temperature_that_is_none_is_refused_and_tells_prices_apart(kind):
    with pytest.raises(UserError, match="temperature=0 given"):
        kind(temperature=0)
    assert kind(0.1).key != kind(0.2).key
