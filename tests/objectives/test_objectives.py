import math

import numpy as np
import pytest
import torch

from budgetcl.errors import UserError
from budgetcl.models.network import Outputs
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.objectives.distillation import MSEDistillation
from budgetcl.streams.batch import Batch

LOGITS = [[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]


def network(x):
    return Outputs(torch.tensor(LOGITS)[: len(x)], torch.zeros(len(x), 1))


def batch(n=2, **extra):
    y = torch.tensor([0, 1])[:n]
    return Batch(torch.zeros(n, 1, 1, 1), y, np.arange(n), torch.ones(n, dtype=torch.bool), extra)


def by_hand_cross_entropy(n):
    rows = [(LOGITS[0], 0), (LOGITS[1], 1)][:n]
    return sum(math.log(sum(math.exp(z) for z in logits)) - logits[y] for logits, y in rows) / n


@pytest.mark.parametrize("n", [1, 2])
def test_cross_entropy_is_the_mean_negative_log_likelihood(n):
    loss, outputs = CrossEntropy()(network, batch(n))
    assert loss.item() == pytest.approx(by_hand_cross_entropy(n))
    assert outputs.logits.shape == (n, 3)


def test_mse_distillation_adds_the_mean_squared_distance_over_old_classes_only():
    teacher = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    # ((2-1)^2 + (0-1)^2 + (0.5-0)^2 + (0.5-2)^2) / 4 = 4.5 / 4
    loss, _ = MSEDistillation(weight=0.4)(network, batch(teacher=teacher))
    assert loss.item() == pytest.approx(by_hand_cross_entropy(2) + 0.4 * 4.5 / 4)
    loss, _ = MSEDistillation(weight=0.4)(network, batch(1, teacher=teacher[:1]))
    assert loss.item() == pytest.approx(by_hand_cross_entropy(1) + 0.4 * 2 / 2)


def test_without_a_teacher_mse_distillation_is_cross_entropy():
    assert MSEDistillation()(network, batch())[0].item() == pytest.approx(by_hand_cross_entropy(2))


def test_a_weight_that_is_no_weight_is_refused_and_tells_prices_apart():
    with pytest.raises(UserError, match="weight=-1"):
        MSEDistillation(weight=-1)
    assert MSEDistillation(0.1).key != MSEDistillation(0.2).key
