import copy

import numpy as np
import pytest
import torch
from torch import nn

from budgetcl.budget.placement import Placement
from budgetcl.errors import UserError
from budgetcl.models.backbones import SmallResNet
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.models.pretrained import torchvision

CPU = torch.device("cpu")
SMALL = ("budget.updates=3",)


def network(backbone=None):
    backbone = backbone or SmallResNet(channels=3)
    made = Network(backbone, LinearHead(backbone.feature_dim))
    made.grow(4, np.random.default_rng(0))
    return made


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.parts.learner.network.parameters()])


@pytest.mark.parametrize("last", [True, False])
def test_pictures_and_convolutions_lie_as_asked_and_answer_alike(last):
    plain = network(torchvision("resnet18")).eval()
    placed, seen = copy.deepcopy(plain), []
    Placement(CPU, channels_last=last)(placed)
    assert placed.backbone.body.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) is last
    placed.backbone.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    placed.backbone.body.layer1.register_forward_hook(lambda _, __, output: seen.append(output))
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        with torch.no_grad():
            assert torch.allclose(placed(given).logits, plain(x).logits, atol=1e-4)
    assert [t.is_contiguous(memory_format=torch.channels_last) for t in seen] == [last] * 4
    assert placed.structure == plain.structure  # and so the price


def test_pictures_of_a_network_without_a_convolution_stay_contiguous():
    seen = []
    flat = nn.Flatten()
    flat.mean, flat.std, flat.feature_dim = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 192
    made = Network(flat, LinearHead(192))
    Placement(CPU)(made)
    flat.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.float()):
        made(given)
    assert all(t.is_contiguous() for t in seen)
    mean, std = (torch.tensor(v)[:, None, None] for v in (flat.mean, flat.std))
    assert all(torch.allclose(t, (x / 255 - mean) / std, atol=1e-5) for t in seen)


def test_a_network_is_placed_once_and_keeps_its_parameters():
    made, placement = network(), Placement(CPU)
    before = list(map(id, made.parameters()))
    placement(made)
    assert list(map(id, made.parameters())) == before
    made.lay_out(torch.contiguous_format)
    placement(made)  # known: nothing is done again
    assert not made.backbone.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_network_is_the_same_network_to_all_but_its_backbones_call():
    plain = network().eval()
    made, calls = copy.deepcopy(plain), []
    Placement(CPU, compile="eager")(made)
    made.backbone.stem.register_forward_hook(lambda *_: calls.append(torch.compiler.is_compiling()))
    assert made.state_dict().keys() == plain.state_dict().keys()
    assert made.structure == plain.structure
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(made(x).logits, plain(x).logits, atol=1e-5)
        with Placement(CPU, compile="eager").eagerly():
            made(x)
    assert calls == [True, False]
    twin = made.frozen_copy()
    assert made.backbone._compiled_call_impl is not None
    assert twin.backbone._compiled_call_impl is None  # what prices are made from
    made.grow(6, np.random.default_rng(1))
    made.take_up(plain.state_dict())
    with torch.no_grad():
        assert torch.allclose(made(x).logits, plain(x).logits, atol=1e-5)


@pytest.mark.parametrize("method", ["kd_mse", "mir"])  # with a teacher; with virtual weights
def test_a_compiled_run_costs_what_the_plain_one_costs_and_is_audited(go, method):
    plain, compiled = go("glyphs", method, *SMALL), go("glyphs", method, *SMALL, "compile=eager")
    assert compiled.parts.learner.network.backbone._compiled_call_impl is not None
    assert compiled.audit()["agrees"]
    assert compiled.steps["spent"].tolist() == plain.steps["spent"].tolist()
    assert torch.allclose(weights(compiled), weights(plain), atol=1e-4)


def test_a_layout_changes_neither_what_is_spent_nor_more_than_rounding(go):
    slow = (*SMALL, "optimiser.lr=0.001")  # so that rounding does not grow
    last, first = go("glyphs", "naive", *slow), go("glyphs", "naive", *slow, "channels_last=false")
    assert last.steps["spent"].tolist() == first.steps["spent"].tolist()
    assert torch.allclose(weights(last), weights(first), atol=1e-4)
    conv = first.parts.learner.network.backbone.blocks[0].conv1
    assert not conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"channels_last": "yes"}, "channels_last='yes' given; true or false"),
        ({"compile": "quickly"}, "compile='quickly' given; true, false or one of .*inductor"),
    ],
)
def test_what_is_no_placement_is_refused(given, told):
    with pytest.raises(UserError, match=told):
        Placement(CPU, **given)


def test_a_state_is_loaded_to_where_it_lies(tiny):
    """A device without values stands for any that is not the CPU."""
    learner = tiny("glyphs", "naive", *SMALL).learner
    learner.network.grow(3, np.random.default_rng(0))
    state = learner.state_dict()
    state["network"] = {name: tensor.to("meta") for name, tensor in state["network"].items()}
    learner.load_state_dict(state)
    assert {p.device.type for p in learner.network.parameters()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("setting", ["precision=bf16", "channels_last=false", "compile=true"])
def test_on_cuda_a_run_spends_what_it_spends_on_the_cpu(go, setting):
    here, there = go("glyphs", "kd_mse", *SMALL), go("glyphs", "kd_mse", *SMALL, "device=cuda", setting)
    assert {p.device.type for p in there.parts.learner.network.parameters()} == {"cuda"}
    assert there.steps["spent"].tolist() == here.steps["spent"].tolist()
    assert there.audit()["agrees"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_an_update_waits_for_nothing(go):
    """torch raises at whatever makes the host wait for the device."""

    def change(parts):
        update = parts.compute.update

        def watched(*args, **kwargs):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return update(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        parts.compute.update = watched

    go("glyphs", "naive", *SMALL, "device=cuda", change=change)
