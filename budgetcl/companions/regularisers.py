"""Regularisers: a penalty on how far the weights move from where the last step left them.

Each holds a copy of the last step's weights (the anchor) and, but for L2, an importance for each of them; their bytes
count. Rows of a head that are newer than the anchor are not held back, nor is what an importance was never found for.
A penalty and its gradient cost 6 FLOPs a trained parameter (5 without an importance), charged with each update as
"regularise". What an importance costs to find is reserved when the step opens and spent after its last update, as
"probe": a category of its own, since what a category is charged draws on its reservation first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from budgetcl.budget.formulas import fisher
from budgetcl.companions.companion import NO_WORK, Companion
from budgetcl.errors import at_least, between
from budgetcl.memory.sampler import Place
from budgetcl.models.network import Network, bytes_of
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.objectives.objective import Objective, Outputs
from budgetcl.streams.batch import Batch

Weights = dict[str, Tensor]


class Regulariser(Companion):
    """No penalty."""

    def penalty(self, network: Network) -> Tensor | None:
        """Return a scalar that is added to the loss, or None."""
        return None


class L2(Regulariser):
    """The squared distance to the last step's weights: strength / 2 x sum (w - w*)^2 (L2-SP, ICML 2018).

    Args:
        strength: the factor on the penalty.
    """

    per_parameter = 5

    def __init__(self, strength: float = 0.01) -> None:
        between(0, 1e9, **{"regulariser.strength": strength})
        self.strength = strength
        self._anchor: Weights = {}

    def beside(self, network: Network) -> Mapping[str, int]:
        """Return the FLOPs of the penalty and its gradient."""
        return {"regularise": self.per_parameter * network.trainable} if self._anchor else NO_WORK

    def penalty(self, network: Network) -> Tensor | None:
        """Return strength / 2 x the sum of squared distances; None in the first step."""
        if not self._anchor:
            return None
        parts = [
            self._weighted(name, (_rows(p, self._anchor[name]) - self._anchor[name]).square()).sum()
            for name, p in _trained(network)
            if name in self._anchor
        ]
        return self.strength / 2 * torch.stack(parts).sum()

    def _weighted(self, name: str, squares: Tensor) -> Tensor:
        return squares

    def end(self, place: Place) -> None:
        """Take the step's weights as the anchor."""
        self._anchor = {name: p.detach().clone() for name, p in place.network.named_parameters()}

    def state_dict(self) -> Mapping[str, Any]:
        """Return the anchor."""
        return {"anchor": self._anchor}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up the anchor."""
        self._anchor = {name: value.clone() for name, value in state["anchor"].items()}

    def nbytes(self) -> int:
        """Return the bytes of the anchor."""
        return bytes_of(self._anchor.values())


class EWC(L2):
    """Elastic weight consolidation: strength / 2 x sum F (w - w*)^2 (Kirkpatrick et al., PNAS 2017, eq. 3).

    F is the diagonal of the Fisher information at the end of the step, with the true labels in place of its expectation
    over labels: the mean over samples of the memory of the squared gradients of their cross-entropy. F of earlier steps
    goes on with a decay, one penalty for all (online EWC: Schwarz et al., ICML 2018, section 4).

    Args:
        strength: the factor on the penalty.
        samples: of the memory, drawn uniformly, to find F from at most: n (S + 2P) FLOPs, S of one gradient.
        spend: the share of a step's allowance that this may cost; it bounds the samples, but leaves one.
        decay: of what earlier steps found.
    """

    looks_back = True
    per_parameter = 6
    objective: Objective = CrossEntropy()

    def __init__(self, strength: float = 1.0, samples: int = 64, spend: float = 0.1, decay: float = 1.0) -> None:
        super().__init__(strength)
        at_least(1, **{"regulariser.samples": samples})
        between(0, 1, **{"regulariser.spend": spend, "regulariser.decay": decay})
        self.samples, self.spend, self.decay = samples, spend, decay
        self._importance: Weights = {}
        self._drawn = 0

    def begin(self, place: Place) -> None:
        """Reserve what the importance will cost."""
        batch = place.revealed.batch(place.memory.index[:1])
        gradient = place.compute.gradient_price(self.objective, place.network, batch)
        each = fisher(1, gradient, place.network.trainable)
        affordable = max(1, int(self.spend * place.compute.spare) // each)
        self._drawn = min(self.samples, len(place.memory), affordable)
        place.compute.reserve("probe", self._drawn * each)

    def end(self, place: Place) -> None:
        """Find the importance and take the step's weights as the anchor."""
        n = self._drawn
        rows = place.random("importance").choice(len(place.memory), n, replace=False)
        batch = place.revealed.batch(place.memory.index[rows])
        found = {name: torch.zeros_like(p) for name, p in _trained(place.network)}
        place.compute.work("probe", 2 * n * place.network.trainable)
        for gradient in place.compute.gradients(self.objective, place.network, batch, "probe"):
            for name, value in gradient.items():
                found[name] += self._of_one(value) / n
        self._importance = _added(self._importance, found, self.decay)
        super().end(place)

    def _of_one(self, gradient: Tensor) -> Tensor:
        return gradient.square()

    def _weighted(self, name: str, squares: Tensor) -> Tensor:
        return squares * _padded(self._importance.get(name), squares)

    def state_dict(self) -> Mapping[str, Any]:
        """Return the anchor and the importance."""
        return {**super().state_dict(), "importance": self._importance}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up the anchor and the importance."""
        super().load_state_dict(state, network)
        self._importance = {name: value.clone() for name, value in state["importance"].items()}

    def nbytes(self) -> int:
        """Return the bytes of the anchor and the importance."""
        return super().nbytes() + bytes_of(self._importance.values())


class MAS(EWC):
    """Memory-aware synapses (Aljundi et al., ECCV 2018, eqs. 2-4): what changes the outputs is important.

    The importance is the mean over samples of |d ||z||^2 / dw|, z the logits; no label is needed. Everything else is as
    in :class:`EWC`.
    """

    def __init__(self, strength: float = 1.0, samples: int = 64, spend: float = 0.1, decay: float = 1.0) -> None:
        super().__init__(strength, samples, spend, decay)
        self.objective = SquaredOutputs()

    def _of_one(self, gradient: Tensor) -> Tensor:
        return gradient.abs()


class SquaredOutputs:
    """The mean squared norm of the logits: its gradient says what the outputs depend on."""

    key = ("squared_outputs",)
    teacher = False
    stores = ()

    def __call__(self, network: Network, batch: Batch) -> tuple[Tensor, Outputs]:
        """Return the scalar and the outputs."""
        outputs = network(batch.x)
        return outputs.logits.float().square().sum(1).mean(), outputs


class RWalk(L2):
    """Riemannian walk (Chaudhry et al., ECCV 2018): strength / 2 x sum (F + s) (w - w*)^2, eq. 9.

    F is a moving average of the squared gradients of training batches, so it takes no pass of its own; s adds up, over
    the updates, how much of the loss's fall a weight accounts for, relative to how far it moved in the Fisher's metric
    (eq. 8), cut at zero, and is halved with what earlier steps found (eq. 10). Beside the penalty, an update costs
    10 FLOPs a parameter for both. Both take the gradient that the update had, the penalty's included, since one of the
    loss alone would cost another backward; and they are added as they are, where the authors' code normalises each.

    Args:
        strength: the factor on the penalty; the paper's lambda is half of it.
        rate: of new gradients in F.
        interval: updates over which a weight's way is measured.
        epsilon: keeps the relative fall finite.
    """

    per_parameter = 6

    def __init__(self, strength: float = 1.0, rate: float = 0.1, interval: int = 10, epsilon: float = 1e-3) -> None:
        super().__init__(strength)
        between(0, 1, **{"regulariser.rate": rate})
        at_least(1, **{"regulariser.interval": interval})
        between(1e-12, 1, **{"regulariser.epsilon": epsilon})
        self.rate, self.interval, self.epsilon = rate, interval, epsilon
        self._fisher: Weights = {}
        self._scores: Weights = {}
        self._found: Weights = {}  # of the step so far
        self._fall: Weights = {}
        self._before: Weights = {}
        self._started: Weights = {}
        self._updates = 0

    def begin(self, place: Place) -> None:
        """Begin the way of the step."""
        self._before = {name: p.detach().clone() for name, p in _trained(place.network)}
        self._started = {name: value.clone() for name, value in self._before.items()}
        self._fall = {name: torch.zeros_like(value) for name, value in self._before.items()}
        self._found = {name: torch.zeros_like(value) for name, value in self._before.items()}
        self._updates = 0

    def beside(self, network: Network) -> Mapping[str, int]:
        """Return the FLOPs of the penalty and its gradient, and of F and the way."""
        return {"regularise": (10 + (self.per_parameter if self._anchor else 0)) * network.trainable}

    @torch.no_grad()
    def follow(self, network: Network) -> None:
        """Add an update to F and to the way."""
        self._updates += 1
        for name, p in _trained(network):
            if p.grad is None or name not in self._before:
                continue
            fisher = self._fisher.get(name)
            if fisher is None or fisher.shape != p.shape:
                fisher = self._fisher[name] = _padded(fisher, p)
            fisher.lerp_(p.grad.square(), self.rate)
            self._fall[name] -= p.grad * (p - self._before[name])
            self._before[name].copy_(p)
        if self._updates % self.interval == 0:
            self._measure()

    def _measure(self) -> None:
        """Score the way since the last measurement."""
        for name, fall in self._fall.items():
            if name in self._fisher:
                moved = self._fisher[name] * (self._before[name] - self._started[name]).square() / 2 + self.epsilon
                self._found[name] += (fall / moved).clamp_(min=0)
                fall.zero_()
                self._started[name].copy_(self._before[name])

    def end(self, place: Place) -> None:
        """Halve the scores with those of earlier steps, and take the step's weights as the anchor."""
        if self._updates % self.interval:  # the last way is a shorter one
            self._measure()
        for name, value in self._found.items():
            old = self._scores.get(name)
            self._scores[name] = value if old is None else (value + _padded(old, value)) / 2
        self._before, self._started, self._fall, self._found = {}, {}, {}, {}
        super().end(place)

    def _weighted(self, name: str, squares: Tensor) -> Tensor:
        return squares * (_padded(self._fisher.get(name), squares) + _padded(self._scores.get(name), squares))

    def state_dict(self) -> Mapping[str, Any]:
        """Return the anchor, F and the scores."""
        return {**super().state_dict(), "fisher": self._fisher, "scores": self._scores}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up the anchor, F and the scores."""
        super().load_state_dict(state, network)
        self._fisher = {name: value.clone() for name, value in state["fisher"].items()}
        self._scores = {name: value.clone() for name, value in state["scores"].items()}

    def nbytes(self) -> int:
        """Return the bytes of the anchor, F and the scores."""
        return super().nbytes() + bytes_of([*self._fisher.values(), *self._scores.values()])


def _trained(network: Network) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in network.named_parameters() if p.requires_grad]


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """Return the first rows of what may have grown since."""
    return value[: len(like)] if value.ndim and len(value) != len(like) else value


def _padded(value: Tensor | None, like: Tensor) -> Tensor:
    """Return as many rows as the other has, with zeros where there is none."""
    if value is not None and (not value.ndim or len(value) >= len(like)):
        return _rows(value, like)
    padded = torch.zeros_like(like)
    if value is not None:
        padded[: len(value)] = value
    return padded


def _added(old: Weights, new: Weights, decay: float) -> Weights:
    return {**old, **{name: value + decay * _padded(old.get(name), value) for name, value in new.items()}}
