"""Averages of weights to predict with, and resets between updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from budgetcl.budget.formulas import ema
from budgetcl.companions.companion import Companion
from budgetcl.companions.teachers import average
from budgetcl.errors import between
from budgetcl.memory.sampler import Place
from budgetcl.models.network import Network, bytes_of


class Averaging(Companion):
    """No average: the network that is trained is the one that predicts.

    Attributes:
        apart: whether another network than the one that is trained predicts.
    """

    apart = False

    def predictor(self, network: Network) -> Network:
        """Return the network to predict with."""
        return network


class MovingAverage(Averaging):
    """Predict with an exponential moving average of the weights: a <- decay a + (1 - decay) w after each update.

    An average with equal weights was the first of its kind (Polyak & Juditsky, SIAM J. Control Optim. 1992).
    It costs 3 FLOPs a parameter and update, charged as "train", and a copy of the network. Rows of new classes join it
    as they begin.

    Args:
        decay: of the average, per update.
    """

    apart = True

    def __init__(self, decay: float = 0.99) -> None:
        between(0, 1, **{"averaging.decay": decay})
        self.decay = decay
        self._average: Network | None = None

    def predictor(self, network: Network) -> Network:
        """Return the average, once there is one."""
        return network if self._average is None else self._average

    def begin(self, place: Place) -> None:
        """Let the average know the step's new classes."""
        grown = place.network.frozen_copy()
        if self._average is not None:
            average(grown, self._average, 0.0)
        self._average = grown

    def beside(self, network: Network) -> Mapping[str, int]:
        """Return 3 FLOPs a parameter."""
        return {"train": ema(network.size)}

    def follow(self, network: Network) -> None:
        """Move the average towards the network."""
        assert self._average is not None
        average(self._average, network, self.decay)

    def state_dict(self) -> Mapping[str, Any]:
        """Return the average."""
        return {"average": None if self._average is None else self._average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up the average."""
        self._average = None if state["average"] is None else network.frozen_copy(state["average"])

    def nbytes(self) -> int:
        """Return the bytes of the average."""
        return 0 if self._average is None else bytes_of(self._average.state_dict().values())


class Consolidation(Averaging):
    """Weight-space consolidation (Cho et al., ICLR 2026): resets for plasticity, an average of weights for stability.

    In each step, after a warm-up, the weights that learning uses least go back towards where the last step left them;
    from then on the mean of the weights is kept, and when the step ends it becomes the network. A weight's use is
    |m| x v, with m and v the exponential moving averages of its gradient (0.9) and of the gradient's square (0.999)
    since the step began; the ranking is within each tensor. How use is measured is our reading of the paper.

    It costs 3 FLOPs a parameter for each of m, v and the mean, per update ("train"), and three copies of the network
    while a step lasts; between steps, one.

    Args:
        warmup: the share of a step's allowance that is trained with before the reset.
        keep: the share of weights that are used most and stay.
        mix: how far the others go back: 1 is all the way.
    """

    def __init__(self, warmup: float = 0.25, keep: float = 0.2, mix: float = 0.5) -> None:
        between(0, 1, **{"averaging.warmup": warmup, "averaging.keep": keep, "averaging.mix": mix})
        self.warmup, self.keep, self.mix = warmup, keep, mix
        self._last: dict[str, torch.Tensor] = {}  # weights as the last step left them
        self._first: dict[str, torch.Tensor] = {}
        self._second: dict[str, torch.Tensor] = {}
        self._mean: Network | None = None
        self._averaged = 0  # updates since the reset; before it, -1

    def begin(self, place: Place) -> None:
        """Begin a step's moments and mean."""
        self._ledger = place.compute.ledger
        self._first, self._second, self._mean, self._averaged = {}, {}, None, -1

    def beside(self, network: Network) -> Mapping[str, int]:
        """Return 9 FLOPs a parameter: two moments and a mean."""
        return {"train": 3 * ema(network.size)}

    @torch.no_grad()
    def follow(self, network: Network) -> None:
        """Take up an update: moments until the reset, then the mean."""
        if self._averaged >= 0:
            self._averaged += 1
            if self._mean is None:
                self._mean = network.frozen_copy()
            else:
                average(self._mean, network, 1 - 1 / self._averaged)
            return
        for name, p in network.named_parameters():
            if p.grad is not None:
                self._first.setdefault(name, torch.zeros_like(p)).lerp_(p.grad, 0.1)
                self._second.setdefault(name, torch.zeros_like(p)).lerp_(p.grad.square(), 0.001)
        if self._ledger.progress >= self.warmup:
            self._reset(network)
            self._averaged = 0

    def _reset(self, network: Network) -> None:
        for name, p in network.named_parameters():
            last = self._last.get(name)
            if last is None or name not in self._first:
                continue
            mine = p[: len(last)] if p.ndim else p
            use = self._first[name].abs() * self._second[name]
            use = use[: len(last)] if p.ndim else use
            least = torch.zeros(mine.numel(), dtype=torch.bool, device=p.device)
            least[use.flatten().argsort()[: mine.numel() - round(self.keep * mine.numel())]] = True
            mine.copy_(torch.where(least.view(mine.shape), mine.lerp(last, self.mix), mine))

    @torch.no_grad()
    def end(self, place: Place) -> None:
        """Let the mean become the network."""
        if self._mean is not None:
            average(place.network, self._mean, 0.0)
        self._last = {name: p.detach().clone() for name, p in place.network.named_parameters()}
        self._first, self._second, self._mean = {}, {}, None

    def state_dict(self) -> Mapping[str, Any]:
        """Return the last step's weights."""
        return {"last": self._last}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up the last step's weights."""
        self._last = {name: value.clone() for name, value in state["last"].items()}

    def nbytes(self) -> int:
        """Return the bytes of the last step's weights."""
        return bytes_of(self._last.values())
