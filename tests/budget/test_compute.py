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


# --- virtual weights, gradients of samples, penalties and what goes beside --------------------------------------------

STEM = 25 * 16 * 12 * 12  # multiply-adds of an image; no gradient of the image is needed
BODY = (
    STEM
    + 2 * 9 * 16 * 16 * 12 * 12
    + (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32) * 6 * 6
    + (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64) * 3 * 3
)


def forward(classes):
    return 2 * (BODY + 64 * classes)


def gradient(classes):
    """Forward, gradients of the weights and of the inputs, but not of the image."""
    return 3 * forward(classes) - 2 * STEM


def trained(network):
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def test_a_forward_with_virtual_weights_is_that_of_a_network_that_has_them(place):
    learner, compute, batch = place
    before, other = bits(learner), copy.deepcopy(learner.network).eval()
    with torch.no_grad():
        for p in other.parameters():
            p += 0.1 * torch.randn_like(p)
        expected = other(batch.x)
    everything = dict(other.named_parameters())
    outputs = compute.forward(learner.network, batch.x, "score", everything)
    assert compute.ledger.spent == 8 * forward(13)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.features, expected.features)
    assert not outputs.logits.requires_grad
    assert equal(before, bits(learner))
    some = compute.forward(learner.network, batch.x, "score", {"head.bias": other.head.bias}).logits
    plain = compute.forward(learner.network, batch.x, "score").logits
    torch.testing.assert_close(some - plain, (other.head.bias - learner.network.head.bias).expand(8, -1))


def test_each_sample_has_its_gradient_and_all_are_charged_before_the_first(place):
    learner, compute, batch = place
    before = bits(learner)
    each = compute.gradients(CrossEntropy(), learner.network, batch, "regularise")
    assert compute.ledger.spent == 8 * gradient(13)
    found = list(each)
    assert compute.ledger.spent == 8 * gradient(13)
    assert len(found) == 8
    network = copy.deepcopy(learner.network).eval()
    losses = torch.nn.functional.cross_entropy(network(batch.x).logits, batch.y, reduction="none")
    for loss, gradients in zip(losses, found):
        expected = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for (name, _), wanted in zip(network.named_parameters(), expected):
            torch.testing.assert_close(gradients[name], wanted, rtol=1e-3, atol=1e-5)
    assert equal(before, bits(learner))
    assert all(p.grad is None for p in learner.network.parameters())
    compute.work("select", compute.ledger.remaining - 8 * gradient(13) + 1)
    spent = compute.ledger.spent
    with pytest.raises(Exhausted):
        compute.gradients(CrossEntropy(), learner.network, batch, "regularise")
    assert compute.ledger.spent == spent


def test_a_penalty_is_added_to_the_loss_and_what_goes_beside_is_charged_with_the_update(place):
    learner, compute, batch = place
    network = copy.deepcopy(learner.network).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def penalty(network):
        return 0.3 * network.head.weight.square().sum() + network.backbone.stem.weight.abs().sum()

    for turn in (penalty, lambda network: None, None):
        beside = {"regularise": 1000, "teacher": 0}
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser, penalty=turn, beside=beside)
        loss = torch.nn.functional.cross_entropy(network(batch.x).logits, batch.y)
        added = turn(network) if turn is not None else None
        optimiser.zero_grad()
        (loss if added is None else loss + added).backward()
        optimiser.step()
        for name, p in network.named_parameters():
            torch.testing.assert_close(trained(learner.network)[name], p.detach(), rtol=1e-5, atol=1e-7)
    parameters = sum(p.numel() for p in network.parameters())
    rows = compute.ledger.rows()
    charged = list(zip(rows["category"], rows["count"], rows["charged"]))
    assert charged == [("train", 3, 3 * (8 * gradient(13) + 6 * parameters)), ("regularise", 3, 3000)]


def test_an_update_whose_side_work_is_not_affordable_is_refused_as_a_whole(place):
    learner, compute, batch = place
    before = bits(learner)
    price = 8 * gradient(13) + 6 * sum(p.numel() for p in learner.network.parameters())
    spare = compute.ledger.remaining - price
    with pytest.raises(Exhausted) as refusal:
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser, beside={"regularise": spare + 1})
    assert refusal.value.price == price + spare + 1
    assert compute.ledger.spent == compute.updates == 0
    assert equal(before, bits(learner))
    compute.update(CrossEntropy(), learner.network, batch, learner.optimiser, beside={"regularise": spare})
    assert compute.ledger.remaining == 0


# --- refunds, what is spare, and saving up ----------------------------------------------------------------------------


def test_what_was_paid_and_not_needed_comes_back_but_no_more_than_was_paid(place):
    _, compute, _ = place
    whole = compute.ledger.remaining
    compute.work("select", 1000)
    compute.refund("select", 400)
    assert (compute.ledger.spent, compute.ledger.remaining) == (600, whole - 600)
    with pytest.raises(UserError, match="a refund of 601 FLOPs"):
        compute.refund("select", 601)
    with pytest.raises(UserError, match="a refund of 1 FLOPs to 'score'"):
        compute.refund("score", 1)
    assert compute.ledger.spent == 600


