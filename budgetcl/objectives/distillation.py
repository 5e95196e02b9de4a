"""Distillation: stay near what a teacher answers on the same batch, on the classes that the teacher knew."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn import functional as F

from budgetcl.errors import between, one_of
from budgetcl.models.network import Network, Outputs
from budgetcl.streams.batch import Batch


class Distillation(ABC):
    """Cross-entropy, and a distance to the teacher: what all of this file have in common.

    loss = a x CE(z, y) + b x distance, where (a, b) = (1, weight) unless a class says otherwise. Without a teacher (no
    class was seen before) it is cross-entropy, and nothing is charged for a teacher.

    Args:
        weight: the factor on the distance; None where a class has a rule for it.
    """

    teacher = True
    pointwise = True
    stores: tuple[str, ...] = ()

    def __init__(self, weight: float | None, *settings: object) -> None:
        if weight is not None:
            between(0, 1e6, weight=weight)
        self.weight = weight
        self.key = (type(self).__name__, weight, *settings)

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the loss and the outputs."""
        outputs = network(batch.x)
        loss = F.cross_entropy(outputs.logits.float(), batch.y)
        if "teacher" in batch.extra:
            old = batch.extra["teacher"].shape[1]
            labels, distance = self.factors(old, outputs.logits.shape[1] - old)
            loss = labels * loss + distance * self.distance(outputs, batch)
        return loss, outputs

    def factors(self, old: int, new: int) -> tuple[float, float]:
        """Return the factors on the cross-entropy and on the distance.

        Args:
            old: the number of classes that the teacher knew.
            new: of those that came since.
        """
        assert self.weight is not None
        return 1.0, self.weight

    @abstractmethod
    def distance(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the scalar distance of the outputs to the teacher's."""


class BCEDistillation(Distillation):
    """Binary cross-entropy with the teacher's sigmoid, class by class (iCaRL, CVPR 2017, algorithm 3).

    distance = mean over the batch and the old classes c of -[q_c log s(z_c) + (1 - q_c) log(1 - s(z_c))], with the
    sigmoid s and q = s(t), t the teacher's logits. The algorithm writes a sum over the classes; with the mean, one
    weight and one learning rate hold for ten classes and for a thousand. iCaRL has binary cross-entropy for the labels
    too; here they keep the cross-entropy that all methods of a table have, so that rows differ by their distillation
    alone.

    Args:
        weight: the factor on the distance.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def distance(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean binary cross-entropy."""
        student, teacher = _old_logits(outputs, batch)
        return F.binary_cross_entropy_with_logits(student, teacher.sigmoid())


class KLDistillation(Distillation):
    """Kullback-Leibler divergence from the teacher's softened answers (LwF, ECCV 2016, eq. 2; BiC, CVPR 2019, eq. 1-3).

    distance = T^2 x mean over the batch of KL(softmax(t / T) || softmax(z / T)) over the old classes; T^2 keeps the
    gradient's size when T changes (Hinton et al., 2015). The papers write cross-entropy in place of the divergence;
    the teacher's entropy, in which they differ, has no gradient. As in BiC the two terms share one weight:
    loss = (1 - weight) x CE + weight x distance.

    BiC's weight is old / (old + new), with the numbers of classes. Where no class is new this would leave the labels
    without any weight, so one is counted then. Streams that seldom reveal a class still learn little from labels by
    that rule: give a number there.

    Args:
        weight: in [0, 1]; None: old / (old + new).
        temperature: T.
    """

    def __init__(self, weight: float | None = None, temperature: float = 2.0) -> None:
        if weight is not None:
            between(0, 1, weight=weight)
        between(0.01, 100, temperature=temperature)
        super().__init__(weight, temperature)
        self.temperature = temperature

    def factors(self, old: int, new: int) -> tuple[float, float]:
        """Return 1 - weight and weight."""
        weight = self.weight if self.weight is not None else old / (old + max(1, new))
        return 1 - weight, weight

    def distance(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the divergence of the softened answers."""
        student, teacher = (logits / self.temperature for logits in _old_logits(outputs, batch))
        divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence


class CosineDistillation(Distillation):
    """Keep directions: the less-forget constraint (LUCIR, CVPR 2019, eq. 6).

    distance = mean over the batch of 1 - <f, f*> / (|f| |f*|), of the features f and the teacher's f*. BudgetCL
    (CVPR 2023) takes the logits of the old classes for them. Its weight is max(0.5, sqrt(new / old)), with the numbers
    of classes.

    Args:
        weight: the factor on the distance; None: max(0.5, sqrt(new / old)).
        of: "features" or "logits".
    """

    def __init__(self, weight: float | None = None, of: str = "features") -> None:
        one_of(("features", "logits"), of=of)
        super().__init__(weight, of)
        self.of = of

    def factors(self, old: int, new: int) -> tuple[float, float]:
        """Return 1 and the weight."""
        return 1.0, self.weight if self.weight is not None else max(0.5, math.sqrt(new / old))

    def distance(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return 1 - the cosine."""
        student, teacher = (_features if self.of == "features" else _old_logits)(outputs, batch)
        return (1 - F.cosine_similarity(student, teacher)).mean()


class MSEDistillation(Distillation):
    """Squared distance to the teacher's logits (BudgetCL, CVPR 2023, after DER, NeurIPS 2020).

    distance = mean over the batch and the old classes of (z_c - t_c)^2.

    Args:
        weight: the factor on the distance.
    """

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def distance(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the mean squared difference of the logits."""
        return F.mse_loss(*_old_logits(outputs, batch))


class FeatureDistillation(Distillation):
    """Squared distance to the teacher's features (Less-Forgetting Learning, Jung et al., 2016, eq. 3).

    distance = mean over the batch of 1/2 |f - f*|^2. It holds for every sample, of old and of new classes.

    Args:
        weight: the factor on the distance.
    """

    def __init__(self, weight: float = 0.001) -> None:
        super().__init__(weight)

    def distance(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return half the squared difference of the features."""
        student, teacher = _features(outputs, batch)
        return (student - teacher).square().sum(1).mean() / 2


def _old_logits(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits of the classes that the teacher knew: the network's, and its own."""
    teacher = batch.extra["teacher"].float()
    return outputs.logits[:, : teacher.shape[1]].float(), teacher


def _features(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    return outputs.features.float(), batch.extra["teacher_features"].float()
