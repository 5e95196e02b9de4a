import copy
import dataclasses
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetcl import foresight
from budgetcl.budget.allowance import Budget
from budgetcl.budget.currencies import Seconds
from budgetcl.budget.prices import Prices
from budgetcl.budget.ranks import ALONE
from budgetcl.cli import main
from budgetcl.configuration import plain, run_id
from budgetcl.dry_run import rehearse, simulate
from budgetcl.errors import UserError
from budgetcl.foresight import LIGHT, crowded, warning
from budgetcl.late import Abridged, _tight, refusal
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.models.pretrained import torchvision
from budgetcl.records.record import find


class Tally:
    """Of so many steps."""

    def __init__(self, steps):
        self.steps = {"updates": [1] * steps}


class Steps(SimpleNamespace):
    def __len__(self):
        return self.steps


def parts(device="cpu", **budget):
    return SimpleNamespace(
        source=SimpleNamespace(stream=Steps(steps=10)),
        compute=SimpleNamespace(
            device=torch.device(device), prices=None, budget=Budget(**budget or {"passes": 3}), ranks=ALONE
        ),
    )


@pytest.fixture
def foreseen(monkeypatch):
    """(hours, FLOPs) makes a run take so many at the speed that is measured; returns how often that was asked."""
    asked = []

    def make(hours, flops=2 * LIGHT):
        monkeypatch.setattr(foresight, "rehearse", lambda *given: ("simulated", Tally(10)))
        monkeypatch.setattr(foresight, "whole", lambda *given: flops)
        monkeypatch.setattr(foresight, "speed", lambda simulated: asked.append(simulated) or flops / (3600 * hours))
        return asked

    return make


CFG = SimpleNamespace(method=SimpleNamespace(name="naive"), stream=SimpleNamespace(size=32))


def test_a_run_of_hours_says_so_and_what_makes_it_shorter(foreseen):
    foreseen(12.34)
    said = warning(CFG, parts())
    assert "estimated at 12.3 hours without a GPU" in said
    for hint in ("stream.size", "budget.passes (now 3)", "budgetcl price"):
        assert hint in said
    assert "\n" not in said


def test_a_run_of_less_than_an_hour_says_nothing(foreseen):
    asked = foreseen(0.9)
    assert warning(CFG, parts()) is None
    assert asked == ["simulated"]


def test_of_small_runs_and_on_a_gpu_the_speed_is_not_measured(foreseen):
    asked = foreseen(5, LIGHT / 2)
    assert warning(CFG, parts()) is None
    foreseen(5)
    assert warning(CFG, parts("cuda")) is None
    assert asked == []


def test_a_large_network_on_few_pictures_is_no_light_work():
    """So its speed is looked at. ViT-B/16 does 35 GFLOP a picture of 224 pixels; here are 3,000, three times."""
    network = Network(torchvision("vit_b_16"), LinearHead(768))
    network.grow(10, np.random.default_rng(0))
    forward = Prices().forward(network.eval(), torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).total
    assert 3 * 3 * 3000 * forward > 100 * LIGHT


@pytest.mark.parametrize("light", [0, LIGHT])
def test_what_a_run_cannot_pay_for_is_refused_before_anything_is_written(light, monkeypatch, tiny, tmp_path, capfd):
    """The first allowances pay for five updates, the third one for none."""
    monkeypatch.setattr(foresight, "LIGHT", light)
    overrides = tiny("glyphs", "kd_mse", "budget.updates=[5,5,0.1]").overrides
    assert main(["run", *overrides, f"output={tmp_path}"]) == 2
    assert "step 2: the allowance" in capfd.readouterr().err
    assert not list(tmp_path.rglob("run.json"))


def test_a_component_that_does_not_run_on_blank_images_is_said_and_no_more(monkeypatch, tiny):
    def fails(*given):
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(foresight, "rehearse", fails)
    parts = tiny("glyphs", "naive")
    assert "cannot be foreseen: ZeroDivisionError: by design" in warning(parts.cfg, parts)


def test_the_allowance_is_named_as_it_was_given(foreseen):
    foreseen(5)
    assert "budget.updates (now 1 to 30)" in warning(CFG, parts(updates=(1, 2, 30)))
    assert "budget.flops (now 1e+12)" in warning(CFG, parts(flops=10**12))


@pytest.mark.parametrize("method", ["naive", "last_label"])
def test_the_estimate_of_a_real_run_goes_by_its_work(monkeypatch, tiny, method):
    from budgetcl.assemble import make_parts

    cfg = tiny("uploads", method).cfg
    monkeypatch.setattr(foresight, "LIGHT", 0)
    assert warning(cfg, make_parts(cfg)) is None
    monkeypatch.setattr(foresight, "HOUR", 1e-9)
    said = warning(cfg, make_parts(cfg))
    if method == "last_label":  # which has no network
        assert said is None
    else:
        assert "hours without a GPU" in said
        assert "stream.size" not in said


