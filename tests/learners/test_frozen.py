"""The learner on features that never change: what it learns first, what waits, what it pays, what it answers."""

import numpy as np
import pytest

from budgetcl.budget.ledger import Exhausted
from budgetcl.cli import main
from budgetcl.errors import UserError
from budgetcl.learners.frozen import FrozenLearner
from budgetcl.streams.batch import Query
from budgetcl.streams.revealed import Revealed

ENOUGH = "budget.updates=6"  # for everything to be learnt in the step that reveals it
METHODS = ("nmc", "knn", "knn_hnsw", "slda", "analytic", "randumb", "fetril")


def walk(parts):
    """Send a run's learner through its stream; yield (step, revealed, learner) after each fit."""
    revealed, compute, learner = Revealed(parts.source), parts.compute, parts.learner
    for step in parts.source.stream:
        revealed.reveal(step)
        with compute.step(step):
            learner.fit(step, revealed, compute)
        yield step, revealed, learner


def noted(learner):
    """The labels that reach a learner's classifier, batch by batch."""
    batches, learn = [], learner.classifier.learn

    def watched(x, y, compute):
        learn(x, y, compute)
        batches.append(y.tolist())

    learner.classifier.learn = watched
    return batches


def test_everything_revealed_is_learnt_once_the_pretraining_images_too(tiny):
    parts = tiny("glyphs", "nmc", ENOUGH)
    for _, revealed, learner in walk(parts):
        labels = revealed.labels(revealed.indices)
        assert learner.classifier.state_dict()["counts"].tolist() == np.bincount(labels).tolist()
        assert not len(learner._waiting)


def test_what_a_step_cannot_pay_for_waits_and_nothing_is_lost(tiny):
    parts = tiny("glyphs", "nmc", "budget.updates=1.5")
    waited = []
    for _, revealed, learner in walk(parts):
        counts = learner.classifier.state_dict()["counts"].numpy()
        waiting = np.bincount(revealed.labels(learner._waiting), minlength=len(counts))
        np.testing.assert_array_equal(counts + waiting, np.bincount(revealed.labels(revealed.indices)))
        assert len(np.unique(learner._waiting)) == len(learner._waiting)
        assert learner.nbytes()["samples"] == len(learner._waiting) * 24 * 24
        waited.append(len(learner._waiting))
    assert waited[0] > 0
    assert waited[2] < waited[1] + 24  # later steps go on with it


def test_what_the_step_revealed_comes_first_in_random_order(tiny):
    parts = tiny("glyphs", "nmc", "budget.updates=1.5")
    batches = noted(parts.learner)
    for step, revealed, _ in walk(parts):
        learnt = [label for batch in batches for label in batch]
        new = revealed.labels(revealed.new).tolist()
        assert sorted(learnt[:24]) == sorted(new)
        assert learnt[:24] != sorted(new)
        assert not set(learnt[24:]) & set(new)
        assert max(learnt[24:], default=0) < 10 + 3 * step.number
        batches.clear()


def test_the_oldest_wait_longest(tiny):
    """Half of a step's samples are paid for: the rest of the newest step comes before the rest of older ones."""
    parts = tiny("glyphs", "nmc", "budget.updates=0.5")
    for step, revealed, learner in walk(parts):
        older = revealed.labels(learner._waiting)
        fresh = [int((older >= 10 + 3 * s).sum()) for s in range(step.number + 1)]
        assert fresh == sorted(fresh, reverse=True)
        assert (np.diff(np.searchsorted([10, 13, 16], older, side="right")) <= 0).all()  # newest step first


def test_it_pays_for_each_image_by_hand_and_the_last_batch_is_cut_to_what_is_left(go):
    macs = 144 * 16 * 25 + 144 * 2 * 16 * 16 * 9
    macs += 36 * (32 * 16 * 9 + 32 * 32 * 9 + 32 * 16) + 9 * (64 * 32 * 9 + 64 * 64 * 9 + 64 * 32)
    image = 2 * macs + 64  # one forward and one addition to a mean
    run = go("glyphs", "nmc", "budget.updates=1.5")
    allowance = run.steps["allowance"]
    assert run.category("train")[0] == allowance[0] // image * image
    assert (run.steps["spent"] <= allowance).all()
    run = go("glyphs", "nmc", ENOUGH)
    assert run.category("train") == [(80 + 24) * image, 24 * image, 24 * image]


def test_what_the_end_of_a_step_costs_is_left_for_it(go):
    run = go("glyphs", "slda", "budget.updates=1.5")
    image = go("glyphs", "nmc", ENOUGH).category("train")[1] // 24 + 2 * 64**2
    solution = 64**3 // 3 + 4 * 64**2 * 13 + 2 * 64 * 13
    allowance = int(run.steps["allowance"][0])
    assert run.category("train")[0] == (allowance - solution) // image * image + solution


@pytest.mark.parametrize("method", METHODS)
def test_an_allowance_that_does_not_pay_for_one_image_is_refused_before_any_work(go, method):
    with pytest.raises(UserError, match=r"step 0: learning one image .* costs [\d,]+ FLOPs and 1,000 are left: raise"):
        go("glyphs", method, "budget.updates=null", "budget.flops=1000")


