"""MIR against a real step of a copied network; GSS against gradients by autograd and probabilities by hand."""

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional as F

from budgetcl.budget.ledger import Exhausted
from budgetcl.errors import UserError
from budgetcl.memory.interference import GSS, MIR, spread
from budgetcl.memory.memory import Memory
from budgetcl.randomness import generator

# --- MIR --------------------------------------------------------------------------------------------------------------


def losses(network, place, rows):
    with torch.no_grad():
        logits = network.eval()(place.revealed.images(place.memory.index[rows])).logits
    return F.cross_entropy(logits, torch.from_numpy(place.memory.label[rows]), reduction="none").numpy()


def drawn_once(sampler, place, n=8, update=0):
    sampler.begin(place)
    return sampler.draw(n, update)


def test_mir_retrieves_what_a_step_on_the_incoming_samples_would_harm_most(place):
    rows = drawn_once(MIR(rate=0.5, pool=200), place)
    incoming, retrieved = rows[:4], rows[4:]
    assert (incoming >= 128 - place.memory.new).all()
    assert len(set(rows.tolist())) == 8
    stepped = copy.deepcopy(place.network).eval()
    optimiser = torch.optim.SGD(stepped.parameters(), lr=0.5)
    batch = place.revealed.batch(place.memory.index[incoming])
    F.cross_entropy(stepped(batch.x).logits, batch.y).backward()
    optimiser.step()
    others = np.setdiff1d(np.arange(128), incoming)
    harm = losses(stepped, place, others) - losses(place.network, place, others)
    assert set(retrieved.tolist()) == set(others[np.argsort(-harm)[:4]].tolist())


def test_the_virtual_step_leaves_the_network_as_it_was(place):
    before = {name: value.clone() for name, value in place.network.state_dict().items()}
    drawn_once(MIR(rate=0.5), place)
    assert all(torch.equal(before[name], value) for name, value in place.network.state_dict().items())
    assert all(p.grad is None for p in place.network.parameters())


def test_the_rate_of_the_virtual_step_decides(place):
    small, large = (drawn_once(MIR(rate=rate, pool=20), place) for rate in (1e-3, 5.0))
    np.testing.assert_array_equal(small[:4], large[:4])
    assert set(small[4:].tolist()) != set(large[4:].tolist())


def test_candidates_change_with_every_update_and_hold_none_of_the_incoming(place):
    sampler = MIR(rate=0.1, pool=1)  # all candidates are retrieved
    sampler.begin(place)
    batches = [sampler.draw(8, update) for update in range(20)]
    assert all(len(set(rows.tolist())) == 8 for rows in batches)
    assert len({tuple(rows) for rows in batches}) == 20
    assert len(set(np.concatenate(batches)[:].tolist())) > 60


def test_an_update_pays_for_a_gradient_and_two_passes_over_the_candidates(place, spent):
    parameters = sum(p.numel() for p in place.network.parameters())
    batch = place.revealed.batch(place.memory.index[-3:])
    gradient = place.compute.prices.gradient(MIR(rate=1)._objective, place.network.eval(), batch).total
    sampler = MIR(rate=0.1, share=0.375, pool=2)
    sampler.begin(place)
    for update in range(3):
        sampler.draw(8, update)
    assert spent("score") == 3 * (gradient + 2 * parameters + 2 * 10 * place.price())
    assert spent("select") == 3 * 2 * 10 * 5 * 16
    # A gradient is at most three passes, a little less because the images need none.
    assert 2.8 * 3 * place.price() < gradient <= 9 * place.price()


def test_with_the_defaults_an_update_costs_five_halves_of_a_plain_one(place):
    batch = place.revealed.batch(place.memory.index[:32])
    plain = place.compute.prices.update(MIR(rate=1)._objective, place.network.train(), batch).total
    drawn_once(MIR(rate=0.1), place, n=32)
    assert place.compute.ledger.spent / plain == pytest.approx(1.5, rel=0.02)


def test_what_the_rest_does_not_pay_for_ends_the_step(place):
    place.compute.ledger.charge([("train", place.compute.ledger.remaining - 10 * place.price(), "rest")])
    with pytest.raises(Exhausted):
        drawn_once(MIR(rate=0.1), place)


def test_extreme_shares_and_small_memories(place):
    assert (drawn_once(MIR(rate=0.1, share=1), place) >= 104).all()
    assert place.compute.ledger.spent == 0  # nothing is retrieved, so nothing is asked
    rows = drawn_once(MIR(rate=0.1, share=0), place)
    assert rows[0] >= 104
    few = drawn_once(MIR(rate=0.1, share=1), place, n=40)  # 24 are new; 16 are retrieved
    assert (few[:24] >= 104).all()
    assert (few[24:] < 104).all()
    assert sorted(drawn_once(MIR(rate=0.1), place, n=128).tolist()) == list(range(128))
    with pytest.raises(UserError, match="batch of 129"):
        drawn_once(MIR(rate=0.1), place, n=129)


