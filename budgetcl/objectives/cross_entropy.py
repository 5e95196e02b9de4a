"""Cross-entropy over all classes seen."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from budgetcl.models.network import Network, Outputs
from budgetcl.streams.batch import Batch


class CrossEntropy:
    """Mean cross-entropy of the batch."""

    key = ("cross_entropy",)
    teacher = False
    pointwise = True
    stores: tuple[str, ...] = ()

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the loss and the outputs."""
        outputs = network(batch.x)
        return F.cross_entropy(outputs.logits.float(), batch.y), outputs
