"""What else an allowance may be counted in, and the cap on what is stored."""

import copy
import itertools

import numpy as np
import pytest
import torch

from budgetcl.budget import currencies
from budgetcl.budget.allowance import Budget
from budgetcl.budget.currencies import Iterations, MemoryAdjusted, Seconds
from budgetcl.configuration import compose, plain, run_id
from budgetcl.errors import UserError
from budgetcl.metrics.summary import Spending


def adjusted(run, rows):
    """Memory-adjusted FLOPs of rows of the ledger, one charge at a time, as the paper has it."""
    total = 0
    for row in np.flatnonzero(rows):
        step, price, count, flops = (run.ledger[name][row] for name in ("step", "price", "count", "flops"))
        if price not in run.prices:
            total += int(flops)
            continue
        each, memory = int(flops) // int(count), run.prices[price]["memory"]
        for _ in range(int(count)):
            total += each * memory // int(run.steps["reference_memory"][step])
    return total


def learning(run):
    return run.ledger["category"] != "predict"


# --- iterations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["naive", "kd_mse", "max_loss", "head_only"])
def test_iterations_count_updates_and_nothing_else(go, method):
    run = go("glyphs", method, "currency=iterations")
    assert run.steps["updates"].tolist() == [4, 4, 4]
    assert run.steps["allowance"].tolist() == run.steps["spent"].tolist() == [4, 4, 4]
    assert run.category("train") == [4, 4, 4]
    assert run.ledger["charged"][run.ledger["category"] != "train"].sum() == 0
    assert run.audit()["agrees"]


def test_flops_are_recorded_all_the_same(go):
    run = go("glyphs", "kd_mse", "currency=iterations")
    by_flops = go("glyphs", "kd_mse", "budget.free=[teacher]")
    assert run.steps["updates"].tolist() == by_flops.steps["updates"].tolist()
    for category in ("train", "teacher"):
        assert run.category(category, "flops") == by_flops.category(category, "flops")


def test_an_allowance_in_flops_cannot_be_counted_in_updates():
    with pytest.raises(UserError, match="the allowance is counted in updates"):
        Budget(flops=1000, currency=Iterations())


# --- memory-adjusted FLOPs ---------------------------------------------------------------------------------------


def test_the_reference_is_not_adjusted_and_its_bytes_are_in_the_record(go):
    run = go("glyphs", "naive", "currency=memory_adjusted")
    assert run.steps["updates"].tolist() == [4, 4, 4]
    assert run.steps["spent"].tolist() == run.steps["allowance"].tolist()
    train = run.ledger["category"] == "train"
    memory = [run.prices[price]["memory"] for price in run.ledger["price"][train]]
    assert run.steps["reference_memory"].tolist() == memory  # naive makes the reference's update


def test_every_charge_is_adjusted_by_the_bytes_that_it_needs(go):
    run = go("glyphs", "kd_mse", "currency=memory_adjusted")
    assert run.steps["spent"].sum() == run.ledger["charged"].sum() == adjusted(run, learning(run))
    assert (run.steps["spent"] <= run.steps["allowance"]).all()
    teacher = run.ledger["category"] == "teacher"
    assert 0 < run.ledger["charged"][teacher].sum() < run.ledger["flops"][teacher].sum()  # keeps no activations


def test_the_bytes_of_an_update_are_what_torch_holds_at_once(go):
    """Weights, gradients, momentum and what autograd saves: counted by hooks on a real update."""
    run = go("glyphs", "naive")
    network, batch = copy.deepcopy(run.parts.learner.network), 8  # other tests look at the run, too
    network.train()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = torch.zeros(batch, *run.parts.source.pixels.shape, dtype=torch.uint8)
        torch.nn.functional.cross_entropy(network(x).logits, torch.zeros(batch, dtype=torch.int64))
    own = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*network.parameters(), *network.buffers())
    }
    size = sum(own.values()) + sum(n for place, n in kept.items() if place not in own)
    size += 2 * sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    assert run.steps["reference_memory"][-1] == pytest.approx(size, rel=0.02)  # the images as floats come and go


# --- one run tells all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("currency", ["flops", "iterations", "memory_adjusted", "delay"])
@pytest.mark.parametrize("method", ["kd_mse", "max_loss"])
def test_a_run_tells_what_it_spent_in_every_currency(go, method, currency):
    run = go("glyphs", method, f"currency={currency}")
    said, rows = Spending()(run), learning(run)
    assert said["updates"] == run.steps["updates"].sum()
    assert said["flops"] == run.ledger["flops"][rows].sum() + run.steps["paid"].sum()
    assert said["adjusted_flops"] == adjusted(run, rows) + run.steps["paid"].sum()
    assert said["adjusted_flops"] < said["flops"]  # both look at many images without a gradient
    assert said["learning_seconds"] == pytest.approx(run.steps["learning_seconds"].sum())
    assert 0 < said["learning_seconds"] < said["seconds"]
    updates, reference = (run.steps[name].astype(object) for name in ("updates", "reference_flops"))
    assert said["delay"] == said["flops"] / (updates * reference).sum()
    assert said["delay"] > 1.1  # a teacher, or scored candidates, beside each update
    enforced = {"iterations": "updates", "memory_adjusted": "adjusted_flops"}.get(currency, "flops")
    assert said[enforced] == run.steps["spent"].sum()


