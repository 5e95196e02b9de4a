"""A network: normalisation, backbone and head; the one module that learners, prices and records speak of."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from budgetcl.errors import UserError, one_of
from budgetcl.models.heads import LinearHead
from budgetcl.models.pretrained import Pretrained


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
    """uint8 images -> logits over the classes seen so far. Features (n, d) that were computed before are taken as well:
    they skip the backbone.

    Args:
        backbone: a module (n, c, h, w) float -> (n, d) with attributes ``feature_dim`` (d), ``mean`` and ``std``
            (per channel, on the scale 0..1).
        head: a module (n, d) -> (n, classes) with ``grow(classes, generator, known)``, ``classes`` and ``weight``.
        batch_norm: "live" or "frozen": whether batch statistics are used and updated in training.
    """

    backbone: nn.Module
    head: LinearHead
    scale: Tensor
    offset: Tensor

    def __init__(self, backbone: nn.Module, head: LinearHead, batch_norm: str = "live") -> None:
        super().__init__()
        one_of(("live", "frozen"), batch_norm=batch_norm)
        self.backbone, self.head, self.batch_norm = backbone, head, batch_norm
        mean, std = (torch.as_tensor(getattr(backbone, name), dtype=torch.float32) for name in ("mean", "std"))
        self.register_buffer("scale", (1 / (255 * std)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", (-mean / std).view(1, -1, 1, 1), persistent=False)
        self._layout = torch.contiguous_format
        self._skeleton: str | None = None
        self._sized: tuple[str, int, int] | None = None
        self._frozen: list[nn.Module] = []

    def forward(self, x: Tensor) -> Outputs:
        """(n, channels, height, width) uint8, or features (n, d) -> outputs."""
        features = x if x.ndim == 2 else self.backbone(self._normal(x))
        return Outputs(self.head(features), features)

    def _normal(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=self._layout)
        # one picture's worth of each, laid out as the pictures are: else the inner loop runs over three channels
        scale, offset = (
            v.expand(1, *x.shape[1:]).contiguous(memory_format=self._layout) for v in (self.scale, self.offset)
        )
        return x.mul(scale).add_(offset)

    def lay_out(self, layout: torch.memory_format) -> None:
        """Let pictures, and the weights of convolutions, lie channels last in memory, or contiguously.

        A backbone without a convolution would only have to lay them back: its pictures stay contiguous.
        """
        convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in self.backbone.modules())
        self._layout = layout if convolves else torch.contiguous_format
        self.backbone.to(memory_format=layout)  # type: ignore[call-overload]

    @property
    def feature_dim(self) -> int:
        """The features' dimension d."""
        return int(self.backbone.feature_dim)  # type: ignore[arg-type]

    def takes(self, image_shape: tuple[int, int, int], key: str = "backbone") -> None:
        """Refuse images whose channels are not the backbone's: they would be broadcast, or fail far from here.

        Args:
            image_shape: (channels, height, width).
            key: the backbone's, in the configuration.

        Raises:
            UserError: another number of channels, or pictures that an architecture by name cannot show.
        """
        if self.scale.shape[1] != image_shape[0]:
            raise UserError(
                f"the backbone is made for {self.scale.shape[1]} channels (its mean and std); the stream's images have "
                f"{image_shape[0]}: set backbone.channels, or choose another backbone or stream"
            )
        if isinstance(self.backbone, Pretrained):
            self.backbone.takes(image_shape, key)

    def train(self, mode: bool = True) -> Network:
        """Set the mode. Modules without a trainable parameter, and BatchNorm where it is frozen, stay in eval mode."""
        super().train(mode)
        if mode:
            for module in self._frozen:
                module.training = False
        return self

    def grow(self, classes: int, generator: np.random.Generator, known: bool = False) -> None:
        """Grow the head to this many classes; ``known``: from the trained rows that came with the backbone."""
        self.head.grow(classes, generator, known)

    def set_trainable(self, parts: Iterable[nn.Module | nn.Parameter]) -> None:
        """Make these modules' parameters, and these parameters, trainable and all the others frozen."""
        self.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)
        for parameter in self.parameters():
            if not parameter.requires_grad:
                parameter.grad = None  # it would count where gradients are clipped or followed
        self._skeleton = None
        self._frozen = [module for module in self.modules() if self._stays_in_eval(module)]
        self.train(self.training)

    def _stays_in_eval(self, module: nn.Module) -> bool:
        if self.batch_norm == "frozen" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            return True
        parameters = list(module.parameters())
        return bool(parameters) and not any(p.requires_grad for p in parameters)

    def frozen_copy(self, state: Mapping[str, Tensor] | None = None) -> Network:
        """Return a copy in eval mode that nothing trains; with other weights, whatever their number of classes."""
        twin = copy.deepcopy(self)
        if state is not None:
            twin.take_up(state)
        twin.set_trainable([])
        return twin.eval()

    def take_up(self, state: Mapping[str, Tensor]) -> None:
        """Load weights whose head may have other rows."""
        own = self.state_dict()
        for name, parameter in self.head.named_parameters(recurse=False):
            saved = state[f"head.{name}"]
            if saved.shape != own[f"head.{name}"].shape:
                resized = nn.Parameter(torch.empty_like(saved, device=parameter.device), parameter.requires_grad)
                setattr(self.head, name, resized)
        self.load_state_dict(state)

    @property
    def size(self) -> int:
        """The number of parameters, trained or not."""
        return self._sizes()[0]

    @property
    def trainable(self) -> int:
        """The number of trainable parameters."""
        return self._sizes()[1]

    def _sizes(self) -> tuple[int, int]:
        if self._sized is None or self._sized[0] != self.structure:
            sizes = [(p.numel(), p.requires_grad) for p in self.parameters()]
            self._sized = (self.structure, sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained))
        return self._sized[1:]

    @property
    def skeleton(self) -> str:
        """A hash of what decides a price, all but the head's number of rows: modules, parameters, trainable bits."""
        if self._skeleton is None:
            self._skeleton = structure_of(self, self.head)
        return self._skeleton

    @property
    def structure(self) -> str:
        """The skeleton and the head's number of rows. Kept until it changes."""
        return f"{self.skeleton}-{self.head.classes}"


def structure_of(module: nn.Module, head: nn.Module | None = None) -> str:
    """Return a hash of a module's parts, parameter shapes and trainable bits; of a growing head without its rows."""
    rows = {id(p) for p in head.parameters() if p.ndim and len(p) == head.classes} if head is not None else set()
    shapes = [(name, tuple(p.shape)[id(p) in rows :], p.requires_grad) for name, p in module.named_parameters()]
    text = re.sub(r" at 0x[0-9a-f]+", "", f"{module!r}{shapes}{getattr(module, 'batch_norm', '')}")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bytes_of(values: Iterable[Any]) -> int:
    """Return the bytes of the tensors among some values."""
    return sum(value.nbytes for value in values if isinstance(value, Tensor))
