"""Penalties by hand; importances against loops over samples, finite differences and the paper's equations."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from budgetcl.budget.ledger import Exhausted
from budgetcl.companions.regularisers import EWC, L2, MAS, Regulariser, RWalk
from budgetcl.errors import UserError
from budgetcl.memory.memory import Memory
from budgetcl.objectives.cross_entropy import CrossEntropy

ALL = (L2, EWC, MAS, RWalk)


def snapshot(network):
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def few(place, n=5):
    """The place with a memory of a few samples, so that an importance is found from all of them."""
    memory, rows = Memory(), np.linspace(0, len(place.memory) - 1, n).astype(int)
    memory.add(place.memory.index[rows], place.memory.label[rows])
    return replace(place, memory=memory)


def stepped(regulariser, place):
    """One step without updates."""
    regulariser.begin(place)
    regulariser.end(place)
    return regulariser


def squared_gradients(place, of=lambda logits, y: cross_entropy(logits, y)):
    """The mean over the memory of squared and of absolute gradients, one sample at a time."""
    network = place.network.eval()
    batch = place.revealed.batch(place.memory.index)
    squares, sizes = ({name: torch.zeros_like(p) for name, p in network.named_parameters()} for _ in range(2))
    for i in range(len(batch)):
        network.zero_grad()
        of(network(batch.x[i : i + 1]).logits, batch.y[i : i + 1]).backward()
        for name, p in network.named_parameters():
            squares[name] += p.grad**2 / len(batch)
            sizes[name] += p.grad.abs() / len(batch)
    network.zero_grad(set_to_none=True)
    return squares, sizes


# --- the distance -----------------------------------------------------------------------------------------------------


def test_without_a_regulariser_there_is_no_penalty_and_no_price(small):
    assert Regulariser().penalty(small()) is None
    assert dict(Regulariser().beside(small())) == {}


@pytest.mark.parametrize("make", ALL)
def test_the_first_step_is_free_of_a_penalty(make, small, at):
    assert make().penalty(small()) is None
    assert make().nbytes() == 0


def test_l2_is_half_the_strength_times_the_squared_distance_and_its_gradient_the_way_back(small, at, moved):
    network, l2 = small(3), L2(0.6)
    l2.end(at(network))
    assert l2.penalty(network).item() == 0
    moved(network, 0.5)
    penalty = l2.penalty(network)
    assert penalty.item() == pytest.approx(0.3 * 23 * 0.25)  # 23 weights, each 0.5 away
    penalty.backward()
    for p in network.parameters():
        torch.testing.assert_close(p.grad, torch.full_like(p, 0.6 * 0.5))
    assert dict(l2.beside(network)) == {"regularise": 5 * 23}
    assert l2.nbytes() == 23 * 4


def test_rows_newer_than_the_anchor_are_free(small, at, moved):
    network, l2 = small(3), L2(2.0)
    l2.end(at(network))
    network.grow(5, np.random.default_rng(1))
    moved(network, 0.5)
    penalty = l2.penalty(network)
    assert penalty.item() == pytest.approx(23 * 0.25)
    penalty.backward()
    assert network.head.weight.grad[3:].abs().max() == 0
    assert network.head.bias.grad[:3].tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("make", ALL)
def test_what_is_frozen_has_no_penalty(make, small, at, moved):
    network, regulariser = small(3), make(2.0)
    L2.end(regulariser, at(network))
    if isinstance(regulariser, EWC):
        regulariser._importance = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    if make is RWalk:
        regulariser._fisher = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    moved(network, 1.0)
    network.set_trainable([network.head])
    assert regulariser.penalty(network).item() == pytest.approx(9)  # 3 x 2 weights and 3 biases, each 1 away
    assert dict(regulariser.beside(network))["regularise"] == {L2: 5, RWalk: 16}.get(make, 6) * 9


def test_what_no_importance_was_found_for_is_not_held_back(small, at, moved):
    """Frozen when the importance was found, and grown since: as with parts that take turns."""
    network = small(5)
    for regulariser in (EWC(2.0), RWalk(2.0)):
        known = {"head.weight": torch.ones(3, 2)}
        if isinstance(regulariser, EWC):
            regulariser._importance = dict(known)
        else:
            regulariser._fisher, regulariser._scores = dict(known), {}
        L2.end(regulariser, at(network))
        moved(network, 1.0)
        assert regulariser.penalty(network).item() == pytest.approx(6)


# --- importances ------------------------------------------------------------------------------------------------------


def test_ewc_finds_the_mean_of_the_samples_squared_gradients(opened):
    place = few(opened())
    ewc = stepped(EWC(3.0, samples=64, spend=1.0), place)
    squares, _ = squared_gradients(place)
    for name, value in squares.items():
        torch.testing.assert_close(ewc._importance[name], value, rtol=1e-4, atol=1e-9)
    anchor = snapshot(place.network)
    with torch.no_grad():
        for p in place.network.parameters():
            p += 0.1
    expected = 1.5 * sum((squares[n] * (p - anchor[n]) ** 2).sum().item() for n, p in place.network.named_parameters())
    assert ewc.penalty(place.network).item() == pytest.approx(expected, rel=1e-4)


def test_mas_finds_how_much_the_outputs_squared_norm_depends_on_a_weight(opened):
    """By autograd for all weights, and by finite differences for some."""
    place = few(opened(), 3)
    mas = stepped(MAS(samples=64, spend=1.0), place)
    _, sizes = squared_gradients(place, of=lambda logits, y: logits.square().sum())
    for name, value in sizes.items():
        torch.testing.assert_close(mas._importance[name], value, rtol=1e-4, atol=1e-6)
    images = place.revealed.images(place.memory.index)
    network = place.network.eval()
    with torch.no_grad():
        for name in ("head.weight", "backbone.bn.weight"):
            p, h = network.get_parameter(name), 1e-3
            where = (0, 1) if p.ndim == 2 else (2,)
            start, found = float(p[where]), []
            for value in (start + h, start - h):
                p[where] = value
                found.append(network(images).logits.double().square().sum(1))
            p[where] = start
            slope = float(((found[0] - found[1]) / (2 * h)).abs().mean())
            assert float(mas._importance[name][where]) == pytest.approx(slope, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("make", [EWC, MAS])
def test_earlier_steps_importance_goes_on_with_its_decay_in_the_rows_that_were_there(make, opened):
    place = few(opened())
    regulariser = stepped(make(samples=64, spend=1.0, decay=0.5), place)
    first = dict(regulariser._importance)
    place.network.grow(20, np.random.default_rng(0))
    alone = stepped(make(samples=64, spend=1.0), place)._importance
    stepped(regulariser, place)
    for name, value in first.items():
        expected = alone[name].clone()
        expected[: len(value)] += 0.5 * value
        torch.testing.assert_close(regulariser._importance[name], expected)


def test_an_importance_is_reserved_when_the_step_opens_and_spent_to_the_flop(opened, charged):
    place = opened()
    ewc, ledger = EWC(samples=7, spend=1.0), place.compute.ledger
    gradient = place.compute.gradient_price(CrossEntropy(), place.network, place.revealed.batch(np.arange(1)))
    price = 7 * (gradient + 2 * sum(p.numel() for p in place.network.parameters()))
    ewc.begin(place)
    assert ledger.reserved == price
    ewc.end(place)
    assert charged(place, "probe") == price
    assert ledger.reserved == 0


def test_the_samples_are_bounded_by_the_share_to_spend_but_one_is_left(opened, charged):
    place = opened()
    gradient = place.compute.gradient_price(CrossEntropy(), place.network, place.revealed.batch(np.arange(1)))
    each = gradient + 2 * sum(p.numel() for p in place.network.parameters())
    for spend, n in ((2.5 * each / place.compute.spare, 2), (0.0, 1)):
        before = charged(place, "probe")
        stepped(EWC(spend=spend), place)
        assert charged(place, "probe") - before == n * each


def test_penalties_leave_what_the_importance_reserved(opened, charged):
    """Each update's penalty and the importance are charged apart; else training until refused would spend it."""
    place = opened(1, None, "budget.updates=6")
    ewc = stepped(EWC(spend=0.0), place)
    ewc.spend = 0.5
    ewc.begin(place)
    optimiser = torch.optim.SGD(place.network.parameters(), lr=0.01)
    batch = place.revealed.batch(place.memory.index[:4])
    reserved, updates = place.compute.ledger.reserved, 0
    beside = ewc.beside(place.network)
    with suppress(Exhausted):
        while True:
            place.compute.update(CrossEntropy(), place.network, batch, optimiser, penalty=ewc.penalty, beside=beside)
            updates += 1
    assert updates > 3
    assert place.compute.ledger.reserved == reserved > 0
    assert charged(place, "regularise") == updates * 6 * sum(p.numel() for p in place.network.parameters())
    ewc.end(place)
    assert place.compute.ledger.reserved == 0


