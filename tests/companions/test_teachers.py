"""Teachers: whose weights they have, by hand; what they cost; that distillation from them changes the result."""

import numpy as np
import pytest
import torch

from budgetcl.companions.teachers import LastStep, MovingAverage
from budgetcl.errors import UserError


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("make", [LastStep, MovingAverage])
def test_there_is_no_teacher_before_the_first_step_ends_and_none_is_charged(make, small, at):
    teacher = make()
    teacher.begin(at(small()))
    teacher.follow(small())
    assert teacher.network is None
    assert dict(teacher.beside(small())) == {}
    assert teacher.nbytes() == 0


def test_the_teacher_is_the_network_as_the_step_left_it_whatever_follows(small, at, moved):
    network, teacher = small(), LastStep()
    teacher.end(at(network))
    left = weights(network)
    moved(network)
    teacher.follow(network)
    assert equal(weights(teacher.network), left)
    assert not equal(weights(teacher.network), weights(network))
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert not teacher.network.training
    # 4 x 2 + 2, two scales, two shifts, 3 x 2 + 3; two means, two variances, a counter of 8 bytes
    assert teacher.nbytes() == 4 * (10 + 4 + 9) + 4 * 4 + 8


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_the_average_is_the_sum_of_all_weights_with_falling_factors(decay, small, at, moved):
    """t_n = d^n w_0 + (1 - d) sum d^(n - i) w_i."""
    network, teacher = small(), MovingAverage(decay)
    teacher.start(network)
    path = [weights(network)]
    for i in range(5):
        moved(network, 0.5 * i + 0.1)
        network.backbone.norm.running_mean += i
        network.backbone.norm.num_batches_tracked += 1
        teacher.follow(network)
        path.append(weights(network))
    for name, value in teacher.network.state_dict().items():
        expected = decay**5 * path[0][name].double()
        for i in range(1, 6):
            expected = expected + (1 - decay) * decay ** (5 - i) * path[i][name].double()
        if value.is_floating_point():
            torch.testing.assert_close(value, expected.to(value.dtype), rtol=1e-5, atol=1e-6)
    assert teacher.network.backbone.norm.num_batches_tracked == 5


def test_rows_of_new_classes_join_when_the_step_ends_and_old_ones_keep_their_average(small, at, moved):
    network, teacher = small(3), MovingAverage(0.5)
    teacher.end(at(network))
    first = weights(network)
    network.grow(5, np.random.default_rng(1))
    moved(network, 2.0)
    teacher.follow(network)
    assert teacher.network.head.classes == 3
    torch.testing.assert_close(teacher.network.head.weight, first["head.weight"] + 1)
    teacher.end(at(network))
    assert teacher.network.head.classes == 5
    torch.testing.assert_close(teacher.network.head.weight[:3], first["head.weight"] + 1)
    assert torch.equal(teacher.network.head.weight[3:], network.head.weight[3:])
    torch.testing.assert_close(teacher.network.backbone.layer.bias, first["backbone.layer.bias"] + 1)
    teacher.follow(network)
    assert teacher.network.head.classes == 5


def test_following_costs_three_flops_a_parameter(small):
    network, teacher = small(3), MovingAverage()
    teacher.start(network)
    assert dict(teacher.beside(network)) == {
        "teacher": 3 * 23
    }  # 10 of the layer, 4 of the normalisation, 9 of the head


@pytest.mark.parametrize("make", [LastStep, MovingAverage])
def test_a_teacher_goes_on_from_its_state_in_a_network_that_has_grown(make, small, at, moved):
    network, teacher, other = small(3), make(), make()
    other.load_state_dict(teacher.state_dict(), network)
    assert other.network is None
    teacher.end(at(network))
    network.grow(4, np.random.default_rng(2))
    other.load_state_dict(teacher.state_dict(), network)
    assert equal(weights(other.network), weights(teacher.network))
    assert not any(p.requires_grad for p in other.network.parameters())
    kept = weights(teacher.network)
    moved(network)
    other.follow(network)
    assert equal(weights(teacher.network), kept), "two teachers share their weights"
    assert other.nbytes() == teacher.nbytes()


@pytest.mark.parametrize("decay", [-0.1, 1.1, "x", float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(UserError, match=r"teacher\.decay"):
        MovingAverage(decay)


def test_a_run_pays_for_each_move_of_the_teacher_and_for_its_forwards(go):
    last, average = go("glyphs", "kd_mse"), go("glyphs", "kd_ema")

    def moves(run):
        mine = (run.ledger["category"] == "teacher") & (run.ledger["price"] == "work")
        return dict(zip(run.ledger["step"][mine].tolist(), run.ledger["charged"][mine].tolist()))

    backbone = sum(p.numel() for p in average.parts.learner.network.backbone.parameters())
    sizes = [backbone + 65 * (13 + 3 * step) for step in range(3)]
    assert moves(last) == {}
    assert moves(average) == {i: 3 * sizes[i] * int(average.steps["updates"][i]) for i in range(3)}
    assert all(n > 0 for n in last.category("teacher"))


def test_another_teacher_leads_to_other_weights(go):
    heads = [go("glyphs", method).parts.learner.network.head.weight for method in ("naive", "kd_mse", "kd_ema")]
    assert not any(torch.equal(heads[i], heads[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_teacher_is_what_the_end_of_the_step_made_of_the_network(go):
    """Aligned rows, or the mean of the weights: distillation keeps near what predicted."""
    for extra in ("calibration=weight_aligning", "averaging=consolidation"):
        learner = go("glyphs", "kd_mse", extra).parts.learner
        assert equal(weights(learner.teacher.network), weights(learner.network)), extra
