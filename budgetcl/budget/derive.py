"""Bills of grown heads, derived from two traced ones by substitution.

On a time-stamped stream the head gains a class at nearly every step, and tracing each size costs milliseconds. Two
traces that differ only in a few sizes (the number of classes, a teacher's) correspond operator by operator; each entry
of their shapes is the same in both, or a multiple of one of these sizes. Then the bill of any other size follows.
Whatever does not fit that pattern is traced. A pattern is trusted up to twice the largest size traced; the next size is
traced again and compared. Shapes that follow the number of classes in steps (its half, rounded) could pass for constant
in between; the audited step would show it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from budgetcl.budget.counter import Event, Item, event_flops, itemise

# Operators whose presence and name do not depend on sizes, as for instance cdist's does.
_DERIVABLE = frozenset(
    f"aten::{name}"
    for name in (
        *("mm", "bmm", "mv", "dot", "addmm", "addmv", "addbmm", "baddbmm", "linear"),
        *("add", "sub", "rsub", "mul", "div"),
    )
)
_TRACES = 4  # kept per family


class Part:
    """The items that all bills of a family have in common.

    Attributes:
        counts: how often each operator runs.
        flops: what they cost together.
    """

    def __init__(self, counts: Mapping[Event, int]) -> None:
        self.counts = dict(counts)
        self.flops = sum(times * event_flops(event) for event, times in self.counts.items())

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The items."""
        return itemise(self.counts)

    @cached_property
    def id(self) -> str:
        """A hash of the items."""
        return hashlib.sha256(repr(self.items).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Bill:
    """What an operation runs: its own items, and those it has in common with others.

    Attributes:
        own: how often each operator runs, without those of ``common``.
        common: the common items, or None.
        flops: of everything.
        held: bytes of the tensors that it holds at once, beside the model.
    """

    own: Mapping[Event, int]
    common: Part | None
    flops: int
    held: int = 0

    @property
    def counts(self) -> Counter[Event]:
        """How often each operator runs, all in all."""
        return Counter(self.common.counts if self.common else {}) + Counter(self.own)


def bill_of(events: Sequence[Event], held: Sequence[int] = (), times: int = 1) -> Bill:
    """Return the bill of a trace, repeated ``times``; ``held``: the bytes of each piece of memory that it holds."""
    own = {event: count * times for event, count in Counter(events).items()}
    return Bill(own, None, sum(count * event_flops(event) for event, count in own.items()), sum(held))


@dataclass(frozen=True)
class _Multiple:
    """An entry of a shape that is ``factor`` times the size ``size``."""

    size: int
    factor: int


@dataclass(frozen=True)
class _Trace:
    """What ran with some sizes, and the bytes of each piece of memory that was held."""

    sizes: tuple[int, ...]
    events: Sequence[Event]
    held: tuple[int, ...]

    @cached_property
    def bill(self) -> Bill:
        return bill_of(self.events, self.held)


class _Template:
    """What two traces have in common, and how the rest follows from the sizes."""

    def __init__(self, one: _Trace, other: _Trace) -> None:
        first, second, a, b = one.sizes, other.sizes, one.events, other.events
        if len(a) != len(b):
            raise _Mismatch
        self._required = [x if x == y else None for x, y in zip(first, second)]
        self._low = [min(pair) for pair in zip(first, second)]
        self._high = [2 * max(pair) for pair in zip(first, second)]
        common: list[Event] = []
        self._varying: list[Any] = []
        for x, y in zip(a, b):
            if x == y:
                common.append(x)
            elif x[0] != y[0] or x[0] not in _DERIVABLE:
                raise _Mismatch
            else:
                self._varying.append(_generalise(x, y, first, second))
        self._held = _generalise(one.held, other.held, first, second)
        self.part = Part(Counter(common))
        self.freedom = self._required.count(None)

    def applies(self, sizes: Sequence[int]) -> bool:
        """Whether these sizes differ from the two only where the two differ."""
        return all(required is None or required == size for required, size in zip(self._required, sizes))

    def near(self, sizes: Sequence[int]) -> bool:
        """Whether no size is smaller than what was traced, or more than twice as large.

        Shapes may change their pattern at some size; further away a trace is due, which then widens these bounds.
        """
        return all(low <= size <= high for low, size, high in zip(self._low, sizes, self._high))

    def widen(self, sizes: Sequence[int]) -> None:
        """Take note that these sizes were traced, and agree."""
        self._low = [min(pair) for pair in zip(self._low, sizes)]
        self._high = [max(high, 2 * size) for high, size in zip(self._high, sizes)]

    def bill(self, sizes: Sequence[int]) -> Bill:
        """Return the bill for these sizes."""
        own: dict[Event, int] = {}
        flops = self.part.flops
        for pattern in self._varying:
            event = _substitute(pattern, sizes)
            own[event] = own.get(event, 0) + 1
            flops += event_flops(event)
        return Bill(own, self.part, flops, sum(_substitute(self._held, sizes)))

    def agrees(self, trace: _Trace) -> bool:
        """Whether it says of a trace what the trace says."""
        bill = self.bill(trace.sizes)
        return bill.counts == trace.bill.counts and bill.held == trace.bill.held


class Family:
    """Bills of one operation that differ only in some sizes."""

    def __init__(self) -> None:
        self._traces: list[_Trace] = []
        self._template: _Template | None = None

    def derive(self, sizes: tuple[int, ...]) -> Bill | None:
        """Return the bill for these sizes, or None where it takes a trace."""
        template = self._template
        return (
            template.bill(sizes) if template is not None and template.applies(sizes) and template.near(sizes) else None
        )

    def add(self, sizes: tuple[int, ...], events: Sequence[Event], held: tuple[int, ...] = ()) -> Bill:
        """Take in a trace and return its bill."""
        trace = _Trace(sizes, events, held)
        template = self._template
        if template is None or not template.applies(sizes) or not template.agrees(trace):
            self._template = template = self._best(trace)
        self._traces = [*self._traces[1 - _TRACES :], trace]
        if template is None:
            return trace.bill
        template.widen(sizes)
        return template.bill(sizes)

    def _best(self, trace: _Trace) -> _Template | None:
        """Return the template, of this trace with an earlier one, that applies most widely and contradicts no trace."""
        templates = []
        for other in reversed(self._traces):
            try:
                template = _Template(other, trace)
            except _Mismatch:
                continue
            if all(not template.applies(kept.sizes) or template.agrees(kept) for kept in self._traces):
                templates.append(template)
        return max(templates, key=lambda template: template.freedom, default=None)


class _Mismatch(Exception):
    """Two traces that do not correspond."""


def _generalise(a: Any, b: Any, first: Sequence[int], second: Sequence[int]) -> Any:
    """Return what two values have in common, with a multiple of a size where they differ."""
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(_generalise(x, y, first, second) for x, y in zip(a, b))
    if a == b:
        return a
    if type(a) is not int or type(b) is not int:
        raise _Mismatch
    fits = [
        _Multiple(i, a // x)
        for i, (x, y) in enumerate(zip(first, second))
        if x and y and a % x == 0 and b % y == 0 and a // x == b // y
    ]
    if len(fits) != 1:
        raise _Mismatch
    return fits[0]


def _substitute(pattern: Any, sizes: Sequence[int]) -> Any:
    if type(pattern) is tuple:
        return tuple([_substitute(entry, sizes) for entry in pattern])
    return pattern.factor * sizes[pattern.size] if type(pattern) is _Multiple else pattern