@pytest.mark.parametrize(
    ("stream", "method", "batch", "there"),
    [
        ("uploads", "naive", 16, None),
        ("uploads", "naive", 17, 16),
        ("uploads", "polrs", 17, 16),
        ("glyphs", "naive", 104, None),  # 10 classes x 8 of pretraining, and 3 x 8 new ones
        ("glyphs", "naive", 105, 104),
        ("uploads", "gdumb", 13, 12),  # new samples must win their place first
        ("uploads", "reservoir", 17, 16),
    ],
)
def test_a_batch_larger_than_what_is_there_is_refused_before_the_run_or_cut_where_that_is_allowed(
    tiny, stream, method, batch, there
):
    given = ["budget.updates=60", f"learner{'.learner' if method == 'polrs' else ''}.batch={batch}"]
    if method in ("gdumb", "reservoir"):
        given.append("memory.capacity=12")
    made = tiny(stream, method, *given)
    if there is None:
        assert warning(made.cfg, made) is None
        return
    said = f"learner.batch={batch} given, and in step 0 {there} samples are there to learn from: lower reference.batch"
    with pytest.raises(UserError, match=said):
        warning(made.cfg, made)
    made = tiny(
        stream, method, *given, "learner.learner.short_batches=true" if method == "polrs" else "short_batches=true"
    )
    assert warning(made.cfg, made) is None


def test_where_a_batch_may_be_short_it_is_all_that_is_there_and_the_allowance_pays_for_more(go):
    cut = go("uploads", "naive", "learner.batch=24", "short_batches=true", "budget.updates=6")
    full = go("uploads", "naive", "learner.batch=16", "budget.updates=6")  # the first step reveals 16
    assert cut.steps["updates"][0] == full.steps["updates"][0] > cut.steps["updates"][1]


def test_a_permission_that_is_not_given_leaves_the_runs_identity_as_it_was(as_it_ships):
    refused, cut = plain(as_it_ships("stream=uploads")), plain(as_it_ships("stream=uploads", "short_batches=true"))
    before = copy.deepcopy(refused)
    del before["learner"]["short_batches"]
    assert run_id(refused) == run_id(before) != run_id(cut)


# 100 steps of 16; an allowance pays for looking at a step's pictures, and hardly for searching among all of them.
LONG = ("stream.samples=1600", "neighbours=null", "stream.occasions=5")


def long(tiny, updates, retention, *more):
    return tiny("uploads", "knn", *LONG, f"budget.updates={updates}", f"stream.retention={retention}", *more)


@pytest.fixture
def brief(monkeypatch):
    """Only three steps are rehearsed one by one before the tightest; returns whether all of them were, after that."""
    monkeypatch.setattr(foresight, "STEPS", 3)
    again = []

    def noted(*given):
        again.append("all")
        return simulate(*given)

    monkeypatch.setattr(foresight, "simulate", noted)
    return again


def whole_refusal(parts):
    """What the run itself would be refused for, step by step."""
    with pytest.raises(UserError) as error:
        simulate(parts, 0, parts.cfg.query)
    return str(error.value)


def test_an_overhead_that_grows_is_refused_before_the_run_with_its_step_and_its_numbers(brief, tiny, tmp_path, capfd):
    parts = long(tiny, 0.7, 800)
    late = whole_refusal(parts)
    assert int(re.match(r"step (\d+): predicting", late).group(1)) > 30
    assert main(["run", *parts.overrides, f"output={tmp_path}"]) == 2
    assert capfd.readouterr().err == f"budgetcl: {late}\n"
    assert not list(tmp_path.rglob("run.json"))
    assert brief == ["all"]


def test_a_run_that_fits_is_not_refused_and_rehearsed_once(brief, tiny):
    parts = long(tiny, 0.7, 800, "neighbours=100")
    assert warning(parts.cfg, parts) is None
    assert brief == []


def test_what_seems_too_much_and_is_not_goes_through_with_the_same_bits(brief, tiny, go, same, tmp_path, capfd):
    """So few pictures can be looked at that a search stays cheap, though one among all of them would not be."""
    few = ("uploads", "knn", *LONG, "budget.updates=0.2", "stream.retention=100")
    assert main(["run", *tiny(*few).overrides, f"output={tmp_path}"]) == 0
    assert capfd.readouterr().err == ""
    assert brief == ["all"]
    (record,) = find([tmp_path])
    alone = go(*few).predictions
    same(record.predictions, {name: alone[name] for name in record.predictions})


