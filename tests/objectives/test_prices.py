"""What each objective costs: cross-entropy's price, and the products of its own, by hand and as counted."""

import numpy as np
import pytest
import torch
from torch import nn

from budgetcl.budget.counter import CountFlops
from budgetcl.budget.prices import Prices
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

N, D, OLD = 6, 16, 4
TAUGHT = {"teacher": torch.zeros(N, OLD), "teacher_features": torch.ones(N, D)}


class Line(nn.Module):
    """The smallest backbone: one product."""

    feature_dim, mean, std = D, 0.5, 0.5

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(16, D)

    def forward(self, x):
        return self.line(x.flatten(1))


def network(classes):
    made = Network(Line(), LinearHead(D))
    made.grow(classes, generator(0, "head"))
    return made.train()


def batch(**extra):
    x = torch.randint(0, 256, (N, 1, 4, 4), dtype=torch.uint8)
    return Batch(x, torch.tensor([0, 1, 2, 3, 4, 0]), np.arange(N), torch.arange(N) % 2 == 0, extra)


def stored(classes):
    return {"logits": torch.zeros(N, classes), "logits_classes": torch.tensor([0, 1, 2, 3, 4, 5])}


def cases(classes):
    head, pairs = 2 * N * D * classes, 2 * N * D * N
    return [
        *((kind(), extra, 0) for kind in (BCEDistillation, KLDistillation, MSEDistillation) for extra in ({}, TAUGHT)),
        *((kind(), extra, 0) for kind in (CosineDistillation, FeatureDistillation) for extra in ({}, TAUGHT)),
        (CosineDistillation(of="logits"), TAUGHT, 0),
        (DarkExperience(), {}, 0),
        (DarkExperience(beta=0.5), stored(classes), 0),
        (AsymmetricCrossEntropy(), {}, 0),
        (UnbiasedReplay(), {}, 3 * head),  # a second product with the head's rows
        (ProxyContrast(), {}, 3 * pairs - 2 * head),  # the head answers, but nothing goes back through its answer
        (PrototypeRelations(), {}, 3 * pairs - 2 * head),
        (PrototypeRelations(), TAUGHT, 3 * pairs),
    ]


@pytest.mark.parametrize("classes", [5, 11])
def test_prices_by_hand_and_as_counted(classes):
    prices, model = Prices(), network(classes)
    plain = prices.update(CrossEntropy(), model, batch()).network
    for objective, extra, more in cases(classes):
        price = prices.update(objective, model, batch(**extra))
        assert not price.measured, objective.key
        assert price.network == plain + more, objective.key
        with CountFlops(strict=True) as counter:
            objective(model, batch(**extra))[0].backward()
        assert counter.flops == price.network, objective.key


def test_the_price_of_a_grown_head_is_derived_and_equal_to_a_traced_one():
    shared = Prices()
    for classes in (5, 6):
        for objective, extra, _ in cases(classes):
            shared.update(objective, network(classes), batch(**extra))
    for objective, extra, _ in cases(8):
        derived, traced = (p.update(objective, network(8), batch(**extra)) for p in (shared, Prices()))
        assert derived.to_dict()["items"] == traced.to_dict()["items"], objective.key