def test_where_nothing_is_new_nothing_interferes(place):
    memory = Memory()
    memory.load_state_dict({**place.memory.state_dict(), "new": 0})
    assert len(set(drawn_once(MIR(rate=0.1), replace(place, memory=memory)).tolist())) == 8
    assert place.compute.ledger.spent == 0


@pytest.mark.parametrize("setting", [{"rate": -1}, {"rate": 1, "share": 2}, {"rate": 1, "pool": 0}])
def test_settings_that_are_none_are_refused(setting):
    with pytest.raises(UserError, match="is expected"):
        MIR(**setting)


# --- GSS --------------------------------------------------------------------------------------------------------------


def pointing(*cosines):
    """Errors whose cosine with the first is as given, with equal features."""
    errors = torch.tensor([[c, np.sqrt(1 - c * c)] for c in (1.0, *cosines)])
    return errors, torch.ones(len(errors), 3)


def outcomes(errors, features, kept, compared=10, times=900):
    return Counter(
        tuple(spread(errors, features, kept, compared, generator(seed, "test")).tolist()) for seed in range(times)
    )


def test_a_gradient_like_those_kept_is_never_taken_in_and_an_opposite_one_always():
    assert outcomes(*pointing(1.0, 0.3), 1, times=50) == {(0,): 50}
    assert outcomes(*pointing(-1.0), 1, times=50) == {(1,): 50}


def test_a_challenger_wins_with_the_probability_of_the_paper():
    """The first scores 1, as there is nothing to compare it with, the challenger 1 - 0.5: it wins with 1 / 1.5."""
    counts = outcomes(*pointing(-0.5), 1)
    assert chisquare([counts[(1,)], counts[(0,)]], [600, 300]).pvalue > 1e-3


def test_the_challenged_one_is_drawn_in_proportion_to_the_scores():
    """Two alike score 1 and 2; a third with cosine -0.6 to both scores 0.4."""
    counts = outcomes(*pointing(1.0, -0.6), 2)
    first, second = 1 / 3 * 1 / 1.4, 2 / 3 * 2 / 2.4
    expected = [900 * first, 900 * second, 900 * (1 - first - second)]
    assert chisquare([counts[(2, 1)], counts[(0, 2)], counts[(0, 1)]], expected).pvalue > 1e-3


def test_features_pull_apart_as_well_as_errors():
    errors = torch.ones(2, 2)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert outcomes(errors, opposite, 1, times=20) == {(1,): 20}
    assert outcomes(-opposite, opposite, 1, times=20) == {(0,): 20}  # both opposite: the gradients are equal


def test_each_candidate_is_compared_with_so_many_drawn_from_those_kept():
    """The last opposes the first and leans a little to the others: only who meets the first alone lets it in."""
    errors, features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 1e-3]]), torch.ones(4, 2)
    counts = outcomes(errors, features, 3, compared=1, times=900)
    taken = sum(count for kept, count in counts.items() if 3 in kept)
    assert chisquare([taken, 900 - taken], [300, 600]).pvalue > 1e-3
    assert outcomes(errors, features, 3, compared=3, times=100) == {(0, 1, 2): 100}


def test_the_last_layers_gradient_is_the_one_that_autograd_finds(place, answers, monkeypatch):
    """The cosines that decide are those of real gradients of the head's weights."""
    seen = {}

    def watched(errors, features, kept, compared, random):
        seen.update(errors=errors, features=features)
        return spread(errors, features, kept, compared, random)

    monkeypatch.setattr("budgetcl.memory.interference.spread", watched)
    sampler = GSS(spend=1, candidates=6)
    sampler.begin(place)
    sampler.draw(2, 0)
    rows = place.random("candidates", 0).choice(128, 6, replace=False, shuffle=False)
    x, y = place.revealed.images(place.memory.index[rows]), torch.from_numpy(place.memory.label[rows])
    for i in range(6):
        loss = F.cross_entropy(place.network(x[i : i + 1]).logits, y[i : i + 1])
        (gradient,) = torch.autograd.grad(loss, [place.network.head.weight])
        torch.testing.assert_close(torch.outer(seen["errors"][i], seen["features"][i]), gradient, rtol=1e-3, atol=1e-5)


def test_gss_is_priced_by_passes_gradients_and_comparisons(place, spent):
    sampler = GSS(spend=1, keep=0.5, candidates=40, compared=7)
    sampler.begin(place)
    sampler.draw(8, 0)
    assert spent("score") == 40 * place.price()
    c, d = 16, 64
    assert spent("select") == 40 * 5 * c + 40 * (3 * (c + d) + 7 * (2 * (c + d) + 2))


def test_all_are_kept_where_as_many_are_asked(place, drawn):
    assert len(drawn(GSS(spend=1, keep=1, candidates=20), place, 4, 60)) == 20


def test_comparing_with_none_is_refused():
    with pytest.raises(UserError, match="compared=0 given"):
        GSS(compared=0)