def test_what_takes_long_is_said_once_with_what_it_is_for(brief, tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(foresight, "PATIENCE", -1.0)
    parts = long(tiny, 0.7, 800)
    assert main(["run", *parts.overrides, f"output={tmp_path}"]) == 2
    said, refused = capfd.readouterr().err.splitlines()
    assert re.search(r"^budgetcl: knn.*: simulating all 100 steps, to make sure of .*: step 99: predicting \d+", said)
    assert refused == f"budgetcl: {whole_refusal(long(tiny, 0.7, 800))}"


def listed(tight, step, usual=4.0):
    """100 allowances, of which one is tight."""
    return "budget.updates=[" + ",".join(str(tight if each == step else usual) for each in range(100)) + "]"


@pytest.mark.parametrize(("method", "tight", "refused"), [
    ("naive", 0.5, "does not pay for one update"),  # an overhead is none, but an update it should be
    ("kd_mse", 1.2, "does not pay for one update"),  # which costs more with its teacher
    ("ewc", 1.0, "does not pay for one update"),  # and with its penalty
    ("naive", 1.2, None),
    ("kd_mse", 2.0, None),
    ("naive", 0, None),  # a step that is granted nothing is waited through
])  # fmt: skip
def test_a_tight_step_amid_a_list_is_refused_before_the_run(brief, tiny, tmp_path, capfd, method, tight, refused):
    parts = tiny("uploads", method, *LONG[::2], listed(tight, 60))
    if refused is None:
        assert warning(parts.cfg, parts) is None
        assert brief == []
        return
    assert main(["run", *parts.overrides, f"output={tmp_path}"]) == 2
    said = capfd.readouterr().err
    assert re.match(rf"budgetcl: step 60: .*{refused} \(.* costs [\d,]+ FLOPs and [\d,]+ are left\)", said)
    assert not list(tmp_path.rglob("run.json"))
    assert brief == ["all"]


def test_the_tightest_steps_are_those_granted_least_and_least_for_what_was_seen(tiny):
    stream = tiny("uploads", "naive", *LONG).source.stream
    granted = [9.0] * 100
    granted[20] = granted[30] = 2.0  # the latest of the least
    granted[80] = 4.0  # less for what was seen: 4 / 81 < 2 / 31
    granted[90] = 0.0
    assert _tight(stream, Budget(granted), 10) == {29, 30, 31, 79, 80, 81}
    granted[60] = 3.3  # between the two, above their line
    assert _tight(stream, Budget(granted), 10) == {29, 30, 31, 79, 80, 81}
    granted[60] = 3.1  # and below it
    assert _tight(stream, Budget(granted), 10) == {29, 30, 31, 59, 60, 61, 79, 80, 81}
    assert _tight(stream, Budget(granted), 85) == {98, 99, 100}
    assert _tight(stream, Budget([*[9.0] * 10, 2.0]), 50) == {98, 99, 100}
    assert _tight(stream, Budget(5), 10) == _tight(stream, Budget(passes=3), 10) == set()
    assert _tight(stream, Budget([5.0] * 40 + [0.0]), 50) == set()
    uneven = dataclasses.replace(stream, bounds=np.array([0, 700, 720, 1500, 1600]))
    assert _tight(uneven, Budget(passes=3), 1) == {0, 1, 2}


@given(
    st.lists(st.integers(0, 9), min_size=12, max_size=30),
    st.floats(0, 9),
    st.floats(0, 1),
)
def test_an_overhead_that_any_step_does_not_pay_for_the_tight_steps_do_not_pay_for(granted, constant, growing):
    bounds = np.cumsum([0, *(1 + i % 3 for i in range(len(granted)))])
    stream, budget = SimpleNamespace(bounds=bounds), Budget([float(each) for each in granted] + [1.0])
    chosen, overhead = _tight(stream, budget, 10), constant + growing * bounds[1:]
    left = [k for k in range(10, len(granted)) if granted[k]]
    unpaid = [k for k in left if granted[k] < overhead[k] - 1e-9]
    if chosen and unpaid:  # none are chosen where all allowances are alike: then the last steps are the tightest
        assert any(granted[k] < overhead[k] for k in chosen.intersection(left))


def test_a_run_under_seconds_is_refused_at_its_step_and_keeps_what_it_did(tiny, tmp_path, capfd, monkeypatch):
    """Nobody knows before how much a second is; here the clock leaps in the third step."""
    calls = itertools.count()
    monkeypatch.setattr(Seconds, "cost", lambda *given: 10**8 if next(calls) < 12 else 10**10)
    parts = tiny("glyphs", "naive", "currency=seconds", "currency.budget=0.45")
    assert warning(parts.cfg, parts) is None
    assert main(["run", *parts.overrides, f"output={tmp_path}"]) == 2
    error = capfd.readouterr().err
    assert error == (
        "budgetcl: step 2: the allowance of 450,000,000 nanoseconds does not pay for one update ('train' costs "
        "10,000,000,000 nanoseconds and 450,000,000 are left): raise currency.budget, or lower learner.batch, or set "
        "budget.rest=carry\n"
    )
    (record,) = find([tmp_path])
    assert not record.finished
    assert record.steps["updates"].tolist() == [4, 4]
    assert set(record.predictions["step"]) == {0, 1}


def test_a_learner_whose_network_is_larger_than_the_references_is_told_of_it(tiny):
    parts = tiny("glyphs", "naive")
    reference, network = parts.compute.reference, parts.learner.network
    assert reference.advice(network) == ""
    network.backbone.further = torch.nn.Linear(2000, 2000)
    network._skeleton = None
    for larger in (network, None):  # None: a learner that does not show it
        assert reference.advice(larger).startswith(", or give the reference the learner's backbone (")


@pytest.mark.parametrize("budget", ["budget=updates", "budget=delay"])
@pytest.mark.parametrize("method", ["max_loss", "kd_mse", "ewc", "gdumb", "polrs", "fetril", "slda", "bias_correction"])
def test_the_late_steps_of_what_goes_through_raise_no_doubt(tiny, method, budget):
    parts = tiny("uploads", method, "stream.samples=192", budget, "budget.updates=8")
    _, tally = rehearse(parts.cfg, 60, parts.compute.prices, parts.source, 3)
    assert len(tally.steps["updates"]) == 3
    assert refusal(parts.cfg, parts, tally) is None


def test_an_abridged_stream_reveals_everything_once_and_keeps_its_steps(tiny):
    stream = tiny("uploads", "naive").source.stream
    columns = {field.name: getattr(stream, field.name) for field in dataclasses.fields(stream)}
    steps, whole = list(Abridged(**columns, kept=(2, 4, 5))), list(stream)
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]
    assert np.concatenate([step.revealed for step in steps]).tolist() == list(range(96))
    assert [step.classes for step in steps] == [step.classes for step in whole[1:]]
    assert [bool(step.ahead) for step in steps] == [False, False, False, False, True]
    for step, same in zip(steps[1::2], whole[2::2]):
        assert step.revealed.tolist() == same.revealed.tolist()
        assert {name: rows.tolist() for name, rows in step.heldout.items()} == {
            name: rows.tolist() for name, rows in same.heldout.items()
        }


