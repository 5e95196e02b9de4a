"""Max-loss selection against a search by hand, with the same network."""

import numpy as np
import pytest
import torch

from budgetcl.budget.formulas import scores
from budgetcl.errors import UserError
from budgetcl.memory.sampler import Place
from budgetcl.memory.scored import MaxLoss
from budgetcl.streams.revealed import Revealed


@pytest.fixture
def place(tiny):
    """A step in the middle of the stream, its allowance open."""
    parts = tiny("glyphs", "max_loss", "budget.updates=40")
    revealed, learner = Revealed(parts.source), parts.learner
    steps = list(parts.source.stream)
    for step in steps[:2]:
        revealed.reveal(step)
        learner._take_in(step, revealed, parts.compute)
    with parts.compute.step(steps[1]):
        yield Place(0, 1, learner.memory, revealed, learner.network, parts.compute)


def losses_by_hand(place):
    with torch.no_grad():
        logits = place.network.eval()(place.revealed.images(place.memory.index)).logits.double().numpy()
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return -np.log(shifted[np.arange(len(logits)), place.memory.label] / shifted.sum(1))


def test_the_candidates_with_the_highest_loss_are_drawn_and_the_others_never(place):
    sampler = MaxLoss(spend=0.9, keep=0.25)
    sampler.begin(place)
    assert len(sampler._ranked) == 128, "everything was to be a candidate"
    worst = set(np.argsort(-losses_by_hand(place))[:32].tolist())
    drawn = [sampler.draw(8, update) for update in range(60)]
    assert all(len(set(rows.tolist())) == 8 for rows in drawn)
    assert set(np.concatenate(drawn).tolist()) == worst


def test_samples_of_the_step_are_candidates_like_all_others(place):
    sampler = MaxLoss(spend=0.9, keep=1)
    sampler.begin(place)
    drawn = set(np.concatenate([sampler.draw(8, update) for update in range(200)]).tolist())
    assert drawn == set(range(128))
    new = set(range(128 - place.memory.new, 128))
    chosen = MaxLoss(spend=0.9, keep=0.25)
    chosen.begin(place)
    assert set(np.concatenate([chosen.draw(8, u) for u in range(50)]).tolist()) & new  # fresh classes have high losses


def test_fewer_candidates_are_a_uniform_draw_from_everything_seen(place):
    sampler = MaxLoss(spend=0.1, keep=1)
    sampler.begin(place)
    ranked = sampler._ranked
    expected = place.random("candidates").choice(128, len(ranked), replace=False, shuffle=False)
    assert sorted(ranked.tolist()) == sorted(expected.tolist())
    assert 8 < len(ranked) < 128
    losses = losses_by_hand(place)[ranked]
    assert (np.diff(losses) <= 1e-6).all()


@pytest.mark.parametrize("spend", [0.05, 0.2, 1])
def test_scoring_spends_its_share_to_one_candidate_and_no_more(place, spend):
    allowance = place.compute.ledger.remaining
    MaxLoss(spend=spend).begin(place)
    each = place.price() + scores(1, 16)
    spent = place.compute.ledger.spent
    assert spent == min(int(spend * allowance) // each, 128) * each
    assert spent <= spend * allowance


def test_asking_for_the_price_costs_nothing(place):
    place.price()
    assert place.compute.ledger.spent == 0


def test_a_share_that_pays_for_no_image_or_for_less_than_a_batch_is_refused(place):
    with pytest.raises(UserError, match=r"spend=0.0001 of this step's allowance does not pay for scoring one image"):
        MaxLoss(spend=0.0001).begin(place)
    few = MaxLoss(spend=0.005)
    few.begin(place)
    with pytest.raises(UserError, match=r"a batch of 64 distinct samples was asked of the candidates that spend=0.005"):
        few.draw(64, 0)


def test_a_share_that_leaves_nothing_to_train_with_is_refused(go):
    with pytest.raises(UserError, match="does not pay for one update"):
        go("glyphs", "max_loss", "sampler.spend=1", "budget.updates=3")


@pytest.mark.parametrize("setting", [{"spend": -0.1}, {"spend": 1.1}, {"keep": 2}, {"keep": "half"}])
def test_shares_that_are_none_are_refused(setting):
    with pytest.raises(UserError, match="a number from 0 to 1"):
        MaxLoss(**setting)
