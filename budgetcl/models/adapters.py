"""Low-rank adapters: a frozen layer learns beside itself, without the gradient of its own weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import skip_init

from budgetcl.errors import UserError, at_least, between
from budgetcl.models.network import Network


class LoRA:
    """Train adapters on the backbone's convolutions and linear layers, and the head (Hu et al., ICLR 2022).

    A layer becomes W x + alpha / r B (A x), W frozen, A of r rows. Of a k x k convolution A is k x k and B is 1 x 1; of
    a grouped one each group has r rows. In an update, the gradient of W falls away, and that of its input stays: about
    two thirds of the price of training W, plus three passes of A and B. Without a gradient (predictions, scores,
    teachers), B A is added to W first: 2 r FLOPs a weight for each batch, instead of two more passes for each image.

    Layers on which A and B would not be smaller than W (depthwise convolutions) stay frozen, and so does attention,
    whose module reads its projections' weights itself.

    Args:
        rank: r.
        alpha: the scale of what is learned, as a multiple of 1 / r. What is learned moves with the square of the scale,
            so a large learning rate wants a small one.
    """

    def __init__(self, rank: int = 2, alpha: float = 0.25) -> None:
        at_least(1, **{"part.rank": rank})
        between(1e-6, 1e6, **{"part.alpha": alpha})
        self.rank, self.alpha = rank, alpha

    def __call__(self, network: Network, step: int, random: np.random.Generator) -> Iterable[nn.Module | nn.Parameter]:
        """Return the head and the adapters, inserted into a network that has none.

        Raises:
            UserError: the backbone has no layer that an adapter of this rank would be smaller than.
        """
        if not _adapters(network):
            self._insert(network.backbone, random)
        adapters = _adapters(network)
        if not adapters:
            raise UserError(
                f"part.rank={self.rank} given; {type(network.backbone).__name__} has no convolution or linear layer "
                "that an adapter of this rank would be smaller than: lower part.rank, or choose another part"
            )
        return [network.head, *(matrix for adapter in adapters for matrix in (adapter.down, adapter.up))]

    def _insert(self, backbone: nn.Module, random: np.random.Generator) -> None:
        for parent in list(backbone.modules()):
            if isinstance(parent, nn.TransformerEncoderLayer):  # it reads the weights of its layers itself
                continue
            for name, layer in list(parent.named_children()):
                # Exact types: what derives from them may use its weight in another way (attention's projection).
                if type(layer) is nn.Conv2d or type(layer) is nn.Linear:
                    adapted = Adapted(layer, self.rank, self.alpha / self.rank, random)
                    if adapted.down.weight.numel() + adapted.up.weight.numel() < layer.weight.numel():
                        setattr(parent, name, adapted)


class Adapted(nn.Module):
    """A layer and what is learned beside it. It begins with A random and B zero: equal to the layer, to the bit.

    Args:
        layer: a convolution or a linear layer.
        rank: r, of each group.
        scale: alpha / r.
        random: of A: normal, variance one over the number of its inputs.
    """

    layer: nn.Conv2d | nn.Linear
    down: nn.Conv2d | nn.Linear
    up: nn.Conv2d | nn.Linear

    def __init__(self, layer: nn.Conv2d | nn.Linear, rank: int, scale: float, random: np.random.Generator) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale
        of: dict[str, Any] = {"bias": False, "device": layer.weight.device, "dtype": layer.weight.dtype}
        if isinstance(layer, nn.Conv2d):
            inner, groups = rank * layer.groups, layer.groups
            window: dict[str, Any] = {
                name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")
            }
            self.down = skip_init(nn.Conv2d, layer.in_channels, inner, layer.kernel_size, groups=groups, **window, **of)
            self.up = skip_init(nn.Conv2d, inner, layer.out_channels, 1, groups=groups, **of)
        else:
            self.down = skip_init(nn.Linear, layer.in_features, rank, **of)
            self.up = skip_init(nn.Linear, rank, layer.out_features, **of)
        shape = tuple(self.down.weight.shape)
        draw = random.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        with torch.no_grad():
            self.down.weight.copy_(torch.from_numpy(draw))
            self.up.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer would, and what is learned beside it."""
        if torch.is_grad_enabled():
            return self.layer(x) + self.scale * self.up(self.down(x))
        return functional_call(self.layer, {"weight": self.layer.weight + self.scale * self._product()}, (x,))

    def _product(self) -> Tensor:
        """Return B A in the shape of W."""
        groups = getattr(self.layer, "groups", 1)
        up, down = (matrix.weight.flatten(1).unflatten(0, (groups, -1)) for matrix in (self.up, self.down))
        return (up @ down).reshape(self.layer.weight.shape)

    def extra_repr(self) -> str:
        """Name the scale."""
        return f"scale={self.scale:g}"


def _adapters(network: Network) -> list[Adapted]:
    return [module for module in network.backbone.modules() if isinstance(module, Adapted)]
