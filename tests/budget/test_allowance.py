"""What an allowance buys: counted by hand from the layers of the embedded backbone, not from the price list."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from budgetcl.assemble import build
from budgetcl.budget.allowance import Budget
from budgetcl.configuration import compose
from budgetcl.errors import UserError

WIDTH, STEM = 64, 25 * 16 * 12 * 12  # features; multiply-adds of the stem, which needs no gradient of the images
BODY = (
    STEM
    + 2 * 9 * 16 * 16 * 12 * 12
    + (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32) * 6 * 6
    + (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64) * 3 * 3
)
CONVOLUTIONS = 25 * 16 + 2 * 9 * 16 * 16 + 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64
NORMS = 2 * (16 + 2 * 16 + 3 * 32 + 3 * 64)
BATCH = 8


def forward(classes):
    """FLOP (2 x multiply-add) of one image."""
    return 2 * (BODY + WIDTH * classes)


def head(classes):
    return (WIDTH + 1) * classes


def update(classes, batch=BATCH):
    """Forward, gradients of weights and of inputs (not of the images), and SGD with momentum and decay: 6 a weight."""
    return batch * (3 * forward(classes) - 2 * STEM) + 6 * (CONVOLUTIONS + NORMS + head(classes))


def head_update(classes, batch=BATCH):
    """A frozen backbone: its forward, the head's forward and weight gradient, and 6 a weight of the head."""
    return batch * (forward(classes) + 2 * WIDTH * classes) + 6 * head(classes)


def allowances(run, updates):
    return [int(Fraction(str(updates)) * update(classes)) for classes in run.steps["classes"].tolist()]


@pytest.mark.parametrize(
    ("stream", "settings", "updates"),
    [
        ("glyphs", [], 1),
        ("glyphs", ["stream.order=data"], 4),
        ("glyphs", ["stream.pretrain_classes=0"], 7),  # the head grows from nothing
        ("uploads", [], 3),  # the head grows now and then
        ("uploads", ["budget.updates=2.9"], 2.9),
        ("uploads", ["budget=passes", "budget.updates=null", "budget.passes=2"], 4),  # 2 x 16 samples, 8 a batch
    ],
)
def test_naive_makes_exactly_the_updates_of_its_budget_in_every_step(go, stream, settings, updates):
    if not any(setting.startswith("budget") for setting in settings):
        settings = [*settings, f"budget.updates={updates}"]
    run = go(stream, "naive", *settings)
    assert run.steps["updates"].tolist() == [int(updates)] * len(run.steps["updates"])
    assert run.steps["allowance"].tolist() == allowances(run, updates)
    assert run.steps["spent"].tolist() == [int(updates) * update(c) for c in run.steps["classes"].tolist()]


@pytest.mark.parametrize("stream", ["glyphs", "uploads"])
@pytest.mark.parametrize("method", ["class_balanced", "fifo", "er"])
def test_samplers_that_ask_the_network_nothing_cost_nothing(go, stream, method):
    run = go(stream, method)
    assert run.steps["updates"].tolist() == go(stream, "naive").steps["updates"].tolist()


