"""The allowance of a time step: how many FLOPs a learner may spend on everything it does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from budgetcl.budget.currencies import Currency, Flops, Seconds
from budgetcl.budget.ledger import CATEGORIES
from budgetcl.budget.prices import Price, Prices
from budgetcl.errors import UserError, at_least, one_of
from budgetcl.models.network import Network
from budgetcl.objectives.objective import Objective
from budgetcl.randomness import generator
from budgetcl.streams.batch import Batch
from budgetcl.streams.stream import IntArray

_ALIKE = 1.1  # a network with so many times the reference's parameters still is it, with another head or adapters


class Reference:
    """The yardstick: one update of the reference network with the head that naive training has in that step.

    Everything is trainable and the objective is plain cross-entropy, so naive training makes exactly as many updates
    as the budget says, and every other method as many as it can afford for the same FLOPs.

    Args:
        network: the reference network; only its shapes are used.
        objective: the reference objective.
        batch: the reference batch.
        image_shape: (channels, height, width).
        prices: where prices are kept.
    """

    def __init__(
        self,
        network: Network,
        objective: Objective,
        batch: int,
        image_shape: tuple[int, int, int],
        prices: Prices,
    ) -> None:
        at_least(1, **{"reference.batch": batch})
        network.takes(image_shape, "reference.backbone")
        self.batch = batch
        self._network, self._objective, self._prices = network, objective, prices
        self._x = torch.zeros(1, dtype=torch.uint8).expand(batch, *image_shape)
        self._y = torch.zeros(1, dtype=torch.int64).expand(batch)

    def update(self, classes: int) -> Price:
        """Return the price of one reference update with this many classes, the optimiser's included."""
        network = self._with(classes).train()
        batch = Batch(self._x, self._y, np.empty(0, np.int64), self._y.bool())
        return self._prices.update(self._objective, network, batch)

    def forward(self, classes: int) -> int:
        """Return the FLOPs of one image's prediction with this many classes."""
        if classes == 0:
            return 0
        return self._prices.forward(self._with(classes).eval(), self._x).total // self.batch

    def advice(self, network: object) -> str:
        """Return a clause on the reference's backbone where a learner's network is larger, or is not known; else ""."""
        if isinstance(network, Network) and network.size <= _ALIKE * self._network.size:
            return ""
        return ", or give the reference the learner's backbone (backbone@reference.backbone=..., as backbone=...)"

    def _with(self, classes: int) -> Network:
        if classes < self._network.head.classes:
            raise UserError("the number of classes seen cannot fall")
        self._network.grow(classes, generator(0, "reference"))
        return self._network


class Budget:
    """What a step may cost, and what becomes of the rest.

    Args:
        updates: the allowance of a step, as a number of reference updates (C in BudgetCL, CVPR 2023); may be a
            fraction, or a list with a number for each step, the last of which stands for all further ones; numbers of
            a list may be 0. Give this, ``passes`` or ``flops``.
        passes: the allowance of a step, as reference passes over what it reveals: 3 are three times as many images
            as it reveals, in reference batches.
        flops: the allowance of a step, in FLOPs.
        rest: what becomes of what does not pay for one more update: "stop" forfeits it, "truncate" spends it on a
            smaller last batch, "carry" moves at most one reference update to the next step.
        free: categories that are recorded but not charged: a control that no leaderboard takes.
        bytes: the most that may be stored between two steps (samples, stored tensors, copies of weights), or None.
        currency: what the allowance is counted in; None: FLOPs.

    Raises:
        UserError: none or several of ``updates``, ``passes`` and ``flops``, a negative number, an unknown name.
    """

    def __init__(
        self,
        updates: float | Sequence[float] | None = None,
        passes: float | None = None,
        flops: int | None = None,
        rest: str = "stop",
        free: Iterable[str] = (),
        bytes: int | None = None,
        currency: Currency | None = None,
    ) -> None:
        given = {"updates": updates, "passes": passes, "flops": flops}
        if sum(value is not None for value in given.values()) != 1:
            said = ", ".join(f"budget.{name}={value}" for name, value in given.items())
            raise UserError(f"{said} given; exactly one of them is expected: set the others to null")
        if flops is not None:
            at_least(1, **{"budget.flops": flops})
        listed = tuple(updates) if isinstance(updates, Sequence) and not isinstance(updates, str) else updates
        if isinstance(listed, tuple):
            if not any(listed) or not all(value == 0 or _positive(value) for value in listed):
                raise UserError(f"budget.updates={list(listed)!r} given; numbers from 0 on, not all 0, are expected")
        elif listed is not None and not _positive(listed):
            raise UserError(f"budget.updates={listed!r} given; a positive number is expected")
        if passes is not None and not _positive(passes):
            raise UserError(f"budget.passes={passes!r} given; a positive number is expected")
        one_of(("stop", "truncate", "carry"), **{"budget.rest": rest})
        self.free = (free,) if isinstance(free, str) else tuple(free)
        for category in self.free:
            one_of(CATEGORIES, **{"budget.free": category})
        if bytes is not None:
            at_least(1, **{"budget.bytes": bytes})
        self.updates, self.passes, self.flops, self.rest, self.bytes = listed, passes, flops, rest, bytes
        self.currency: Currency = currency if currency is not None else Flops()
        if flops is not None and not self.currency.meters:
            raise UserError(f"budget.flops={flops} given, but the allowance is counted in {self.currency.unit}")

    def grant(self, reference: Reference, classes: int, revealed: int, step: int = 0) -> tuple[int, int]:
        """Return what a step is granted: FLOPs, and whole reference updates (0 where FLOPs were given).

        Args:
            reference: the yardstick.
            classes: how many classes there are.
            revealed: how many samples the step reveals.
            step: its number.
        """
        if self.flops is not None:
            return self.flops, 0
        # Exact: the product may exceed what a float can hold to the FLOP, and naive training would lack an update.
        if self.updates is not None:
            updates = Fraction(str(self._updates_in(step)))
        else:
            updates = Fraction(str(self.passes)) * revealed / reference.batch
        return int(updates * reference.update(classes).total), int(updates)

    @property
    def key(self) -> str:
        """What makes the allowance larger, for messages."""
        if isinstance(self.currency, Seconds):
            return "currency.budget"
        return next(f"budget.{name}" for name in ("updates", "passes", "flops") if getattr(self, name) is not None)

    def updates_of(self, steps: int) -> float:
        """Return the sum of ``updates`` over so many steps; 0 where something else is given."""
        if isinstance(self.updates, tuple):
            return sum(self._updates_in(step) for step in range(steps))
        return steps * (self.updates or 0)

    def left(self, revealed: IntArray) -> NDArray[np.float64]:
        """Return for each step the share of the whole stream's allowance that is still to be granted after it.

        Args:
            revealed: (steps,) how many samples each step reveals.
        """
        granted = self.granted(revealed)
        return 1 - np.cumsum(granted) / max(granted.sum(), 1e-12)

    def granted(self, revealed: IntArray) -> NDArray[np.float64]:
        """Return what each step is granted, up to a factor: how allowances compare, but for classes that come along.

        Args:
            revealed: (steps,) how many samples each step reveals.
        """
        if isinstance(self.updates, tuple):
            return np.array([self._updates_in(step) for step in range(len(revealed))], np.float64)
        return revealed.astype(np.float64) if self.passes is not None else np.ones(len(revealed))

    def _updates_in(self, step: int) -> float:
        if isinstance(self.updates, tuple):
            return self.updates[min(step, len(self.updates) - 1)]
        return self.updates or 0


def _positive(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 < value < 1e12
