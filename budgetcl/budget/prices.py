"""The price list: itemised bills of forwards, gradients and updates, from shapes alone, each made once and kept."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from budgetcl.budget import formulas
from budgetcl.budget.counter import CountFlops, Event, Item, Trace, Unpriced, event_flops, itemise, register_formula
from budgetcl.budget.derive import Bill, Family, bill_of
from budgetcl.budget.hollow import Hollow, Hollowed, storage_of
from budgetcl.errors import UserError
from budgetcl.models.network import Network, structure_of
from budgetcl.objectives.objective import Objective
from budgetcl.streams.batch import Batch

__all__ = ["CountFlops", "Item", "Price", "Prices", "Unpriced", "register_formula"]

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
_Work = Callable[[nn.Module, Any, Any], list[torch.UntypedStorage]]  # (copies of model, objective, input) -> it holds


@dataclass(frozen=True)
class Price:
    """An itemised price, in FLOP (2 x multiply-add).

    Attributes:
        id: a hash of the rest, the same in every process.
        kind: "forward", "gradient" or "update".
        objective: the objective's key, as text; empty for a forward.
        structure: the model's modules, shapes and trainable bits, as a hash.
        training: whether the model was in training mode.
        shapes: (name, shape) of the inputs.
        parameters: trainable parameters; 0 for a forward.
        network: FLOPs of the network and the objective, forward and backward.
        optimiser: FLOPs of the optimiser's step, by formula.
        measured: whether it was read from a first real call, because the work depends on the data's values.
        memory: bytes that it needs at once. All parameters and buffers; for a forward, the input and the outputs, since
            what lies between is freed on the way; for a gradient or an update, a gradient of each trainable parameter,
            the optimiser's state (a copy for a momentum, one for each beta) and whatever autograd saves for the
            backward. Memory that several tensors share, parameters among them, counts once.
        bill: what the network's FLOPs are made of.
    """

    id: str
    kind: str
    objective: str
    structure: str
    training: bool
    shapes: Shapes
    parameters: int
    network: int
    optimiser: int
    measured: bool
    memory: int
    bill: Bill = field(repr=False, compare=False)
    step: Item | None = field(default=None, repr=False, compare=False)

    @property
    def total(self) -> int:
        """FLOPs of the network and the optimiser."""
        return self.network + self.optimiser

    @property
    def batch(self) -> int:
        """How many images it is for."""
        return self.shapes[0][1][0]

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The bill: its items, the optimiser's step included, sum to ``total``."""
        return itemise(self.bill.counts) + self._steps

    @property
    def _steps(self) -> tuple[Item, ...]:
        return () if self.step is None else (self.step,)

    def to_dict(self, compact: bool = False) -> dict[str, Any]:
        """Return it as prices.json holds it.

        Args:
            compact: name the part that it has in common with other prices (``includes``) instead of repeating it.
        """
        common = self.bill.common if compact else None
        items = itemise(self.bill.own) + self._steps if common else self.items
        return {
            "kind": self.kind,
            "objective": self.objective,
            "structure": self.structure,
            "training": self.training,
            "batch": self.batch,
            "shapes": dict(self.shapes),
            "parameters": self.parameters,
            "flops": self.total,
            "network": self.network,
            "optimiser": self.optimiser,
            "measured": self.measured,
            "memory": self.memory,
            "includes": common.id if common else None,
            "items": [item.to_dict() for item in items],
        }


