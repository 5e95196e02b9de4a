"""The protocol: rates, blind learners, the audit, determinism, teachers."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml

from budgetcl.configuration import compose, conf_folder, plain, run_id
from budgetcl.errors import UserError
from budgetcl.learners.learner import Predictions
from budgetcl.metrics.blind import blind_predictions
from budgetcl.randomness import generator

METHODS = sorted(path.stem for path in (conf_folder() / "method").glob("*.yaml"))
GROUP = {m: yaml.safe_load((conf_folder() / f"method/{m}.yaml").read_text())["method"]["group"] for m in METHODS}
BLIND = [name for name in METHODS if GROUP[name] == "blind"]
TRAINED = [name for name in METHODS if GROUP[name] not in ("blind", "frozen")]


# --- learning rates ---------------------------------------------------------------------------------------------------


def rates_of(go, *arguments):
    """The rate of each update that was made, by step."""
    rates = []

    def watch(parts):
        make, learner = parts.learner._make_optimiser, parts.learner

        def watched(parameters):
            optimiser = make(parameters)
            step = optimiser.step

            def noted(*args, **kwargs):
                rates[-1].append(optimiser.param_groups[0]["lr"])
                return step(*args, **kwargs)

            optimiser.step = noted
            return optimiser

        fit = learner.fit

        def fitted(*args):
            rates.append([])
            fit(*args)

        learner._make_optimiser, learner.fit = watched, fitted

    run = go(*arguments, change=watch)
    assert [len(step) for step in rates] == run.steps["updates"].tolist()
    return rates


# These have rates of their own: features are charged before the first update, a warm-up, three rates, a slow backbone.
OTHERWISE = ("head_only_cached", "infinite_schedule", "polrs", "slca")


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        *((method, "stop") for method in TRAINED if method not in OTHERWISE),
        ("naive", "truncate"),
        ("kd_mse", "truncate"),
    ],
)
def test_the_first_rate_of_each_step_is_the_peak_and_the_rates_fall_to_no_less_than_zero(go, method, rest):
    for step in rates_of(go, "glyphs", method, "budget.updates=5.6", f"budget.rest={rest}", "optimiser.lr=0.25"):
        assert step[0] == 0.25
        assert all(later < earlier for earlier, later in pairwise(step))
        assert step[-1] > 0


def test_linear_rates_of_naive_are_equally_spaced_and_constant_ones_constant(go):
    assert rates_of(go, "glyphs", "naive")[0] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert rates_of(go, "uploads", "er") == [[0.1] * 3] * 6
    assert rates_of(go, "uploads", "er", "schedule=linear")[0] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])


def test_rates_under_carry_stay_between_zero_and_the_peak(go):
    rates = rates_of(go, "uploads", "naive", "budget.rest=carry", "budget.updates=1.4", "schedule=linear")
    made = [step for step in rates if step]
    assert all(step[0] == 0.1 and 0 < min(step) <= max(step) == 0.1 for step in made)


# --- learners that see no image ---------------------------------------------------------------------------------------


def by_brute_force(labels, window, shift, chunk):
    answers = []
    for t in range(len(labels)):
        seen = max((s for s in range(0, len(labels), chunk) if s + shift <= t), default=0)
        known = labels[:seen] if window is None else labels[max(0, seen - window) : seen]
        counts = Counter(known)
        best = max(counts.values(), default=0)
        answers.append(next((label for label in reversed(known) if counts[label] == best), -1))
    return answers


@pytest.mark.parametrize("window", [1, 2, 7, 33, None])
@pytest.mark.parametrize("samples", [96, 90])
def test_a_blind_learner_through_the_loop_is_the_blind_function_on_the_streams_chunk(go, window, samples):
    setting = "null" if window is None else window
    run = go("uploads", "last_label", f"learner.window={setting}", f"stream.samples={samples}", "seed=3")
    log, labels = run.predictions, run.parts.source.stream.label[:samples]
    for shift in (0, 16, 32):
        mine = (log["set"] == "ahead") & (log["shift"] == shift)
        order = np.argsort(log["index"][mine])
        index, answers = log["index"][mine][order], log["pred"][mine][order]
        assert index.tolist() == list(range(shift, samples))
        assert answers.tolist() == by_brute_force(labels.tolist(), window, shift, 16)[shift:]
        assert answers.tolist() == blind_predictions(labels, window, shift, 16)[shift:].tolist()
    assert run.steps["spent"].tolist() == [0] * len(run.steps["spent"])


def test_the_other_blind_learners_answer_what_they_say(go):
    labels = go("uploads", "naive").parts.source.stream.label
    window = go("uploads", "recent_mode").parts.source.stream.window
    for method, expected in (
        ("recent_mode", by_brute_force(labels[:96].tolist(), window, 0, 16)),
        ("majority", by_brute_force(labels[:96].tolist(), None, 0, 16)),
        ("constant", [-1] * 16 + [by_brute_force(labels[:17].tolist(), None, 0, 16)[16]] * 80),
    ):
        log = go("uploads", method).predictions
        mine = (log["set"] == "ahead") & (log["shift"] == 0)
        assert log["pred"][mine].tolist() == expected


# --- the audit --------------------------------------------------------------------------------------------------------


# One of each way to use a network; that the audit agrees is tested of every method in test_testing.py.
AUDITED = (
    "naive", "max_loss", "kmeans", "mir", "kd_mse", "prd", "derpp", "bias_correction", "slca", "rwalk",
    "weight_consolidation", "lora", "polrs", "fetril", "knn", "randumb", "last_label",
)  # fmt: skip


@pytest.mark.parametrize("stream", ["uploads", "glyphs"])
@pytest.mark.parametrize("method", AUDITED)
def test_the_audit_agrees_to_the_flop_and_changes_no_bit(go, same, stream, method):
    here = go(stream, method)
    seed = next(s for s in range(9) if audited(s, here) != audited(0, here))
    elsewhere = go(stream, method, audit=seed)
    assert here.audit()["step"] != elsewhere.audit()["step"]
    for run in (here, elsewhere):
        assert run.audit()["agrees"]
        assert (run.audit()["counted"] > 0) == (method not in [*BLIND, "randumb"])  # that one looks at pixels alone
    same(here.predictions, elsewhere.predictions)
    same(here.ledger, elsewhere.ledger)


def audited(seed, run):
    return int(generator(seed, "audit").integers(len(run.steps["updates"])))


def test_the_first_step_of_all_may_be_audited_with_prices_still_unknown(go):
    run = go("glyphs", "max_loss")
    seed = next(s for s in range(20) if audited(s, run) == 0)
    assert go("glyphs", "max_loss", audit=seed, prices=None).audit() == {
        **go("glyphs", "max_loss", audit=seed).audit(),
        "agrees": True,
    }


# --- what a result depends on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "method"), [("glyphs", "kd_mse"), ("uploads", "max_loss")])
def test_a_configuration_gives_the_same_bits_again_and_another_seed_does_not(go, same, stream, method):
    first, again = go(stream, method), go(stream, method, prices=None)
    same(first.predictions, again.predictions)
    same(first.ledger, again.ledger)
    for name in first.steps:
        if "seconds" not in name:
            np.testing.assert_array_equal(first.steps[name], again.steps[name])
    assert first.parts.source.stream.fingerprint() == again.parts.source.stream.fingerprint()
    other = go(stream, method, "seed=1")
    assert other.parts.source.stream.fingerprint() != first.parts.source.stream.fingerprint()
    assert (first.predictions["confidence"][-20:] != other.predictions["confidence"][-20:]).mean() > 0.5


def test_the_size_of_a_query_changes_no_answer(go):
    one, other = go("uploads", "naive").predictions, go("uploads", "naive", "query=7").predictions
    for name in ("index", "shift", "pred"):
        np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_allclose(one["confidence"], other["confidence"], rtol=1e-5)


def identity(*overrides):
    return run_id(plain(compose([*overrides])))


def test_the_run_id_follows_each_scientific_key_and_nothing_else():
    changed = (
        *("seed=1", "threads=2", "precision=bf16", "stream.order=data", "stream=uploads", "budget.updates=49"),
        *("budget.rest=carry", "budget.free=[teacher]", "reference.batch=65", "method=kd_mse", "sampler=recent"),
        *("method=head_only", "optimiser.lr=0.2", "batch_norm=frozen", "clip=1", "schedule=constant"),
        *("head.pretrained=false", "metrics.ahead.warmup=0.2", "backbone=small", "learner.batch=63"),
        "method.name=mine",
    )
    unchanged = ("device=cpu", "output=elsewhere", "name=other", "tracker=wandb_offline", "query=100")
    base = identity()
    assert len({base, *map(identity, changed)}) == 1 + len(changed)
    assert {identity(override) for override in unchanged} == {base}
    assert identity("seed=1", "batch_norm=frozen") == identity("batch_norm=frozen", "seed=1")
    photos = ("stream=table", "stream.path=photos.csv")
    read_otherwise = ("stream.workers=3", "stream.memory=0", "stream.cache=elsewhere")
    assert {identity(*photos, override) for override in read_otherwise} == {identity(*photos)}
    assert len({identity(*photos, change) for change in ("seed=0", "stream.damaged=replace", "stream.size=64")}) == 3
    before = plain(compose(photos))  # runs from before there was this key are found again
    assert before["stream"].pop("pretrain") == 0
    assert run_id(before) == identity(*photos) != identity(*photos, "stream.pretrain=0.1")


# --- teachers ---------------------------------------------------------------------------------------------------------


def teachers_of(go, stream, *overrides):
    """The teacher's weights at the beginning and at the end of each step's training, or None, and the network's."""
    seen = []

    def watch(parts):
        learner, begin, fit = parts.learner, parts.learner._sampler.begin, parts.learner.fit

        def began(place):
            teacher = learner.teacher.network
            seen.append([weights(teacher), weights(learner.network), teacher])
            begin(place)

        def fitted(*args):
            fit(*args)
            seen[-1] += [weights(seen[-1][2]), weights(learner.network)]

        parts.learner._sampler.begin, parts.learner.fit = began, fitted

    return seen, go(stream, "kd_mse", *overrides, change=watch)


