"""A network of three samples, two features and three classes, whose losses can be recomputed by hand in numpy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from budgetcl.models.network import Outputs
from budgetcl.streams.batch import Batch


class Toy:
    """Answers with fixed logits and features, whatever the image; they and the head's rows have gradients."""

    z = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [-1.0, 1.5, 0.25]])
    f = np.array([[3.0, 4.0], [1.0, 0.0], [-1.0, 2.0]])
    w = np.array([[1.0, 1.0], [0.0, 2.0], [-3.0, 4.0]])
    y = np.array([0, 2, 1])

    def __init__(self):
        self.logits, self.features, weight = (
            torch.tensor(value, dtype=torch.float32, requires_grad=True) for value in (self.z, self.f, self.w)
        )
        self.head = SimpleNamespace(weight=weight)

    def __call__(self, x):
        return Outputs(self.logits[: len(x)], self.features[: len(x)])

    @classmethod
    def batch(cls, n=3, y=None, new=(True, True, True), **extra):
        """The first n samples."""
        y = torch.tensor((cls.y if y is None else np.asarray(y))[:n])
        extra = {name: torch.as_tensor(np.asarray(value, np.float32))[:n] for name, value in extra.items()}
        if "logits_classes" in extra:
            extra["logits_classes"] = extra["logits_classes"].long()
        return Batch(torch.zeros(n, 1, 1, 1), y, np.arange(n), torch.tensor(new[:n]), extra)

    @staticmethod
    def log_softmax(z):
        """Over the last axis."""
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    @classmethod
    def cross_entropies(cls, n=3):
        """One per sample."""
        return -cls.log_softmax(cls.z)[np.arange(n), cls.y[:n]]

    @staticmethod
    def unit(a):
        """Rows of length 1."""
        return a / np.sqrt((a**2).sum(-1, keepdims=True))

    def gradients(self, loss):
        """Of logits, features and the head's rows; zero where one has no part in the loss."""
        tensors = (self.logits, self.features, self.head.weight)
        return torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)


@pytest.fixture
def toy():
    return Toy()
