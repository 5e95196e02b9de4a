"""Sampling by gradients: what an update would harm (MIR), and what pulls in other directions (GSS)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from budgetcl.budget import formulas
from budgetcl.errors import at_least, between
from budgetcl.memory.recency import Recent, untaken
from budgetcl.memory.sampler import Place, enough
from budgetcl.memory.selection import Selection, top
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.streams.stream import IntArray


class MIR:
    """A share of each batch is new; the rest is what learning from it would harm most (Aljundi et al., NeurIPS 2019).

    Each update draws incoming samples from what the step revealed and candidates from the rest of the memory, takes a
    virtual step theta' = theta - rate x gradient of the cross-entropy of the incoming samples, and retrieves the
    candidates with the largest increase of loss, l(x; theta') - l(x; theta) (their section 3.1, MI-1). The gradient and
    the two forward passes over the candidates are charged as "score" in each update, the choice as "select". With the
    defaults, an update costs 5/2 of a plain one, as in Real-Time Evaluation (CVPR 2023).

    Args:
        rate: of the virtual step: the learning rate.
        share: the incoming share of a batch, one sample at least; where the step revealed fewer, more are retrieved.
        pool: how many candidates are looked at for each sample retrieved, as far as the memory has so many.
    """

    ahead = False

    def __init__(self, rate: float, share: float = 0.5, pool: int = 3) -> None:
        between(0, 1e6, rate=rate)
        between(0, 1, share=share)
        at_least(1, pool=pool)
        self.rate, self.share, self.pool = rate, share, pool
        self._recent, self._objective = Recent(), CrossEntropy()

    def begin(self, place: Place) -> None:
        """Take up the step."""
        self._place = place
        self._recent.begin(place)

    def draw(self, n: int, update: int) -> IntArray:
        """Return n distinct rows: round(share x n) new ones, at least one, then those retrieved.

        Raises:
            Exhausted: the rest of the step's allowance does not pay for retrieving.
        """
        place, size = self._place, len(self._place.memory)
        enough(n, size, "the memory")
        incoming = self._recent.draw(min(max(1, round(self.share * n)), self._recent.reach()), update)
        wanted = n - len(incoming)
        if not wanted:
            return incoming
        count = min(self.pool * wanted, size - len(incoming))
        candidates = untaken(size, incoming, count, place.random("candidates", update))
        if not len(incoming):  # a capped memory took nothing new, so nothing interferes
            return candidates[:wanted]
        virtual = self._virtual(incoming)
        place.compute.work("select", formulas.scores(2 * count, place.network.head.classes))
        harm = self._losses(candidates, virtual) - self._losses(candidates)
        return np.concatenate([incoming, candidates[top(harm, wanted)]])

    def reach(self) -> int:
        """Return the size of the memory."""
        return len(self._place.memory)

    def _virtual(self, incoming: IntArray) -> Mapping[str, Tensor]:
        place = self._place
        batch = place.revealed.batch(place.memory.index[incoming])
        gradient, _ = place.compute.gradient(self._objective, place.network, batch, "score")
        place.compute.work("score", formulas.descent(sum(g.numel() for g in gradient.values())))
        parameters = dict(place.network.named_parameters())
        with torch.no_grad():
            return {name: torch.sub(parameters[name], g, alpha=self.rate) for name, g in gradient.items()}

    def _losses(self, rows: IntArray, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        losses = []
        for part, outputs in self._place.forward(rows, "score", parameters=parameters):
            target = torch.from_numpy(self._place.memory.label[part]).to(outputs.logits.device)
            losses.append(F.cross_entropy(outputs.logits.float(), target, reduction="none"))
        return torch.cat(losses)


class GSS(Selection):
    """Learn from candidates whose gradients point in different directions (Aljundi et al., NeurIPS 2019, algorithm 2).

    The gradient is that of the last layer's weights, (softmax - one-hot) x features: a forward pass gives it, and the
    cosine of two is the product of the cosines of their factors.

    Args:
        spend: see :class:`Selection`.
        keep: see :class:`Selection`.
        candidates: see :class:`Selection`.
        refresh: see :class:`Selection`.
        compared: how many of those kept each candidate is compared with.
    """

    def __init__(
        self,
        spend: float = 1 / 6,
        keep: float = 1 / 3,
        candidates: int | None = None,
        refresh: int = 1,
        compared: int = 10,
    ) -> None:
        super().__init__(spend, keep, candidates, refresh)
        at_least(1, compared=compared)
        self.compared = compared

    def price(self, n: int, kept: int) -> int:
        """Return the FLOPs of n last-layer gradients and of comparing each."""
        network = self._place.network
        sizes = network.head.classes, network.feature_dim
        return formulas.scores(n, sizes[0]) + formulas.gradient_diversity(n, *sizes, min(self.compared, kept))

    def select(self, candidates: IntArray, kept: int) -> IntArray:
        """Return the rows kept."""
        place = self._place
        errors, features = [], []
        for rows, outputs in place.forward(candidates, "score"):
            target = torch.from_numpy(place.memory.label[rows]).to(outputs.logits.device)
            probabilities = outputs.logits.float().softmax(1)
            errors.append(probabilities - F.one_hot(target, probabilities.shape[1]))
            features.append(outputs.features.float())
        random = place.random("gss", self._selections)
        chosen = place.compute.work(
            "select",
            self.price(len(candidates), kept),
            lambda: spread(torch.cat(errors), torch.cat(features), kept, self.compared, random),
        )
        return candidates[chosen]


def spread(errors: Tensor, features: Tensor, kept: int, compared: int, random: np.random.Generator) -> IntArray:
    """Return which of n gradients errors x features are kept (GSS-Greedy, Aljundi et al., NeurIPS 2019, algorithm 2).

    The candidates come one after another, which is why this is a loop. Each has the score C = 1 + its largest cosine
    with a random few of those kept. The first ``kept`` are kept. A later one whose score is below 1 (it pulls against
    all it met) challenges one of those kept, i, drawn in proportion to the scores, and takes its place with probability
    C_i / (C_i + C).

    Args:
        errors: (n, classes), the losses' gradients by the logits.
        features: (n, d).
        kept: how many, at most n.
        compared: how many of those kept a candidate is compared with, or all where fewer are kept.
        random: decides.

    Returns:
        (kept,) positions.
    """
    e, f = (F.normalize(values).cpu().numpy() for values in (errors, features))
    held, score = np.arange(kept), np.empty(kept)
    for i in range(len(e)):
        there = min(i, kept)
        met = held[random.choice(there, min(compared, there), replace=False, shuffle=False)]
        mine = 1 + max((e[met] @ e[i]) * (f[met] @ f[i]), default=0.0)
        if i < kept:
            score[i] = mine
        elif mine < 1:
            sums = score.cumsum()
            j = min(int(np.searchsorted(sums, random.random() * sums[-1], side="right")), kept - 1)
            if random.random() * (score[j] + mine) < score[j]:
                held[j], score[j] = i, mine
    return held
