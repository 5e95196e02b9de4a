import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from budgetcl.assemble import build
from budgetcl.budget.prices import Prices
from budgetcl.configuration import compose
from budgetcl.errors import UserError
from budgetcl.models.backbones import GLYPHS, SmallResNet, initialise
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.models.parts import stages_of
from budgetcl.randomness import generator
from budgetcl.streams.rendering import HALF, atlas, atlas_images, choices, view_key, views


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(("channels", "size"), [(1, 24), (3, 32), (1, 25)])
def test_pictures_of_any_size_become_features_of_the_last_width(channels, size):
    backbone = SmallResNet(channels=channels, widths=(8, 12)).eval()
    assert backbone.feature_dim == 12
    assert len(backbone.mean) == len(backbone.std) == channels
    assert backbone(torch.zeros(5, channels, size, size)).shape == (5, 12)


def test_the_default_backbone_has_the_size_that_its_documentation_claims():
    count = sum(p.numel() for p in SmallResNet().parameters())
    assert round(count / 1000) == 77
    assert round((count + HALF * 65) / 1000) == 142


# GEM's slim ResNet-18 at 32 pixels, layer by layer: side of the output, inputs, outputs, side of the kernel.
SLIM = [
    (32, 3, 20, 3), *[(32, 20, 20, 3)] * 4,
    (16, 20, 40, 3), (16, 40, 40, 3), (16, 20, 40, 1), *[(16, 40, 40, 3)] * 2,
    (8, 40, 80, 3), (8, 80, 80, 3), (8, 40, 80, 1), *[(8, 80, 80, 3)] * 2,
    (4, 80, 160, 3), (4, 160, 160, 3), (4, 80, 160, 1), *[(4, 160, 160, 3)] * 2,
]  # fmt: skip


def slim():
    return build(compose(["backbone=slim_resnet18"]).backbone)


def test_the_slim_resnet18_has_the_parameters_of_its_layers():
    convolutions = sum(inputs * outputs * side**2 for _, inputs, outputs, side in SLIM)
    normalisation = sum(2 * outputs for _, _, outputs, _ in SLIM)
    network = Network(slim(), LinearHead(160))
    network.grow(10, generator(0, "x"))
    count = sum(p.numel() for p in network.parameters())
    assert count == convolutions + normalisation + 160 * 10 + 10 == 1_094_750


def test_the_slim_resnet18_has_the_price_of_its_layers():
    network = Network(slim(), LinearHead(160)).eval()
    network.grow(10, generator(0, "x"))
    macs = sum(size**2 * inputs * outputs * side**2 for size, inputs, outputs, side in SLIM) + 160 * 10
    assert Prices().forward(network, torch.zeros(7, 3, 32, 32, dtype=torch.uint8)).network == 7 * 2 * macs


def test_the_slim_resnet18_has_four_stages_and_looks_at_every_pixel():
    backbone = slim().eval()
    assert len(stages_of(backbone)) == 4
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, 160)


@pytest.mark.parametrize("stem", [(4, 1), (3,), (0, 1), (3, 0), (3, 1, 1)])
def test_a_stem_that_is_none_is_refused(stem):
    with pytest.raises(UserError, match="stem"):
        SmallResNet(stem=stem)


def test_the_backbone_runs_on_fake_tensors_and_so_has_a_price():
    backbone = SmallResNet()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert backbone(torch.empty(7, 1, 24, 24)).shape == (7, 64)


def test_fresh_weights_follow_the_seed_and_nothing_else():
    torch.manual_seed(0)
    first = parameters(SmallResNet(seed=3))
    torch.manual_seed(1)
    assert torch.equal(first, parameters(SmallResNet(seed=3)))
    assert not torch.equal(first, parameters(SmallResNet(seed=4)))


def test_fresh_weights_keep_the_size_of_signals():
    layer = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False))
    initialise(layer, 0)
    x = torch.from_numpy(generator(0, "x").standard_normal((8, 64, 16, 16), dtype=np.float32))
    assert float(layer(x).detach().std()) == pytest.approx(2**0.5, rel=0.1)