def test_a_memory_smaller_than_the_samples_is_looked_at_in_full(opened, charged):
    place = few(opened(), 1)
    ewc = stepped(EWC(samples=64, spend=1.0), place)
    squares, _ = squared_gradients(place)
    torch.testing.assert_close(ewc._importance["head.bias"], squares["head.bias"], rtol=1e-4, atol=1e-9)


# --- the walk ---------------------------------------------------------------------------------------------------------


class Walk:
    """Riemannian walk from the paper's equations, one weight at a time: F, s, and what they weigh."""

    def __init__(self, rate, interval, epsilon):
        self.rate, self.interval, self.epsilon = rate, interval, epsilon
        self.fisher, self.score = {}, {}

    def step(self, path):
        """path: [(weight before, gradient, weight after)] of each weight by its place."""
        for place, updates in path.items():
            fisher, found, fall, start = self.fisher.get(place, 0.0), 0.0, 0.0, updates[0][0]
            for i, (before, gradient, after) in enumerate(updates, 1):
                fisher = self.rate * gradient**2 + (1 - self.rate) * fisher
                fall += -gradient * (after - before)  # eq. 7
                if i % self.interval == 0 or i == len(updates):
                    found += max(0.0, fall / (0.5 * fisher * (after - start) ** 2 + self.epsilon))  # eq. 8
                    fall, start = 0.0, after
            self.fisher[place] = fisher
            self.score[place] = (self.score[place] + found) / 2 if place in self.score else found  # eq. 10


