"""What is trained, what stays frozen to the bit, and what each part costs: by hand, on the small network."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from budgetcl.budget.prices import Prices
from budgetcl.errors import UserError
from budgetcl.models.adapters import Adapted, LoRA
from budgetcl.models.backbones import SmallResNet
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.models.parts import FPF, HFT, Everything, FirstFrozen, HeadOnly, LastStage, NormOnly, stages_of
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.randomness import generator
from budgetcl.streams.batch import Batch
from budgetcl.streams.revealed import Revealed

# Convolutions of the small network on 24x24 pictures: name -> (weights, pixels of its output). 12x12 after the stem.
CONVOLUTIONS = {
    "stem": (16 * 1 * 25, 144),
    "blocks.0.conv1": (16 * 16 * 9, 144),
    "blocks.0.conv2": (16 * 16 * 9, 144),
    "blocks.1.conv1": (32 * 16 * 9, 36),
    "blocks.1.conv2": (32 * 32 * 9, 36),
    "blocks.1.shortcut.0": (32 * 16, 36),
    "blocks.2.conv1": (64 * 32 * 9, 9),
    "blocks.2.conv2": (64 * 64 * 9, 9),
    "blocks.2.shortcut.0": (64 * 32, 9),
}
NORMS = (
    *("bn", "blocks.0.bn1", "blocks.0.bn2", "blocks.1.bn1", "blocks.1.bn2", "blocks.1.shortcut.1"),
    *("blocks.2.bn1", "blocks.2.bn2", "blocks.2.shortcut.1"),
)
CHANNELS = {"bn": 16, "blocks.0": 16, "blocks.1": 32, "blocks.2": 64}
HEAD = 64  # features


def small():
    network = Network(SmallResNet(), LinearHead(64))
    network.grow(7, generator(0, "head"))
    return network


def with_part(part, step=0, network=None):
    network = network if network is not None else small()
    network.set_trainable(part(network, step, generator(0, "part", step)))
    return network.train()


def trained(network):
    return {name for name, p in network.named_parameters() if p.requires_grad}


def images(n, size=24, channels=1):
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8)


def batch_of(n):
    return Batch(images(n), torch.arange(n) % 7, np.arange(n), torch.ones(n, dtype=torch.bool))


def parameters_of(modules):
    """Numbers of parameters of convolutions and BatchNorms, by name."""
    return sum(CONVOLUTIONS[m][0] if m in CONVOLUTIONS else 2 * CHANNELS[m[:8]] for m in modules)


def by_hand(passes, head, n=5, classes=7):
    """FLOPs of n pictures: each convolution makes so many passes of 2 x weights x pixels, and the head so many."""
    flops = sum(passes[name] * 2 * weights * pixels for name, (weights, pixels) in CONVOLUTIONS.items())
    return n * (flops + head * 2 * HEAD * classes)


def passes(stem, block0, block1, block2, first=3):
    """Passes of each block; ``first``: of the convolutions that take the input of the block where the backward ends."""
    counts = {"stem": stem, "blocks.0": block0, "blocks.1": block1, "blocks.2": block2}
    every = {name: counts["stem" if name == "stem" else name[:8]] for name in CONVOLUTIONS}
    if first != 3:
        ends = next(name for name, count in counts.items() if count == 3)
        every |= {name: first for name in every if name.startswith(ends) and not name.endswith("conv2")}
    return every


# A forward, a gradient of the weight, a gradient of the input: 3 passes. Pictures need no gradient, so the stem has 2.
LAST = passes(1, 1, 1, 3, first=2)  # what enters the last block needs no gradient either
LAST_TWO = passes(1, 1, 3, 3, first=2)
NORM = passes(1, 2, 2, 2)  # gradients of inputs alone, back to the first normalisation
ALL = passes(2, 3, 3, 3)
BLOCK1 = [m for m in (*CONVOLUTIONS, *NORMS) if m.startswith("blocks.1")]
BLOCK2 = [m for m in (*CONVOLUTIONS, *NORMS) if m.startswith("blocks.2")]
CASES = {
    "everything": (Everything(), 0, ALL, 3, (*CONVOLUTIONS, *NORMS)),
    "head": (HeadOnly(), 0, passes(1, 1, 1, 1), 2, ()),
    "last": (LastStage(), 0, LAST, 3, BLOCK2),
    "last two": (LastStage(2), 0, LAST_TWO, 3, (*BLOCK1, *BLOCK2)),
    "first frozen": (FirstFrozen(), 0, LAST_TWO, 3, (*BLOCK1, *BLOCK2)),
    "first two frozen": (FirstFrozen(2), 0, LAST, 3, BLOCK2),
    "all stages frozen": (FirstFrozen(3), 0, passes(1, 1, 1, 1), 2, ()),
    "norm": (NormOnly(), 0, NORM, 3, NORMS),
    "fpf, its turn": (FPF(every=3), 3, ALL, 3, (*CONVOLUTIONS, *NORMS)),
    "fpf": (FPF(every=3), 2, NORM, 3, NORMS),
    "fpf by name": (FPF(modules=["blocks.2.*"]), 1, LAST, 3, BLOCK2),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_and_its_price_are_as_by_hand(case):
    part, step, counts, head, modules = CASES[case]
    network = with_part(part, step)
    backbone = {f"backbone.{name}" for name in modules}
    assert {name.rsplit(".", 1)[0] for name in trained(network)} == backbone | {"head"}
    price = Prices().update(CrossEntropy(), network, batch_of(5))
    assert price.network == by_hand(counts, head)
    assert price.parameters == parameters_of(modules) + 65 * 7
    assert price.optimiser == 6 * price.parameters


def test_the_forward_by_hand_is_the_one_that_is_documented():
    """So that the prices above cannot be wrong in the same way."""
    assert by_hand(passes(1, 1, 1, 1), 0, n=1) == 3_506_688
    assert by_hand(ALL, 0, n=1) == 3 * 3_506_688 - 2 * 16 * 25 * 144


@pytest.mark.parametrize("step", range(6))
def test_half_is_half_of_each_type_and_its_price_is_as_by_hand(step):
    network = with_part(HFT(), step)
    modules = {name[len("backbone.") :].rsplit(".", 1)[0] for name in trained(network) if name.startswith("backbone.")}
    assert len(modules) == 9
    assert len(modules & set(CONVOLUTIONS)) in (4, 5)
    assert modules <= {*CONVOLUTIONS, *NORMS}
    counts = {}
    order = ["stem", "bn"]
    upstream = {"stem": []}
    for block in ("blocks.0", "blocks.1", "blocks.2"):
        upstream[f"{block}.conv1"] = upstream[f"{block}.shortcut.0"] = list(order)
        upstream[f"{block}.conv2"] = [*order, f"{block}.conv1", f"{block}.bn1"]
        order += [name for name in (*CONVOLUTIONS, *NORMS) if name.startswith(block)]
    for name in CONVOLUTIONS:
        counts[name] = 1 + (name in modules) + bool(modules & set(upstream[name]))
    price = Prices().update(CrossEntropy(), network, batch_of(5))
    assert price.network == by_hand(counts, 3)
    assert price.parameters == parameters_of(modules) + 65 * 7


def test_each_step_draws_another_half_and_no_module_is_preferred():
    network, part, drawn = small(), HFT(), {}
    halves = set()
    for step in range(300):
        network.set_trainable(part(network, step, generator(0, "part", step)))
        halves.add(frozenset(trained(network)))
        for name in trained(network):
            drawn[name] = drawn.get(name, 0) + 1
    assert len(halves) > 290
    assert drawn.pop("head.weight") == drawn.pop("head.bias") == 300
    assert len(drawn) == 9 + 2 * 9
    assert all(105 <= times <= 195 for times in drawn.values()), "more than 5 standard deviations from a half"


# --- through the learner ----------------------------------------------------------------------------------------------


def steps_of(parts):
    """Yield, for each step, what was trained, the network's state before, and after."""
    learner, revealed = parts.learner, Revealed(parts.source)
    before = copy.deepcopy(learner.network.state_dict())
    for step in parts.source.stream:
        revealed.reveal(step)
        with parts.compute.step(step):
            learner.fit(step, revealed, parts.compute)
        after = copy.deepcopy(learner.network.state_dict())
        yield trained(learner.network), before, after
        before = after


