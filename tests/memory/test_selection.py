"""What all samplers that choose among candidates share: how many there are, what they cost, when they are chosen."""

from dataclasses import replace

import numpy as np
import pytest

from budgetcl.errors import UserError
from budgetcl.memory.diverse import Herding, KMeans
from budgetcl.memory.interference import GSS, MIR
from budgetcl.memory.memory import Memory
from budgetcl.memory.scored import MaxLoss
from budgetcl.memory.selection import Selection

SELECTIONS = [MaxLoss, Herding, KMeans, GSS]
EACH = 5 * 16  # FLOPs of a loss of 16 classes


class All(Selection):
    """Chooses without looking."""

    def price(self, n, kept):
        return 0

    def select(self, candidates, kept):
        return candidates[:kept]


def first_draw(sampler, place, n=8):
    sampler.begin(place)
    return sampler.draw(n, 0)


@pytest.mark.parametrize("make", SELECTIONS)
def test_samples_of_the_step_are_candidates_like_all_others(place, drawn, make):
    assert drawn(make(spend=0.9, keep=1), place, 8, 200) == set(range(128))


@pytest.mark.parametrize("make", SELECTIONS)
@pytest.mark.parametrize(("keep", "kept"), [(0.25, 32), (0.01, 8), (1, 128)])
def test_as_many_as_asked_are_kept_and_at_least_a_batch(place, drawn, make, keep, kept):
    assert len(drawn(make(spend=0.9, keep=keep), place, 8, 250)) == kept


def test_fewer_candidates_are_a_uniform_draw_from_everything_seen(place):
    count = np.zeros(128)
    for step in range(400):
        sampler = All(candidates=20, keep=1, spend=1)
        chosen = first_draw(sampler, replace(place, step=step), 20)
        assert len(set(chosen.tolist())) == 20
        count[chosen] += 1
    assert abs(count / 400 - 20 / 128).max() < 5 * np.sqrt(20 / 128 / 400)


@pytest.mark.parametrize("make", SELECTIONS)
@pytest.mark.parametrize("spend", [0.03, 0.1, 1])
def test_no_more_is_spent_than_the_share_and_no_further_candidate_fits(place, make, spend):
    allowance = place.compute.ledger.remaining
    sampler = make(spend=spend, keep=0.5)
    first_draw(sampler, place)
    spent = place.compute.ledger.spent
    assert spent <= spend * allowance
    if spend < 1:
        assert spent + 2 * place.price() > spend * allowance
    else:
        assert spent >= 128 * place.price()


def test_a_number_of_candidates_bounds_them_beside_the_share(place, spent):
    first_draw(MaxLoss(spend=1, candidates=9), place)
    assert spent("score") == 9 * place.price()


@pytest.mark.parametrize("refresh", [1, 3])
def test_candidates_are_chosen_anew_as_often_as_stated_and_share_the_spending(place, spent, refresh):
    """The rest of the step is spent in twelve parts, as if by updates."""
    ledger = place.compute.ledger
    allowance = ledger.remaining
    sampler = MaxLoss(spend=0.1, keep=0.5, refresh=refresh)
    sampler.begin(place)
    scored = []
    for update in range(12):
        sampler.draw(8, update)
        scored.append(spent("score"))
        ledger.charge([("train", int(0.9 * allowance / 12), "update")])
    once = int(0.1 * allowance / refresh) // (place.price() + EACH)
    steps = np.diff([0, *scored]) / place.price()
    assert steps[steps > 0].tolist() == [once] * refresh
    if refresh == 3:
        at = np.flatnonzero(steps).tolist()  # after about no, a third and two thirds of what is spent from the first on
        assert at[0] == 0
        assert 3 <= at[1] <= 5
        assert 6 <= at[2] <= 9


def test_another_choice_draws_other_candidates(place):
    sampler = MaxLoss(spend=1, candidates=10, keep=1, refresh=2)
    first = {*first_draw(sampler, place, 10).tolist()}
    place.compute.ledger.charge([("train", 1, "update")])
    place.compute.ledger.charge([("train", place.compute.ledger.remaining // 2 + 1, "update")])
    assert {*sampler.draw(10, 1).tolist()} != first


def test_asking_for_the_price_costs_nothing(place):
    place.price()
    assert place.compute.ledger.spent == 0


def test_a_share_that_pays_for_no_image_or_for_less_than_a_batch_is_refused(place):
    with pytest.raises(UserError, match=r"spend=0.0001 of this step's allowance does not pay for scoring one image"):
        first_draw(MaxLoss(spend=0.0001), place)
    with pytest.raises(UserError, match=r"spend=0.005 in 20 parts of this step's allowance does not pay"):
        first_draw(MaxLoss(spend=0.005, refresh=20), place)
    with pytest.raises(UserError, match=r"a batch of 64 distinct samples was asked of the candidates that spend=0.005"):
        first_draw(MaxLoss(spend=0.005), place, 64)
    with pytest.raises(UserError, match=r"batch of 8 distinct samples .* the candidates that candidates=5 allows"):
        first_draw(MaxLoss(spend=1, candidates=5), place)
    with pytest.raises(UserError, match=r"batch of 129 distinct samples was asked of the memory, which holds 128"):
        first_draw(MaxLoss(spend=1), place, 129)


def test_a_share_that_leaves_nothing_to_train_with_is_refused(go):
    with pytest.raises(UserError, match="does not pay for one update"):
        go("glyphs", "max_loss", "sampler.spend=1", "budget.updates=3")


@pytest.mark.parametrize("setting", [{"spend": -0.1}, {"spend": 1.1}, {"keep": 2}, {"keep": "half"}])
def test_shares_that_are_none_are_refused(setting):
    with pytest.raises(UserError, match="a number from 0 to 1"):
        MaxLoss(**setting)


@pytest.mark.parametrize("setting", [{"candidates": 0}, {"candidates": 1.5}, {"refresh": 0}])
def test_numbers_that_are_none_are_refused(setting):
    with pytest.raises(UserError, match="an integer of at least 1"):
        MaxLoss(**setting)


@pytest.mark.parametrize("make", [*SELECTIONS, lambda spend: MIR(rate=0.1)])
@pytest.mark.parametrize("labels", [[0], [0, 15]])  # one class; classes in between of which nothing is left
def test_one_class_and_classes_without_samples_are_drawn_from_repeatably(place, drawn, make, labels):
    rows = np.flatnonzero(np.isin(place.memory.label, labels))
    state = place.memory.state_dict()
    memory = Memory()
    memory.load_state_dict({**state, **{name: state[name][rows] for name in ("index", "label", "used")}, "new": 3})
    where = replace(place, memory=memory)
    first, again = (drawn(make(spend=1), where, 4, 3) for _ in range(2))
    assert first == again
    assert max(first) < 8 * len(labels)


@pytest.mark.parametrize("make", SELECTIONS)
def test_draws_differ_by_update_and_by_seed(place, make):
    sampler = make(spend=0.1)
    first = first_draw(sampler, place).tolist()
    assert sampler.draw(8, 1).tolist() != first
    assert first_draw(make(spend=0.1), replace(place, seed=1)).tolist() != first