def walked(network, walk, at, updates, seed):
    """Train, and return each weight's way."""
    torch.manual_seed(seed)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.05)
    x, y = torch.randn(24, 2), torch.randint(network.head.classes, (24,))
    path = {}
    walk.begin(at(network))
    for i in range(updates):
        before = snapshot(network)
        loss = cross_entropy(network(x[i::3]).logits, y[i::3])
        penalty = walk.penalty(network)
        optimiser.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimiser.step()
        walk.follow(network)
        for name, p in network.named_parameters():
            if p.requires_grad:
                rows = zip(before[name].double().flatten(), p.grad.double().flatten(), p.detach().double().flatten())
                for k, row in enumerate(rows):
                    path.setdefault((name, k), []).append(tuple(map(float, row)))
    walk.end(at(network))
    return path


@pytest.mark.parametrize(("updates", "interval"), [(6, 3), (7, 3), (2, 10), (3, 1)])
def test_the_walk_is_that_of_the_papers_equations(updates, interval, small, at, moved):
    network, walk = small(3), RWalk(0.02, rate=0.3, interval=interval, epsilon=1e-3)
    network.set_trainable([network.head])
    mine = Walk(0.3, interval, 1e-3)
    for seed in range(3):
        mine.step(walked(network, walk, at, updates, seed))
        for (name, k), value in mine.fisher.items():
            assert float(walk._fisher[name].flatten()[k]) == pytest.approx(value, rel=1e-3, abs=1e-8)
            assert float(walk._scores[name].flatten()[k]) == pytest.approx(mine.score[name, k], rel=2e-3, abs=1e-4)
    assert max(mine.score.values()) > 0.1
    moved(network, 0.5)
    weights = sum(mine.fisher.values()) + sum(mine.score.values())
    assert walk.penalty(network).item() == pytest.approx(0.01 * weights * 0.25, rel=1e-3)


def test_the_walk_costs_ten_flops_a_weight_and_its_penalty_six(small, at):
    network, walk = small(3), RWalk()
    walk.begin(at(network))
    assert dict(walk.beside(network)) == {"regularise": 10 * 23}
    walk.end(at(network))
    assert dict(walk.beside(network)) == {"regularise": 16 * 23}


def test_the_walk_keeps_the_scores_of_what_is_frozen_for_a_step(small, at):
    network, walk = small(3), RWalk(interval=1)
    network.set_trainable([network.head])
    walked(network, walk, at, 3, 0)
    scores, fisher = dict(walk._scores), {name: value.clone() for name, value in walk._fisher.items()}
    network.set_trainable([network.backbone])
    walk.begin(at(network))
    walk.end(at(network))
    for name in ("head.weight", "head.bias"):
        assert torch.equal(walk._scores[name], scores[name])
        assert torch.equal(walk._fisher[name], fisher[name])