@pytest.mark.parametrize("method", ["last_stage", "first_frozen", "norm_only", "hft", "fpf", "lora", "head_only"])
def test_what_is_trained_moves_and_what_is_frozen_stays_to_the_bit(tiny, method):
    for names, before, after in steps_of(tiny("glyphs", method)):
        modules = {name.rsplit(".", 1)[0] for name in names}
        for name in after:
            old = before.get(name, before.get(name.replace(".layer.", ".")))  # as it was called before its adapter came
            if name.startswith("head.") or old is None:
                continue
            if "running" in name or "batches" in name:
                moves = name.rsplit(".", 1)[0] in modules
            else:
                moves = name in names
            assert torch.equal(old, after[name]) != moves, name


@pytest.mark.parametrize(
    ("method", "counts", "modules"),
    [("last_stage", LAST, BLOCK2), ("first_frozen", LAST_TWO, (*BLOCK1, *BLOCK2)), ("norm_only", NORM, NORMS)],
)
def test_a_cheaper_update_buys_more_updates(go, method, counts, modules):
    everything = (*CONVOLUTIONS, *NORMS)
    run = go("glyphs", method, "budget.updates=12")
    for made, classes in zip(run.steps["updates"], (13, 16, 19)):
        allowance = 12 * (by_hand(ALL, 3, 8, classes) + 6 * (parameters_of(everything) + 65 * classes))
        price = by_hand(counts, 3, 8, classes) + 6 * (parameters_of(modules) + 65 * classes)
        assert made == allowance // price > 14


