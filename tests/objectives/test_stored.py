"""DER and DER++ against their formula by hand."""

import numpy as np
import pytest
import torch

from budgetcl.errors import UserError
from budgetcl.objectives.stored import DarkExperience

# Sample 0 was stored when there were two classes, sample 1 when there was one, sample 2 never.
# Their distances: ((2-1)^2 + (0-1)^2) / 2 = 1 and (0.5+0.5)^2 / 1 = 1.
STORED, COLUMNS = np.array([[1.0, 1.0, 0.0], [-0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]), [2, 1, 0]


def stored(toy, new, n=3, logits=STORED, columns=COLUMNS):
    return toy.batch(n, new=new, logits=logits, logits_classes=columns)


def test_der_replays_with_the_stored_logits_and_learns_the_rest_by_label(toy):
    ce = toy.cross_entropies()
    loss, outputs = DarkExperience(alpha=0.3)(toy, stored(toy, (False, False, False)))
    assert loss.item() == pytest.approx((0.3 * 1 + 0.3 * 1 + ce[2]) / 3, rel=1e-6)
    assert outputs.logits.shape == (3, 3)
    loss, _ = DarkExperience(alpha=0.3)(toy, stored(toy, (True, False, False)))  # revealed now: by its label
    assert loss.item() == pytest.approx((ce[0] + 0.3 * 1 + ce[2]) / 3, rel=1e-6)


def test_the_distance_is_over_the_stored_columns_only(toy):
    logits = np.array([[1.0, 3.0, 99.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    loss, _ = DarkExperience(alpha=2.0)(toy, stored(toy, (False,) * 3, logits=logits, columns=[2, 3, 1]))
    by_hand = [((2 - 1) ** 2 + (0 - 3) ** 2) / 2, (0.5**2 + 0.5**2 + 3**2) / 3, (-1 - 1) ** 2 / 1]
    assert loss.item() == pytest.approx(2 * sum(by_hand) / 3, rel=1e-6)


def test_derpp_adds_the_labels_of_replayed_samples(toy):
    ce = toy.cross_entropies()
    loss, _ = DarkExperience(alpha=0.3, beta=0.25)(toy, stored(toy, (True, False, True)))
    assert loss.item() == pytest.approx((ce[0] + 0.3 * 1 + 0.25 * ce[1] + ce[2]) / 3, rel=1e-6)


def test_with_nothing_stored_it_is_cross_entropy(toy):
    expected = pytest.approx(toy.cross_entropies().mean(), rel=1e-6)
    assert DarkExperience()(toy, toy.batch(new=(False,) * 3))[0].item() == expected
    nothing = stored(toy, (False,) * 3, columns=[0, 0, 0])
    assert DarkExperience()(toy, nothing)[0].item() == expected


def test_a_sample_that_answers_as_it_did_is_left_where_it_is(toy):
    same = stored(toy, (False,) * 3, logits=toy.z, columns=[3, 3, 3])
    gradients = toy.gradients(DarkExperience()(toy, same)[0])
    assert not any(gradient.any() for gradient in gradients)
    other = toy.gradients(DarkExperience()(toy, stored(toy, (False,) * 3))[0])
    assert other[0][:2].any()
    assert not other[0][0, 2]  # not stored, so not pulled at


def test_partial_batches_and_half_precision(toy):
    loss, _ = DarkExperience(alpha=0.3)(toy, stored(toy, (False,) * 3, n=1))
    assert loss.item() == pytest.approx(0.3, rel=1e-6)
    exact = DarkExperience()(toy, stored(toy, (False,) * 3))[0]
    toy.logits = toy.logits.bfloat16()
    loss, _ = DarkExperience()(toy, stored(toy, (False,) * 3))
    assert loss.dtype is torch.float32
    assert loss.item() == exact.item()


def test_what_it_asks_for_and_what_it_refuses():
    assert DarkExperience.stores == ("logits",)
    assert not DarkExperience.teacher
    assert len({DarkExperience().key, DarkExperience(alpha=1.0).key, DarkExperience(beta=1.0).key}) == 3
    with pytest.raises(UserError, match="alpha=-1"):
        DarkExperience(alpha=-1)
    with pytest.raises(UserError, match="beta='x'"):
        DarkExperience(beta="x")
