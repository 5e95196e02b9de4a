"""Tensors that have a shape and no values: what prices are made from.

torch's own FakeTensorMode does the same and more, but it imports torch's compiler, which takes as long as importing
torch itself. What these cannot do (an operator whose result depends on values, or one that torch does not know the
shape of) raises, and is then priced by a real call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode


class Hollow(Tensor):
    """A tensor of the CPU without values; operators on it compute the shape of their results, and nothing else.

    Real tensors that meet it in an operator are only looked at for their shape.

    Attributes:
        meta: a tensor of torch's "meta" device, which knows shape, strides and which storage is shared.
    """

    meta: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, meta: Tensor) -> Hollow:
        """Return a tensor that says of itself what ``meta`` says, but for the device."""
        made: Hollow = Tensor._make_wrapper_subclass(
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=torch.device("cpu"),
        )
        made.meta = meta
        return made

    @classmethod
    def of(cls, tensor: Tensor) -> Tensor:
        """Return a contiguous tensor, or parameter, with a tensor's shape, type and need of a gradient."""
        made = cls(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(made, tensor.requires_grad)
        return made.requires_grad_(tensor.requires_grad)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator on the meta device.

        Raises:
            NotImplementedError: its result depends on values, or torch does not know its shape.
        """
        if torch.Tag.data_dependent_output in func.tags:
            raise NotImplementedError(f"{func} needs values")
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        schema = func._schema
        if not schema.is_mutable and not func.is_view:
            return _changed(_fresh(func, args, kwargs), Tensor, cls)
        out = func(*_changed(args, Tensor, _meta), **_changed(kwargs, Tensor, _meta))
        if torch.Tag.inplace_view in func.tags:
            _reshape(func, args, kwargs)
        if isinstance(out, Tensor) and _writes(schema.returns[0]):  # in place: it returns what it was given
            place = next(i for i, argument in enumerate(schema.arguments) if _writes(argument))
            return args[place] if place < len(args) else kwargs[schema.arguments[place].name]
        return _changed(out, Tensor, cls)


class Hollowed(TorchDispatchMode):
    """While it is entered, hollow tensors are made and worked on without a detour.

    Left to themselves they have torch import its distributed tensors, to see that they are none.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator; on shapes where one of its tensors is hollow."""
        if Hollow in types:
            return Hollow.__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """Return the memory that a tensor, hollow or not, lies in, or would lie in."""
    return (tensor.meta if isinstance(tensor, Hollow) else tensor).untyped_storage()


@dataclass(frozen=True, slots=True)
class _Look:
    """What the shape of a result depends on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def at(cls, tensor: Tensor) -> _Look:
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    def meta(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


_results: dict[Hashable, Any] = {}  # torch's shape functions are slow, and networks repeat themselves


def _fresh(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operator that returns new memory, on the meta device."""
    key = func, _key(args), _key(kwargs)
    looks = _results.get(key)
    if looks is None:
        out = func(*_changed(args, Tensor, _meta), **_changed(kwargs, Tensor, _meta))
        _results[key] = _changed(out, Tensor, _Look.at)
        return out
    return _changed(looks, _Look, _Look.meta)


def _changed(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return an operator's arguments or results (nested in tuples, lists, keywords) with those of a kind changed.

    torch's tree_map_only does that too, and takes longer than all the rest of a trace.
    """
    if isinstance(value, kind):
        return change(value)
    if type(value) is tuple:
        return tuple([_changed(each, kind, change) for each in value])
    if type(value) is list:
        return [_changed(each, kind, change) for each in value]
    if type(value) is dict:
        return {name: _changed(each, kind, change) for name, each in value.items()}
    return value


def _key(value: Any) -> Hashable:
    """Return what decides the shape of an operator's result: of tensors their looks, of numbers also their type."""
    if isinstance(value, Tensor):
        return _Look.at(value)
    if type(value) is tuple or type(value) is list:
        return tuple([_key(each) for each in value])
    if type(value) is dict:
        return tuple([(name, _key(each)) for name, each in value.items()])
    return type(value), value  # 1, 1.0 and True are equal, and make results of other types


def _reshape(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let a hollow tensor itself take the shape that an operator gave, in place, to its meta tensor."""
    before = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        with no_dispatch():
            func(*args, **kwargs)
    finally:
        torch._C._set_meta_in_tls_dispatch_include(before)


def _meta(tensor: Tensor) -> Tensor:
    return tensor.meta if isinstance(tensor, Hollow) else _Look.at(tensor).meta()


def _writes(value: Any) -> bool:
    """Whether an argument or a result, as an operator's schema declares it, is memory that the operator writes to."""
    return value.alias_info is not None and value.alias_info.is_write