def test_taking_turns_makes_as_many_updates_as_each_part_buys(go):
    turns, norm, naive = (
        go("glyphs", method, "budget.updates=12", *settings).steps["updates"].tolist()
        for method, *settings in (("fpf", "part.every=2"), ("norm_only",), ("naive",))
    )
    assert turns == [naive[0], norm[1], naive[2]]


@pytest.mark.parametrize("method", ["last_stage", "first_frozen", "norm_only", "hft", "fpf", "lora"])
def test_each_part_gives_other_predictions_than_training_everything(go, method):
    run = go("glyphs", method)
    assert run.audit()["agrees"]
    assert not np.array_equal(run.predictions["confidence"], go("glyphs", "naive").predictions["confidence"])


def test_momentum_of_what_stays_trained_goes_on_and_what_is_frozen_loses_its_own(tiny):
    parts = tiny("glyphs", "hft")
    learner, revealed = parts.learner, Revealed(parts.source)
    first, second, *_ = parts.source.stream
    revealed.reveal(first)
    with parts.compute.step(first):
        learner.fit(first, revealed, parts.compute)
    before, live = trained(learner.network), dict(learner.network.named_parameters())
    momentum = {name: learner.optimiser.state[live[name]]["momentum_buffer"].clone() for name in before}
    revealed.reveal(second)
    with parts.compute.step(second):
        learner.begin(second, revealed, parts.compute)
    after, state = trained(learner.network), learner.optimiser.state
    backbone = {name for name in before & after if name.startswith("backbone.")}
    assert backbone
    assert before - after
    assert after - before
    for name in backbone:
        assert torch.equal(state[live[name]]["momentum_buffer"], momentum[name])
    assert all(live[name] not in state for name in before ^ after)
    assert all(live[name].grad is None for name in before - after), "what is frozen would count where norms are clipped"


# --- stages -----------------------------------------------------------------------------------------------------------


def torchvision_network(name, strip):
    with torch.device("meta"):
        body = getattr(torchvision.models, name)()
    setattr(body, strip, nn.Identity())
    wrapper = nn.Sequential()
    wrapper.body = body
    wrapper.feature_dim, wrapper.mean, wrapper.std = 8, (0.5,) * 3, (0.25,) * 3
    return Network(wrapper, LinearHead(8))