@pytest.mark.parametrize(("method", "capacity", "told"), [
    ("gdumb", 18, True), ("gdumb", 19, False), ("balanced_reservoir", 5, True), ("naive", None, False),
    ("last_label", None, False),
])  # fmt: skip
def test_a_memory_with_fewer_places_than_classes_is_said(tiny, method, capacity, told):
    """10 classes of pretraining and 9 streamed ones."""
    made = tiny("glyphs", method, *([] if capacity is None else [f"memory.capacity={capacity}"]))
    said = crowded(made)
    assert said == (None if not told else said)
    if told:
        assert f"memory.capacity={capacity}, and the stream reveals 19 classes" in said
        assert "\n" not in said


def test_a_greedy_memory_smaller_than_its_classes_runs_and_keeps_one_sample_of_some(go, capfd, tiny, tmp_path):
    settings = ("memory.capacity=5", "learner.batch=4", "reference.batch=4")
    run = go("glyphs", "gdumb", *settings)
    memory = run.parts.learner.memory
    assert sorted(memory.class_counts.tolist()) == [0] * 14 + [1] * 5
    assert min(run.steps["updates"]) == 4
    assert main(["run", *tiny("glyphs", "gdumb", *settings).overrides, f"output={tmp_path}"]) == 0
    assert "note: memory.capacity=5, and the stream reveals 19 classes" in capfd.readouterr().out


@pytest.mark.parametrize(("method", "settings", "told"), [
    ("temperature", (), False),
    ("temperature", ("stream.train=1", "stream.pretrain_train=1", "learner.batch=2"), True),  # one sample a class
    ("temperature", ("calibration.spend=0.001",), True),
    ("bias_correction", (), False),
    ("bias_correction", ("stream.pretrain_classes=0", "stream.steps=1"), True),  # no old classes
    ("nearest_mean", ("calibration.spend=0.0001",), True),
    ("naive", (), False),
])  # fmt: skip
def test_a_calibration_that_finds_nothing_to_calibrate_on_is_said(tiny, method, settings, told):
    made = tiny("glyphs", method, *settings)
    said = warning(made.cfg, made)
    assert (said is not None) == told
    if told:
        assert "nothing is calibrated in the first" in said
        assert "\n" not in said
