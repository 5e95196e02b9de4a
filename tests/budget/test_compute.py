"""Compute charges before it runs; what it refuses leaves no trace; what only asks changes no bit."""

import copy

import numpy as np
import pytest
import torch

from budgetcl.budget.ledger import Exhausted
from budgetcl.errors import UserError
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.streams.revealed import Revealed


@pytest.fixture
def place(tiny):
    """The first step of a tiny stream, revealed, with the allowance of four updates open: (learner, compute, batch)."""
    parts = tiny("glyphs", "naive")
    revealed, step = Revealed(parts.source), next(iter(parts.source.stream))
    revealed.reveal(step)
    parts.learner._take_in(step, revealed, parts.compute)
    with parts.compute.step(step):
        yield parts.learner, parts.compute, revealed.batch(np.arange(8))


def bits(learner):
    optimiser = copy.deepcopy(learner.optimiser.state_dict()["state"])
    return {name: t.clone() for name, t in learner.network.state_dict().items()}, optimiser


def equal(one, other):
    weights = all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    return weights and one[1].keys() == other[1].keys()


def test_a_forward_is_charged_runs_in_eval_mode_and_changes_nothing(place):
    learner, compute, batch = place
    before, random = bits(learner), torch.get_rng_state()
    outputs = compute.forward(learner.network, batch.x, "score")
    assert compute.ledger.spent == compute.price(learner.network, batch.x) > 0
    assert outputs.logits.shape == (8, 13)
    assert not outputs.logits.requires_grad
    assert torch.equal(outputs.logits, learner.network.eval()(batch.x).logits.detach())
    assert equal(before, bits(learner))
    assert torch.equal(random, torch.get_rng_state())


def test_a_gradient_is_the_gradient_costs_an_update_without_its_step_and_changes_nothing(place):
    learner, compute, batch = place
    before = bits(learner)
    gradients, _ = compute.gradient(CrossEntropy(), learner.network, batch, "regularise")
    assert equal(before, bits(learner))
    assert all(p.grad is None for p in learner.network.parameters())
    network = copy.deepcopy(learner.network).eval()
    CrossEntropy()(network, batch)[0].backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    parameters = sum(p.numel() for p in network.parameters())
    spent = compute.ledger.spent
    compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
    assert compute.ledger.spent - spent == spent + 6 * parameters


def test_a_refused_update_leaves_no_trace(place):
    learner, compute, batch = place
    for _ in range(4):
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
    before, spent, rows = bits(learner), compute.ledger.spent, compute.ledger.rows()
    with pytest.raises(Exhausted):
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
    assert equal(before, bits(learner))
    assert (compute.ledger.spent, compute.ledger.rows()) == (spent, rows)
    assert compute.updates == 4


def test_an_update_moves_the_weights_as_a_bare_loop_does(place):
    learner, compute, batch = place
    network = copy.deepcopy(learner.network).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for _ in range(3):
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(batch.x).logits, batch.y).backward()
        optimiser.step()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, learner.network.state_dict()[name]), name


def test_work_is_charged_by_its_formula_before_it_is_done(place):
    _, compute, _ = place
    done = []
    assert compute.work("select", 1000, lambda: done.append(1) or "answer") == "answer"
    assert compute.ledger.spent == 1000
    with pytest.raises(Exhausted):
        compute.work("select", compute.ledger.remaining + 1, lambda: done.append(2))
    assert done == [1]
    assert compute.work("select", 5) is None
    assert compute.ledger.spent == 1005


def test_what_is_reserved_is_left_for_its_category(place):
    learner, compute, batch = place
    compute.reserve("calibrate", compute.price(learner.network, batch.x))
    for _ in range(3):
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
    with pytest.raises(Exhausted):
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
    compute.forward(learner.network, batch.x, "calibrate")
    assert compute.ledger.spent <= compute.ledger.allowance


def test_nothing_runs_between_steps(tiny):
    parts = tiny("glyphs", "naive")
    parts.learner.network.grow(10, np.random.default_rng(0))
    with pytest.raises(UserError, match="no step is open"):
        parts.compute.forward(parts.learner.network, torch.zeros(2, 1, 24, 24, dtype=torch.uint8), "score")


def test_learning_inside_a_prediction_is_refused_in_whatever_step(go):
    def change(parts):
        learner, predict = parts.learner, parts.learner.predict

        def trained(query, compute):
            batch = learner_batch(learner, query)
            compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
            return predict(query, compute)

        learner.predict = trained

    with pytest.raises(UserError, match="while predicting"):
        go("glyphs", "naive", "budget.updates=40", change=change)


def learner_batch(learner, query):
    from budgetcl.streams.batch import Batch

    y = torch.zeros(len(query), dtype=torch.int64)
    return Batch(query.x, y, np.arange(len(query)), y.bool())


def test_precision_other_than_two_is_refused(tiny):
    with pytest.raises(UserError, match="precision='fp64' given"):
        tiny("glyphs", "naive", "precision=fp64")


def test_an_update_while_predicting_is_refused_and_changes_nothing(place):
    learner, compute, batch = place
    before = bits(learner)
    with compute.predicting(0, len(batch), 13), pytest.raises(UserError, match="while predicting"):
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
    assert equal(before, bits(learner))
    compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
    assert not equal(before, bits(learner))