class Prices:
    """The price list of a run.

    A price is made once from fake copies of the model and the inputs, which have shapes and no values: nothing of
    the live model is touched, and no data is needed. It is kept by everything that changes it: the objective's key,
    the model's structure (a grown head, a frozen part) and mode, the shapes of the inputs. Attention is priced by its
    plain formula, so that the integer is the same on every device. Work that depends on the values themselves cannot
    be priced from shapes: a copy does it once for real under the counter, and the price is marked ``measured``.
    """

    def __init__(self) -> None:
        self._prices: dict[Any, Price] = {}
        self._families: dict[Any, Family] = {}
        self._outside_head: dict[str, _Size] = {}  # by skeleton

    def forward(self, model: nn.Module, x: Tensor) -> Price:
        """Return the price of a forward without gradient, in the mode that the model is in.

        Args:
            model: a network.
            x: (n, ...), the images; only shape and type matter.

        Raises:
            Unpriced: an operator has no formula.
        """
        skeleton, classes = _identity(model)
        key = ("forward", skeleton, classes, model.training, x.shape, x.dtype)
        price = self._prices.get(key)
        if price is None:
            sizes = () if classes is None else (classes,)
            bill, measured = self._bill(key[:2] + key[3:], sizes, _forward, model, None, x)
            price = self._keep(key, "forward", "", model, (("x", tuple(x.shape)),), bill, measured, None, 0)
        return price

    def update(self, objective: Objective, model: nn.Module, batch: Batch, optimiser: Optimizer | None = None) -> Price:
        """Return the price of an update: forward, backward to the trainable parameters, and the optimiser's step.

        Args:
            objective: a loss of the model on the batch.
            model: a network, in the mode that it is in.
            batch: only shapes and types matter.
            optimiser: SGD (the default), Adam, AdamW, or one with a formula of its own (``optimiser::Name``).

        Raises:
            Unpriced: an operator, or the optimiser, has no formula.
        """
        if optimiser is None:
            return self._learning("update", objective, model, batch, torch.optim.SGD, 1)
        return self._learning("update", objective, model, batch, type(optimiser), _states(optimiser))

    def gradient(self, objective: Objective, model: nn.Module, batch: Batch, per_sample: bool = False) -> Price:
        """Return the price of a gradient, without a step.

        Args:
            objective: a loss of the model on the batch.
            model: a network, in the mode that it is in.
            batch: n samples; only shapes and types matter.
            per_sample: one gradient a sample: n times the price for one.

        Raises:
            Unpriced: an operator has no formula.
        """
        return self._learning("gradient", objective, model, batch, None, 0, per_sample)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return price id -> price, with what many prices have in common as entries of kind "part".

        :func:`budgetcl.budget.formulas.reprice` recomputes any of them with integers alone.
        """
        entries: dict[str, dict[str, Any]] = {}
        for price in self._prices.values():
            part = price.bill.common
            if part is not None and part.id not in entries:
                items = [item.to_dict() for item in part.items]
                entries[part.id] = {"kind": "part", "flops": part.flops, "items": items}
            entries[price.id] = price.to_dict(compact=True)
        return entries

    # --- inside ---------------------------------------------------------------------------------------------------

    def _learning(
        self,
        kind: str,
        objective: Objective,
        model: nn.Module,
        batch: Batch,
        optimiser: type[Optimizer] | None,
        states: int,
        per_sample: bool = False,
    ) -> Price:
        skeleton, classes = _identity(model)
        x = batch.x
        extra = tuple([(name, t.shape, t.dtype) for name, t in batch.extra.items()]) if batch.extra else ()
        mode = (model.training, optimiser, states, per_sample)
        key = (kind, objective.key, skeleton, classes, x.shape, x.dtype, extra, mode)
        price = self._prices.get(key)
        if price is not None:
            return price
        times = len(batch) if per_sample else 1
        if not len(batch):
            raise UserError("an empty batch was given; at least one sample is expected")
        batch = batch.first(1) if per_sample else batch
        # What may differ within a family: the number of classes, and the sizes of stored logits or features.
        sizes = (*(() if classes is None else (classes,)), *(size for _, shape, _ in extra for size in shape[1:]))
        names = tuple((name, len(shape), dtype) for name, shape, dtype in extra)
        family = ("gradient", objective.key, skeleton, model.training, batch.x.shape, x.dtype, names)
        bill, measured = self._bill(family, sizes, _backward, model, objective, batch)
        if times > 1:
            bill = Bill(
                {event: count * times for event, count in bill.counts.items()}, None, bill.flops * times, bill.held
            )
        step = None if optimiser is None else _step(optimiser, self._size(model).trainable)
        shapes: Shapes = (("x", tuple(x.shape)), *((name, tuple(shape)) for name, shape, _ in extra))
        return self._keep(key, kind, repr(objective.key), model, shapes, bill, measured, step, states)

    def _keep(
        self,
        key: Any,
        kind: str,
        objective: str,
        model: nn.Module,
        shapes: Shapes,
        bill: Bill,
        measured: bool,
        step: Item | None,
        states: int,
    ) -> Price:
        skeleton, classes = _identity(model)
        structure = skeleton if classes is None else f"{skeleton}-{classes}"
        size = self._size(model)
        parameters = 0 if kind == "forward" else size.trainable
        memory = size.bytes + bill.held + (0 if kind == "forward" else (1 + states) * size.trainable_bytes)
        optimiser = 0 if step is None else step.flops
        content = (
            kind,
            objective,
            structure,
            model.training,
            shapes,
            parameters,
            bill.flops,
            optimiser,
            measured,
            memory,
        )
        text = repr((formulas.ACCOUNTING_VERSION, *content, step and step.operator))
        price = Price(hashlib.sha256(text.encode()).hexdigest()[:12], *content, bill, step)
        self._prices[key] = price
        return price

    def _size(self, model: nn.Module) -> _Size:
        """Return a model's size; outside a growing head it is looked at once."""
        if not isinstance(model, Network):
            return _size(model)
        head = _size(model.head)
        if model.skeleton not in self._outside_head:
            self._outside_head[model.skeleton] = _Size(*(whole - part for whole, part in zip(_size(model), head)))
        return _Size(*(outside + part for outside, part in zip(self._outside_head[model.skeleton], head)))

    def _bill(
        self, family: Any, sizes: tuple[int, ...], work: _Work, model: nn.Module, objective: Any, inputs: Any
    ) -> tuple[Bill, bool]:
        """Return a bill, derived or traced, and whether it was measured."""
        kept = self._families.get(family)
        bill = kept.derive(sizes) if kept is not None else None
        if bill is not None:
            return bill, False
        events, held, measured = _trace(work, model, objective, inputs)
        if measured or not sizes:
            return bill_of(events, held), measured
        return self._families.setdefault(family, Family()).add(sizes, events, held), False