@pytest.mark.parametrize(
    ("name", "strip", "stages", "last"),
    [
        ("resnet18", "fc", 4, ("layer4.",)),
        ("resnet50", "fc", 4, ("layer4.",)),
        ("vit_b_16", "heads", 12, ("encoder.layers.encoder_layer_11.", "encoder.ln.")),
        ("mobilenet_v3_small", "classifier", 13, ("features.12.",)),
        ("efficientnet_b0", "classifier", 9, ("features.8.",)),
        ("convnext_tiny", "classifier", 8, ("features.7.",)),
        ("densenet121", "classifier", 7, ("features.denseblock4.", "features.norm5.")),
    ],
)
def test_stages_are_found_in_known_networks(name, strip, stages, last):
    network = torchvision_network(name, strip)
    assert len(stages_of(network.backbone)) == stages
    names = [n for n, _ in network.backbone.named_parameters()]
    wanted = {f"backbone.{n}" for n in names if n.removeprefix("body.").startswith(last)}
    assert trained(with_part(LastStage(), network=network)) - {"head.weight", "head.bias"} == wanted
    rest = trained(with_part(FirstFrozen(stages - 1), network=network)) - {"head.weight", "head.bias"}
    assert wanted <= rest  # and what lies between the two stages, where there is something
    assert all(not n.startswith(("backbone.body.conv", "backbone.body.class_token")) for n in rest)


def test_stages_of_the_small_network_are_its_blocks():
    backbone = SmallResNet()
    assert [*stages_of(backbone)] == [*backbone.blocks]


class Plain(nn.Module):
    """Neither blocks nor normalisation nor a layer worth an adapter."""

    feature_dim, mean, std = 4, (0.5,), (0.25,)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))

    def forward(self, x):
        return self.layers(x).mean((2, 3))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (LastStage(), "part.stages=1 given; Plain has no stages"),
        (FirstFrozen(), "part.stages=1 given; Plain has no stages"),
        (NormOnly(), "Plain has no normalisation layer"),
        (FPF(), "Plain has no normalisation layer"),
        (FPF(modules=["layers.0.*", "bn*"]), r"'bn\*' fits no parameter .* like 'layers.0.weight'"),
        (LoRA(), "part.rank=2 given; Plain has no convolution or linear layer"),
    ],
)
def test_a_backbone_without_such_parts_is_refused_in_one_line(part, message):
    with pytest.raises(UserError, match=message):
        part(Network(Plain(), LinearHead(4)), 0, generator(0, "part"))


def test_more_stages_than_there_are_and_odd_settings_are_refused():
    with pytest.raises(UserError, match="SmallResNet has 3 stages"):
        with_part(LastStage(4))
    for make in (lambda: LastStage(0), lambda: FirstFrozen(0), lambda: FPF(1), lambda: LoRA(0), lambda: LoRA(alpha=0)):
        with pytest.raises(UserError, match="given"):
            make()


# --- adapters ---------------------------------------------------------------------------------------------------------

