"""Losses that treat new and replayed samples, or the classes of a batch, unlike the rest: corrections of the head.

None of them needs a teacher or anything stored. Each is a mean over the batch: with half of it new and half replayed,
a paper's sum of a mean over each half is twice that.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from budgetcl.errors import between
from budgetcl.models.network import Network, Outputs
from budgetcl.streams.batch import Batch


class AsymmetricCrossEntropy:
    """ACE: new samples compete with the classes of the batch's new samples only (ER-ACE, ICLR 2022).

    The logits of all other classes are masked in the cross-entropy of a sample that this step revealed, so that
    learning it does not push old classes away. A replayed sample sees all classes. A batch without new samples, or
    one whose new samples cover all classes, has plain cross-entropy.
    """

    key = ("asymmetric_cross_entropy",)
    teacher = False
    pointwise = False  # the classes of the batch's new samples
    stores: tuple[str, ...] = ()

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the loss and the outputs."""
        outputs = network(batch.x)
        logits = outputs.logits.float()
        classes = torch.arange(logits.shape[1], device=logits.device)
        is_new = batch.is_new[:, None]
        present = ((batch.y[:, None] == classes) & is_new).any(0)
        return F.cross_entropy(logits.masked_fill(is_new & ~present, -torch.inf), batch.y), outputs


class UnbiasedReplay:
    """UER: new samples learn by the angle, replayed ones by angle and norm (Lin et al., 2023, arXiv 2309.04081).

    A sample that this step revealed has the cross-entropy of cos(f, w_c) / temperature, f being its feature and w_c
    the head's row of class c; a replayed one has that of the logits, <f, w_c> (and the bias, where the head has
    one). It is meant for a linear head, since the logits of a cosine head have no norm, and for one whose new rows are
    of ordinary size (head.scale=1): the gradient of a cosine grows as 1 / norm.

    The paper's temperature is not known to us; 0.09 is that of its authors' code for PCR, which has the same cosine.

    Args:
        temperature: of the cosine.
    """

    teacher = False
    pointwise = True
    stores: tuple[str, ...] = ()

    def __init__(self, temperature: float = 0.09) -> None:
        between(0.001, 100, temperature=temperature)
        self.temperature = temperature
        self.key = ("unbiased_replay", temperature)

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the loss and the outputs."""
        outputs = network(batch.x)
        cosine = F.linear(F.normalize(outputs.features), F.normalize(network.head.weight)).float()
        logits = torch.where(batch.is_new[:, None], cosine / self.temperature, outputs.logits.float())
        return F.cross_entropy(logits, batch.y), outputs


class ProxyContrast:
    """Proxy-based contrastive replay (PCR, CVPR 2023): only the classes in the batch compete.

    loss = mean over i of -log [ exp(s_ii) / sum over j in the batch of exp(s_ij) ], s_ij = cos(f_i, w_{y_j}) /
    temperature: the anchor is the feature f_i, and in place of every sample j of the batch stands its class's proxy,
    the head's row w_{y_j}. A class counts as often as it is in the batch. A batch of one class has no gradient.

    The paper's batch holds two views of each image; here it holds one. It is meant for a cosine head, which answers
    by the same angle.

    Args:
        temperature: of the cosine; 0.09 is that of the authors' code.
    """

    teacher = False
    pointwise = False  # the proxies of the batch
    stores: tuple[str, ...] = ()

    def __init__(self, temperature: float = 0.09) -> None:
        between(0.001, 100, temperature=temperature)
        self.temperature = temperature
        self.key = ("proxy_contrast", temperature)

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the loss and the outputs."""
        outputs = network(batch.x)
        proxies = F.normalize(network.head.weight[batch.y])
        similarity = F.linear(F.normalize(outputs.features), proxies).float() / self.temperature
        return F.cross_entropy(similarity, torch.arange(len(batch), device=similarity.device)), outputs
