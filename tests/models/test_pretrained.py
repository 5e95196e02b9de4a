import pickle
import socket
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision import models

from budgetcl.budget.counter import CountFlops
from budgetcl.budget.prices import Prices
from budgetcl.configuration import compose, conf_folder
from budgetcl.errors import UserError
from budgetcl.models import pretrained
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.models.pretrained import timm, torchvision
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.streams.batch import Batch

FILE = "mobilenet_v3_small-047dcff4.pth"  # the published file's name


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test may reach the network; torch's cache is empty."""

    def refuse(*_args, **_kwargs):
        raise OSError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def published():
    """A network with a classifier, as torchvision publishes them; running statistics that are not the fresh ones."""
    torch.manual_seed(1)
    network = models.mobilenet_v3_small()
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 32, 32))
    return network.eval()


def cached(network, folder, file=FILE):
    path = Path(folder) / "hub" / "checkpoints" / file
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    return path


def test_published_weights_are_taken_from_the_cache_and_the_classifier_becomes_the_heads_start(published, tmp_path):
    cached(published, tmp_path)
    backbone = torchvision("mobilenet_v3_small", "IMAGENET1K_V1", classifier=True).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits = backbone(x) @ backbone.head_weight.T + backbone.head_bias
        assert torch.allclose(logits, published(x), atol=1e-5)
    assert backbone.feature_dim == 1024
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert backbone.std == (0.229, 0.224, 0.225)
    without = torchvision("mobilenet_v3_small", "DEFAULT")
    assert without.head_weight is None
    assert without.head_bias is None


def test_weights_that_are_neither_cached_nor_to_be_fetched_are_named_with_their_place_and_address(
    tmp_path, monkeypatch
):
    def unreachable(*_args, **_kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError) as told:
        torchvision("resnet50", "IMAGENET1K_V2")
    text = str(told.value)
    assert "\n" not in text
    for part in (
        "resnet50-11ad3fa6.pth", str(tmp_path / "hub" / "checkpoints"), "no route to host",
        "https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
    ):  # fmt: skip
        assert part in text


def test_what_is_asked_for_by_name_is_fetched_once_with_its_hash(published, tmp_path, monkeypatch):
    asked = []

    def fetch(url, place, stamp):
        asked.append((url, stamp))
        torch.save(published.state_dict(), place)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        torchvision("mobilenet_v3_small", "IMAGENET1K_V1")
    torchvision("mobilenet_v3_small")
    assert asked == [(f"https://download.pytorch.org/models/{FILE}", "047dcff4")]


@pytest.mark.parametrize("form", ["plain.pth", "nested.pt", "parallel.bin", "old.pth", "whole.safetensors"])
def test_a_file_of_ones_own_is_read_in_every_usual_form(published, tmp_path, form):
    state = {name: tensor.clone() for name, tensor in published.state_dict().items()}
    path = tmp_path / form
    if form == "old.pth":  # before BatchNorm counted its batches
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    if form == "whole.safetensors":
        safetensors.torch.save_file(state, path)
    else:
        state = {f"module.{name}": tensor for name, tensor in state.items()} if form == "parallel.bin" else state
        torch.save({"epoch": 3, "state_dict": state} if form == "nested.pt" else state, path)
    backbone = torchvision("mobilenet_v3_small", str(path))
    for name, tensor in backbone.body.state_dict().items():
        if not (form == "old.pth" and name.endswith("num_batches_tracked")):
            assert torch.equal(tensor, published.state_dict()[name]), name


