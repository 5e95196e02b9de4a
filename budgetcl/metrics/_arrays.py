"""Arrays as they come (numpy, torch, lists; integers, strings), checked and turned into what the metrics compute on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetcl.errors import UserError

Array = Tensor | NDArray[Any] | Sequence[Any]


def _host(name: str, values: Array) -> NDArray[Any]:
    """Return a list or foreign array as a numpy array, refusing a list of several types."""
    if isinstance(values, list | tuple):
        kinds = {type(value) for value in values}
        if any(issubclass(kind, str) for kind in kinds) and len(kinds) > 1:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise UserError(f"{name} mixes types ({names}); give integers or strings, not both")
    array = np.asarray(values)
    if array.dtype.kind == "O" and array.size:
        kinds = {type(value) for value in array.ravel().tolist()}
        if all(issubclass(kind, str) for kind in kinds):
            return array.astype(str)
        if not all(issubclass(kind, int | np.integer) for kind in kinds):
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise UserError(f"{name} mixes types or holds gaps ({names}); give integers or strings, not both")
        return array.astype(np.int64)
    return array


def _refuse(name: str, values: Tensor | NDArray[Any], expected: str) -> None:
    """Raise for values that are not whole numbers, naming the first NaN where there is one."""
    flat = torch.as_tensor(values).flatten() if isinstance(values, Tensor) or values.dtype.kind == "f" else None
    if flat is not None and flat.is_floating_point():
        missing = torch.isnan(flat).nonzero()
        if len(missing):
            raise UserError(f"{name} holds NaN at row {int(missing[0])}; {expected} expected")
    raise UserError(f"{name} has the type {values.dtype}; {expected} expected: convert it to int64 first")


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor on the array's memory; a read-only array is only ever read here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def _flat(name: str, values: Tensor | NDArray[Any]) -> None:
    if values.ndim != 1:
        raise UserError(f"{name} has the shape {tuple(values.shape)}; one dimension is expected")
    if len(values) == 0:
        raise UserError(f"{name} is empty; at least one row is expected")


def integers(name: str, values: Array) -> Tensor:
    """Return (n,) int64 on the values' own device (on the host for anything but a tensor), without a copy if it can.

    Raises:
        UserError: anything but a non-empty row of whole numbers.
    """
    if isinstance(values, Tensor):
        _flat(name, values)
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            _refuse(name, values, "integers are")
        return values.long()
    array = _host(name, values)
    _flat(name, array)
    if array.dtype.kind not in "iu":
        _refuse(name, array, "integers are")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise UserError(f"{name} holds {array.max()}, which does not fit into 64 signed bits")
    return _tensor(array.astype(np.int64, copy=False))


def booleans(name: str, values: Array) -> Tensor:
    """Return (n,) bool; zeros and ones are taken too.

    Raises:
        UserError: other values.
    """
    tensor = values if isinstance(values, Tensor) else _host(name, values)
    _flat(name, tensor)
    if isinstance(tensor, np.ndarray):
        if tensor.dtype.kind not in "biu":
            _refuse(name, tensor, "booleans are")
        tensor = _tensor(tensor)
    if tensor.dtype == torch.bool:
        return tensor
    if tensor.is_floating_point() or not bool(((tensor == 0) | (tensor == 1)).all()):
        _refuse(name, tensor, "booleans are")
    return tensor.bool()


def floats(name: str, values: Array, dimensions: int = 1) -> Tensor:
    """Return float64 of this many dimensions, finite.

    Raises:
        UserError: NaN, infinities or another shape.
    """
    if isinstance(values, Tensor):
        tensor = values.double()
    else:
        array = _host(name, values)
        if array.dtype.kind not in "biuf":
            raise UserError(f"{name} has the type {array.dtype}; numbers are expected")
        tensor = _tensor(array.astype(np.float64, copy=False))
    if tensor.ndim != dimensions or tensor.numel() == 0:
        raise UserError(f"{name} has the shape {tuple(tensor.shape)}; {dimensions} filled dimension(s) are expected")
    wrong = (~torch.isfinite(tensor)).nonzero()
    if len(wrong):
        where = tuple(wrong[0].tolist())
        raise UserError(
            f"{name} holds {float(tensor[where])} at {where if dimensions > 1 else where[0]}; finite numbers only"
        )
    return tensor


def is_text(values: Array) -> bool:
    """Whether these labels are strings."""
    if isinstance(values, Tensor):
        return False
    array = np.asarray(values)
    return array.dtype.kind in "US" or (array.dtype.kind == "O" and array.size > 0 and isinstance(array.flat[0], str))


def labels(**columns: Array) -> list[Tensor]:
    """Return columns of labels as int64 that are equal where the labels are. Strings are numbered in their order.

    Raises:
        UserError: integers in one column and strings in another; NaN; another type.
    """
    hosts = {name: value if isinstance(value, Tensor) else _host(name, value) for name, value in columns.items()}
    text = {name: isinstance(value, np.ndarray) and value.dtype.kind in "US" for name, value in hosts.items()}
    if any(text.values()):
        if not all(text.values()):
            kinds = ", ".join(f"{name}: {'strings' if is_text else 'numbers'}" for name, is_text in text.items())
            raise UserError(f"labels of two types given ({kinds}); give integers or strings in both")
        for name, value in hosts.items():
            _flat(name, value)
        _, codes = np.unique(
            np.concatenate([np.asarray(value).astype(str) for value in hosts.values()]), return_inverse=True
        )
        bounds = np.cumsum([len(value) for value in hosts.values()])[:-1]
        return [_tensor(part.astype(np.int64)) for part in np.split(codes, bounds)]
    plain = {
        name: value.astype(np.int64) if isinstance(value, np.ndarray) and value.dtype.kind == "b" else value
        for name, value in hosts.items()
    }
    return together(**{name: integers(name, value) for name, value in plain.items()})


def together(**columns: Tensor | None) -> list[Any]:
    """Return equally long columns on one device (host columns follow the first device column); None stays None.

    Raises:
        UserError: unequal lengths, or two devices besides the host.
    """
    given = {name: value for name, value in columns.items() if value is not None}
    lengths = {name: len(value) for name, value in given.items()}
    if len(set(lengths.values())) > 1:
        raise UserError("columns must be equally long; given " + ", ".join(f"{k}: {v}" for k, v in lengths.items()))
    devices = {value.device for value in given.values() if value.device.type != "cpu"}
    if len(devices) > 1:
        raise UserError(f"columns lie on {', '.join(sorted(map(str, devices)))}; move them to one device")
    device = devices.pop() if devices else torch.device("cpu")
    return [value if value is None else value.to(device) for value in columns.values()]


def warmup_end(samples: int, warmup: float) -> int:
    """Return the first position that counts: a share of the stream below 1 (rounded up), or a number of samples.

    Raises:
        UserError: a negative warm-up, or one that leaves nothing.
    """
    if isinstance(warmup, bool) or not isinstance(warmup, int | float) or not warmup >= 0:
        raise UserError(f"warmup={warmup!r} given; a share of the stream in [0, 1) or a number of samples is expected")
    if isinstance(warmup, float) and warmup >= 1:
        raise UserError(f"warmup={warmup!r} given; a share lies in [0, 1); give an int for a number of samples")
    end = warmup if isinstance(warmup, int) else math.ceil(warmup * samples - 1e-9)
    if end >= samples:
        raise UserError(f"a warm-up of {end} samples leaves nothing of a stream of {samples}; give a smaller warmup")
    return end
