"""An objective that declares itself pointwise is the mean of its parts, weighed by their sizes; the others are not."""

import numpy as np
import pytest
import torch

from budgetcl.models.backbones import SmallResNet
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.objectives.distillation import (
    BCEDistillation,
    CosineDistillation,
    FeatureDistillation,
    KLDistillation,
    MSEDistillation,
)
from budgetcl.objectives.relations import PrototypeRelations
from budgetcl.objectives.replay import AsymmetricCrossEntropy, ProxyContrast, UnbiasedReplay
from budgetcl.objectives.stored import DarkExperience
from budgetcl.randomness import generator
from budgetcl.streams.batch import Batch

POINTWISE = [
    *(CrossEntropy(), UnbiasedReplay(), DarkExperience(0.5, 0.5), FeatureDistillation(), MSEDistillation()),
    *(BCEDistillation(), KLDistillation(), CosineDistillation(), CosineDistillation(of="logits")),
]
ACROSS = [AsymmetricCrossEntropy(), ProxyContrast(), PrototypeRelations()]


@pytest.fixture(scope="module")
def place():
    network = Network(SmallResNet(widths=(8, 16)), LinearHead(16, scale=1.0), "frozen")
    network.grow(6, generator(0, "head"))
    network.set_trainable([network])
    random = np.random.default_rng(1)
    extra = {
        "teacher": torch.from_numpy(random.standard_normal((7, 4), dtype=np.float32)),
        "teacher_features": torch.from_numpy(random.standard_normal((7, 16), dtype=np.float32)),
        "logits": torch.from_numpy(random.standard_normal((7, 6), dtype=np.float32)),
        "logits_classes": torch.tensor([0, 3, 6, 2, 0, 4, 5]),
    }
    x = torch.from_numpy(random.integers(0, 256, (7, 1, 24, 24), dtype=np.uint8))
    y, is_new = torch.tensor([0, 5, 2, 3, 5, 0, 2]), torch.tensor([0, 1, 0, 0, 1, 0, 1]).bool()
    return network, Batch(x, y, np.arange(7), is_new, extra)


def of_parts(objective, network, batch):
    parts = [batch.rows(slice(0, 4)), batch.rows(slice(4, 7))]
    return sum(objective(network, part)[0] * len(part) / len(batch) for part in parts)


@pytest.mark.parametrize("objective", POINTWISE, ids=lambda objective: str(objective.key))
def test_a_pointwise_loss_and_its_gradient_are_those_of_its_parts(place, objective):
    network, batch = place
    assert objective.pointwise
    losses = objective(network, batch)[0], of_parts(objective, network, batch)
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, list(network.parameters()), allow_unused=True) for loss in losses]
    for whole, parts in zip(*gradients):
        torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("objective", ACROSS, ids=lambda objective: str(objective.key))
def test_a_loss_across_the_batch_is_not_that_of_its_parts(place, objective):
    network, batch = place
    assert not objective.pointwise
    assert abs(objective(network, batch)[0] - of_parts(objective, network, batch)) > 1e-3


@pytest.mark.parametrize("objective", POINTWISE, ids=lambda objective: str(objective.key))
def test_a_process_without_rows_adds_nothing_to_the_gradient(place, objective):
    network, batch = place
    loss = objective(network, batch.first(0))[0] * 0.0
    for gradient in torch.autograd.grad(loss, list(network.parameters()), allow_unused=True):
        assert gradient is None or not gradient.any()
