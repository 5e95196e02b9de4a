"""Several learners on one allowance: a search for the learning rate while learning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from budgetcl.budget.compute import Compute
from budgetcl.budget.ledger import Exhausted
from budgetcl.errors import UserError, at_least
from budgetcl.learners.gradient import GradientLearner, may_wait
from budgetcl.learners.learner import Predictions
from budgetcl.streams.batch import Query
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import TimeStep


class Population:
    """Learners that differ in their learning rate; the best one predicts (PoLRS: Cai et al., ICCV 2021, section 4.2).

    All of them train on the same batches of a step, in turn, so an update of the population costs one of each. When a
    step ends after which each has made ``period`` updates, the one with the smallest mean loss on its batches since the
    last choice, each measured before it was trained on, is the best: the others take its weights over, and its rate
    becomes the centre of the rates. Before the first choice the first one predicts.

    Args:
        learner: what each of them is a copy of.
        factors: of each learner's rate, on the population's. The population's rate starts at the optimiser's.
        period: updates of each learner, at least, between two choices. All of them begin with the same weights, so that
            the first update tells nothing; where a step affords few of them, a choice takes several steps.

    Raises:
        UserError: no factor, or one that is not above zero; a period below 1.
    """

    def __init__(self, learner: GradientLearner, factors: Sequence[float] = (0.5, 1.0, 2.0), period: int = 5) -> None:
        if not factors or not all(factor > 0 for factor in factors):
            raise UserError(f"learner.factors={list(factors)} given; one or more numbers above 0 are expected")
        at_least(1, **{"learner.period": period})
        self.factors, self._period = tuple(float(factor) for factor in factors), period
        self._members = [copy.deepcopy(learner) for _ in self.factors]
        self._best = 0
        self._rate = 1.0  # the population's rate, as a factor on the optimiser's
        self._race = np.zeros((3, len(self.factors)))  # of each since the last choice: losses, samples, updates

    @property
    def network(self) -> Any:
        """The best learner's network."""
        return self._members[self._best].network

    def fit(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        """Train all learners in turn until the allowance is spent, then let the best one lead."""
        places, refused = [], None
        for member in self._members:
            try:
                places.append(member.begin(step, revealed, compute))
            except Exhausted as refusal:  # the others still take the step into their memories
                refused = refusal
        if refused is not None:
            may_wait(refused, step, compute, self.network)
            return
        made = [0] * len(self._members)  # updates in this step
        losses, counts = torch.zeros(2, len(self._members), device=compute.device)
        try:
            while True:
                i = int((self._race[2] + made).argmin())  # whose turn it is: of equals, the first
                member = self._members[i]
                member.rate = self._rate * self.factors[i]
                logits, y = member.update(places[i], made[i])
                losses[i] += cross_entropy(logits.detach().float(), y, reduction="sum")
                counts[i] += len(y)
                made[i] += 1
        except Exhausted as refusal:
            if not any(made):
                may_wait(refusal, step, compute, self.network)
        for member, place in zip(self._members, places):
            member.end(place)
        compute.ranks.total([losses, counts])
        self._race += [losses.tolist(), counts.tolist(), made]
        if self._race[2].min() >= self._period:
            mean = self._race[0] / self._race[1]
            self._lead(int(np.where(np.isfinite(mean), mean, np.inf).argmin()))  # one that diverged never leads
            self._race[:] = 0

    def _lead(self, best: int) -> None:
        self._best = best
        self._rate *= self.factors[best]
        state = self._members[best].state_dict()
        for i, member in enumerate(self._members):
            if i != best:
                member.load_state_dict(copy.deepcopy(state))  # an optimiser would share its tensors

    def predict(self, query: Query, compute: Compute) -> Predictions:
        """Return what the best learner answers."""
        return self._members[self._best].predict(query, compute)

    def state_dict(self) -> Mapping[str, Any]:
        """Return the learners' states, who leads, the rate, and how far the next choice is."""
        states = [member.state_dict() for member in self._members]
        return {"members": states, "best": self._best, "rate": self._rate, "race": self._race.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for member, own in zip(self._members, state["members"]):
            member.load_state_dict(own)
        self._best, self._rate, self._race = state["best"], state["rate"], np.array(state["race"])

    def nbytes(self) -> Mapping[str, int]:
        """Return the bytes of all learners; the samples are stored once."""
        sizes = [member.nbytes() for member in self._members]
        once = ("samples",)
        return {kind: n if kind in once else sum(each[kind] for each in sizes) for kind, n in sizes[0].items()}
