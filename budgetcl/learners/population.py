"""Several learners on one allowance: a search for the learning rate while learning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from budgetcl.budget.compute import Compute
from budgetcl.budget.ledger import Exhausted
from budgetcl.errors import UserError
from budgetcl.learners.gradient import GradientLearner, may_wait
from budgetcl.learners.learner import Predictions
from budgetcl.streams.batch import Query
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import TimeStep


class Population:
    """Learners that differ in their learning rate; the best one predicts (PoLRS: Cai et al., ICCV 2021, section 4.2).

    All of them train on the same batches, so an update of the population costs one of each. When a step ends, the one
    with the smallest mean loss on the batches of the step, each measured before it was trained on, is the best: the
    others take its weights over, and its rate becomes the centre of the rates.

    Args:
        learner: what each of them is a copy of.
        factors: of each learner's rate, on the population's. The population's rate starts at the optimiser's.

    Raises:
        UserError: no factor, or one that is not above zero.
    """

    def __init__(self, learner: GradientLearner, factors: Sequence[float] = (0.5, 1.0, 2.0)) -> None:
        if not factors or not all(factor > 0 for factor in factors):
            raise UserError(f"learner.factors={list(factors)} given; one or more numbers above 0 are expected")
        self.factors = tuple(float(factor) for factor in factors)
        self._members = [copy.deepcopy(learner) for _ in self.factors]
        self._best = 0
        self._rate = 1.0  # the population's rate, as a factor on the optimiser's

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
            may_wait(refused, step, compute)
            return
        updates = 0
        losses, counts = torch.zeros(2, len(self._members), device=compute.device)
        try:
            while True:
                for i, (member, factor) in enumerate(zip(self._members, self.factors)):
                    member.rate = self._rate * factor
                    logits, y = member.update(places[i], updates // len(self._members))
                    losses[i] += cross_entropy(logits.detach().float(), y, reduction="sum")
                    counts[i] += len(y)
                    updates += 1
        except Exhausted as refusal:
            if updates == 0:
                may_wait(refusal, step, compute)
        for member, place in zip(self._members, places):
            member.end(place)
        if updates >= len(self._members):
            compute.ranks.total([losses, counts])
            self._lead(int((losses / counts).argmin()))

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
        """Return the learners' states, who leads, and the rate."""
        states = [member.state_dict() for member in self._members]
        return {"members": states, "best": self._best, "rate": self._rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for member, own in zip(self._members, state["members"]):
            member.load_state_dict(own)
        self._best, self._rate = state["best"], state["rate"]

    def nbytes(self) -> Mapping[str, int]:
        """Return the bytes of all learners; the samples are stored once."""
        sizes = [member.nbytes() for member in self._members]
        once = ("samples",)
        return {kind: n if kind in once else sum(each[kind] for each in sizes) for kind, n in sizes[0].items()}