# --- seconds -----------------------------------------------------------------------------------------------------


def test_seconds_end_a_step_when_they_are_over(go):
    run = go("glyphs", "naive", "currency=seconds", "currency.budget=0.2")
    assert run.steps["allowance"].tolist() == [200_000_000] * 3
    assert (run.steps["spent"] <= run.steps["allowance"]).all()
    assert run.steps["spent"].sum() / run.steps["allowance"].sum() > 0.5
    assert run.steps["updates"].min() > 0


def test_work_costs_the_time_since_the_work_before(monkeypatch):
    clock = itertools.count(start=1_000, step=250)
    monkeypatch.setattr(currencies.time, "perf_counter_ns", lambda: next(clock))
    seconds = Seconds(2.5)
    seconds.open(None, torch.device("cpu"))
    assert [seconds.cost("train", 10**9, None) for _ in range(3)] == [250, 250, 250]
    assert seconds.allowance(123, 4) == 2_500_000_000


@pytest.mark.parametrize("budget", [0, -1, True, "long", float("inf")])
def test_seconds_that_are_none_are_refused(budget):
    with pytest.raises(UserError, match="a positive number of seconds"):
        Seconds(budget)


# --- stream delay ------------------------------------------------------------------------------------------------


def test_with_delay_credit_gathers_until_it_pays_for_an_update(go):
    run = go("uploads", "naive", "budget=delay", "budget.updates=0.45")
    # credit: .45 .9 1.35 -> .35 .8 1.25 -> .25 .7
    assert run.steps["updates"].tolist() == [0, 0, 1, 0, 1, 0]
    assert run.steps["spent"].sum() <= run.steps["allowance"].sum()


def test_a_dearer_update_waits_longer(go):
    cheap, dear = (go("uploads", m, "budget=delay", "budget.updates=0.7") for m in ("naive", "kd_mse"))
    assert 0 < dear.steps["updates"].sum() < cheap.steps["updates"].sum()
    said = [Spending()(run) for run in (cheap, dear)]
    assert said[0]["delay"] == 1
    assert said[0]["missed"] == (cheap.steps["updates"] == 0).mean() < said[1]["missed"]


def test_the_delay_is_the_price_of_an_update_and_all_beside_it_in_reference_updates(go):
    assert Spending()(go("glyphs", "naive"))["delay"] == 1
    assert Spending()(go("glyphs", "head_only"))["delay"] == pytest.approx(0.35, abs=0.03)  # a forward, as priced
    assert Spending()(go("glyphs", "kd_mse"))["delay"] == pytest.approx(4 / 3, abs=0.03)  # and a teacher's
    assert np.isnan(Spending()(go("uploads", "nmc"))["delay"])


def test_delay_as_a_currency_is_the_budget_of_that_name():
    one, other = (plain(compose(["stream=uploads", choice])) for choice in ("currency=delay", "budget=delay"))
    assert run_id(one) == run_id(other)
    assert one["budget"] == other["budget"]
    assert one["budget"]["rest"] == "carry"


def test_memory_adjusted_credit_is_in_the_unit_of_the_allowance():
    """What is carried over is capped by one reference update, in the same unit."""
    assert MemoryAdjusted().allowance(77, 3) == 77


# --- bytes -------------------------------------------------------------------------------------------------------


def test_what_is_stored_beyond_the_cap_is_refused_with_the_numbers(go):
    stored = int(go("glyphs", "kd_mse").steps["stored"].max())
    with pytest.raises(UserError, match=rf"bytes are stored \(.*\), budget.bytes allows {stored - 1:,}") as error:
        go("glyphs", "kd_mse", f"budget.bytes={stored - 1}")
    assert "\n" not in str(error.value)


def test_a_cap_that_holds_changes_nothing(go, same):
    run = go("glyphs", "kd_mse")
    capped = go("glyphs", "kd_mse", f"budget.bytes={int(run.steps['stored'].max())}")
    same(capped.predictions, run.predictions)
    same(capped.ledger, run.ledger)


def test_a_cap_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"budget\.bytes"):
        Budget(updates=1, bytes=0)
