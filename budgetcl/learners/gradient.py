"""The learner that trains a network by gradient descent: backbone, head, part, sampler, objective, optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from budgetcl.budget.compute import Compute
from budgetcl.budget.ledger import Exhausted
from budgetcl.companions.averaging import Averaging
from budgetcl.companions.calibration import Calibration
from budgetcl.companions.companion import Companion
from budgetcl.companions.regularisers import Regulariser
from budgetcl.companions.teachers import LastStep
from budgetcl.errors import UserError, at_least, between, one_of, positive_or_none
from budgetcl.learners.learner import Predictions
from budgetcl.memory.memory import Memory
from budgetcl.memory.sampler import Place, Sampler
from budgetcl.models.backbones import initialise
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network, bytes_of
from budgetcl.models.parts import Part
from budgetcl.objectives.objective import Objective
from budgetcl.randomness import generator
from budgetcl.streams.batch import Batch, Query
from budgetcl.streams.pinned import moved
from budgetcl.streams.prefetch import Pending
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import IntArray, TimeStep


class GradientLearner:
    """Continues one network over the whole stream; each step trains until the ledger refuses.

    Args:
        backbone: images -> features.
        head: ``head(feature_dim=..., weight=..., bias=...)`` -> the classifier; a head of pretraining classes that
            comes with the backbone is its start.
        part: what is trained.
        memory: what was seen, or what a limited capacity keeps of it.
        sampler: which samples of the memory an update learns from.
        objective: the loss.
        teacher: whom an objective that distils stays near.
        regulariser: a penalty on the way of the weights.
        averaging: of weights, to predict with.
        calibration: corrects the outputs at the end of each step.
        optimiser: ``optimiser(parameters)`` -> a torch optimiser; its rate is the peak rate.
        schedule: (progress within the step, step) -> factor on the peak rate.
        batch: samples per update.
        batch_norm: "live" or "frozen" statistics. A batch of one class and live statistics do not go together, so
            streams that reveal a few samples at a time freeze them.
        clip: the largest norm of the gradient, or None.
        backbone_rate: the backbone's learning rate, as a factor on the head's (a slow backbone: SLCA, ICCV 2023).
        restart: None goes on from the last step's weights; "pretrained" begins each step from the backbone as it came
            (GDumb, ECCV 2020), "scratch" from fresh weights.
        short_batches: whether a batch may be smaller, of all that is there, while the memory holds fewer samples than
            ``batch``; otherwise that is refused. Smaller batches cost less, so an allowance pays for more of them.
        seed: the run's seed.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Callable[..., LinearHead],
        part: Part,
        sampler: Sampler,
        objective: Objective,
        optimiser: Callable[[Iterable[Any]], Optimizer],
        schedule: Callable[[float, int], float],
        batch: int,
        memory: Memory | None = None,
        teacher: LastStep | None = None,
        regulariser: Regulariser | None = None,
        averaging: Averaging | None = None,
        calibration: Calibration | None = None,
        batch_norm: str = "live",
        clip: float | None = None,
        backbone_rate: float = 1.0,
        restart: str | None = None,
        short_batches: bool = False,
        seed: int = 0,
    ) -> None:
        at_least(1, **{"learner.batch": batch})
        if not isinstance(short_batches, bool):
            raise UserError(f"short_batches={short_batches!r} given; true or false is expected")
        between(0, 1e3, **{"learner.backbone_rate": backbone_rate})
        if restart is not None:
            one_of(("pretrained", "scratch"), **{"learner.restart": restart})
        positive_or_none(clip=clip)
        known = getattr(backbone, "head_weight", None), getattr(backbone, "head_bias", None)
        self._make_head = lambda: head(backbone.feature_dim, weight=known[0], bias=known[1])
        self.network = Network(backbone, self._make_head(), batch_norm)
        self.memory = memory if memory is not None else Memory()
        self.optimiser: Optimizer | None = None
        self.teacher = teacher if teacher is not None else LastStep()
        self.regulariser = regulariser if regulariser is not None else Regulariser()
        self.averaging = averaging if averaging is not None else Averaging()
        self.calibration = calibration if calibration is not None else Calibration()
        if self.averaging.apart and type(self.calibration) is not Calibration:
            raise UserError(
                "a calibration and an average of weights were chosen together; the one corrects the network that is "
                "trained, the other predicts with another one: set averaging=none or calibration=none"
            )
        self._make_optimiser, self._schedule, self._part = optimiser, schedule, part
        self._sampler, self._objective = sampler, objective
        self._batch, self._short_batches, self._clip, self._seed = batch, short_batches, clip, seed
        self._backbone_rate, self._restart = backbone_rate, restart
        self._began: dict[str, Tensor] | None = None
        self._image_bytes = self._pretraining_classes = 0
        self._peak: list[float] = []
        self._ahead: dict[int, tuple[IntArray, Pending[Batch]]] = {}  # what was begun before its update
        self.rate = 1.0  # a further factor on the learning rate: of a learner in a population

    @property
    def _companions(self) -> dict[str, Companion]:
        """In this order: what a step's end changes comes before what remembers the network as the step left it."""
        found = {"averaging": self.averaging, "calibration": self.calibration, "regulariser": self.regulariser}
        return {**found, "teacher": self.teacher} if self._objective.teacher else found

    # --- learning -------------------------------------------------------------------------------------------------

    def fit(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        """Learn from the step: take it into memory, grow, then update until the allowance is spent.

        Raises:
            UserError: the allowance does not pay for one update, and does not carry over.
        """
        try:
            place = self.begin(step, revealed, compute)
        except Exhausted as refusal:
            may_wait(refusal, step, compute, self.network)
            self.memory.settle(self._seed)
            return
        updates = 0
        try:
            while True:
                self.update(place, updates)
                updates += 1
        except Exhausted as refusal:
            if updates == 0:
                may_wait(refusal, step, compute, self.network)
        self.end(place)

    def begin(self, step: TimeStep, revealed: Revealed, compute: Compute) -> Place:
        """Take a step's samples into memory, grow, claim what the step's end will cost, prepare the sampler.

        Raises:
            Exhausted: the allowance does not pay for the preparation.
        """
        self._take_in(step, revealed, compute)
        place = Place(self._seed, step.number, self.memory, revealed, self.network, compute)
        for companion in self._companions.values():
            companion.begin(place)
        self._sampler.begin(place)
        return place

    def update(self, place: Place, update: int) -> tuple[Tensor, Tensor]:
        """Make one update; what it costs is charged at once, before any work.

        Returns:
            The logits (n, classes) of its batch, before the update, and the batch's classes (n,); of several processes,
            of the part that is this one's.

        Raises:
            Exhausted: the allowance does not pay for it.
        """
        rows, batch = self._drawn(place, update)
        assert self.optimiser is not None
        factor = self._schedule(place.compute.ledger.progress, place.step)
        for group, peak in zip(self.optimiser.param_groups, self._peak):
            group["lr"] = peak * factor * self.rate
        beside: dict[str, int] = {}
        for companion in self._companions.values():
            for category, flops in companion.beside(self.network).items():
                beside[category] = beside.get(category, 0) + flops
        outputs = place.compute.update(
            self._objective,
            self.network,
            batch,
            self.optimiser,
            teacher=self.teacher.network if self._objective.teacher else None,
            penalty=self.regulariser.penalty,
            beside=beside,
            clip=self._clip,
        )
        for companion in self._companions.values():
            companion.follow(self.network)
        for name in getattr(self._objective, "stores", ()):
            values = place.compute.ranks.gathered(getattr(outputs, name))
            first = self.memory.stored(name, rows[: len(values)], self.network.head.classes)[1] == 0
            self.memory.store(name, rows[: len(first)][first], values[torch.from_numpy(first)])
        self.memory.used(rows, place.step)
        y = batch.y[place.compute.ranks.part(len(batch))][: len(outputs.logits)]
        return outputs.logits, moved(y, outputs.logits.device)

    def end(self, place: Place) -> None:
        """Conclude the step: what the companions do at its end, and what the memory forgets."""
        for _, pending in self._ahead.values():
            pending.cancel()
        self._ahead.clear()
        for companion in self._companions.values():
            companion.end(place)
        self.memory.settle(self._seed)

    def _drawn(self, place: Place, update: int) -> tuple[IntArray, Batch]:
        """Return the rows and the batch of an update; where pictures are decoded in the background, begin the next."""
        rows, pending = self._ahead.pop(update) if update in self._ahead else self._begun(place, update)
        if place.revealed.begins and getattr(self._sampler, "ahead", False) and not self._cached:
            self._ahead[update + 1] = self._begun(place, update + 1)
        batch = pending.result()
        if not np.array_equal(
            batch.index, self.memory.index[rows]
        ):  # others of the batch stand in for damaged pictures
            order = np.argsort(self.memory.index[rows])
            rows = rows[order[np.searchsorted(self.memory.index[rows], batch.index, sorter=order)]]
        for name in getattr(self._objective, "stores", ()):
            values, widths = self.memory.stored(name, rows, self.network.head.classes)
            batch = batch.adding(**{name: values, f"{name}_classes": torch.from_numpy(widths)})
        return rows, batch

    def _begun(self, place: Place, update: int) -> tuple[IntArray, Pending[Batch]]:
        there = len(self.memory)
        if self._batch > there and not self._short_batches:
            raise UserError(
                f"learner.batch={self._batch} given, and in step {place.step} {there} samples are there to learn from: "
                "lower reference.batch (learner.batch follows it), reveal more per step, or set short_batches=true, "
                "which trains on what is there"
            )
        rows = self._sampler.draw(min(self._batch, there), update)
        index = self.memory.index[rows]
        if self._cached:
            return rows, Pending(lambda: Batch(self._features(rows, place), *place.revealed.targets(index)))
        return rows, place.revealed.begin(index, place.random("augment", update), own=True)

    @property
    def _cached(self) -> bool:
        return bool(getattr(self._part, "cached", False))

    def _features(self, rows: IntArray, place: Place) -> Tensor:
        """Return the stored features of rows; those that were never asked for are computed, and charged."""
        if place.revealed.augments:
            raise UserError("part.cached=true given, but the stream's images are augmented: set stream.augment=none")
        missing = rows[self.memory.stored("features", rows, self.network.feature_dim)[1] == 0]
        if len(missing):
            for part, outputs in place.forward(missing, "train"):
                self.memory.store("features", part, outputs.features)
        return self.memory.stored("features", rows, self.network.feature_dim)[0]

    # --- taking in ------------------------------------------------------------------------------------------------

    def _take_in(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        if not self._image_bytes:
            self._take_in_pretraining(revealed, compute)
        self._remember(revealed.new, revealed, step.number + 1)
        if self.memory.early:
            self.memory.settle(self._seed)
        before = dict(self.network.named_parameters())
        if self._restart == "scratch" or (self._restart is not None and self.optimiser is not None):
            self._start_again(step.number)
        self.network.grow(revealed.classes, generator(self._seed, "head", step.number))
        self._train_part(step.number, before)

    def _take_in_pretraining(self, revealed: Revealed, compute: Compute) -> None:
        """Before the first step: the pretraining samples are in memory, and their classifier is the first teacher."""
        self.network.takes(revealed.image_shape)
        self._image_bytes = int(np.prod(revealed.image_shape))
        self._complete()
        compute.placement(self.network)  # as one piece with what was inserted, as for a state taken up
        past = np.setdiff1d(revealed.indices, revealed.new)
        if not len(past):
            return
        self._pretraining_classes = int(revealed.labels(past).max()) + 1
        self._remember(past, revealed, 0)
        self.memory.settle(self._seed)
        self.network.grow(self._pretraining_classes, generator(self._seed, "head of pretraining"), known=True)
        if self._objective.teacher and self.network.head.classes <= self.network.head.known:
            self.teacher.start(self.network)

    def _complete(self) -> None:
        """Let the part insert what it adds to the network, if any; keep the backbone that steps start again from."""
        self._part(self.network, 0, generator(self._seed, "part"))
        if self._restart == "pretrained" and self._began is None:
            self._began = {name: value.clone() for name, value in self.network.backbone.state_dict().items()}

    def _remember(self, index: IntArray, revealed: Revealed, occasion: int) -> None:
        label = revealed.labels(index)
        held = self.calibration.hold_out(index, label, generator(self._seed, "hold out", occasion))
        self.memory.add(index[~held], label[~held])

    def _start_again(self, step: int) -> None:
        """Forget what was learned: the backbone as it came, or fresh, and a new head and optimiser."""
        backbone = self.network.backbone
        if self._began is not None:
            backbone.load_state_dict(self._began)
        else:
            initialise(backbone, self._seed)
        self.network.head = self._make_head().to(next(backbone.parameters()).device)
        random = generator(self._seed, "head of pretraining", step)
        self.network.grow(self._pretraining_classes, random, known=self._began is not None)
        self.optimiser = None

    def _train_part(self, step: int, before: Mapping[str, nn.Parameter]) -> None:
        """Choose what this step trains; where it changed, or the head grew, the optimiser follows."""
        parts = list(self._part(self.network, step, generator(self._seed, "part", step)))
        wanted = {id(p) for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}
        if self.optimiser is None or wanted != {id(p) for p in self.network.parameters() if p.requires_grad}:
            self.network.set_trainable(parts)
            self._rebind(before)
        elif self.network.head.weight is not before["head.weight"]:
            self._rebind(before)

    def _rebind(self, before: Mapping[str, nn.Parameter]) -> None:
        """Let the optimiser follow what is trained; momentum of what stays goes on, new rows start at zero."""
        trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        backbone = [p for name, p in trainable.items() if name.startswith("backbone.")]
        head = [p for name, p in trainable.items() if not name.startswith("backbone.")]
        if self.optimiser is None:
            try:
                self.optimiser = self._make_optimiser([{"params": backbone}, {"params": head}])
            except (TypeError, ValueError) as error:
                raise UserError(f"the optimiser refuses its settings: {error}; see optimiser.*") from error
            factors = (self._backbone_rate, 1.0)
            self._peak = [group["lr"] * factor for group, factor in zip(self.optimiser.param_groups, factors)]
            return
        state = self.optimiser.state
        for name, new in trainable.items():
            old = before.get(name)
            if old is not None and old is not new and old in state:
                state[new] = {
                    key: _padded(value, new) if isinstance(value, Tensor) and value.shape == old.shape else value
                    for key, value in state.pop(old).items()
                }
        for gone in set(state) - set(trainable.values()):
            del state[gone]
        for group, parameters in zip(self.optimiser.param_groups, (backbone, head)):
            group["params"] = parameters

    # --- predicting -----------------------------------------------------------------------------------------------

    def predict(self, query: Query, compute: Compute) -> Predictions:
        """Return the classes with the largest logits; no answer before the first reveal."""
        classes = self.network.head.classes
        if classes == 0:
            return Predictions.constant(len(query), np.empty(0, np.int64), 0.0)
        outputs = compute.forward(self.averaging.predictor(self.network), query.own, "predict")
        logits = self.calibration.logits(outputs, compute).float()
        top = logits.topk(min(5, classes)).indices
        confidence = logits.softmax(1).gather(1, top[:, :1])[:, 0]
        ranking = top.cpu().numpy()
        return Predictions(ranking[:, 0], ranking, confidence.cpu().numpy())

    # --- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> Mapping[str, Any]:
        """Return weights, optimiser, memory and what the companions remember."""
        return {
            "network": self.network.state_dict(),
            "trainable": [name for name, p in self.network.named_parameters() if p.requires_grad],
            "optimiser": self.optimiser.state_dict() if self.optimiser is not None else None,
            "memory": self.memory.state_dict(),
            "companions": {name: companion.state_dict() for name, companion in self._companions.items()},
            "image_bytes": self._image_bytes,
            "pretraining_classes": self._pretraining_classes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a learner with the same configuration."""
        self.memory.load_state_dict(state["memory"])
        self._image_bytes, self._pretraining_classes = state["image_bytes"], state["pretraining_classes"]
        if self._image_bytes:
            self._complete()
        self.network.to(state["network"]["head.weight"].device)  # before an optimiser and companions follow it there
        self.network.take_up(state["network"])
        parameters = dict(self.network.named_parameters())
        self.network.set_trainable([parameters[name] for name in state["trainable"]])
        self.optimiser = None
        if state["optimiser"] is not None:
            self._rebind({})
            assert self.optimiser is not None
            self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))  # torch would share its tensors
        for name, companion in self._companions.items():
            companion.load_state_dict(state["companions"][name], self.network)

    def nbytes(self) -> Mapping[str, int]:
        """Return the bytes of samples within reach, of the memory, of the weights and of their copies."""
        optimiser = self.optimiser.state.values() if self.optimiser is not None else ()
        companions = self._companions.values()
        whole = any(companion.looks_back for companion in companions)
        samples = len(self.memory) if whole else min(self._sampler.reach(), len(self.memory))
        samples += sum(companion.held() for companion in companions)
        return {
            "samples": samples * self._image_bytes,
            "memory": self.memory.nbytes,
            "network": bytes_of(self.network.state_dict().values()),
            "optimiser": sum(bytes_of(state.values()) for state in optimiser),
            **{name: companion.nbytes() for name, companion in self._companions.items()},
        }


def may_wait(refusal: Exhausted, step: TimeStep, compute: Compute, network: object = None) -> None:
    """Let a step without an update pass where what is left is carried over and may pay for one later.

    Args:
        refusal: of the update.
        step: the time step.
        compute: what refused it.
        network: the learner's, where it has one.

    Raises:
        UserError: it never will.
    """
    carries = compute.budget.rest == "carry"
    if compute.ledger.allowance == 0 or (carries and compute.updates):  # nothing was granted; or only the rest is lost
        return
    if not carries or refusal.price > compute.most:
        most = f"{compute.most:,} {compute.ledger.unit}{' at most' if carries else ''}"
        by_reference = compute.budget.flops is None and compute.budget.currency.meters
        raise UserError(
            f"step {step.number}: the allowance of {most} does not pay for one update ({refusal}): "
            f"raise {compute.budget.key}, or lower learner.batch"
            f"{'' if carries else ', or set budget.rest=carry'}"
            f"{compute.reference.advice(network) if by_reference else ''}"
        ) from None


def _padded(value: Tensor, like: Tensor) -> Tensor:
    padded = torch.zeros_like(like)
    padded[: len(value)] = value
    return padded