def test_a_network_that_learned_is_fresh_again_in_every_number():
    fresh, used = SmallResNet(seed=3), SmallResNet(seed=3)
    with torch.no_grad():
        for tensor in used.state_dict().values():
            tensor.add_(1)
    initialise(used, 3)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, used.state_dict()[name]), name


def test_the_shipped_weights_know_the_first_half_of_the_atlas_and_not_the_second():
    backbone = SmallResNet(pretrained="glyphs").eval()
    assert backbone.head_weight.shape == (HALF, 64)
    assert "head_weight" not in backbone.state_dict()
    table, images, key = atlas(), atlas_images(), view_key(12345, "test of the backbone")

    def features(characters):
        sample = np.arange(len(characters))
        image = table.start[characters] + choices(key, sample, np.diff(table.start)[characters])
        x = torch.from_numpy(views(images[image], sample, key, 1.0))[:, None].float() / 255
        with torch.no_grad():
            return backbone((x - backbone.mean[0]) / backbone.std[0])

    known = np.arange(800) * HALF // 800
    logits = features(known) @ backbone.head_weight.T + backbone.head_bias
    accuracy = (logits.argmax(1).numpy() == known).mean()
    assert 0.68 < accuracy < 0.82  # the documentation says 75 %
    # The features carry over: the nearest class mean of five views tells 60 characters never seen apart.
    means = features(np.repeat(np.arange(HALF, HALF + 60), 5)[::-1].copy()).flip(0).view(60, 5, -1).mean(1)
    shown = features(np.tile(np.arange(HALF, HALF + 60), 10))[300:]
    nearest = torch.cdist(shown, means).argmin(1).numpy()
    assert (nearest == np.tile(np.arange(60), 5)).mean() > 0.5


def saved(tmp_path, **changes):
    tensors = {
        **SmallResNet(seed=9).state_dict(),
        "head.weight": torch.ones(3, 64),
        "head.bias": torch.zeros(3),
        **changes,
    }
    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, path)
    return str(path)


def test_weights_of_a_user_are_loaded_to_the_bit(tmp_path):
    backbone = SmallResNet(pretrained=saved(tmp_path))
    assert torch.equal(parameters(backbone), parameters(SmallResNet(seed=9)))
    assert torch.equal(backbone.head_weight, torch.ones(3, 64))
    without = SmallResNet(pretrained=saved(tmp_path, **{"head.weight": None, "head.bias": None}))
    assert without.head_weight is None
    assert without.head_bias is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stem.weight": None}, "'stem.weight'"),
        ({"extra": torch.ones(1)}, "'extra'"),
        ({"stem.weight": torch.ones(16, 3, 5, 5)}, r"stem.weight is \(16, 3, 5, 5\), \(16, 1, 5, 5\) is expected"),
        ({"head.bias": None}, "both or neither"),
        ({"head.weight": torch.ones(3, 32)}, "64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        SmallResNet(pretrained=saved(tmp_path, **changes))


def test_files_that_are_no_weights_are_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(UserError, match=r"not a readable \.safetensors"):
        SmallResNet(pretrained=str(tmp_path / "text.safetensors"))
    with pytest.raises(UserError, match="pretrained='nowhere' given"):
        SmallResNet(pretrained="nowhere")
    with pytest.raises(UserError, match=r"nowhere.safetensors cannot be read \(No such file"):
        SmallResNet(pretrained="nowhere.safetensors")
    with pytest.raises(UserError, match=r"stem.weight is \(16, 1, 5, 5\)"):
        SmallResNet(channels=3, pretrained="glyphs")
    assert GLYPHS.endswith(".safetensors")


@pytest.mark.parametrize(
    "bad", [{"channels": 0}, {"widths": ()}, {"widths": (16, 0)}, {"widths": (4, 8)}, {"mean": (0.5, 0.5)}, {"std": 0}]
)
def test_bad_sizes_are_refused(bad):
    with pytest.raises(UserError, match="given"):
        SmallResNet(**bad)
