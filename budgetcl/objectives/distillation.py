"""Distillation: stay near a teacher's outputs on the classes that the teacher knew."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from budgetcl.errors import between
from budgetcl.models.network import Network, Outputs
from budgetcl.streams.batch import Batch


class MSEDistillation:
    """Cross-entropy plus the squared distance to the teacher's logits.

    loss = CE(z, y) + weight x mean over the batch and the old classes of (z_c - t_c)^2; the teacher t is the network
    at the end of the last step, on the same batch (BudgetCL, CVPR 2023, after DER, NeurIPS 2020, eq. 4). Without a
    teacher (no class was seen before) it is cross-entropy, and nothing is charged for a teacher.

    Args:
        weight: the factor on the distance.
    """

    teacher = True

    def __init__(self, weight: float = 0.1) -> None:
        between(0, 1e6, weight=weight)
        self.weight = weight
        self.key = ("mse_distillation", weight)

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the loss and the outputs."""
        outputs = network(batch.x)
        loss = F.cross_entropy(outputs.logits.float(), batch.y)
        if "teacher" in batch.extra:
            old = batch.extra["teacher"].float()
            loss = loss + self.weight * F.mse_loss(outputs.logits[:, : old.shape[1]].float(), old)
        return loss, outputs