def weights(network):
    return None if network is None else {name: t.clone() for name, t in network.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_teacher_of_glyphs_is_the_pretrained_classifier_and_later_ones_the_last_steps_network(go):
    seen, run = teachers_of(go, "glyphs")
    assert [len(step[0]["head.weight"]) for step in seen] == [10, *run.steps["classes"].tolist()[:-1]]
    before = None
    for teacher, start, _, after, end in seen:
        assert equal(teacher, after), "training changed the teacher"
        if before is not None:
            assert equal(teacher, before)
        assert not equal(start, end)
        before = end


def test_the_pretrained_classifier_teaches_only_classes_it_was_trained_on(go, tiny):
    known = tiny("glyphs", "kd_mse").learner.network.head._known
    first = teachers_of(go, "glyphs")[0][0][0]
    assert torch.equal(first["head.weight"], known[0][:10])
    assert torch.equal(first["head.bias"], known[1][:10])
    without = teachers_of(go, "glyphs", "head.pretrained=false")[0]
    assert without[0][0] is None
    assert without[1][0] is not None


def test_uploads_begin_without_a_teacher_and_pay_for_none(go):
    seen, run = teachers_of(go, "uploads")
    assert seen[0][0] is None
    assert run.category("teacher")[0] == 0
    assert min(run.category("teacher")[1:]) > 0


def test_distillation_changes_the_weights_at_the_same_number_of_updates(go):
    settings = ("optimiser.lr=0.03", "budget.free=[teacher]")
    naive, taught = go("glyphs", "naive", *settings), go("glyphs", "kd_mse", *settings)
    assert naive.steps["updates"].tolist() == taught.steps["updates"].tolist()
    assert not equal(weights(naive.parts.learner.network), weights(taught.parts.learner.network))
    without = go("glyphs", "kd_mse", *settings, "objective.weight=0")
    assert equal(weights(naive.parts.learner.network), weights(without.parts.learner.network))


# --- metering predictions ---------------------------------------------------------------------------------------------


def asking(times):
    """A change to a run's parts: the learner looks at each image so many times."""

    def change(parts):
        predict = parts.learner.predict

        def again(query, compute):
            answers = [predict(query, compute) for _ in range(times)]
            return answers[-1]

        parts.learner.predict = again

    return change


def test_what_a_prediction_costs_beyond_one_reference_forward_a_row_is_taken_from_the_next_allowance(go):
    once, twice = (
        go("glyphs", "naive", "budget.updates=30"),
        go("glyphs", "naive", "budget.updates=30", change=asking(2)),
    )
    rows = np.bincount(twice.predictions["step"])
    each = np.array(once.category("predict", "flops")) // rows
    assert twice.category("predict", "flops") == (2 * rows * each).tolist()
    assert once.steps["paid"].tolist() == [0, 0, 0]
    assert twice.steps["paid"].tolist() == [0, *(rows * each).tolist()[:2]]
    update = once.steps["spent"] // 30
    assert twice.steps["updates"].tolist() == ((twice.steps["allowance"] - twice.steps["paid"]) // update).tolist()
    assert twice.steps["updates"][2] < 30


def test_a_prediction_dearer_than_the_next_allowance_is_refused_with_a_reason(go):
    with pytest.raises(UserError, match=r"step \d: predicting \d+ images costs more than is free"):
        go("glyphs", "naive", change=asking(9))


def test_head_only_predicts_for_free_like_everyone(go):
    run = go("glyphs", "head_only")
    assert run.steps["paid"].tolist() == [0, 0, 0]
    assert (run.steps["predict_flops"] == run.steps["predict_free"]).all()


def test_an_answer_is_logged_with_its_rank_and_its_target(go):
    run = go("glyphs", "naive", "stream.test=1")
    asked = []

    def watch(parts):
        predict = parts.learner.predict

        def noted(query, compute):
            asked.append(predict(query, compute))
            return asked[-1]

        parts.learner.predict = noted

    run = go("glyphs", "naive", "stream.test=1", change=watch)
    log, label = run.predictions, run.parts.source.stream.label
    assert log["target"].tolist() == label[log["index"]].tolist()
    # Classes are numbered by reveal: the pretraining classes by code, then each step's by code.
    bounds = run.parts.source.stream.bounds
    code = list(range(10))
    for low, high in pairwise(bounds):
        code += sorted(set(label[low:high].tolist()))
    answers = np.concatenate([a.classes for a in asked])
    top = np.concatenate([a.top for a in asked])
    assert log["pred"].tolist() == [code[a] for a in answers]
    assert log["top5"].tolist() == [t in [code[a] for a in row] for t, row in zip(log["target"].tolist(), top)]
    assert isinstance(asked[0], Predictions)


@pytest.mark.parametrize("method", ["naive", "nmc", "last_label"])
def test_a_label_that_was_not_seen_yet_is_a_miss_and_stops_nothing(go, method):
    run = go("uploads", method)
    stream, rows = run.parts.source.stream, run.predictions
    known = set(stream.label[stream.rows("pretrain")].tolist())
    new = np.array([
        target not in known and target not in stream.label[:seen]
        for target, seen in zip(rows["target"].tolist(), rows["seen"].tolist())
    ])  # fmt: skip
    assert new.any()
    assert (rows["pred"] != rows["target"])[new].all()
    assert not rows["top5"][new].any()
    assert np.isfinite(rows["confidence"]).all()


def test_a_stream_of_one_class_runs_with_live_statistics(go):
    settings = ("stream.pretrain_classes=0", "stream.stream_classes=1", "stream.steps=1", "batch_norm=live")
    run = go("glyphs", "kd_mse", *settings)
    assert (run.predictions["pred"] == run.predictions["target"]).all()
    assert run.category("teacher") == [0]  # there are no old classes, so there is no teacher
    assert run.steps["updates"].tolist() == [4]
    assert all(torch.isfinite(value).all() for value in run.parts.learner.network.state_dict().values())