@pytest.fixture
def opened(tiny):
    """(*overrides) -> the first step of a tiny stream, revealed and open: (learner, compute, batch)."""
    contexts = []

    def enter(*overrides, dry=False):
        parts = tiny("glyphs", "naive", *overrides)
        parts.compute._dry = dry
        revealed, step = Revealed(parts.source), next(iter(parts.source.stream))
        revealed.reveal(step)
        parts.learner._take_in(step, revealed, parts.compute)
        contexts.append(parts.compute.step(step))
        contexts[-1].__enter__()
        return parts.learner, parts.compute, revealed.batch(np.arange(8))

    yield enter
    for context in contexts:
        context.__exit__(None, None, None)


def test_what_is_spare_is_counted_in_flops_whatever_the_currency(opened):
    """Under iterations, three of four updates left are three quarters of the FLOPs of four reference updates."""
    learner, compute, batch = opened()
    price = 8 * gradient(13) + 6 * sum(p.numel() for p in learner.network.parameters())
    for currency in ("flops", "iterations", "memory_adjusted"):
        learner, compute, batch = opened(f"currency={currency}")
        assert compute.spare == 4 * price
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
        assert compute.spare == pytest.approx(3 * price, abs=1 if currency == "iterations" else 0)


def test_iterations_charge_updates_alone_and_record_the_rest(opened):
    learner, compute, batch = opened("currency=iterations")
    compute.forward(learner.network, batch.x, "score")
    compute.gradient(CrossEntropy(), learner.network, batch, "regularise")
    compute.work("select", 10**15)
    compute.refund("select", 10**14)
    compute.reserve("calibrate", 10**15)
    assert compute.ledger.spent == compute.ledger.reserved == 0
    for _ in range(4):
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser, beside={"regularise": 7})
    assert (compute.ledger.spent, compute.ledger.allowance) == (4, 4)
    with pytest.raises(Exhausted):
        compute.update(CrossEntropy(), learner.network, batch, learner.optimiser)
    rows = compute.ledger.rows()
    flops = dict.fromkeys(rows["category"], 0)
    for name, done in zip(rows["category"], rows["flops"]):
        flops[name] += done
    parameters = sum(p.numel() for p in learner.network.parameters())
    assert flops == {
        "score": 8 * forward(13),
        "regularise": 8 * gradient(13) + 4 * 7,
        "select": 9 * 10**14,
        "train": 4 * (8 * gradient(13) + 6 * parameters),
    }


def test_credit_is_saved_up_for_an_update_dearer_than_the_reference(tiny):
    """A batch of 20 on an allowance of one batch of 8 a step: the third step pays for it, and no credit is lost."""
    parts = tiny("glyphs", "naive", "budget=delay", "budget.updates=1", "learner.batch=20")
    revealed, learner, compute = Revealed(parts.source), parts.learner, parts.compute
    made, prices = [], []
    for step in parts.source.stream:
        revealed.reveal(step)
        with compute.step(step, 2 - step.number):
            before = compute.updates
            learner.fit(step, revealed, compute)
            made.append(compute.updates - before)
        parameters = sum(p.numel() for p in learner.network.parameters())
        prices.append((8 * gradient(step.classes) + 6 * parameters, 20 * gradient(step.classes) + 6 * parameters))
    assert made == [0, 0, 1]
    steps = compute.ledger.steps()
    assert steps["allowance"] == [one for one, _ in prices]
    assert steps["carried_in"] == [0, prices[0][0], prices[0][0] + prices[1][0]]
    assert steps["spent"] == [0, 0, prices[2][1]]


# --- dry runs ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_charges_the_same_runs_nothing_and_answers_zeros(opened):
    def through(dry):
        learner, compute, batch = opened("budget.updates=40", dry=dry)
        before = bits(learner)
        network, objective = learner.network, CrossEntropy()
        answers = [
            compute.forward(network, batch.x, "score"),
            compute.forward(network, batch.x, "score", dict(network.named_parameters())),
            compute.forward(network, torch.zeros(5, 64), "score"),  # features: the head alone
            compute.gradient(objective, network, batch, "regularise")[1],
            compute.update(objective, network, batch, learner.optimiser, teacher=network.frozen_copy(),
                           penalty=lambda network: network.head.weight.sum(), beside={"regularise": 9}, clip=1.0),
        ]  # fmt: skip
        gradients = [compute.gradient(objective, network, batch, "regularise")[0]]
        gradients += compute.gradients(objective, network, batch, "regularise")
        compute.work("select", 1000, lambda: None)
        return learner, compute, before, answers, gradients

    real, dry = through(False), through(True)
    assert dry[1].ledger.rows() == real[1].ledger.rows()
    assert dry[1].updates == real[1].updates == 1
    assert equal(dry[2], bits(dry[0]))
    assert not equal(real[2], bits(real[0]))
    for one, other in zip(dry[3], real[3]):
        assert one.logits.shape == other.logits.shape
        assert one.features.shape == other.features.shape
        assert not one.logits.any()
        assert not one.features.any()
        assert other.logits.any()
    assert len(dry[4]) == len(real[4]) == 9
    for one, other in zip(dry[4], real[4]):
        assert {name: g.shape for name, g in one.items()} == {name: g.shape for name, g in other.items()}
        assert not any(g.any() for g in one.values())
    for _, compute, *_ in (real, dry):  # blank answers end iterations too early: an estimate keeps the maximum
        compute.refund("select", 400)
    assert dry[1].ledger.spent - real[1].ledger.spent == 400
