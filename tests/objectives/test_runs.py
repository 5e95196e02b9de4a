"""Objectives in runs of the real protocol: each learns something of its own, at the price that the counter sees."""

import pytest
import torch

DISTILLED = ("kd_bce", "kd_kl", "kd_cosine", "kd_mse", "kd_feature")
CONTROLS = {**dict.fromkeys(DISTILLED, "naive"), **dict.fromkeys(("der", "derpp", "ace", "uer", "pcr"), "er")}
CONTROLS |= {"derpp": "der", "prd": "fifo"}


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.parts.learner.network.backbone.parameters()])


@pytest.mark.parametrize("method", sorted(CONTROLS))
def test_an_objective_has_an_effect_beside_the_same_draws(go, method):
    """On as many updates, so that it is the loss that tells, not its price."""
    settings = ("budget.updates=5.9", "budget.free=[teacher]", "head=linear", "optimiser.lr=0.03")
    one, other = (go("glyphs", name, *settings) for name in (method, CONTROLS[method]))
    assert one.steps["updates"].tolist() == other.steps["updates"].tolist() == [5, 5, 5]
    assert (weights(one) - weights(other)).abs().max() > 1e-5


@pytest.mark.parametrize("method", sorted(CONTROLS))
@pytest.mark.parametrize("stream", ["glyphs", "uploads"])
def test_what_is_charged_is_what_the_counter_sees(go, stream, method):
    run = go(stream, method)
    assert run.audit()["agrees"]
    assert (run.steps["spent"] <= run.steps["allowance"]).all()
    taught = method in DISTILLED or method == "prd"
    assert all((flops > 0) == taught for flops in run.category("teacher")[1:])


@pytest.mark.parametrize("method", DISTILLED)
def test_a_teacher_is_one_forward_beside_each_update(go, method):
    """uploads has no class before the first step, so its first teacher is that of the second."""
    run, naive = go("uploads", method), go("uploads", "naive")
    assert run.category("teacher")[0] == 0
    assert run.category("train")[0] == naive.category("train")[0]
    forwards = [p for p in run.prices.values() if p["kind"] == "forward" and p["batch"] == 8]
    assert forwards
    for step in range(1, len(run.steps["updates"])):
        assert run.category("teacher")[step] / run.steps["updates"][step] in {p["flops"] for p in forwards}
