"""PRD, term by term, in numpy."""

import math

import numpy as np
import pytest
import torch

from budgetcl.errors import UserError
from budgetcl.objectives.relations import PrototypeRelations, supervised_contrast

T = np.array([[1.0, 1.0], [0.0, 2.0], [0.5, -2.0]])  # the teacher's logits of two of the three classes


def contrast(toy, y, temperature, n=3):
    """Khosla et al., eq. 2, by its sums."""
    f, losses = toy.unit(toy.f), []
    for i in range(n):
        partners = [p for p in range(n) if p != i and y[p] == y[i]]
        whole = sum(math.exp(f[i] @ f[j] / temperature) for j in range(n) if j != i)
        if partners:
            losses.append(-sum(math.log(math.exp(f[i] @ f[p] / temperature) / whole) for p in partners) / len(partners))
    return sum(losses) / max(1, len(losses))


def pull(toy, y, n=3):
    f, w = toy.unit(toy.f), toy.unit(toy.w)
    return sum(1 - f[i] @ w[y[i]] for i in range(n)) / n


def relations(toy, temperature, n=3):
    """Per old class, over the samples."""
    q, p = (toy.log_softmax(a[:n, :2].T / temperature) for a in (T, toy.z))
    return (np.exp(q) * (q - p)).sum() / 2


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("y", [(0, 2, 1), (1, 2, 1), (1, 1, 1), (2, 2, 0)])
def test_the_three_terms_by_hand(toy, y, n):
    objective = PrototypeRelations(weight=3.0, pull=0.5, contrast=0.7, temperature=2.0)
    alone = contrast(toy, y, 0.7, n) + 0.5 * pull(toy, y, n)
    assert objective(toy, toy.batch(n, y=y))[0].item() == pytest.approx(alone, rel=1e-5)
    loss, outputs = objective(toy, toy.batch(n, y=y, teacher=T))
    assert loss.item() == pytest.approx(alone + 3 * relations(toy, 2.0, n), rel=1e-5)
    assert outputs.logits.shape == (n, 3)
    assert all(gradient.isfinite().all() for gradient in toy.gradients(loss))


def test_prototypes_are_pulled_and_features_are_not(toy):
    objective = PrototypeRelations(weight=0, pull=1.0)
    logits, features, weight = toy.gradients(objective(toy, toy.batch())[0])  # no two samples of a class
    assert not logits.any()
    assert not features.any()
    assert weight.any(1).all()


def test_relations_that_are_kept_pull_at_nothing(toy):
    shifted = toy.z[:, :2] + np.array([5.0, -3.0])  # a constant per class leaves the ranking of samples as it is
    loss = PrototypeRelations(pull=0)(toy, toy.batch(teacher=shifted))[0]
    assert all(gradient.abs().max() < 1e-6 for gradient in toy.gradients(loss))
    moved = PrototypeRelations(pull=0)(toy, toy.batch(teacher=T))[0]
    assert toy.gradients(moved)[0].abs().max() > 1e-3


def test_a_sample_without_partners_has_no_contrast():
    features = torch.tensor([[1.0, 0.0]], requires_grad=True)
    for y in ([0], [0, 1]):
        loss = supervised_contrast(features.expand(len(y), 2), torch.tensor(y), 0.1)
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, features)[0].any()


def test_half_precision(toy):
    exact = PrototypeRelations()(toy, toy.batch(teacher=T))[0]
    toy.logits = toy.logits.bfloat16()
    loss, _ = PrototypeRelations()(toy, toy.batch().adding(teacher=torch.tensor(T).bfloat16()))
    assert loss.dtype is torch.float32
    assert loss.item() == exact.item()


@pytest.mark.parametrize(("name", "bad"), [("weight", -1), ("pull", -1), ("contrast", 0), ("temperature", 0)])
def test_settings_that_are_none_are_refused_and_tell_prices_apart(name, bad):
    with pytest.raises(UserError, match=f"{name}={bad} given"):
        PrototypeRelations(**{name: bad})
    assert PrototypeRelations(**{name: 0.5}).key != PrototypeRelations().key
