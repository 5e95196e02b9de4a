"""Averages of weights in closed form; which weights consolidation sends back, and what the step ends with."""

import numpy as np
import pytest
import torch

from budgetcl.companions.averaging import Averaging, Consolidation, MovingAverage
from budgetcl.errors import UserError


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


# --- moving average ---------------------------------------------------------------------------------------------------


def test_without_averaging_the_network_itself_predicts(small):
    network = small()
    assert Averaging().predictor(network) is network
    assert dict(Averaging().beside(network)) == {}
    assert MovingAverage().predictor(network) is network, "before there is an average"


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.95, 1.0])
def test_after_n_updates_the_average_is_the_closed_form(decay, small, at, moved):
    """a_n = d^n w_0 + (1 - d) sum d^(n - i) w_i; with steps of 1, w_i = w_0 + i."""
    network, average = small(), MovingAverage(decay)
    start, n = weights(network), 6
    average.begin(at(network))
    for _ in range(n):
        moved(network, 1.0)
        average.follow(network)
    gain = sum((1 - decay) * decay ** (n - i) * i for i in range(1, n + 1))
    predictor = average.predictor(network)
    assert predictor is not network
    for name, p in predictor.named_parameters():
        torch.testing.assert_close(p, start[name] + gain, rtol=1e-5, atol=1e-5)
    for name, p in network.named_parameters():
        torch.testing.assert_close(p, start[name] + n)


def test_the_average_goes_on_in_the_next_step_and_new_rows_join_as_they_begin(small, at, moved):
    network, average = small(3), MovingAverage(0.5)
    average.begin(at(network))
    moved(network, 1.0)
    average.follow(network)
    average.end(at(network))
    kept = weights(average.predictor(network))
    network.grow(5, np.random.default_rng(1))
    average.begin(at(network))
    grown = average.predictor(network)
    assert torch.equal(grown.head.weight[:3], kept["head.weight"])
    assert torch.equal(grown.head.weight[3:], network.head.weight[3:])
    assert torch.equal(grown.backbone.layer.weight, kept["backbone.layer.weight"])
    assert not torch.equal(grown.backbone.layer.weight, network.backbone.layer.weight)


def test_the_average_costs_three_flops_a_parameter_and_a_copy(small, at):
    network, average = small(3), MovingAverage()
    assert average.nbytes() == 0
    average.begin(at(network))
    assert dict(average.beside(network)) == {"train": 3 * 23}
    assert average.nbytes() == 4 * 23 + 4 * 4 + 8  # weights, statistics, a counter


def test_the_average_goes_on_from_its_state(small, at, moved):
    network, average, other = small(3), MovingAverage(0.5), MovingAverage(0.5)
    other.load_state_dict(average.state_dict(), network)
    assert other.predictor(network) is network
    average.begin(at(network))
    moved(network)
    average.follow(network)
    other.load_state_dict(average.state_dict(), network)
    kept = weights(average.predictor(network))
    mine = weights(other.predictor(network))
    assert all(torch.equal(mine[name], kept[name]) for name in kept)
    moved(network)
    other.follow(network)
    assert torch.equal(average.predictor(network).head.weight, kept["head.weight"]), "two averages share their weights"


def test_a_run_pays_for_the_average_which_answers_otherwise_than_the_network(go):
    naive, run = go("glyphs", "naive"), go("glyphs", "ema", "averaging.decay=0.5")
    mine = (run.ledger["category"] == "train") & (run.ledger["price"] == "work")
    backbone = sum(p.numel() for p in run.parts.learner.network.backbone.parameters())
    updates = run.steps["updates"].tolist()
    assert run.ledger["charged"][mine].tolist() == [3 * updates[i] * (backbone + 65 * (13 + 3 * i)) for i in range(3)]
    assert not ((naive.ledger["category"] == "train") & (naive.ledger["price"] == "work")).any()
    learner = run.parts.learner
    predictor = learner.averaging.predictor(learner.network)
    assert not torch.equal(predictor.head.weight, learner.network.head.weight)
    assert not np.array_equal(run.predictions["confidence"], naive.predictions["confidence"])


# --- consolidation ----------------------------------------------------------------------------------------------------


def uses(history):
    """|m| x v by the two moving averages' definition, from a list of gradients."""
    m, v = 0.0, 0.0
    for g in history:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return np.abs(m) * v


def follow(averaging, network, gradients):
    for p, g in zip(network.parameters(), gradients):
        p.grad = g.clone()
    averaging.follow(network)


def gradients_of(network, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in network.parameters()]