def test_an_allowance_that_carries_over_waits_until_it_pays_for_one_image(go):
    image = go("glyphs", "nmc", ENOUGH).category("train")[1] // 24
    run = go("glyphs", "nmc", "budget.updates=null", f"budget.flops={-(-image * 2 // 3)}", "budget.rest=carry")
    assert run.category("train") == [0, image, image]
    first = run.predictions["step"] == 0
    assert (run.predictions["pred"][first] == -1).all()  # nothing was learnt yet
    assert (run.predictions["confidence"][first] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_only_classes_of_which_a_sample_was_learnt_are_answered(tiny, method):
    parts = tiny("glyphs", method, "budget.updates=2", "stream.pretrain_train=2")
    parts.learner._batch = 3  # so that only some of what is waiting is learnt
    affordable, parts.learner._affordable = parts.learner._affordable, None
    left = [2]

    def few(compute, kept):
        left[0] -= 1
        return affordable(compute, kept) if left[0] >= 0 else 0

    parts.learner._affordable = few
    batches = noted(parts.learner)
    for step, revealed, learner in walk(parts):
        known = {label for batch in batches for label in batch}
        query = Query(parts.source.pixels, np.arange(30))
        with parts.compute.predicting(step.number, 30, step.classes):
            answer = learner.predict(query, parts.compute)
        assert len(known) < revealed.classes
        assert set(answer.top.ravel().tolist()) - {-1} <= known
        assert set(answer.classes.tolist()) <= known
        assert (answer.top[:, 0] == answer.classes).all()
        assert ((answer.confidence > 0) & (answer.confidence <= 1 + 1e-6)).all()
        left[0] = 1


@pytest.mark.parametrize("method", METHODS)
def test_before_anything_is_learnt_there_is_no_answer(tiny, method):
    parts = tiny("glyphs", method)
    answer = parts.learner.predict(Query(parts.source.pixels, np.arange(4)), parts.compute)
    assert answer.classes.tolist() == [-1] * 4
    assert parts.learner.nbytes() == {"samples": 0, "memory": 0, "network": 0}


def test_predictions_cost_what_exceeds_the_reference(go):
    """The reference has a linear head; as much is free, so a linear classifier on its features owes nothing."""
    for method, owes in (("nmc", False), ("slda", False), ("knn", True), ("analytic", True)):
        run = go("glyphs", method, ENOUGH)
        excess = run.steps["predict_flops"] - run.steps["predict_free"]
        assert (excess > 0).tolist() == [owes] * 3, method
        assert run.steps["paid"][1:].tolist() == excess[:-1].tolist()
    run, shared = go("glyphs", "knn", ENOUGH), go("glyphs", "nmc", ENOUGH)
    stored = np.array([80 + 24, 80 + 48, 80 + 72])
    rows, classes = np.bincount(run.predictions["step"]), np.array([13, 16, 19])
    head = 2 * 64 * classes
    assert (run.steps["predict_flops"] - shared.steps["predict_flops"]).tolist() == (
        rows * (stored * (2 * 64 + 3) - head)
    ).tolist()


def test_methods_learn_the_glyphs_and_differ(go):
    accuracy = {}
    for method in METHODS:
        log = go("glyphs", method).predictions
        accuracy[method] = (log["pred"] == log["target"])[log["step"] == 2].mean()
    assert all(accuracy[method] > 0.8 for method in METHODS if method != "randumb"), accuracy
    assert accuracy["randumb"] > 3 / 19
    confidences = {
        go("glyphs", method).predictions["confidence"].tobytes() for method in METHODS if method != "knn_hnsw"
    }
    assert len(confidences) == len(METHODS) - 1


def test_the_methods_are_listed(capsys):
    assert main(["list", "methods"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{method} " in f"\n{out}" for method in METHODS)


def test_a_batch_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"learner.batch=0 given"):
        FrozenLearner(None, None, batch=0)


def test_where_only_updates_count_everything_is_learnt_and_updates_are_as_many_as_allowed(go):
    run = go("glyphs", "nmc", "currency=iterations")
    assert run.steps["spent"].tolist() == [0, 0, 0]
    assert not len(run.parts.learner._waiting)
    assert go("glyphs", "fetril", "currency=iterations").steps["updates"].tolist() == [4, 4, 4]


def test_work_that_is_refused_where_costs_are_not_known_ahead_waits(tiny):
    """As under a currency of seconds: the third batch is refused after its features, then the end of the step."""
    parts = tiny("glyphs", "slda", ENOUGH, "learner.batch=16")
    classifier = parts.learner.classifier
    learn, calls = classifier.learn, []

    def refused(*args):
        calls.append(0)
        if len(calls) == 3:
            raise Exhausted("train", 1, 0)
        learn(*args)

    classifier.learn = refused
    for step, revealed, learner in walk(parts):
        counts = classifier.state_dict()["counts"]
        assert int(counts.sum()) + len(learner._waiting) == len(revealed.indices)
        with parts.compute.predicting(step.number, 20, step.classes):
            answer = learner.predict(Query(parts.source.pixels, np.arange(20)), parts.compute)
        if step.number == 0:
            assert int(counts.sum()) == 32
            assert (answer.classes == -1).all()  # the discriminant was not solved yet
            assert (answer.confidence == 0).all()
        else:
            assert (answer.classes >= 0).all()