def test_the_walk_follows_a_head_that_grows(small, at):
    network, walk = small(3), RWalk(interval=1)
    network.set_trainable([network.head])
    walked(network, walk, at, 2, 0)
    before = walk._scores["head.weight"]
    network.grow(5, np.random.default_rng(0))
    walk.begin(at(network))
    walk.end(at(network))
    assert walk._scores["head.weight"].shape == (5, 2)
    torch.testing.assert_close(walk._scores["head.weight"][:3], before / 2)
    assert walk._scores["head.weight"][3:].abs().max() == 0


# --- states, heads, runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ALL)
def test_a_regulariser_goes_on_from_its_state(make, opened):
    place = few(opened(), 2)
    regulariser, other = make(), make()
    regulariser.begin(place)
    place.network.train()
    CrossEntropy()(place.network, place.revealed.batch(place.memory.index))[0].backward()
    with torch.no_grad():
        for p in place.network.parameters():
            p -= 0.1 * p.grad
    regulariser.follow(place.network)
    regulariser.end(place)
    other.load_state_dict(regulariser.state_dict(), place.network)
    with torch.no_grad():
        for p in place.network.parameters():
            p += 0.3
    assert other.penalty(place.network).item() == regulariser.penalty(place.network).item() > 0
    copies = {L2: 1, EWC: 2, MAS: 2, RWalk: 3}[make]
    assert other.nbytes() == regulariser.nbytes() == copies * 4 * sum(p.numel() for p in place.network.parameters())


@pytest.mark.parametrize("make", ALL)
def test_weights_without_rows_are_held_back_as_others(make, opened):
    """The scale of a cosine head is a single number; two steps, so that an importance meets an earlier one."""
    place = few(opened(1, None, "head=cosine"), 2)
    scale, regulariser = place.network.head.temperature, make()
    for _ in range(2):
        regulariser.begin(place)
        place.network.train()
        CrossEntropy()(place.network, place.revealed.batch(place.memory.index))[0].backward()
        with torch.no_grad():
            scale -= 0.1
        regulariser.follow(place.network)
        regulariser.end(place)
        place.network.zero_grad(set_to_none=True)
    with torch.no_grad():
        scale += 2
    regulariser.penalty(place.network).backward()
    assert float(scale.grad) > 0


@pytest.mark.parametrize("method", ["l2", "ewc", "mas", "rwalk"])
def test_a_run_pays_for_its_penalties_and_ends_elsewhere_than_naive_training(go, method):
    naive, run = go("glyphs", "naive"), go("glyphs", method, "regulariser.strength=1.0")
    learner = run.parts.learner
    assert not torch.equal(learner.network.head.weight, naive.parts.learner.network.head.weight)
    backbone = sum(p.numel() for p in learner.network.backbone.parameters())
    each = [10, 16, 16] if method == "rwalk" else [0, 5, 5] if method == "l2" else [0, 6, 6]
    updates = run.steps["updates"].tolist()
    assert run.category("regularise") == [updates[i] * each[i] * (backbone + 65 * (13 + 3 * i)) for i in range(3)]
    assert (np.array(run.category("probe")) > 0).all() == (method in ("ewc", "mas"))


def test_a_strong_penalty_keeps_the_weights_where_they_were(go):
    """From the second step on: the way of the old rows is shorter."""

    def way(strength):
        starts = {}

        def watch(parts):
            begin = parts.learner.regulariser.begin

            def began(place):
                starts[place.step] = place.network.backbone.bn.weight.detach().clone()
                begin(place)

            parts.learner.regulariser.begin = began

        run = go("glyphs", "l2", f"regulariser.strength={strength}", change=watch)
        return float((run.parts.learner.network.backbone.bn.weight.detach() - starts[2]).norm())

    assert way(5.0) < 0.7 * way(0.0)


@pytest.mark.parametrize(
    ("make", "settings", "key"),
    [
        (L2, {"strength": -1}, "strength"),
        (EWC, {"samples": 0}, "samples"),
        (EWC, {"spend": 1.5}, "spend"),
        (MAS, {"decay": -0.1}, "decay"),
        (RWalk, {"rate": 2}, "rate"),
        (RWalk, {"interval": 0}, "interval"),
        (RWalk, {"epsilon": 0}, "epsilon"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, settings, key):
    with pytest.raises(UserError, match=rf"regulariser\.{key}"):
        make(**settings)