def _identity(model: nn.Module) -> tuple[str, int | None]:
    """Return a hash of what decides a price, and of a network, apart from it, its number of classes."""
    if isinstance(model, Network):
        classes: Any = model.head.classes
        return model.skeleton, classes
    modes = "".join("01"[module.training] for module in model.modules())
    return hashlib.sha256(f"{structure_of(model)}{modes}".encode()).hexdigest()[:16], None


class _Size(NamedTuple):
    """How large a model is: trainable parameters, their bytes, and the bytes of all parameters and buffers."""

    trainable: int
    trainable_bytes: int
    bytes: int


def _size(model: nn.Module) -> _Size:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return _Size(
        sum(p.numel() for p in trainable),
        sum(p.nbytes for p in trainable),
        sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
    )


def _states(optimiser: Optimizer) -> int:
    """Return how many copies of the parameters an optimiser keeps: a momentum, one for each beta, AMSGrad's maximum."""
    settings = optimiser.defaults
    return bool(settings.get("momentum")) + len(settings.get("betas", ())) + bool(settings.get("amsgrad"))


def _step(optimiser: type[Optimizer], parameters: int) -> Item:
    """Return the item of an optimiser's step, by the formula of its class."""
    operator = f"optimiser::{optimiser.__name__}"
    if operator not in formulas.FORMULAS:
        raise Unpriced(operator)
    attributes = (("parameters", parameters),)
    return Item(operator, (), attributes, 1, event_flops((operator, (), attributes)))


