"""The way of a batch to a GPU: out of pinned memory of the host, from which the device copies while both go on working.

A copy out of ordinary memory makes the host wait until the device has caught up, in every update.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wanted() -> bool:
    """Whether what is to be copied to a device had better be made in pinned memory: where CUDA is in use."""
    return torch.cuda.is_initialized()


def moved(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; on a GPU without waiting for the copy, nor for what the device is at.

    What is not in pinned memory yet goes through it. Torch keeps that memory until the copy is done.
    """
    if device.type != "cuda":
        return x.to(device)
    if x.device.type == "cpu" and not x.is_pinned():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
