"""Backbones: images -> features. Small ones, that two CPU cores can train."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from budgetcl.assets.checked import read_asset
from budgetcl.errors import UserError, at_least
from budgetcl.models.weights import SUFFIXES, as_float, load_exactly, names_file, read_weights
from budgetcl.randomness import generator

GLYPHS = "glyphs-backbone.safetensors"
_NORMALISATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., CVPR 2016); 1x1 on the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def _stage(inputs: int, outputs: int, stride: int, depth: int) -> nn.Module:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(depth - 1))) if depth > 1 else first


class SmallResNet(nn.Module):
    """A small ResNet: a stem of one convolution, basic blocks of each width, global average pooling.

    With the defaults it has 77 thousand parameters (142 thousand with a head of 1,000 classes), and a 24x24 picture
    takes 3.5 MFLOP. With the widths 20, 40, 80 and 160, two blocks of each and a 3x3 stem of stride 1 it is the slim
    ResNet-18 of GEM (Lopez-Paz & Ranzato, NeurIPS 2017): 1.09 million parameters, and a 32x32 picture takes 109 MFLOP.

    Args:
        channels: of the images; 1 or 3, say.
        widths: channels of the blocks, 8 or more (torch 2.15 writes beyond a tensor's end in the backward of narrower
            convolutions whose channels lie last, on some CPUs); each one after the first halves the resolution.
        depth: blocks of each width.
        stem: side and stride of the first convolution; the side is odd.
        pretrained: None for fresh weights; "glyphs" for the weights that ship with the package, pretrained on the
            first 1,000 characters of the atlas (scripts/pretrain_glyphs.py); or the path of a file of weights.
        mean: per channel, of pixels on the scale 0..1; one number for all, or one each.
        std: per channel, like ``mean``.
        seed: of fresh weights.

    Attributes:
        feature_dim: the features' dimension, the last width.
        mean: per channel.
        std: per channel.
        head_weight: (classes, feature_dim) rows of the pretrained classifier, or None. Not a parameter: a head copies
            them.
        head_bias: (classes,), or None.

    Raises:
        UserError: the weights' file is missing, damaged, or does not fit.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (16, 32, 64),
        depth: int = 1,
        stem: Sequence[int] = (5, 2),
        pretrained: str | None = None,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, channels=channels, depth=depth, **{f"stem[{i}]": value for i, value in enumerate(stem)})
        if len(stem) != 2 or stem[0] % 2 == 0:
            raise UserError(f"stem={list(stem)} given; an odd side and a stride are expected")
        at_least(8, **{f"widths[{i}]": width for i, width in enumerate(widths)})
        if not widths:
            raise UserError("widths=() given; at least one width is expected")
        self.mean, self.std = per_channel("mean", mean, channels), per_channel("std", std, channels)
        self.feature_dim = widths[-1]
        self.stem = nn.Conv2d(channels, widths[0], stem[0], stem[1], stem[0] // 2, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        inputs = (widths[0], *widths[:-1])
        self.blocks = nn.Sequential(
            *(_stage(before, after, 1 if i == 0 else 2, depth) for i, (before, after) in enumerate(zip(inputs, widths)))
        )
        self.head_weight: Tensor | None = None
        self.head_bias: Tensor | None = None
        if pretrained is None:
            initialise(self, seed)
        else:
            self._load(pretrained)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) float -> (n, feature_dim)."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3))

    def _load(self, pretrained: str) -> None:
        if pretrained == "glyphs":
            tensors = as_float(load(read_asset(GLYPHS, "pretrain_glyphs.py")))
        elif names_file(pretrained):
            tensors = read_weights(pretrained)
        else:
            raise UserError(
                f"pretrained={pretrained!r} given; null, 'glyphs' or a file ({', '.join(SUFFIXES)}) is expected"
            )
        weight, bias = tensors.pop("head.weight", None), tensors.pop("head.bias", None)
        load_exactly(self, tensors, pretrained)
        if (weight is None) != (bias is None) or (weight is not None and weight.shape[1:] != (self.feature_dim,)):
            raise UserError(
                f"{pretrained}: head.weight (classes, {self.feature_dim}) and head.bias are expected, both or neither"
            )
        self.head_weight, self.head_bias = weight, bias


def initialise(module: nn.Module, seed: int) -> None:
    """Give a module fresh weights, whatever it learned before.

    Those of convolutions and linear layers are He's normal initialisation, fan-out; biases are zero, normalisation
    layers the identity. The numbers come from numpy, not from torch's global generator, so that nothing else moves
    them.
    """
    for layer in module.modules():
        if isinstance(layer, _NORMALISATION):
            layer.reset_parameters()
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            fan_out = parameter.shape[0] * parameter[0, 0].numel() if parameter.dim() > 2 else parameter.shape[1]
            draw = generator(seed, f"weights/{name}").standard_normal(tuple(parameter.shape), dtype=np.float32)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(draw * np.float32(math.sqrt(2 / fan_out))))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def per_channel(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one number a channel.

    Raises:
        UserError: another count of numbers, or a deviation that is not above zero.
    """
    values = (float(value),) * channels if isinstance(value, (int, float)) else tuple(float(v) for v in value)
    if len(values) != channels or (name.endswith("std") and min(values) <= 0):
        raise UserError(f"{name}={value!r} given; one number, or {channels} of them, is expected (std above zero)")
    return values
