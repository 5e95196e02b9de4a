import numpy as np
import pytest
import torch
from torch import nn

from budgetcl.errors import UserError
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.randomness import generator


class Tiny(nn.Module):
    feature_dim, mean, std = 4, (0.5,), (0.25,)

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


def grown(classes, **kwargs):
    network = Network(Tiny(), LinearHead(4), **kwargs)
    network.grow(classes, generator(0, "head"))
    return network


def test_new_rows_are_a_thousandth_of_xavier_and_old_rows_stay_to_the_bit():
    head = LinearHead(64)
    head.grow(100, generator(0, "head"))
    bound = 0.001 * np.sqrt(6 / (64 + 100))
    assert head.weight.abs().max() <= bound
    assert head.weight.abs().max() > 0.95 * bound
    assert not head.bias.any()
    before = head.weight.detach().clone()
    head.grow(150, generator(0, "head", 1))
    assert torch.equal(head.weight[:100], before)
    assert head.classes == 150
    with pytest.raises(UserError, match="cannot shrink"):
        head.grow(10, generator(0, "head"))


@pytest.mark.parametrize("steps", [[2, 3, 7], [7], [1, 6, 7]])
def test_known_classes_start_from_their_trained_rows_however_the_head_grows(steps):
    weight, bias = torch.randn(5, 4), torch.randn(5)
    head = LinearHead(4, weight=weight, bias=bias)
    for number, classes in enumerate(steps):
        head.grow(classes, generator(0, "head", number), known=True)
    assert torch.equal(head.weight[:5], weight)
    assert torch.equal(head.bias[:5], bias)
    assert head.weight[5:].abs().max() < 0.01
    fresh = LinearHead(4, weight=weight, bias=bias, pretrained=False)
    fresh.grow(7, generator(0, "head"), known=True)
    assert fresh.known == 0
    assert fresh.weight.abs().max() < 0.01


def test_streamed_classes_start_afresh_where_more_trained_rows_came_than_pretraining_classes_are_used():
    head = LinearHead(4, weight=torch.randn(5, 4), bias=torch.randn(5))
    head.grow(2, generator(0, "head"), known=True)
    head.grow(6, generator(0, "head", 1))
    assert head.weight[:2].abs().max() > 0.01
    assert head.weight[2:].abs().max() < 0.01
    assert not head.bias[2:].any()


def test_a_network_normalises_its_images():
    network = grown(3).eval()
    x = torch.randint(0, 256, (2, 1, 6, 6), dtype=torch.uint8)
    expected = network.head(network.backbone((x / 255 - 0.5) / 0.25))
    torch.testing.assert_close(network(x).logits, expected)


def test_the_structure_changes_with_shapes_and_trainable_bits_and_with_nothing_else():
    network = grown(3)
    first = network.structure
    with torch.no_grad():
        network.head.weight += 1
    assert network.structure == first == grown(3).structure
    network.set_trainable([network.head])
    head_only = network.structure
    network.grow(4, generator(0, "head", 1))
    assert len({first, head_only, network.structure}) == 3


def test_a_frozen_part_keeps_its_batch_statistics():
    network = grown(3)
    network.set_trainable([network.head])
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8)).logits.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(("batch_norm", "moves"), [("live", True), ("frozen", False)])
def test_batch_norm_is_live_or_frozen_as_configured(batch_norm, moves):
    network = grown(3, batch_norm=batch_norm)
    network.set_trainable([network])
    network.train()
    before = network.backbone.norm.running_mean.clone()
    network(torch.randint(0, 256, (8, 1, 6, 6), dtype=torch.uint8))
    assert torch.equal(network.backbone.norm.running_mean, before) != moves
    assert network.backbone.norm.weight.requires_grad
