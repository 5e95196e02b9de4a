import numpy as np
import pytest
import torch
from torch import nn

from budgetcl.budget.prices import Prices
from budgetcl.errors import UserError
from budgetcl.models.heads import CosineHead, LinearHead
from budgetcl.models.network import Network
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.randomness import generator
from budgetcl.streams.batch import Batch


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


# --- the cosine head --------------------------------------------------------------------------------------------------


def angles(features, rows, temperature):
    """Definition, in double precision: s x <f, w> / (|f| |w|)."""
    f, w = (np.asarray(value, np.float64) for value in (features, rows))
    return temperature * (f @ w.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(w, axis=1)


def cosine(classes, dim=4, **kwargs):
    head = CosineHead(dim, **kwargs)
    head.grow(classes, generator(0, "head"))
    return head


def test_logits_are_scaled_cosines_whatever_the_norms():
    head, features = cosine(5, temperature=7.0), torch.randn(6, 4)
    expected = angles(features, head.weight.detach(), 7.0)
    np.testing.assert_allclose(head(features).detach(), expected, atol=1e-5)
    np.testing.assert_allclose(head(features * torch.logspace(-3, 3, 6)[:, None]).detach(), expected, atol=1e-5)
    with torch.no_grad():
        head.weight *= torch.logspace(-3, 3, 5)[:, None]
    np.testing.assert_allclose(head(features).detach(), expected, atol=1e-5)
    assert not head(torch.zeros(1, 4)).any()  # no direction, no opinion, and no NaN
    with torch.no_grad():
        head.weight[:, :] = torch.eye(5, 4)
    assert head(3 * torch.eye(4))[:, :4].tolist() == (7 * torch.eye(4)).tolist()


def test_there_is_no_bias_and_the_scale_is_learned():
    head = cosine(3)
    assert head.bias is None
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {"weight": (3, 4), "temperature": ()}
    assert head.temperature.item() == 10
    features = torch.randn(2, 4)
    head(features)[:, 0].sum().backward()
    expected = angles(features, head.weight.detach(), 1.0)[:, 0].sum()
    assert head.temperature.grad.item() == pytest.approx(expected, abs=1e-5)
    gradients = head.weight.grad
    assert gradients[0].any()
    assert not gradients[1:].any()
    # Only directions matter, so a row's gradient is at right angles to it.
    assert (gradients[0] @ head.weight[0]).item() == pytest.approx(0, abs=1e-5)


def test_new_rows_of_a_cosine_head_are_of_ordinary_size_and_old_ones_and_the_scale_stay_to_the_bit():
    head = cosine(100, dim=64)
    bound = np.sqrt(6 / (64 + 100))
    assert 0.95 * bound < head.weight.abs().max() <= bound
    with torch.no_grad():
        head.temperature += 3
    before, scale = head.weight.detach().clone(), head.temperature
    head.grow(150, generator(0, "head", 1))
    assert torch.equal(head.weight[:100], before)
    assert head.temperature is scale
    assert (head.classes, head.temperature.item()) == (150, 13)
    with pytest.raises(UserError, match="cannot shrink"):
        head.grow(149, generator(0, "head"))


@pytest.mark.parametrize("steps", [[2, 3, 7], [7], [5, 7]])
def test_rows_that_came_with_the_backbone_are_taken_without_their_bias(steps):
    weight, bias = torch.randn(5, 4), torch.randn(5)
    head = CosineHead(4, temperature=2.0, weight=weight, bias=bias)
    for number, classes in enumerate(steps):
        head.grow(classes, generator(0, "head", number), known=True)
    assert head.known == 5
    assert torch.equal(head.weight[:5], weight)
    features = torch.randn(3, 4)
    np.testing.assert_allclose(head(features)[:, :5].detach(), angles(features, weight, 2.0), atol=1e-5)
    afresh = CosineHead(4, weight=weight, bias=bias)
    afresh.grow(7, generator(0, "head"))
    never = CosineHead(4, pretrained=False, weight=weight, bias=bias)
    never.grow(7, generator(0, "head"), known=True)
    assert torch.equal(afresh.weight, never.weight)
    assert not torch.equal(afresh.weight[:5], weight)


@pytest.mark.parametrize("bad", [-1, 1001, float("nan"), True, "10"])
def test_a_temperature_that_is_none_is_refused(bad):
    with pytest.raises(UserError, match=r"head\.temperature="):
        CosineHead(4, temperature=bad)


def angular(classes):
    network = Network(Tiny(), CosineHead(4))
    network.grow(classes, generator(0, "head"))
    return network


def test_a_network_takes_up_and_copies_a_cosine_head_of_another_size():
    large, small = angular(9), angular(2)
    with torch.no_grad():
        large.head.temperature += 1
    small.take_up(large.state_dict())
    twin = angular(3).frozen_copy(large.state_dict())
    x = torch.randint(0, 256, (4, 1, 6, 6), dtype=torch.uint8)
    for other in (small, twin):
        assert torch.equal(other.eval()(x).logits, large.eval()(x).logits)
    assert not any(p.requires_grad for p in twin.parameters())
    assert all(p.requires_grad for p in small.parameters())


def test_the_price_of_a_growing_cosine_head_is_that_of_a_fresh_look_at_each_size():
    """Three products per class and sample, as of any linear layer; norms are pointwise. And the scale is one weight."""
    shared, totals = Prices(), {}
    for classes in (2, 3, 7, 11, 20, 33, 60):
        network = angular(classes).train()
        x = torch.zeros(6, 1, 6, 6, dtype=torch.uint8)
        batch = Batch(x, torch.zeros(6, dtype=torch.int64), np.arange(6), torch.zeros(6, dtype=torch.bool))
        mine, fresh = (prices.update(CrossEntropy(), network, batch) for prices in (shared, Prices()))
        assert (mine.network, mine.optimiser, mine.memory) == (fresh.network, fresh.optimiser, fresh.memory)
        assert mine.items == fresh.items
        totals[classes] = mine
        assert shared.forward(network.eval(), x).total == Prices().forward(network, x).total
    for classes, price in totals.items():
        assert price.network - totals[2].network == 3 * 2 * 6 * 4 * (classes - 2)
        assert price.optimiser - totals[2].optimiser == 6 * 4 * (classes - 2)
        assert price.parameters == 4 * 9 + 4 + 2 * 4 + 4 * classes + 1
