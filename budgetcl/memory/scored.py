"""Sampling by the network's verdict: candidates are scored by a forward pass, which the ledger charges."""

from __future__ import annotations

import torch

from budgetcl.budget.formulas import scores
from budgetcl.errors import UserError, between
from budgetcl.memory.sampler import Place, enough
from budgetcl.streams.stream import IntArray


class MaxLoss:
    """Learn from the candidates with the highest loss (max-loss selection, BudgetCL, CVPR 2023).

    At the start of a step a part of the allowance buys forward passes over candidates, drawn uniformly from everything
    seen, new data included; the step then draws uniformly from those with the highest loss.

    Args:
        spend: the share of the step's allowance that scoring may cost; it bounds the number of candidates.
        keep: the share of the candidates that is kept.
    """

    def __init__(self, spend: float = 1 / 6, keep: float = 1 / 3) -> None:
        between(0, 1, spend=spend, keep=keep)
        self.spend, self.keep = spend, keep

    def begin(self, place: Place) -> None:
        """Score the candidates of this step."""
        self._place = place
        price = place.price() + scores(1, place.network.head.classes)
        n = min(int(self.spend * place.compute.ledger.remaining) // price, len(place.memory))
        if n < 1:
            raise UserError(
                f"spend={self.spend:g} of this step's allowance does not pay for scoring one image: raise it"
            )
        candidates = place.random("candidates").choice(len(place.memory), n, replace=False, shuffle=False)
        losses = []
        for rows, outputs in place.forward(candidates, "score"):
            target = torch.from_numpy(place.memory.label[rows]).to(outputs.logits.device)
            place.compute.work("score", scores(len(rows), outputs.logits.shape[1]))
            losses.append(torch.nn.functional.cross_entropy(outputs.logits.float(), target, reduction="none"))
        order = torch.argsort(torch.cat(losses), descending=True, stable=True).cpu().numpy()
        self._ranked = candidates[order]

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows among those kept; at least n are kept."""
        enough(n, len(self._ranked), f"the candidates that spend={self.spend:g} pays for")
        kept = max(n, round(self.keep * len(self._ranked)))
        return self._ranked[self._place.random("scored", update).choice(kept, n, replace=False, shuffle=False)]

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)
