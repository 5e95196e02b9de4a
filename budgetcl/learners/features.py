"""What learners without gradient descent look at: images -> features that never change, each at its price."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from budgetcl.budget.compute import Compute
from budgetcl.budget.formulas import linear
from budgetcl.errors import UserError, at_least
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.randomness import generator
from budgetcl.streams.pinned import moved

Shape = tuple[int, int, int]


class Features(Protocol):
    """Maps images to features, the same ones for ever. ``begin`` comes first, and again after a resumption."""

    def begin(self, image_shape: Shape) -> int:
        """Get ready for images of this shape; return the features' dimension d.

        Raises:
            UserError: images that it does not take.
        """
        ...

    def price(self, compute: Compute) -> int:
        """Return the FLOPs of one image; asking costs nothing."""
        ...

    def __call__(self, x: Tensor, category: str, compute: Compute) -> Tensor:
        """(n, channels, height, width) uint8 -> (n, d) float32 on the compute's device, charged before it is done."""
        ...

    def nbytes(self) -> int:
        """Return the bytes of what has to be kept to compute them."""
        ...


class FrozenBackbone:
    """A backbone's output, BatchNorm in eval mode. Its network has no head, so nothing is paid for one.

    Args:
        backbone: images -> features.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._network = Network(backbone, LinearHead(int(backbone.feature_dim)), "frozen")  # type: ignore[arg-type]
        self._network.set_trainable([])

    def begin(self, image_shape: Shape) -> int:
        """Return the backbone's width."""
        self._network.takes(image_shape)
        self._shape = image_shape
        return self._network.feature_dim

    def price(self, compute: Compute) -> int:
        """Return the FLOPs of one image's forward."""
        return compute.price(self._network, torch.empty(1, *self._shape, dtype=torch.uint8))

    def __call__(self, x: Tensor, category: str, compute: Compute) -> Tensor:
        """Return the features."""
        return compute.forward(self._network.to(compute.device), x, category).features.float()

    def nbytes(self) -> int:
        """Return the bytes of weights and statistics."""
        return sum(tensor.nbytes for tensor in self._network.state_dict().values())


class Pixels:
    """The image itself as a row, on the scale 0..1. It costs nothing."""

    def begin(self, image_shape: Shape) -> int:
        """Return the number of an image's values."""
        return int(np.prod(image_shape))

    def price(self, compute: Compute) -> int:
        """Return 0."""
        return 0

    def __call__(self, x: Tensor, category: str, compute: Compute) -> Tensor:
        """Return the pixels."""
        return moved(x, compute.device).flatten(1).float() / 255

    def nbytes(self) -> int:
        """Return 0."""
        return 0


class RandomFourier:
    """Random Fourier features (Rahimi & Recht, NeurIPS 2007), as in RanDumb (arXiv 2402.08823).

    z(x) = sqrt(2 / width) cos(x W + b), W normal with variance 2 gamma / d, b uniform on [0, 2 pi): on average
    z(x) z(x') is the kernel exp(-gamma mean((x - x')^2)). Nothing is learnt. The price is that of the product,
    2 d width an image, for training and predicting alike.

    Args:
        width: of the embedding.
        gamma: of the kernel; it goes with the mean squared difference, so it does not depend on d.
        of: the features that are embedded, (n, d); None: the pixels.
        seed: of W and b.
    """

    def __init__(self, width: int, gamma: float, of: Features | None = None, seed: int = 0) -> None:
        at_least(1, **{"features.width": width})
        if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 < gamma < math.inf:
            raise UserError(f"features.gamma={gamma!r} given; a number above 0 is expected")
        self._product, self._gamma, self._seed = _RandomProduct(of or Pixels(), width), gamma, seed

    def begin(self, image_shape: Shape) -> int:
        """Draw W and b; return the width."""
        random = generator(self._seed, "random Fourier features")
        width = self._product.begin(image_shape, random, lambda d: math.sqrt(2 * self._gamma / d))
        self._phase = torch.from_numpy(random.uniform(0, 2 * math.pi, width).astype(np.float32))
        return width

    def price(self, compute: Compute) -> int:
        """Return the FLOPs of one image."""
        return self._product.price(compute)

    def __call__(self, x: Tensor, category: str, compute: Compute) -> Tensor:
        """Return the embedding."""
        product = self._product(x, category, compute)
        self._phase = self._phase.to(product.device)
        return math.sqrt(2 / product.shape[1]) * (product + self._phase).cos()

    def nbytes(self) -> int:
        """Return the bytes of W and b."""
        return self._product.nbytes() + self._phase.nbytes


class RandomReLU:
    """A fixed random layer, relu(x W): the expansion before analytic learning's regression (ACIL, NeurIPS 2022).

    W is normal with variance 1 / d. The price is that of the product, 2 d width an image.

    Args:
        of: the features that are expanded, (n, d).
        width: of the expansion.
        seed: of W.
    """

    def __init__(self, of: Features, width: int, seed: int = 0) -> None:
        at_least(1, **{"features.width": width})
        self._product, self._seed = _RandomProduct(of, width), seed

    def begin(self, image_shape: Shape) -> int:
        """Draw W; return the width."""
        return self._product.begin(image_shape, generator(self._seed, "random ReLU features"), lambda d: d**-0.5)

    def price(self, compute: Compute) -> int:
        """Return the FLOPs of one image."""
        return self._product.price(compute)

    def __call__(self, x: Tensor, category: str, compute: Compute) -> Tensor:
        """Return the expansion."""
        return self._product(x, category, compute).relu()

    def nbytes(self) -> int:
        """Return the bytes of W."""
        return self._product.nbytes()


class _RandomProduct:
    """Features times a fixed random matrix; what the two kinds of random features share."""

    def __init__(self, of: Features, width: int) -> None:
        self._of, self._width = of, width

    def begin(self, image_shape: Shape, random: np.random.Generator, deviation: Callable[[int], float]) -> int:
        dim = self._of.begin(image_shape)
        self._weight = torch.from_numpy(random.normal(0, deviation(dim), (self._width, dim)).astype(np.float32))
        return self._width

    def price(self, compute: Compute) -> int:
        return self._of.price(compute) + linear((1, self._weight.shape[1]), self._weight.shape)

    def __call__(self, x: Tensor, category: str, compute: Compute) -> Tensor:
        features = self._of(x, category, compute)
        self._weight = self._weight.to(features.device)
        product = compute.work(category, linear(features.shape, self._weight.shape), lambda: features @ self._weight.T)
        assert product is not None
        return product

    def nbytes(self) -> int:
        return self._of.nbytes() + self._weight.nbytes
