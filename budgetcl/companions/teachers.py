"""Teachers of distillation: which earlier network an objective with ``teacher = True`` stays near."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from budgetcl.budget.formulas import ema
from budgetcl.companions.companion import NO_WORK, Companion
from budgetcl.errors import between
from budgetcl.memory.sampler import Place
from budgetcl.models.network import Network, bytes_of


class LastStep(Companion):
    """The network as the last step left it (LwF, ECCV 2016; iCaRL, CVPR 2017). Its forwards are charged as "teacher".

    Attributes:
        network: the teacher; None before there is one: no distillation, no charge.
    """

    def __init__(self) -> None:
        self.network: Network | None = None

    def start(self, network: Network) -> None:
        """Take a network that was trained before the stream began: the first step's teacher."""
        self.network = network.frozen_copy()

    def end(self, place: Place) -> None:
        """Take the network of the step that ends."""
        self.network = place.network.frozen_copy()

    def state_dict(self) -> Mapping[str, Any]:
        """Return the teacher's weights."""
        return {"network": self.network.state_dict() if self.network is not None else None}

    def load_state_dict(self, state: Mapping[str, Any], network: Network) -> None:
        """Take up the teacher's weights."""
        self.network = network.frozen_copy(state["network"]) if state["network"] is not None else None

    def nbytes(self) -> int:
        """Return the bytes of the teacher's weights."""
        return bytes_of(self.network.state_dict().values()) if self.network is not None else 0


class MovingAverage(LastStep):
    """An exponential moving average of the weights (Tarvainen & Valpola, NeurIPS 2017).

    After each update t <- decay t + (1 - decay) w, over all of the network, statistics included: 3 FLOPs a parameter,
    charged as "teacher". Rows of classes that the teacher did not know when the step began are left out until its end,
    when it takes them as they are.

    Args:
        decay: of the average, per update.
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        between(0, 1, **{"teacher.decay": decay})
        self.decay = decay

    def beside(self, network: Network) -> Mapping[str, int]:
        """Return 3 FLOPs a parameter."""
        return NO_WORK if self.network is None else {"teacher": ema(network.size)}

    def follow(self, network: Network) -> None:
        """Move the teacher towards the network."""
        if self.network is not None:
            average(self.network, network, self.decay)

    def end(self, place: Place) -> None:
        """Let the teacher know the step's new classes."""
        if self.network is None:
            self.start(place.network)
            return
        grown = place.network.frozen_copy()
        average(grown, self.network, 0.0)
        self.network = grown


@torch.no_grad()
def average(target: Network, source: Network, decay: float) -> None:
    """Move ``target`` towards ``source`` in place: t <- decay t + (1 - decay) s; a head's rows as far as both have."""
    own = target.state_dict()
    for name, value in source.state_dict().items():
        mine = own[name]
        if mine.shape != value.shape:  # a head that grew in between
            rows = min(len(mine), len(value))
            mine, value = mine[:rows], value[:rows]
        if mine.is_floating_point():
            mine.lerp_(value.to(mine.dtype), 1 - decay)
        else:  # counters of statistics
            mine.copy_(value)