class Trap:
    """What a hostile file holds: unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "sprung")


def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path):
    torch.save({"state_dict": Trap(tmp_path / "trap")}, tmp_path / "new.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    for name in ("new.pth", "bare.pth"):
        with pytest.raises(UserError, match="holds more than tensors") as told:
            torchvision("resnet18", str(tmp_path / name))
        assert not {"\n", "\x1b"} & set(str(told.value))
    assert not (tmp_path / "trap").exists()


def test_files_that_hold_no_weights_are_refused(tmp_path, published):
    (tmp_path / "cut.pth").write_bytes(cached(published, tmp_path / "whole").read_bytes()[:5000])
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "other.pth")
    for name, told in (
        ("cut", "missing or damaged"),
        ("none", "no state dict"),
        ("other", "does not fit"),
        ("gone", "missing"),
    ):
        with pytest.raises(UserError, match=told):
            torchvision("mobilenet_v3_small", str(tmp_path / f"{name}.pth"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "resnet51"}, "did you mean 'resnet50'"),
        ({"name": "squeezenet1_1"}, "one linear classifier"),
        ({"name": "googlenet"}, "one linear classifier"),
        ({"weights": "IMAGENET1K_V3"}, "null, one of IMAGENET1K_V1, DEFAULT, or a file"),
        ({"classifier": True}, "hold none"),
        ({"mean": (0.5,)}, "3 of them"),
        ({"std": (0.5, 0.5, 0)}, "3 of them"),
        ({"embed": (8,)}, "two widths"),
        ({"embed": (8, 0)}, "at least 1"),
        ({"name": "resnet18", "options": {"depth": 3}}, "backbone.options"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The default weight")
def test_what_cannot_be_is_refused(given, told):
    with pytest.raises(UserError, match=told):
        torchvision(**{"name": "mobilenet_v3_small", **given})


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 32), ("alexnet", 64), ("vgg11_bn", 32), ("densenet121", 32), ("mobilenet_v2", 32),
        ("efficientnet_b0", 32), ("mnasnet0_5", 32), ("shufflenet_v2_x0_5", 32), ("convnext_tiny", 32),
        ("swin_t", 32), ("vit_b_32", 224), ("maxvit_t", 224),
    ],
)  # fmt: skip
def test_every_family_loses_its_classifier_and_nothing_else(name, size, monkeypatch):
    monkeypatch.setattr(pretrained, "initialise", lambda *_: None)
    with torch.device("meta"):
        backbone, whole = torchvision(name), models.get_model(name, weights=None)
        assert backbone(torch.empty(2, 3, size, size)).shape == (2, backbone.feature_dim)
    lost = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in backbone.parameters())
    assert lost == 1000 * (backbone.feature_dim + (name != "maxvit_t"))  # whose classifier has no bias


def test_densenets_are_published_with_older_names(tmp_path, monkeypatch):
    state = {}
    for name, tensor in models.densenet121().state_dict().items():
        parts = name.split(".")
        if "denselayer" in name:
            parts[-2] = f"{parts[-2][:-1]}.{parts[-2][-1]}"  # norm1 -> norm.1
        state[".".join(parts)] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "densenet.pth")
    backbone = torchvision("densenet121", str(tmp_path / "densenet.pth"))
    name = "features.denseblock4.denselayer2.conv2.weight"
    assert torch.equal(backbone.body.state_dict()[name], state[name.replace("conv2", "conv.2")])


def test_fresh_weights_follow_the_seed_and_move_no_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (torchvision("resnet18", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for key in ("conv1.weight", "layer4.1.conv2.weight"):
        assert torch.equal(first.body.state_dict()[key], again.body.state_dict()[key])
        assert not torch.equal(first.body.state_dict()[key], other.body.state_dict()[key])


def test_nothing_is_random_in_training():
    backbone = torchvision("efficientnet_b0").train()
    assert any(type(module).__name__ == "StochasticDepth" for module in backbone.modules())
    x, before = torch.randn(4, 3, 32, 32), torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(backbone(x), backbone(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_embedding_stands_behind_the_features():
    backbone = torchvision("mobilenet_v3_small", embed=(6, 4))
    assert backbone.feature_dim == 4
    assert [type(layer) for layer in backbone.embed] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(UserError, match="classifier=false"):
        pretrained.Pretrained(nn.Identity(), 3, (0.5,), (0.5,), (torch.ones(2, 3), torch.ones(2)), (6, 4))


# --- prices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "multiply_adds"), [("resnet50", 4.089), ("vit_b_16", 17.564), ("mobilenet_v3_large", 0.217)]
)
def test_a_backbone_costs_what_is_published_but_for_its_classifier(name, multiply_adds, monkeypatch):
    """Published for a picture of 224 pixels, in billions, with the classifier."""
    monkeypatch.setattr(pretrained, "initialise", lambda *_: None)
    with torch.device("meta"):
        backbone = torchvision(name)
        network = Network(backbone, LinearHead(backbone.feature_dim))
        network.grow(0, None)
        price = Prices().forward(network.eval(), torch.empty(1, 3, 224, 224, dtype=torch.uint8))
    assert (price.total + 2 * 1000 * backbone.feature_dim) / 2e9 == pytest.approx(multiply_adds, abs=6e-4)


def small_transformer():
    body = models.VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    body.heads = nn.Identity()
    return pretrained.Pretrained(body, 32, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("make", [lambda: torchvision("mobilenet_v3_small"), small_transformer])
def test_an_update_of_a_backbone_by_name_is_priced_as_it_runs(make):
    backbone = make()
    network = Network(backbone, LinearHead(backbone.feature_dim))
    network.grow(5, np.random.default_rng(0))
    x = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    batch = Batch(x, torch.tensor([0, 4, 2]), np.arange(3), torch.ones(3, dtype=torch.bool))
    price = Prices().update(CrossEntropy(), network.train(), batch)
    with CountFlops() as counter:
        CrossEntropy()(network, batch)[0].backward()
    assert price.network == counter.flops
    assert not counter.unpriced


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_name_that_is_none_is_told_a_few_that_are_like_it():
    with pytest.raises(UserError, match=r"backbone.name='zz9' given; the nearest of ") as told:
        torchvision("zz9")
    assert len(str(told.value)) < 200
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        torchvision("resnt50")


# --- pictures that it cannot show -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        (
            "vit_b_16",
            32,
            r"cannot show 32 x 32 pictures \(Wrong image height.*option image_size by backbone.options$",
        ),
        ("alexnet", 32, r"cannot show 32 x 32 pictures .*set stream.size, or another backbone$"),
        ("alexnet", 64, None),
    ],
)
def test_pictures_that_a_backbone_cannot_show_are_refused_on_shapes_alone(name, size, told, monkeypatch):
    monkeypatch.setattr(pretrained, "initialise", lambda *_: None)
    with torch.device("meta"):
        network = Network(backbone := torchvision(name), LinearHead(backbone.feature_dim))
    if told is None:
        network.takes((3, size, size))
    else:
        with pytest.raises(UserError, match=told):
            network.takes((3, size, size))


def test_looking_whether_pictures_can_be_shown_leaves_a_backbone_as_it_was(monkeypatch):
    backbone = torchvision("mobilenet_v3_small")
    backbone.body.features[0].eval()
    network = Network(backbone, LinearHead(backbone.feature_dim))
    before, modes = {k: v.clone() for k, v in network.state_dict().items()}, [m.training for m in network.modules()]
    random, skeleton = torch.get_rng_state(), network.skeleton
    network.takes((3, 32, 32))
    body = type(backbone.body)
    seen = []

    def blind(self, x, forward=body.forward):
        seen.append(x.device.type)
        if x.device.type == "meta":
            raise NotImplementedError("no shape function")
        return forward(self, x)

    monkeypatch.setattr(body, "forward", blind)
    network.takes((3, 40, 40))  # where shapes alone do not say, a real forward does
    assert seen == ["meta", "cpu"]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    network._skeleton = None
    assert network.skeleton == skeleton


# --- timm -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def library():
    return pytest.importorskip("timm")


def test_timms_weights_are_read_from_a_file(library, tmp_path):
    torch.manual_seed(2)
    whole = library.create_model("resnet10t").eval()
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "model.safetensors")
    backbone = timm("resnet10t", str(tmp_path / "model.safetensors"), classifier=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = backbone(x) @ backbone.head_weight.T + backbone.head_bias
        assert torch.allclose(logits, whole(x), atol=1e-5)
    assert backbone.feature_dim == 512
    assert backbone.mean == tuple(whole.pretrained_cfg["mean"])


def test_timms_published_weights_come_from_the_cache_or_are_named(library, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"resnet10t.c3_in1k .* https://huggingface.co/timm/resnet10t.c3_in1k") as told:
        timm("resnet10t.c3_in1k", "published")
    assert "\n" not in str(told.value)
    whole, folder = library.create_model("resnet10t"), tmp_path / "models--timm--resnet10t.c3_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1" * 40)
    (folder / "snapshots" / ("1" * 40)).mkdir(parents=True)
    safetensors.torch.save_file(whole.state_dict(), folder / "snapshots" / ("1" * 40) / "model.safetensors")
    backbone = timm("resnet10t.c3_in1k", "published", classifier=True)
    assert torch.equal(backbone.head_weight, whole.state_dict()["fc.weight"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "resnet10x"}, "backbone.name='resnet10x' given"),
        ({"weights": "somewhere"}, "null, 'published', or a file"),
        ({"name": "resnet10t.unheard_of"}, "refuses its settings|given"),
        ({"mean": (0.1, 0.2)}, "3 of them"),
    ],
    ids=str,
)
def test_what_timm_cannot_be_is_refused(library, given, told):
    with pytest.raises(UserError, match=told):
        timm(**{"name": "resnet10t", **given})


def test_timms_backbones_may_take_other_channels_and_are_not_random_in_training(library):
    backbone = timm("resnet10t", options={"in_chans": 1, "drop_path_rate": 0.5}, mean=(0.5,), std=(0.5,)).train()
    x = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(backbone(x), backbone(x))
    assert backbone.mean == (0.5,)


@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_configuration_names_every_argument(name):
    import inspect

    node = compose([f"backbone={name}"]).backbone
    assert set(node) - {"_target_"} == set(inspect.signature(getattr(pretrained, name)).parameters)
    assert (conf_folder() / "backbone" / f"{name}.yaml").read_text().startswith("# Any architecture")


def test_a_name_that_timm_does_not_know_is_told_a_few_that_are_like_it(library):
    with pytest.raises(UserError, match=r"backbone.name='nope' given; the nearest of ") as told:
        timm("nope")
    assert len(str(told.value)) < 200
