"""Dark experience: a sample is replayed with the logits that it had when it was learnt. No teacher, but bytes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from budgetcl.errors import between
from budgetcl.models.network import Network, Outputs
from budgetcl.streams.batch import Batch


class DarkExperience:
    """Dark experience replay (DER and DER++, NeurIPS 2020, eq. 4-6).

    A sample that this step revealed, or that has nothing stored yet, has its cross-entropy. One that is replayed has

        alpha x mean over the stored columns c of (z_c - s_c)^2  +  beta x its cross-entropy,

    s being the logits that were stored when it was first trained on; classes that came later have no column in s.
    beta = 0 is DER, beta > 0 is DER++. The loss is the mean over the batch: with half of it new and half replayed it
    is half of the paper's sum of two means.

    Args:
        alpha: the factor on the distance to the stored logits.
        beta: the factor on the cross-entropy of replayed samples.
    """

    teacher = False
    pointwise = True
    stores: tuple[str, ...] = ("logits",)

    def __init__(self, alpha: float = 0.5, beta: float = 0.0) -> None:
        between(0, 1e6, alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta
        self.key = ("dark_experience", alpha, beta)

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the loss and the outputs."""
        outputs = network(batch.x)
        logits = outputs.logits.float()
        losses = F.cross_entropy(logits, batch.y, reduction="none")
        if "logits" in batch.extra:
            stored, columns = batch.extra["logits"].float(), batch.extra["logits_classes"]
            width = stored.shape[1]
            valid = torch.arange(width, device=columns.device) < columns[:, None]
            squares = (logits[:, :width] - stored).square() * valid
            distance = squares.sum(1) / columns.clamp(min=1)
            replayed = ~batch.is_new & (columns > 0)
            losses = torch.where(replayed, self.alpha * distance + self.beta * losses, losses)
        return losses.mean(), outputs
