"""Prototype-sample relation distillation: old prototypes keep their ranking of the samples of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from budgetcl.errors import between
from budgetcl.models.network import Network, Outputs
from budgetcl.streams.batch import Batch


class PrototypeRelations:
    """Keep relations of prototypes and samples (PRD, ICML 2023): contrast, prototypes drawn to samples, distillation.

    loss = L_contrast + pull x L_pull + weight x L_relations; the prototypes are the head's rows w_c, f the features.

    - L_contrast, the supervised contrastive loss (NeurIPS 2020, eq. 2): mean over the samples i that share their class
      with another of -1/|P(i)| sum over p in P(i) of log [ exp(cos(f_i, f_p) / contrast) / sum over j != i of
      exp(cos(f_i, f_j) / contrast) ], P(i) being the others of i's class. Without such samples it is 0.
    - L_pull: mean over the batch of 1 - cos(f_i, w_{y_i}); it moves the prototypes only.
    - L_relations: mean over the old classes c of KL(teacher || network) of the softmax, over the samples of the batch,
      of class c's logits / temperature. Without a teacher there is none, and no charge for it.

    It is meant for a cosine head, whose logits are the similarities of prototypes and samples (times the head's scale,
    which acts as an inverse temperature), and which answers by the nearest prototype. The paper contrasts two views
    of each image behind a projection; here it is one view of the features themselves. The factors are those of the
    authors' code.

    Args:
        weight: the factor on the relations.
        pull: the factor on the prototypes' own loss.
        contrast: the temperature of the contrastive loss.
        temperature: of the relations.
    """

    teacher = True
    pointwise = False  # samples among each other
    stores: tuple[str, ...] = ()

    def __init__(self, weight: float = 4.0, pull: float = 2.0, contrast: float = 0.1, temperature: float = 1.0) -> None:
        between(0, 1e6, weight=weight, pull=pull)
        between(0.001, 100, contrast=contrast, temperature=temperature)
        self.weight, self.pull, self.contrast, self.temperature = weight, pull, contrast, temperature
        self.key = ("prototype_relations", weight, pull, contrast, temperature)

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the loss and the outputs."""
        outputs = network(batch.x)
        features = F.normalize(outputs.features)
        prototypes = F.normalize(network.head.weight[batch.y])
        apart = 1 - (features.detach() * prototypes).float().sum(1)
        loss = supervised_contrast(features, batch.y, self.contrast) + self.pull * apart.mean()
        if "teacher" in batch.extra:
            teacher = batch.extra["teacher"].float() / self.temperature
            student = outputs.logits[:, : teacher.shape[1]].float() / self.temperature
            # Transposed: a row is an old class, its distribution runs over the samples.
            relations = F.kl_div(
                student.T.log_softmax(1), teacher.T.log_softmax(1), reduction="batchmean", log_target=True
            )
            loss = loss + self.weight * relations
        return loss, outputs


def supervised_contrast(features: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al., NeurIPS 2020, eq. 2), one view a sample.

    Args:
        features: (n, d) of length 1.
        y: (n,) classes.
        temperature: of the similarities.
    """
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    similarity = F.linear(features, features).float() / temperature
    # A large negative number, not minus infinity, whose product with the mask below would be undefined.
    log_share = similarity.masked_fill(itself, -1e9).log_softmax(1)
    alike = (y[:, None] == y) & ~itself
    partners = alike.sum(1)
    losses = -(log_share * alike).sum(1) / partners.clamp(min=1)
    return losses.sum() / (partners > 0).sum().clamp(min=1)
