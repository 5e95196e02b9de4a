"""Selection by the network's verdict on each candidate: max-loss, least confidence, margin, entropy."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from budgetcl.budget.formulas import scores
from budgetcl.memory.selection import Selection, top
from budgetcl.streams.stream import IntArray


class Scored(Selection):
    """Learn from the candidates with the highest score."""

    @abstractmethod
    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scores (n,) of logits (n, classes) whose classes are target (n,)."""

    def price(self, n: int, kept: int) -> int:
        """Return the FLOPs of n scores."""
        return scores(n, self._place.network.head.classes)

    def select(self, candidates: IntArray, kept: int) -> IntArray:
        """Return the rows with the highest scores, highest first."""
        place, found = self._place, []
        for rows, outputs in place.forward(candidates, "score"):
            place.compute.work("select", self.price(len(rows), 0))
            target = torch.from_numpy(place.memory.label[rows]).to(outputs.logits.device)
            found.append(self.score(outputs.logits.float(), target))
        return candidates[top(torch.cat(found), kept)]


class MaxLoss(Scored):
    """Score: the cross-entropy -log p(y) (max-loss selection, BudgetCL, CVPR 2023)."""

    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the losses."""
        return F.cross_entropy(logits, target, reduction="none")


class LeastConfidence(Scored):
    """Score: 1 - max p, what the network is least sure of (uncertainty selection, BudgetCL, CVPR 2023)."""

    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return what is missing from certainty; labels do not matter."""
        return 1 - logits.softmax(1).amax(1)


class Margin(Scored):
    """Score: -(p1 - p2), the two largest probabilities near each other (Scheffer et al., IDA 2001)."""

    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the negative margins; labels do not matter, and a single class has the margin 0."""
        best = logits.softmax(1).topk(min(2, logits.shape[1])).values
        return best[:, -1] - best[:, 0]


class Entropy(Scored):
    """Score: -sum p log p over the classes (Shannon, 1948; uncertainty sampling, Settles, 2009)."""

    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the entropies; labels do not matter."""
        log = logits.log_softmax(1)
        return -(log.exp() * log).sum(1)
