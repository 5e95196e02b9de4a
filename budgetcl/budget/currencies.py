"""What an allowance is counted in. FLOPs are always recorded; any one of these can be enforced.

A currency turns each piece of work into what it costs. The ledger refuses what the allowance, in the same unit, does
not pay for.
"""

from __future__ import annotations

import time
from typing import Protocol

import torch

from budgetcl.budget.formulas import maf
from budgetcl.budget.prices import Price
from budgetcl.errors import UserError


class Currency(Protocol):
    """Says what work costs, in integers.

    Attributes:
        name: what a report calls it.
        unit: of allowances, in words.
        meters: whether predictions and work by formula cost something.
    """

    name: str
    unit: str
    meters: bool

    def cost(self, category: str, flops: int, price: Price | None) -> int:
        """Return the cost of a piece of work; ``price`` is None where it was priced by a formula."""
        ...

    def allowance(self, flops: int, updates: int) -> int:
        """Return the allowance of a step that is granted so many FLOPs, or so many reference updates."""
        ...

    def open(self, reference: Price, device: torch.device) -> None:
        """Begin a step; ``reference`` is the price of its reference update."""
        ...


class Flops:
    """Model FLOPs of everything (the default)."""

    name = unit = "FLOPs"
    meters = True

    def cost(self, category: str, flops: int, price: Price | None) -> int:
        """Return the FLOPs."""
        return flops

    def allowance(self, flops: int, updates: int) -> int:
        """Return the FLOPs."""
        return flops

    def open(self, reference: Price, device: torch.device) -> None:
        """Nothing to do."""


class Iterations:
    """An update costs 1, everything else nothing: the unit of the papers (BudgetCL, CVPR 2023).

    Beside FLOPs it shows what was free there: teachers, scoring, calibration, prediction.
    """

    name, unit = "iterations", "updates"
    meters = False

    def cost(self, category: str, flops: int, price: Price | None) -> int:
        """Return 1 for an update in training, else 0."""
        return int(category == "train" and price is not None and price.kind == "update")

    def allowance(self, flops: int, updates: int) -> int:
        """Return the number of updates."""
        return updates

    def open(self, reference: Price, device: torch.device) -> None:
        """Nothing to do."""


class MemoryAdjusted:
    """Memory-adjusted FLOPs: FLOPs x peak bytes / peak bytes of the reference update (FoMo-in-Flux, NeurIPS 2024).

    Work that is priced by a formula counts as it is.
    """

    name = unit = "memory-adjusted FLOPs"
    meters = True

    def __init__(self) -> None:
        self._reference = 1

    def cost(self, category: str, flops: int, price: Price | None) -> int:
        """Return the FLOPs, adjusted by the memory that they need at once."""
        return flops if price is None else maf(flops, price.memory, self._reference)

    def allowance(self, flops: int, updates: int) -> int:
        """Return the FLOPs: those of the reference are not adjusted."""
        return flops

    def open(self, reference: Price, device: torch.device) -> None:
        """Take the reference's peak bytes."""
        self._reference = reference.memory


class Seconds:
    """The time that learning takes on this machine, in nanoseconds; predicting and evaluating stop the clock.

    Work costs the time since the work before it, so what ends a step is checked after each update, and the last one may
    run over. Runs are not equal to the bit, and numbers of two machines must not be compared.

    Args:
        budget: seconds of a step.
    """

    unit = "nanoseconds"
    meters = False

    def __init__(self, budget: float = 1.0) -> None:
        if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < 1e9:
            raise UserError(f"currency.budget={budget!r} given; a positive number of seconds is expected")
        self.name = f"{budget:g} seconds"
        self._budget, self._last = budget, 0

    def cost(self, category: str, flops: int, price: Price | None) -> int:
        """Return the time since the last cost was asked for."""
        last, self._last = self._last, time.perf_counter_ns()
        return self._last - last

    def allowance(self, flops: int, updates: int) -> int:
        """Return the nanoseconds."""
        return round(self._budget * 1e9)

    def open(self, reference: Price, device: torch.device) -> None:
        """Start the clock when the device has done everything before."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._last = time.perf_counter_ns()
