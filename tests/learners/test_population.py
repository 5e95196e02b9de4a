"""Several learners on one allowance: who leads, what the others take over, and what it costs."""

from math import expm1, isfinite, log, log2
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from budgetcl.budget.ledger import Exhausted
from budgetcl.errors import UserError
from budgetcl.learners.population import Population
from budgetcl.streams.batch import Query
from budgetcl.streams.revealed import Revealed

# --- with learners whose losses are given -----------------------------------------------------------------------------


class Scripted:
    """A learner whose loss at each update is a function of its rate and of how often it was asked in this step."""

    network = None

    def __init__(self, loss):
        self.loss, self.rate, self.weights, self.log = loss, 1.0, None, []

    def __deepcopy__(self, memo):
        return Scripted(self.loss)

    def begin(self, step, revealed, compute):
        self.log.append("begin")
        self.asked = 0
        if compute.refuses_to_begin:
            raise Exhausted("score", 1, 0)
        return SimpleNamespace(compute=compute)

    def update(self, place, update):
        if not place.compute.left:
            raise Exhausted("train", 1, 0)
        place.compute.left -= 1
        self.log.append((update, self.rate))
        wanted = self.loss(self.rate, self.asked)
        self.asked += 1
        self.weights = ("trained at", self.rate)
        # The cross-entropy of (0, a) for class 0 is log(1 + exp(a)).
        logit = log(expm1(wanted)) if isfinite(wanted) else wanted
        return torch.tensor([[0.0, logit]]), torch.zeros(1, dtype=torch.int64)

    def end(self, place):
        self.log.append("end")

    def state_dict(self):
        return {"weights": self.weights}

    def load_state_dict(self, state):
        self.weights = state["weights"]


def taught(population, updates, refuses_to_begin=False, rest="stop", most=10):
    """One step of so many affordable updates."""
    compute = MagicMock(device=torch.device("cpu"), left=updates, refuses_to_begin=refuses_to_begin, most=most)
    compute.ledger.allowance, compute.budget.rest = 10, rest
    population.fit(SimpleNamespace(number=0), None, compute)


def rates(population):
    """Each member's rates so far, without repetition."""
    return [list(dict.fromkeys(entry[1] for entry in m.log if type(entry) is tuple)) for m in population._members]


def test_the_rate_climbs_to_where_the_loss_is_smallest_and_stays():
    population = Population(Scripted(lambda rate, asked: 1 + abs(log2(rate / 4))), period=2)
    for _ in range(4):
        taught(population, 6)
    assert rates(population) == [[0.5, 1, 2], [1, 2, 4], [2, 4, 8]]
    assert population.state_dict()["rate"] == 4


def test_all_learners_make_the_same_update_in_turn_and_then_the_best_ones_weights_are_everybodys():
    population = Population(Scripted(lambda rate, asked: rate), factors=(3, 1, 2), period=2)
    taught(population, 7)
    first, second, third = (m.log for m in population._members)
    assert first == ["begin", (0, 3.0), (1, 3.0), (2, 3.0), "end"]
    assert second == ["begin", (0, 1.0), (1, 1.0), "end"]
    assert third == ["begin", (0, 2.0), (1, 2.0), "end"]
    assert {m.weights for m in population._members} == {("trained at", 1.0)}


def test_means_are_compared_where_some_made_an_update_more():
    """Sums of five updates would say the third: 6, 4 and 2.5."""
    losses = {0.5: (1, 5), 1.0: (2, 2), 2.0: (2.5,)}
    population = Population(Scripted(lambda rate, asked: losses[rate][asked]), period=1)
    taught(population, 5)
    assert population.state_dict()["best"] == 1


def test_before_each_was_asked_nobody_leads():
    population = Population(Scripted(lambda rate, asked: 1 / rate), period=1)
    taught(population, 2)
    assert (population.state_dict()["best"], population.state_dict()["rate"]) == (0, 1.0)
    assert [m.log[-1] for m in population._members] == ["end"] * 3


def test_a_step_that_is_refused_before_it_began_is_still_taken_in_by_every_learner():
    population = Population(Scripted(lambda rate, asked: rate))
    taught(population, 6, refuses_to_begin=True, rest="carry")
    assert [m.log for m in population._members] == [["begin"]] * 3
    with pytest.raises(UserError, match="does not pay for one update"):
        taught(population, 6, refuses_to_begin=True)


