"""No prediction uses what was not revealed: shown by running, for every method; and learners that cheat are caught."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetcl.errors import Unrevealed, UserError
from budgetcl.learners.learner import Predictions
from budgetcl.loop import _hash
from budgetcl.streams.batch import Query, Source
from budgetcl.streams.stream import RETENTION, SETS

# One of each kind; tests/test_testing.py sends every method through the conformance kit, which asks the same.
METHODS = ("naive", "er", "max_loss", "kd_mse", "head_only", "ewc", "knn", "last_label", "majority", "recent_mode")
WRITTEN_BEFORE = ("index", "set", "shift", "seen", "step", "pred", "confidence")  # all but the target and hits on it


def relabelled(source, rows):
    """The same stream and pixels with other labels in some rows."""
    label = source.stream.label.copy()
    label[rows] = (label[rows] + 1 + np.arange(len(label[rows])) % 7) % len(source.stream.label_names)
    assert (label[rows] != source.stream.label[rows]).all()
    return Source(replace(source.stream, label=label, _rows_of={}), source.pixels)


def rows_of(run, mask):
    log = run.predictions
    chosen = mask(log)
    return {name: log[name][chosen] for name in WRITTEN_BEFORE}


@pytest.mark.parametrize("method", METHODS)
def test_labels_from_a_position_on_change_no_earlier_prediction(go, same, method):
    plain = go("uploads", method)
    stream, t = plain.parts.source.stream, 40
    later = np.flatnonzero((np.arange(len(stream.label)) >= t) & (np.arange(len(stream.label)) < stream.samples))
    held = np.flatnonzero(stream.set == SETS.index(RETENTION))  # the labels of held-out samples never reach a learner
    other = go("uploads", method, source=relabelled(plain.parts.source, np.concatenate([later, held])))

    def before(log):
        return log["seen"] <= t

    assert before(plain.predictions).sum() > 3 * 48
    same(rows_of(plain, before), rows_of(other, before))


def test_labels_do_reach_the_learner_once_they_are_revealed(go):
    """So that the test above can fail."""
    plain = go("uploads", "last_label")
    other = go("uploads", "last_label", source=relabelled(plain.parts.source, np.arange(40, 96)))
    late = plain.predictions["seen"] > 40
    assert (plain.predictions["pred"][late] != other.predictions["pred"][late]).any()


@pytest.mark.parametrize("method", METHODS)
def test_a_samples_own_label_changes_no_prediction_of_it(go, same, method):
    plain, i = go("uploads", method), 57
    other = go("uploads", method, source=relabelled(plain.parts.source, np.array([i])))

    def own(log):
        return (log["index"] == i) & (log["set"] == "ahead")

    assert own(plain.predictions).sum() == 3  # one for each shift
    same(rows_of(plain, own), rows_of(other, own))
    same(rows_of(plain, lambda log: log["seen"] <= i), rows_of(other, lambda log: log["seen"] <= i))


def neighbours_matter(learner, compute, source, classes):
    """Whether the answer to an image depends on the other images of its query."""

    def ask(x):
        with compute.predicting(10**6, 100 * len(x), classes):
            answer = learner.predict(Query(lambda indices, augment=None: x[indices], np.arange(len(x))), compute)
        return np.asarray(answer.classes), np.asarray(answer.top), np.asarray(answer.confidence)

    x = source.pixels(np.arange(32))
    order = torch.from_numpy(np.random.default_rng(0).permutation(32))
    replaced = torch.cat([x[:1], 255 - x[1:]])
    plain, permuted, alone_of_its_kind = ask(x), ask(x[order]), ask(replaced)
    return any(
        not np.array_equal(mine[order], theirs) or not np.array_equal(mine[0], other[0])
        for mine, theirs, other in zip(plain, permuted, alone_of_its_kind)
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_does_not_depend_on_the_other_images_of_its_query(go, method):
    run = go("uploads", method)
    assert not neighbours_matter(run.parts.learner, run.parts.compute, run.parts.source, int(run.steps["classes"][-1]))


@pytest.mark.parametrize(
    ("stream", "method"), [*(("uploads", method) for method in METHODS), ("glyphs", "naive"), ("glyphs", "kd_mse")]
)
def test_predicting_leaves_the_learners_state_as_it_is(go, stream, method):
    asked = []

    def watch(parts):
        predict = parts.learner.predict

        def watched(query, compute):
            before = _bytes(parts.learner.state_dict())
            answer = predict(query, compute)
            asked.append(before == _bytes(parts.learner.state_dict()))
            return answer

        parts.learner.predict = watched

    go(stream, method, change=watch)
    assert len(asked) >= 3
    assert all(asked)


def _bytes(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


# --- learners that cheat ----------------------------------------------------------------------------------------------


def cheating(**methods):
    """A change to a run's parts: the learner's class gets other methods."""

    def change(parts):
        parts.learner.__class__ = type("Cheat", (type(parts.learner),), methods)

    return change


def test_a_learner_that_answers_by_the_statistics_of_the_query_is_caught(go):
    run = go("uploads", "naive")

    def predict(self, query, compute):
        if not self.network.head.classes:
            return Predictions.constant(len(query), np.empty(0, np.int64), 0.0)
        logits = compute.forward(self.network, query.x, "predict").logits
        confidence, top = (logits - logits.mean(0)).softmax(1).topk(min(5, logits.shape[1]))
        return Predictions(top[:, 0].numpy(), top.numpy(), confidence[:, 0].numpy())

    parts = go("uploads", "naive", change=cheating(predict=predict)).parts
    assert neighbours_matter(parts.learner, parts.compute, parts.source, int(run.steps["classes"][-1]))


@pytest.mark.parametrize("what", ["weights", "statistics", "memory", "optimiser"])
def test_a_learner_that_changes_while_it_predicts_is_refused(go, what):
    def predict(self, query, compute):
        answer = type(self).__mro__[1].predict(self, query, compute)
        if what == "weights":
            self.network.head.bias.data[0] += 1e-6
        elif what == "statistics":
            self.network.backbone.bn.running_mean[0] += 1e-6
        elif what == "memory":
            self.memory.used(np.array([0]), int(self.memory.last_used[0]) + 1)
        elif self.optimiser is not None:
            self.optimiser.param_groups[0]["momentum"] += 0.1
        return answer

    with pytest.raises(UserError, match=r"step \d: the learner's state changed while it predicted"):
        go("glyphs", "naive", change=cheating(predict=predict))


@pytest.mark.parametrize("asks", ["labels", "images", "batch"])
def test_a_learner_that_asks_for_what_comes_next_is_refused(go, asks):
    def fit(self, step, revealed, compute):
        getattr(revealed, asks)(np.append(step.revealed, step.revealed[-1] + 1))

    with pytest.raises(Unrevealed, match="sample 16 is not revealed yet"):
        go("uploads", "naive", change=cheating(fit=fit))


def test_a_learner_that_asks_for_a_held_out_label_is_refused(go):
    def fit(self, step, revealed, compute):
        revealed.labels(next(iter(step.heldout.values())))

    with pytest.raises(Unrevealed):
        go("glyphs", "naive", change=cheating(fit=fit))


def test_a_network_called_behind_computes_back_shows_in_the_audit(go):
    def fit(self, step, revealed, compute):
        type(self).__mro__[1].fit(self, step, revealed, compute)
        with torch.no_grad():
            self.network(revealed.images(step.revealed[:5]))

    run = go("glyphs", "naive", change=cheating(fit=fit))
    audit = run.audit()
    assert not audit["agrees"]
    one = run.category("predict", "flops")[audit["step"]] // (run.predictions["step"] == audit["step"]).sum()
    assert audit["counted"] - audit["charged"] == 5 * one


def test_a_learner_that_does_not_take_a_refusal_for_an_answer_gets_no_more(go):
    def fit(self, step, revealed, compute):
        for _ in range(3):
            type(self).__mro__[1].fit(self, step, revealed, _Stubborn(compute))

    class _Stubborn:
        def __init__(self, compute):
            self._compute = compute

        def __getattr__(self, name):
            return getattr(self._compute, name)

    with pytest.raises(UserError, match="does not pay for one update"):
        go("glyphs", "naive", change=cheating(fit=fit))


def test_no_answer_and_wrong_numbers_of_answers(go):
    with pytest.raises(UserError, match=r"returned 1 answers to \d+ images"):
        go("glyphs", "naive", change=cheating(predict=lambda self, query, compute: Predictions.constant(1, [0], 1.0)))


def test_the_state_hash_sees_every_kind_of_value():
    base = {"a": torch.zeros(2), "b": [np.arange(3), 1.5], "c": {"d": None}}
    others = [
        {**base, "a": torch.tensor([0.0, 1e-40])},
        {**base, "b": [np.array([0, 1, 3]), 1.5]},
        {**base, "b": [np.arange(3), 1.25]},
        {**base, "c": {"d": 0}},
        {**base, "c": {"e": None}},
        {"b": base["b"], "c": base["c"], "a": torch.zeros(3)},
    ]
    assert _hash(base) == _hash({**base, "a": torch.zeros(2).clone()})
    assert len({_hash(base), *map(_hash, others)}) == 7