# --- tracing ----------------------------------------------------------------------------------------------------------


def _forward(model: nn.Module, objective: Any, x: Tensor) -> list[torch.UntypedStorage]:
    with torch.no_grad():
        outputs = model(x)
    return [storage_of(tensor) for tensor in (x, *_tensors_in(outputs))]


def _backward(model: nn.Module, objective: Any, batch: Batch) -> list[torch.UntypedStorage]:
    saved: list[torch.UntypedStorage] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(storage_of(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss, _ = objective(model, batch)
    if loss.requires_grad:
        loss.backward()
    return saved


def _trace(work: _Work, model: nn.Module, objective: Any, inputs: Any) -> tuple[list[Event], tuple[int, ...], bool]:
    """Return the priced operators of a piece of work, what it holds, and whether they were read from a real call."""
    with _apart(model):
        try:
            return *_on_shapes(work, model, objective, inputs), False
        except Unpriced:
            raise
        except Exception:
            # The values matter, or something cannot run without them. If it is a mistake, the real call makes it too.
            return *_for_real(work, model, objective, inputs), True


def _on_shapes(work: _Work, model: nn.Module, objective: Any, inputs: Any) -> tuple[list[Event], tuple[int, ...]]:
    with Hollowed():
        model, objective = _copied(model, objective, {id(t): Hollow.of(t) for t in _tensors(model)})
        inputs = _mapped(inputs, Hollow.of)
        with Trace() as trace:
            held = work(model, objective, inputs)
    return trace.events, _bytes(held, model)


def _for_real(work: _Work, model: nn.Module, objective: Any, inputs: Any) -> tuple[list[Event], tuple[int, ...]]:
    devices = {t.device for t in _tensors(model)}
    results = {id(t): t.detach().clone() for t in _tensors(model) if not t.is_leaf}  # deepcopy does not take them
    model, objective = _copied(model, objective, results)
    if len(devices) == 1:
        device = devices.pop()
        inputs = _mapped(inputs, lambda tensor: tensor.to(device))
    with Trace() as trace:
        held = work(model, objective, inputs)
    return trace.events, _bytes(held, model)


def _bytes(held: Iterable[torch.UntypedStorage], model: nn.Module) -> tuple[int, ...]:
    """Return the bytes of each piece of memory that is held, once each, those of the model left out."""
    own = {storage_of(t)._cdata for t in (*model.parameters(), *model.buffers())}
    storages = {storage._cdata: storage for storage in held}
    return tuple(storage.nbytes() for key, storage in storages.items() if key not in own)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a model returns: a tensor, a sequence, a mapping, or an object of tensors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)) or hasattr(value, "__dict__"):
        values = (
            value
            if isinstance(value, (list, tuple))
            else (value if isinstance(value, Mapping) else vars(value)).values()
        )
        for each in values:
            yield from _tensors_in(each)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield all tensors of a model: parameters, buffers, gradients, and those that modules keep beside."""
    for module in model.modules():
        for group in (module._parameters, module._buffers, vars(module)):
            yield from (value for value in group.values() if isinstance(value, Tensor))


def _copied(model: nn.Module, objective: Any, memo: dict[int, Any]) -> tuple[nn.Module, Any]:
    try:
        return copy.deepcopy(model, memo), copy.deepcopy(objective, memo)
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} cannot be copied to be priced ({error}); "
            "models and objectives must work with copy.deepcopy"
        ) from error


def _mapped(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a tensor, or a batch, with its tensors changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    extra = {name: change(value) for name, value in inputs.extra.items()}
    return replace(inputs, x=change(inputs.x), y=change(inputs.y), is_new=change(inputs.is_new), extra=extra)


@contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """Keep what the tracing does from the rest: random numbers, gradient mode, attention kernels."""
    cuda = {t.device.index for t in _tensors(model) if t.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # whatever an objective may draw from
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