LAYERS = {
    "3x3": (lambda: nn.Conv2d(6, 8, 3, 2, 1), (3, 6, 9, 9)),
    "1x1": (lambda: nn.Conv2d(6, 8, 1, bias=False), (3, 6, 5, 5)),
    "grouped": (lambda: nn.Conv2d(6, 8, 3, groups=2, padding="same", padding_mode="reflect"), (3, 6, 5, 5)),
    "dilated": (lambda: nn.Conv2d(6, 8, (3, 1), dilation=(2, 1), groups=2), (3, 6, 7, 7)),
    "linear": (lambda: nn.Linear(6, 8), (3, 5, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_an_adapter_is_the_layer_with_ba_added_to_its_weight(kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    plain = copy.deepcopy(layer)
    adapted = Adapted(layer, 2, 0.5, generator(0, "part"))
    assert torch.equal(adapted(x), plain(x)), "with B zero, nothing changes"
    with torch.no_grad():
        assert torch.equal(adapted(x), plain(x))
        adapted.up.weight.normal_()
        groups = getattr(layer, "groups", 1)
        for row in range(8):
            for r in range(2):
                inner = row // (8 // groups) * 2 + r
                plain.weight[row] += 0.5 * adapted.up.weight[row, r].item() * adapted.down.weight[inner]
    assert torch.allclose(adapted(x), plain(x), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(adapted(x), plain(x), atol=1e-5)
    assert not torch.allclose(adapted(x), make()(x), atol=1e-2)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_adapters_cost_two_passes_of_the_weight_and_three_of_their_own(rank):
    network = with_part(LoRA(rank))
    taken = {
        name: rank * weights // out for (name, (weights, _)), out in zip(CONVOLUTIONS.items(), OUTS)
    }  # A's numbers
    given = {name: rank * out for name, out in zip(CONVOLUTIONS, OUTS)}
    price = Prices().update(CrossEntropy(), network, batch_of(5))
    own = sum(
        2 * pixels * ((2 if name == "stem" else 3) * taken[name] + 3 * given[name])
        for name, (_, pixels) in CONVOLUTIONS.items()
    )
    assert price.network == by_hand(passes(1, 2, 2, 2), 3) + 5 * own
    assert price.parameters == sum(taken.values()) + sum(given.values()) + 65 * 7
    assert price.network < (0.8 if rank == 1 else 0.95) * by_hand(ALL, 3)
    weights = sum(weights for weights, _ in CONVOLUTIONS.values())
    forward = Prices().forward(network.eval(), images(5))
    assert forward.network == by_hand(passes(1, 1, 1, 1), 1) + 2 * rank * weights  # B A is added to W, once a batch


OUTS = (16, 16, 16, 32, 32, 32, 64, 64, 64)


def test_adapters_are_inserted_once_change_nothing_at_first_and_leave_the_global_random_numbers_alone():
    network, x = small().eval(), images(4)
    with torch.no_grad():
        expected = network(x).logits
    state = torch.get_rng_state()
    part = LoRA(2)
    with_part(part, network=network)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert torch.equal(network.eval()(x).logits, expected)
    names, structure = trained(network), network.structure
    with_part(part, 1, network)
    assert trained(network) == names
    assert network.structure == structure
    assert sum(isinstance(m, Adapted) for m in network.modules()) == 9
    twin = with_part(LoRA(2))
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), twin.state_dict().values()))
    network.train()(x).logits.square().sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == names


def test_depthwise_convolutions_and_attention_stay_as_they_are():
    mobile = with_part(LoRA(1), network=torchvision_network_small("mobilenet_v3_small", "classifier"))
    grouped = [m for m in mobile.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(grouped) == 11
    assert not {id(m.layer) for m in mobile.modules() if isinstance(m, Adapted)} & {id(m) for m in grouped}
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    block = nn.Sequential(nn.MultiheadAttention(16, 2), attention, nn.Linear(16, 16))
    block.feature_dim, block.mean, block.std = 16, (0.5,), (0.25,)
    network = with_part(LoRA(1), network=Network(block, LinearHead(16)))
    assert {name.split(".")[1] for name in trained(network) if name.startswith("backbone")} == {"2"}


def torchvision_network_small(name, strip):
    body = getattr(torchvision.models, name)()
    setattr(body, strip, nn.Identity())
    body.feature_dim, body.mean, body.std = 576, (0.5,) * 3, (0.25,) * 3
    return Network(body, LinearHead(576))


def test_the_teacher_from_before_the_first_step_and_restarts_know_the_adapters(go, tiny):
    assert go("glyphs", "kd_ema", "part=lora").audit()["agrees"]
    parts = tiny("glyphs", "gdumb", "part=lora")
    learner = parts.learner
    states = [after for _, _, after in steps_of(parts)]
    learner._start_again(3)
    fresh = learner.network.state_dict()
    ups = [name for name in fresh if name.endswith("up.weight")]
    assert len(ups) == 9
    assert all(states[-1][name].any() and not fresh[name].any() for name in ups)