def test_a_step_that_affords_no_update_passes_where_it_may_be_saved_up_for():
    population = Population(Scripted(lambda rate, asked: rate))
    taught(population, 0, rest="carry")
    assert population.state_dict()["rate"] == 1.0
    with pytest.raises(UserError, match="does not pay for one update"):
        taught(population, 0)


def test_a_state_goes_on_with_rate_and_leader():
    population, other = (Population(Scripted(lambda rate, asked: 1 / rate), period=1) for _ in range(2))
    taught(population, 3)
    other.load_state_dict(population.state_dict())
    assert [m.weights for m in other._members] == [("trained at", 2.0)] * 3
    taught(other, 3)
    assert rates(other) == [[1.0], [2.0], [4.0]]


def test_a_choice_takes_as_many_steps_as_its_updates_do():
    """Sums over all steps are compared: 0.1 + 9 against 4 + 1 and 4 + 4, each of a step with one update of each."""
    losses = {0.5: [0.1, 9], 1.0: [4, 1], 2.0: [4, 4]}
    population = Population(Scripted(lambda rate, asked: losses[rate].pop(0)), period=2)
    taught(population, 3)
    assert {m.weights[1] for m in population._members} == {0.5, 1.0, 2.0}  # nobody took anything over
    assert population.state_dict()["rate"] == 1.0
    taught(population, 3)
    assert {m.weights[1] for m in population._members} == {1.0}
    assert population.state_dict()["best"] == 1
    assert not np.any(population.state_dict()["race"])


@pytest.mark.parametrize("diverged", [float("nan"), float("inf")])
def test_one_that_diverged_never_leads(diverged):
    population = Population(Scripted(lambda rate, asked: diverged if rate > 1 else rate), period=1)
    for _ in range(2):
        taught(population, 3)
    assert rates(population) == [[0.5, 0.25], [1, 0.5], [2, 1]]


def test_where_a_step_does_not_pay_for_all_those_who_waited_begin_the_next():
    population = Population(Scripted(lambda rate, asked: rate), period=2)
    made = lambda: [sum(type(entry) is tuple for entry in m.log) for m in population._members]  # noqa: E731
    taught(population, 2)
    assert made() == [1, 1, 0]
    taught(population, 2)
    assert made() == [2, 1, 1]
    taught(population, 2)
    assert made() == [2, 2, 2]
    assert population.state_dict()["rate"] == 0.5  # now each had its two


def test_a_state_between_two_choices_goes_on_with_them():
    losses = {0.5: [4, 4], 1.0: [4, 4], 2.0: [1, 5]}
    population, other = (Population(Scripted(lambda rate, asked: losses[rate].pop(0)), period=2) for _ in range(2))
    taught(population, 3)
    other.load_state_dict(population.state_dict())
    taught(other, 3)
    assert other.state_dict()["best"] == 2  # by 6, less than 8


@pytest.mark.parametrize("factors", [(), (1.0, 0.0), (-1.0,), (float("nan"),)])
def test_factors_that_are_none_are_refused(factors):
    with pytest.raises(UserError, match=r"learner\.factors="):
        Population(Scripted(None), factors)


def test_a_period_without_an_update_is_refused():
    with pytest.raises(UserError, match=r"learner\.period=0"):
        Population(Scripted(None), period=0)


# --- with networks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(tiny):
    """(steps, *overrides) -> the parts after so many steps, and what each member was given: (index, rate) by update."""

    def walk(count, *overrides):
        parts = tiny("glyphs", "polrs", *overrides)
        revealed, learner, seen = Revealed(parts.source), parts.learner, [[] for _ in range(3)]
        for member, given in zip(learner._members, seen):
            watch(member, given)
        for step in list(parts.source.stream)[:count]:
            revealed.reveal(step)
            with parts.compute.step(step):
                learner.fit(step, revealed, parts.compute)
        return parts, seen

    return walk


def watch(member, given):
    draw, update = member._sampler.draw, member.update

    def updated(place, number):
        result = update(place, number)
        given.append((given.pop(), [group["lr"] for group in member.optimiser.param_groups]))
        return result

    def drawn(n, number):
        rows = draw(n, number)
        given.append(rows.tolist())
        return rows

    member._sampler.draw, member.update = drawn, updated


