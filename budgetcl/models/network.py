"""A network: normalisation, backbone and head; the one module that learners, prices and records speak of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Outputs:
    """What a network returns.

    Attributes:
        logits: (n, classes).
        features: (n, d), the backbone's output.
    """

    logits: Tensor
    features: Tensor


class Network(nn.Module):
    """uint8 images -> logits over the classes seen so far.

    Args:
        backbone: a module (n, c, h, w) float -> (n, d) with attributes ``feature_dim`` (d), ``mean`` and ``std``
            (per channel, on the scale 0..1).
        head: a module (n, d) -> (n, classes) with ``grow(classes, generator)``, ``classes`` and ``weight``.
        batch_norm: "live" or "frozen": whether batch statistics are used and updated in training.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, batch_norm: str = "live") -> None:
        super().__init__()
        self.backbone, self.head, self.batch_norm = backbone, head, batch_norm
        mean, std = (torch.as_tensor(getattr(backbone, name), dtype=torch.float32) for name in ("mean", "std"))
        self.register_buffer("scale", (1 / (255 * std)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", (-mean / std).view(1, -1, 1, 1), persistent=False)
        self._structure: str | None = None

    def forward(self, x: Tensor) -> Outputs:
        features = self.backbone(x.float().mul(self.scale).add(self.offset))
        return Outputs(self.head(features), features)

    def train(self, mode: bool = True) -> Network:
        """Set the mode. Modules without a trainable parameter, and BatchNorm where it is frozen, stay in eval mode."""
        super().train(mode)
        if mode:
            for module in self.modules():
                parameters = list(module.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    nn.Module.train(module, False)
                elif self.batch_norm == "frozen" and isinstance(module, nn.modules.batchnorm._BatchNorm):
                    nn.Module.train(module, False)
        return self

    def grow(self, classes: int, generator) -> None:  # noqa: ANN001
        """Grow the head to this many classes."""
        self.head.grow(classes, generator)
        self._structure = None

    def set_trainable(self, modules: Iterable[nn.Module]) -> None:
        """Make the parameters of these modules trainable and all the others frozen."""
        self.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
        self._structure = None
        self.train(self.training)

    @property
    def structure(self) -> str:
        """A hash of what decides a price: modules, parameter shapes and trainable bits. Kept until it changes."""
        if self._structure is None:
            shapes = [(name, tuple(p.shape), p.requires_grad) for name, p in self.named_parameters()]
            text = f"{self!r}{shapes}{self.batch_norm}"
            self._structure = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._structure