@pytest.mark.parametrize(("keep", "mix"), [(0.2, 0.5), (0.5, 1.0), (0.0, 0.25), (1.0, 0.5)])
def test_the_weights_that_were_used_least_go_back(keep, mix, small, at, moved):
    """In each tensor all but a share of ``keep``, by their use since the step began; rows that are new stay."""
    network, averaging, place = small(3), Consolidation(0.5, keep, mix), at(small(3), 0.0)
    averaging.end(at(network))  # a first step
    last = weights(network)
    network.grow(5, np.random.default_rng(0))
    moved(network, 1.0)
    averaging.begin(place)
    histories = [gradients_of(network, seed) for seed in range(3)]
    now = {name: p.detach().clone() for name, p in network.named_parameters()}
    for i, gradients in enumerate(histories):
        place.compute.ledger.progress = 0.25 * i
        follow(averaging, network, gradients)
        if i < 2:
            assert all(torch.equal(p, now[name]) for name, p in network.named_parameters())
    for k, (name, p) in enumerate(network.named_parameters()):
        rows = len(last[name])
        use = uses([np.asarray(gradients[k], np.float64) for gradients in histories])[:rows].ravel()
        back = np.argsort(use)[: use.size - round(keep * use.size)]
        expected = now[name].clone()
        flat = expected[:rows].flatten()
        flat[back] = (1 - mix) * flat[back] + mix * last[name].flatten()[back]
        expected[:rows] = flat.view(last[name].shape)
        torch.testing.assert_close(p.detach(), expected)


def test_nothing_goes_back_in_the_first_step_nor_what_is_frozen(small, at, moved):
    network, averaging = small(3), Consolidation(0.0, 0.0, 1.0)
    averaging.begin(at(network))
    before = weights(network)
    follow(averaging, network, gradients_of(network, 0))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    averaging.end(at(network))
    averaging.begin(at(network))
    moved(network, 1.0)
    network.set_trainable([network.head])
    for p, g in zip(network.head.parameters(), gradients_of(network.head, 1)):
        p.grad = g
    averaging.follow(network)
    assert torch.equal(network.head.weight, before["head.weight"])
    torch.testing.assert_close(network.backbone.layer.weight, before["backbone.layer.weight"] + 1)


def test_the_step_ends_with_the_mean_of_the_weights_since_the_reset(small, at, moved):
    network, averaging = small(3), Consolidation(0.5)
    place = at(network, 0.0)
    averaging.begin(place)
    follow(averaging, network, gradients_of(network, 0))
    place.compute.ledger.progress = 0.6
    moved(network, 10.0)
    follow(averaging, network, gradients_of(network, 0))  # the reset, which in a first step moves nothing
    start = weights(network)
    for by in (1.0, 1.0, 4.0):  # 1, 2 and 6 from there: 3 on average
        moved(network, by)
        follow(averaging, network, gradients_of(network, 1))
    assert averaging.predictor(network) is network
    averaging.end(place)
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.detach(), start[name] + 3)
    assert averaging.nbytes() == 4 * 23


def test_a_step_without_an_update_changes_nothing(small, at):
    network, averaging = small(3), Consolidation()
    before = weights(network)
    averaging.begin(at(network))
    averaging.end(at(network))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_consolidation_costs_two_moments_and_a_mean(small):
    assert dict(Consolidation().beside(small(3))) == {"train": 9 * 23}


def test_consolidation_goes_on_from_its_state(small, at, moved):
    network, averaging, other = small(3), Consolidation(0.0, 0.2, 1.0), Consolidation(0.0, 0.2, 1.0)
    averaging.end(at(network))
    other.load_state_dict(averaging.state_dict(), network)
    assert other.nbytes() == averaging.nbytes() > 0
    twins = [small(3), small(3)]
    for one, twin in zip((averaging, other), twins):
        moved(twin, 1.0)
        one.begin(at(twin))
        follow(one, twin, gradients_of(twin, 0))
    assert torch.equal(twins[0].head.weight, twins[1].head.weight)
    assert not torch.equal(twins[0].head.weight, small(3).head.weight + 1)


def test_a_run_pays_for_the_moments_and_ends_elsewhere_than_naive_training(go):
    run = go("glyphs", "weight_consolidation")
    mine = (run.ledger["category"] == "train") & (run.ledger["price"] == "work")
    backbone = sum(p.numel() for p in run.parts.learner.network.backbone.parameters())
    updates = run.steps["updates"].tolist()
    assert run.ledger["charged"][mine].tolist() == [9 * updates[i] * (backbone + 65 * (13 + 3 * i)) for i in range(3)]
    naive = go("glyphs", "naive").parts.learner.network
    assert not torch.equal(run.parts.learner.network.head.weight, naive.head.weight)


@pytest.mark.parametrize(
    ("make", "key"), [(MovingAverage, "decay"), *((Consolidation, key) for key in ("warmup", "keep", "mix"))]
)
@pytest.mark.parametrize("value", [-0.1, 1.5, "x"])
def test_shares_outside_of_0_to_1_are_refused(make, key, value):
    with pytest.raises(UserError, match=rf"averaging\.{key}"):
        make(**{key: value})


def test_an_average_and_a_calibration_do_not_go_together(tiny):
    with pytest.raises(UserError, match="calibration and an average of weights"):
        tiny("glyphs", "naive", "averaging=moving_average", "calibration=temperature")