def storages(value):
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage().data_ptr()} if value.numel() else set()
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(storages, value)) if isinstance(value, (list, tuple)) else set()


def test_the_learners_share_batches_but_no_tensor(steps):
    """Neither before nor after the best one's state was taken over, momentum and stored logits included."""
    parts, seen = steps(1, "objective=der", "budget.updates=6", "learner.period=2")
    members = parts.learner._members
    for member in members:
        assert len(member.memory.stored("logits", np.arange(len(member.memory)), 13)[1].nonzero()[0])
    held = [
        storages([*m.network.state_dict().values(), list(m.optimiser.state.values()), dict(m.memory._stored)])
        for m in members
    ]
    assert [len(tensors) for tensors in held] == [len(held[0])] * 3
    assert len(set.union(*held)) == 3 * len(held[0])
    draws = [[rows for rows, *_ in given] for given in seen]
    assert draws[0][:2] == draws[1][:2] == draws[2][:2]
    assert draws[0][0] != draws[0][1]


def test_after_a_step_all_have_the_leaders_weights_and_predict_as_it_does(steps):
    parts, _ = steps(2, "budget.updates=6", "learner.period=2")
    learner = parts.learner
    states = [m.network.state_dict() for m in learner._members]
    for other in states[1:]:
        assert all(torch.equal(other[name], value) for name, value in states[0].items())
    query = Query(parts.source.pixels, np.arange(12))
    with parts.compute.predicting(1, 12, 16):
        answers = learner.predict(query, parts.compute)
    with torch.no_grad():
        expected = learner._members[learner._best].network.eval()(query.x).logits.argmax(1)
    assert answers.classes.tolist() == expected.tolist()
    assert learner.network is learner._members[learner._best].network


def test_each_learner_has_its_rate_on_the_schedule(steps):
    """A linear schedule: the first update of a step is made at the peak, whoever makes it, later ones below."""
    _, seen = steps(1, "budget.updates=6")
    made = [[entry[1] for entry in given if type(entry) is tuple] for given in seen]  # what was refused left its draw
    progress = [[lr / (0.1 * factor) for lr, _ in rates] for rates, factor in zip(made, (0.5, 1, 2))]
    expected = 1 - np.arange(6).reshape(2, 3) / 6  # six equal updates, in turn
    np.testing.assert_allclose(np.array(progress).T, expected, rtol=1e-6)
    assert all(backbone == head for rates in made for backbone, head in rates)


def test_a_round_costs_three_updates_and_the_samples_are_stored_once(go):
    run, naive = go("glyphs", "polrs", "budget.updates=7"), go("glyphs", "naive", "budget.updates=7")
    assert run.steps["updates"].tolist() == [7, 7, 7]
    assert run.steps["spent"].tolist() == naive.steps["spent"].tolist()
    stored, single = run.parts.learner.nbytes(), naive.parts.learner.nbytes()
    assert stored["samples"] == single["samples"]
    assert {kind: stored[kind] for kind in single if kind != "samples"} == {
        kind: 3 * n for kind, n in single.items() if kind != "samples"
    }
    assert run.audit()["agrees"]


def test_where_all_rates_are_equal_the_first_learner_does_what_a_single_one_does(go):
    """Each makes a third of the updates, on the same draws, so three on three times the allowance are one on one."""
    settings = ("schedule=constant", "learner.factors=[1.0,1.0,1.0]", "budget.updates=6")
    many = go("glyphs", "polrs", *settings).parts.learner.network.state_dict()
    one = go("glyphs", "naive", "schedule=constant", "budget.updates=2").parts.learner.network.state_dict()
    assert all(torch.equal(many[name], value) for name, value in one.items())


def test_of_equal_weights_no_rate_is_the_best_one(go):
    """Three updates a step are one of each: by its loss alone the first learner led every time, and rates vanished."""
    learner = go("uploads", "polrs", "budget.updates=3").parts.learner
    assert learner.state_dict()["rate"] in (0.5, 1.0, 2.0)  # of six steps, one choice
    assert learner.state_dict()["race"][2] == [1, 1, 1]
    hasty = go("uploads", "polrs", "budget.updates=3", "learner.period=1").parts.learner
    assert hasty.state_dict()["rate"] == 0.5**6
