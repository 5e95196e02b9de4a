"""Each distance against its paper's formula, in numpy, on numbers that fit on a line."""

import numpy as np
import pytest
import torch

from budgetcl.errors import UserError
from budgetcl.objectives.distillation import (
    BCEDistillation,
    CosineDistillation,
    FeatureDistillation,
    KLDistillation,
    MSEDistillation,
)

T = np.array([[1.0, 1.0], [0.0, 2.0], [0.5, -2.0]])  # the teacher knew two of the three classes
G = np.array([[4.0, 3.0], [1.0, 1.0], [2.0, 2.0]])
ALL = (BCEDistillation, KLDistillation, CosineDistillation, MSEDistillation, FeatureDistillation)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def bce(toy, n):
    q, p = sigmoid(T[:n]), sigmoid(toy.z[:n, :2])
    return -(q * np.log(p) + (1 - q) * np.log(1 - p)).sum() / (2 * n)


def kl(toy, n, temperature):
    p, q = (toy.log_softmax(a[:n, :2] / temperature) for a in (toy.z, T))
    return temperature**2 * (np.exp(q) * (q - p)).sum() / n


def cosine(a, b, n):
    return sum(1 - a[i] @ b[i] / np.sqrt((a[i] @ a[i]) * (b[i] @ b[i])) for i in range(n)) / n


def taught(toy, n=3):
    return toy.batch(n, teacher=T, teacher_features=G)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_each_distance_is_its_papers_formula(toy, n):
    labels = toy.cross_entropies(n).mean()
    expected = [
        (BCEDistillation(0.7), labels + 0.7 * bce(toy, n)),
        (KLDistillation(0.3, temperature=2.0), 0.7 * labels + 0.3 * kl(toy, n, 2.0)),
        (KLDistillation(temperature=5.0), 1 / 3 * labels + 2 / 3 * kl(toy, n, 5.0)),  # two old classes of three
        (CosineDistillation(2.0), labels + 2 * cosine(toy.f, G, n)),
        (CosineDistillation(), labels + np.sqrt(1 / 2) * cosine(toy.f, G, n)),  # one new class, two old ones
        (CosineDistillation(1.0, of="logits"), labels + cosine(toy.z[:, :2], T, n)),
        (MSEDistillation(0.4), labels + 0.4 * ((toy.z[:n, :2] - T[:n]) ** 2).sum() / (2 * n)),
        (FeatureDistillation(0.2), labels + 0.2 * 0.5 * ((toy.f[:n] - G[:n]) ** 2).sum() / n),
    ]
    for objective, value in expected:
        loss, outputs = objective(toy, taught(toy, n))
        assert loss.item() == pytest.approx(value, rel=1e-5), objective.key
        assert outputs.logits.shape == (n, 3)


def test_the_rules_for_the_weight():
    assert KLDistillation().factors(30, 10) == (0.25, 0.75)
    assert KLDistillation().factors(9, 0) == pytest.approx((0.1, 0.9))  # no new class: labels keep a share
    assert KLDistillation(0.5).factors(30, 10) == (0.5, 0.5)
    assert CosineDistillation().factors(1, 9) == (1, 3)
    assert CosineDistillation().factors(100, 1) == CosineDistillation().factors(100, 0) == (1, 0.5)
    assert MSEDistillation(0.2).factors(1, 9) == (1, 0.2)


@pytest.mark.parametrize("kind", ALL)
def test_without_a_teacher_it_is_cross_entropy(toy, kind):
    assert kind()(toy, toy.batch())[0].item() == pytest.approx(toy.cross_entropies().mean())


@pytest.mark.parametrize("kind", ALL)
def test_a_student_that_answers_as_the_teacher_does_is_left_where_it_is(toy, kind):
    objective = kind()
    like = toy.batch(teacher=toy.z[:, :2], teacher_features=toy.f)
    distance = objective.distance(toy(like.x), like)
    assert all(gradient.abs().max() < 1e-6 for gradient in toy.gradients(distance))
    moved = objective.distance(toy(like.x), taught(toy))
    assert max(gradient.abs().max() for gradient in toy.gradients(moved)) > 1e-3
    assert all(gradient.isfinite().all() for gradient in toy.gradients(moved))


@pytest.mark.parametrize("kind", ALL)
def test_a_distance_pulls_on_old_classes_only(toy, kind):
    gradient = toy.gradients(kind().distance(toy(taught(toy).x), taught(toy)))[0]
    assert not gradient[:, 2].any()


@pytest.mark.parametrize("kind", ALL)
def test_half_precision_is_computed_in_float32(toy, kind):
    exact = kind()(toy, taught(toy))[0]
    toy.logits, toy.features = toy.logits.bfloat16(), toy.features.bfloat16()  # these numbers lose nothing
    extra = {"teacher": torch.tensor(T).bfloat16(), "teacher_features": torch.tensor(G).bfloat16()}
    loss, _ = kind()(toy, toy.batch().adding(**extra))
    assert loss.dtype is torch.float32
    assert loss.item() == exact.item()


def test_settings_that_are_none_are_refused():
    for kind in ALL:
        with pytest.raises(UserError, match="weight=-1"):
            kind(weight=-1)
    with pytest.raises(UserError, match=r"weight=1\.5 given; a number from 0 to 1"):
        KLDistillation(1.5)
    with pytest.raises(UserError, match="temperature=0"):
        KLDistillation(temperature=0)
    with pytest.raises(UserError, match="of='feature' given; did you mean 'features'"):
        CosineDistillation(of="feature")


def test_prices_are_kept_apart_by_every_setting():
    objectives = [*(kind() for kind in ALL), MSEDistillation(0.3), KLDistillation(0.5), KLDistillation(temperature=3.0)]
    objectives += [CosineDistillation(of="logits"), CosineDistillation(0.5), BCEDistillation(2.0)]
    assert len({objective.key for objective in objectives}) == len(objectives)
