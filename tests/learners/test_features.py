"""Features that never change: against their definitions, at their price."""

import math

import numpy as np
import pytest
import torch

from budgetcl.errors import UserError
from budgetcl.learners.features import FrozenBackbone, Pixels, RandomFourier, RandomReLU
from budgetcl.models.backbones import SmallResNet

SHAPE = (1, 24, 24)


def images(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8))


def test_a_frozen_backbone_answers_as_in_evaluation_and_pays_for_no_head(compute, charged):
    backbone = SmallResNet(pretrained="glyphs")
    features = FrozenBackbone(backbone)
    assert features.begin(SHAPE) == 64
    x = images(5)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    out = features(x, "train", compute)
    with torch.no_grad():
        expected = backbone.eval()((x.float() / 255 - 0.5) / 0.3)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in backbone.parameters())
    # stem 12x12, blocks of 12x12, 6x6 and 3x3; 1x1 convolutions on the shortcuts of the last two
    macs = 144 * 16 * 25 + 144 * 2 * 16 * 16 * 9
    macs += 36 * (32 * 16 * 9 + 32 * 32 * 9 + 32 * 16) + 9 * (64 * 32 * 9 + 64 * 64 * 9 + 64 * 32)
    assert charged("train") == 5 * 2 * macs == 5 * features.price(compute)


def test_a_frozen_backbone_refuses_images_of_other_channels():
    with pytest.raises(UserError, match="made for 1 channels"):
        FrozenBackbone(SmallResNet()).begin((3, 24, 24))


def test_pixels_are_rows_from_zero_to_one_and_free(compute, charged):
    features = Pixels()
    assert features.begin(SHAPE) == 576
    out = features(images(3), "train", compute)
    assert out.shape == (3, 576)
    assert out[1, 30] == images(3)[1, 0, 1, 6] / 255
    assert charged("train") == features.price(compute) == features.nbytes() == 0


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_random_fourier_features_approximate_their_kernel(compute, gamma):
    features = RandomFourier(width=20_000, gamma=gamma)
    features.begin(SHAPE)
    x = images(6)
    x[3:] = x[:3] // 2 + x[3:] // 2  # some near each other
    z = features(x, "train", compute).double()
    rows = x.flatten(1).double() / 255
    kernel = torch.exp(-gamma * (rows[:, None] - rows).square().mean(2))
    assert (z @ z.T - kernel).abs().max() < 5 / math.sqrt(20_000)
    assert kernel.min() < 0.95  # so that a constant would not do


def test_random_relu_features_are_the_positive_part_of_a_fixed_normal_product(compute):
    features = RandomReLU(Pixels(), width=3000, seed=1)
    features.begin(SHAPE)
    x = images(4)
    out = features(x, "train", compute)
    assert out.min() == 0
    assert 0.3 < (out > 0).float().mean() < 0.7
    # of a normal variable with variance s^2, the mean square of the positive part is s^2 / 2
    second = (x.flatten(1).float() / 255).square().mean(1)
    torch.testing.assert_close(out.square().mean(1), second / 2, rtol=0.15, atol=0)
    torch.testing.assert_close(features(x[2:], "train", compute), out[2:])


@pytest.mark.parametrize("make", [lambda w, s: RandomFourier(w, 1.0, seed=s), lambda w, s: RandomReLU(Pixels(), w, s)])
def test_random_features_cost_their_product_and_follow_their_seed(compute, charged, make):
    one, again, other = make(50, 0), make(50, 0), make(50, 1)
    for features in (one, again, other):
        assert features.begin(SHAPE) == 50
    x = images(7)
    outs = [features(x, "train", compute) for features in (one, again, other)]
    assert charged("train") == 3 * 7 * 2 * 576 * 50
    assert one.price(compute) == 2 * 576 * 50
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert one.nbytes() in (4 * 576 * 50, 4 * 576 * 50 + 4 * 50)


def test_random_features_of_a_backbone_pay_for_both(compute):
    backbone = FrozenBackbone(SmallResNet())
    for features, phase in ((RandomReLU(backbone, 100), 0), (RandomFourier(100, 1.0, of=backbone), 400)):
        features.begin(SHAPE)
        assert features.price(compute) == backbone.price(compute) + 2 * 64 * 100
        assert features.nbytes() == backbone.nbytes() + 4 * 64 * 100 + phase


@pytest.mark.parametrize("width", [0, 1.5, "many"])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(UserError, match=r"features.width=.* given; an integer of at least 1"):
        RandomReLU(Pixels(), width)
    with pytest.raises(UserError, match=r"features.width=.* given; an integer of at least 1"):
        RandomFourier(width, 1.0)


@pytest.mark.parametrize("gamma", [0, -1, float("inf"), True, "wide"])
def test_a_gamma_that_is_none_is_refused(gamma):
    with pytest.raises(UserError, match=r"features.gamma=.* given; a number above 0"):
        RandomFourier(10, gamma)
