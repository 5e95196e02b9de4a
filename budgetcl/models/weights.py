"""Weights from files. Nothing that a file holds is run: a pickle may bring tensors, and nothing else."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from budgetcl.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_AROUND = ("state_dict", "model")  # what training scripts file weights under, beside epochs and optimisers
_BEFORE = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before names


def names_file(weights: str) -> bool:
    """Return whether weights are given as a file, by its suffix, rather than by a name."""
    return Path(weights).suffix in SUFFIXES


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file, floating-point ones as float32: a .safetensors file, or a state dict of torch's.

    Raises:
        UserError: the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path).expanduser()
    try:
        if path.suffix == ".safetensors":
            return as_float(safetensors.torch.load(path.read_bytes()))
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"the weights {path} cannot be read ({error.strerror or error}): missing or damaged") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable .safetensors file ({error})") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
        first = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()[0]  # torch prints some words bold
        raise UserError(
            f"{path} is damaged, or holds more than tensors, which is not run ({first}): save its state dict alone"
        ) from error
    for name in _AROUND:
        held = held.get(name, held) if isinstance(held, Mapping) else held
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise UserError(f"{path} holds no state dict: names and tensors are expected, as module.state_dict() has them")
    for prefix in _BEFORE:
        if held and all(name.startswith(prefix) for name in held):
            held = {name.removeprefix(prefix): value for name, value in held.items()}
    return as_float(held)


def as_float(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with those of floating point as float32."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load parameters and buffers whose names and shapes must all fit.

    Only counters of BatchNorm may be missing, which no old file has.

    Raises:
        UserError: a name or a shape does not fit; the message gives the first that does not.
    """
    own = module.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing, unknown = sorted(own.keys() - tensors.keys() - counters), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise UserError(
            f"{source} does not fit the backbone: {len(missing)} names are missing and {len(unknown)} unknown, "
            f"such as {(missing + unknown)[0]!r}"
        )
    for name, tensor in own.items():
        given = tensors.get(name, tensor)
        if tensor.shape != given.shape:
            raise UserError(
                f"{source} does not fit the backbone: {name} is {tuple(given.shape)}, {tuple(tensor.shape)} is expected"
            )
        tensor.copy_(given)