@pytest.mark.parametrize("stream", ["glyphs", "uploads"])
def test_distillation_pays_for_a_teacher_that_knows_the_classes_of_the_step_before(go, stream):
    run = go(stream, "kd_mse", "budget.updates=20")
    classes = run.steps["classes"].tolist()
    before = [10, *classes[:-1]] if stream == "glyphs" else [0, *classes[:-1]]
    teacher = [BATCH * forward(c) if c else 0 for c in before]  # none before the first class
    expected = [a // (update(c) + t) for a, c, t in zip(allowances(run, 20), classes, teacher)]
    assert run.steps["updates"].tolist() == expected
    assert run.category("teacher") == [n * t for n, t in zip(expected, teacher)]
    assert expected[1:] == [14] * len(expected[1:])  # 3/4 of 20, less what the stem's missing gradient saves


def test_head_only_makes_about_three_times_the_updates(go):
    run = go("glyphs", "head_only")
    expected = [a // head_update(c) for a, c in zip(allowances(run, 4), run.steps["classes"].tolist())]
    assert run.steps["updates"].tolist() == expected
    assert set(expected) == {11}


def test_max_loss_pays_for_the_forward_and_the_score_of_each_candidate(go):
    run = go("glyphs", "max_loss", "budget.updates=9")
    seen = 80
    for step, (classes, allowance) in enumerate(zip(run.steps["classes"].tolist(), allowances(run, 9))):
        seen += 24
        candidate = forward(classes) + 5 * classes
        candidates = min(int(0.1667 * allowance) // candidate, seen)
        assert run.category("score")[step] == candidates * forward(classes)
        assert run.category("select")[step] == candidates * 5 * classes
        assert run.steps["updates"][step] == (allowance - candidates * candidate) // update(classes)


@pytest.mark.parametrize("rest", ["stop", "truncate", "carry"])
@pytest.mark.parametrize(
    ("stream", "method"),
    [
        ("glyphs", "kd_mse"),
        ("glyphs", "max_loss"),
        ("glyphs", "head_only"),
        ("uploads", "naive"),
        ("uploads", "constant"),
    ],
)
def test_nobody_spends_more_than_the_allowance(go, stream, method, rest):
    run = go(stream, method, f"budget.rest={rest}", "budget.updates=3.7")
    steps = run.steps
    granted = np.array(allowances(run, 3.7))
    assert steps["allowance"].tolist() == granted.tolist()
    assert (steps["spent"] <= granted + steps["carried_in"]).all()
    assert (steps["spent"].cumsum() <= granted.cumsum()).all()
    one = (
        1.4 if method == "kd_mse" else 1
    )  # the price of an update in reference updates, its teacher's forward included
    assert (steps["carried_in"] <= [one * update(c) for c in steps["classes"].tolist()]).all()
    assert rest == "carry" or not steps["carried_in"].any()
    rows = run.ledger["charged"]
    per_step = [rows[run.ledger["step"] == step].sum() for step in range(len(granted))]
    assert steps["spent"].tolist() == per_step


def test_carry_saves_up_where_an_allowance_is_a_fraction_of_an_update(go):
    run = go("uploads", "naive", "budget.rest=carry", "budget.updates=0.4")
    # 0.4, 0.8, 1.2: one update in three steps at first; the rest is carried, as far as it is below one update.
    left, expected = 0, []
    for allowance, classes in zip(allowances(run, 0.4), run.steps["classes"].tolist()):
        total = allowance + min(left, update(classes))
        expected.append(total // update(classes))
        left = total - expected[-1] * update(classes)
    assert run.steps["updates"].tolist() == expected
    assert 0 in expected
    assert sum(expected) == 2


def test_an_update_dearer_than_the_reference_is_saved_up_for(go):
    # Distillation costs 1.34 of a reference update from the second step on: 0.5 a step pay for it in every third.
    run = go("uploads", "kd_mse", "budget.rest=carry", "budget.updates=0.5")
    assert 1 <= run.steps["updates"][1:].sum() <= 0.5 / 1.33 * len(run.steps["updates"])
    assert run.steps["carried_in"].max() > update(int(run.steps["classes"].max())) * 0.5


def test_what_may_never_be_saved_up_is_refused(go):
    with pytest.raises(UserError, match=r"step \d: the allowance of .* at most does not pay for one update"):
        go("uploads", "kd_mse", "budget.rest=carry", "budget.updates=0.01")


def test_truncate_spends_the_rest_on_a_smaller_last_batch(go):
    sizes = {"stop": [], "truncate": []}
    for rest, seen in sizes.items():

        def watch(parts, seen=seen):
            make = parts.learner._objective

            class Watched(type(make)):
                def __call__(self, network, batch):
                    if type(batch.x) is torch.Tensor:  # a fake one only asks for the price
                        seen.append(len(batch))
                    return super().__call__(network, batch)

            parts.learner._objective = Watched()

        run = go("glyphs", "naive", f"budget.rest={rest}", "budget.updates=2.6", change=watch)
        if rest == "truncate":
            for step, classes in enumerate(run.steps["classes"].tolist()):
                left = allowances(run, 2.6)[step] - 2 * update(classes)
                last = max(n for n in range(BATCH) if n == 0 or update(classes, n) <= left)
                assert sizes["truncate"][3 * step : 3 * step + 3] == [8, 8, last]
                assert run.steps["spent"][step] == 2 * update(classes) + update(classes, last)
    assert sizes["stop"] == [8, 8] * 3


def test_an_uncharged_teacher_leaves_the_updates_of_naive_and_is_still_recorded(go):
    free = go("glyphs", "kd_mse", "budget.free=[teacher]")
    assert free.steps["updates"].tolist() == go("glyphs", "naive").steps["updates"].tolist()
    assert free.category("teacher") == [0, 0, 0]
    assert free.category("teacher", "flops") == free.steps["uncharged"].tolist()
    assert free.category("teacher", "flops")[0] == 4 * BATCH * forward(10)


def test_absolute_flops_are_the_same_in_every_step(go):
    run = go("glyphs", "naive", "budget=flops", "budget.updates=null", f"budget.flops={5 * update(19)}")
    assert run.steps["allowance"].tolist() == [5 * update(19)] * 3
    assert run.steps["updates"].tolist() == [5 * update(19) // update(c) for c in (13, 16, 19)]


class _Expensive:
    """A reference whose update costs an odd number of FLOPs beyond what floats hold."""

    batch = 1500

    def update(self, classes):
        return SimpleNamespace(total=2**55 + 1)


@pytest.mark.parametrize("updates", [400, 400.0, 0.5])
def test_the_allowance_is_exact_beyond_the_integers_that_floats_hold(updates):
    allowance, whole = Budget(updates=updates).grant(_Expensive(), 10, 100)
    assert whole == int(updates)
    assert allowance == int(Fraction(updates) * (2**55 + 1))
    assert allowance // (2**55 + 1) == int(updates)


def test_a_list_of_updates_has_one_number_a_step_and_its_last_one_stands_for_all_others():
    budget = Budget(updates=[3, 0, 1.5])
    granted = [budget.grant(_Expensive(), 10, 100, step) for step in range(5)]
    assert granted == [(3 * (2**55 + 1), 3), (0, 0), *[(int(Fraction(3, 2) * (2**55 + 1)), 1)] * 3]
    assert budget.updates_of(5) == 7.5
    assert Budget(updates=2).updates_of(5) == 10


@pytest.mark.parametrize("updates", [[], [0, 0], [1, -1], ["a"], [1, None]])
def test_a_list_that_grants_nothing_or_no_numbers_is_refused(updates):
    with pytest.raises(UserError, match="numbers from 0 on, not all 0, are expected"):
        Budget(updates=updates)


def test_a_step_that_is_granted_nothing_passes_without_an_update(go):
    run = go("glyphs", "naive", "budget.updates=[2,0,3]")
    assert run.steps["updates"].tolist() == [2, 0, 3]
    assert run.steps["allowance"][1] == 0
    assert run.audit()["agrees"]


def test_a_category_by_name_is_as_good_as_a_list_of_one():
    assert Budget(updates=1, free="teacher").free == ("teacher",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of them"),
        ({"updates": 1, "flops": 1}, "exactly one of them"),
        ({"updates": -1}, "budget.updates=-1 given; a positive number"),
        ({"updates": float("nan")}, "budget.updates=nan given"),
        ({"updates": True}, "budget.updates=True given"),
        ({"updates": "many"}, "budget.updates='many' given"),
        ({"passes": 0}, "budget.passes=0 given"),
        ({"flops": 1.5}, "budget.flops=1.5 given; an integer"),
        ({"flops": 0}, "budget.flops=0 given"),
        ({"updates": 1, "rest": "sell"}, "budget.rest='sell' given"),
        ({"updates": 1, "free": ["teachers"]}, "did you mean 'teacher'"),
    ],
)
def test_a_budget_that_is_none_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Budget(**settings)


@pytest.mark.parametrize("stream", ["glyphs", "uploads", "table", "cloc"])
@pytest.mark.parametrize(
    ("budget", "given"),
    [("updates", "updates=7"), ("passes", "passes=2"), ("flops", "flops=1000000000"), ("delay", "updates=2")],
)
def test_every_kind_of_budget_can_be_chosen_on_every_stream(stream, budget, given):
    path = ["stream.path=photos.csv"] if stream in ("table", "cloc") else []
    cfg = compose([f"stream={stream}", f"budget={budget}", f"budget.{given}", *path])
    made, (name, _, value) = build(cfg.budget), given.partition("=")
    assert getattr(made, name) == int(value)
