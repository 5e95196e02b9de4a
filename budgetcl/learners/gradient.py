"""The learner that trains a network by gradient descent: backbone, head, part, sampler, objective, optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from budgetcl.budget.compute import Compute
from budgetcl.budget.ledger import Exhausted
from budgetcl.errors import UserError, at_least
from budgetcl.learners.learner import Predictions
from budgetcl.memory.memory import Memory
from budgetcl.memory.sampler import Place, Sampler
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.models.parts import Part
from budgetcl.objectives.objective import Objective
from budgetcl.randomness import generator
from budgetcl.streams.batch import Query
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import TimeStep


class GradientLearner:
    """Continues one network over the whole stream; each step trains until the ledger refuses.

    Args:
        backbone: images -> features.
        head: ``head(feature_dim=..., weight=..., bias=...)`` -> the classifier; a head of pretraining classes that
            comes with the backbone is its start.
        part: which modules are trained.
        sampler: which samples of the memory an update learns from.
        objective: the loss.
        optimiser: ``optimiser(parameters)`` -> a torch optimiser; its rate is the peak rate.
        schedule: progress -> factor on the peak rate.
        batch: samples per update.
        batch_norm: "live" or "frozen" statistics. A batch of one class and live statistics do not go together, so
            streams that reveal a few samples at a time freeze them.
        clip: the largest norm of the gradient, or None.
        seed: the run's seed.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Callable[..., LinearHead],
        part: Part,
        sampler: Sampler,
        objective: Objective,
        optimiser: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[float], float],
        batch: int,
        batch_norm: str = "live",
        clip: float | None = None,
        seed: int = 0,
    ) -> None:
        at_least(1, **{"learner.batch": batch})
        if clip is not None and (isinstance(clip, bool) or not isinstance(clip, (int, float)) or not clip > 0):
            raise UserError(f"clip={clip!r} given; a number above 0, or null, is expected")
        known = getattr(backbone, "head_weight", None), getattr(backbone, "head_bias", None)
        self.network = Network(backbone, head(backbone.feature_dim, weight=known[0], bias=known[1]), batch_norm)
        self.memory = Memory()
        self.teacher: Network | None = None
        self.optimiser: Optimizer | None = None
        self._make_optimiser, self._schedule, self._part = optimiser, schedule, part
        self._sampler, self._objective = sampler, objective
        self._batch, self._clip, self._seed = batch, clip, seed
        self._image_bytes = 0
        self._peak: list[float] = []

    # --- learning -------------------------------------------------------------------------------------------------

    def fit(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        """Learn from the step: take it into memory, grow, then update until the allowance is spent.

        Raises:
            UserError: the allowance does not pay for one update, and does not carry over.
        """
        self._take_in(step, revealed, compute)
        place = Place(self._seed, step.number, self.memory, revealed, self.network, compute)
        updates = 0
        try:
            self._sampler.begin(place)
            while True:
                self._update(place, updates)
                updates += 1
        except Exhausted as refusal:
            carries = compute.budget.rest == "carry"
            if updates == 0 and (not carries or refusal.price > compute.most):
                raise UserError(
                    f"step {step.number}: the allowance of {compute.most:,} FLOPs{' at most' if carries else ''} does "
                    f"not pay for one update ({refusal}): raise budget.updates (or budget.flops), or lower "
                    f"learner.batch{'' if carries else ', or set budget.rest=carry'}"
                ) from None
        if self._objective.teacher:
            self.teacher = _frozen_copy(self.network)

    def _update(self, place: Place, update: int) -> None:
        rows = self._sampler.draw(self._batch, update)
        batch = place.revealed.batch(place.memory.index[rows], place.random("augment", update))
        assert self.optimiser is not None
        factor = self._schedule(place.compute.ledger.progress)
        for group, peak in zip(self.optimiser.param_groups, self._peak):
            group["lr"] = peak * factor
        teacher = self.teacher if self._objective.teacher else None
        place.compute.update(self._objective, self.network, batch, self.optimiser, teacher=teacher, clip=self._clip)
        place.memory.used(rows, place.step)

    def _take_in(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        if not len(self.memory):
            self._take_in_pretraining(revealed, compute)
        self.memory.add(revealed.new, revealed.labels(revealed.new))
        if revealed.classes != self.network.head.classes or self.optimiser is None:
            before = dict(self.network.named_parameters())
            self.network.grow(revealed.classes, generator(self._seed, "head", step.number))
            self.network.set_trainable(self._part(self.network))
            self._rebind(before)

    def _take_in_pretraining(self, revealed: Revealed, compute: Compute) -> None:
        """Before the first step: the pretraining samples are in memory, and their classifier is the first teacher."""
        self.network.takes(revealed.image_shape)
        self._image_bytes = int(np.prod(revealed.image_shape))
        self.network.to(compute.device)
        past = np.setdiff1d(revealed.indices, revealed.new)
        if not len(past):
            return
        labels = revealed.labels(past)
        self.memory.add(past, labels)
        self.network.grow(int(labels.max()) + 1, generator(self._seed, "head of pretraining"), known=True)
        if self._objective.teacher and self.network.head.classes <= self.network.head.known:
            self.teacher = _frozen_copy(self.network)

    def _rebind(self, before: Mapping[str, nn.Parameter]) -> None:
        """Let the optimiser follow parameters that were replaced; their momentum goes on, new rows start at zero."""
        trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        if self.optimiser is None:
            try:
                self.optimiser = self._make_optimiser(trainable.values())
            except (TypeError, ValueError) as error:
                raise UserError(f"the optimiser refuses its settings: {error}; see optimiser.*") from error
            self._peak = [group["lr"] for group in self.optimiser.param_groups]
            return
        for name, new in trainable.items():
            old = before[name]
            if old is not new and old in self.optimiser.state:
                self.optimiser.state[new] = {
                    key: _padded(value, new) if isinstance(value, torch.Tensor) and value.shape == old.shape else value
                    for key, value in self.optimiser.state.pop(old).items()
                }
        self.optimiser.param_groups[0]["params"] = list(trainable.values())

    # --- predicting -----------------------------------------------------------------------------------------------

    def predict(self, query: Query, compute: Compute) -> Predictions:
        """Return the classes with the largest logits; no answer before the first reveal."""
        classes = self.network.head.classes
        if classes == 0:
            return Predictions.constant(len(query), np.empty(0, np.int64), 0.0)
        logits = compute.forward(self.network, query.x, "predict").logits.float()
        top = logits.topk(min(5, classes)).indices
        confidence = logits.softmax(1).gather(1, top[:, :1])[:, 0]
        ranking = top.cpu().numpy()
        return Predictions(ranking[:, 0], ranking, confidence.cpu().numpy())

    # --- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> Mapping[str, Any]:
        """Return weights, teacher, optimiser and memory."""
        return {
            "network": self.network.state_dict(),
            "teacher": self.teacher.state_dict() if self.teacher is not None else None,
            "optimiser": self.optimiser.state_dict() if self.optimiser is not None else None,
            "memory": self.memory.state_dict(),
            "image_bytes": self._image_bytes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a learner with the same configuration."""
        self.memory.load_state_dict(state["memory"])
        self._image_bytes = state["image_bytes"]
        self.teacher = None
        if state["teacher"] is not None:
            self.teacher = _frozen_copy(_loaded(self.network, state["teacher"]))
        _loaded(self.network, state["network"])
        self.network.set_trainable(self._part(self.network))
        self.optimiser = None
        if state["optimiser"] is not None:
            self._rebind({})
            assert self.optimiser is not None
            self.optimiser.load_state_dict(state["optimiser"])

    def nbytes(self) -> Mapping[str, int]:
        """Return the bytes of samples within reach, of the memory, of the weights and of their copies."""
        optimiser = self.optimiser.state.values() if self.optimiser is not None else ()
        return {
            "samples": self._sampler.reach() * self._image_bytes,
            "memory": self.memory.nbytes,
            "network": _bytes(self.network.state_dict().values()),
            "teacher": _bytes(self.teacher.state_dict().values()) if self.teacher is not None else 0,
            "optimiser": sum(_bytes(state.values()) for state in optimiser),
        }


def _frozen_copy(network: Network) -> Network:
    teacher = copy.deepcopy(network).requires_grad_(False)
    teacher.set_trainable([])
    return teacher.eval()


def _loaded(network: Network, state: Mapping[str, torch.Tensor]) -> Network:
    network.grow(len(state["head.weight"]), generator(0, "head"))
    network.load_state_dict(state)
    return network


def _padded(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    padded = torch.zeros_like(like)
    padded[: len(value)] = value
    return padded


def _bytes(values: Iterable[Any]) -> int:
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
