import numpy as np
import pytest

from budgetcl.errors import UserError
from budgetcl.streams.glyphs import glyphs
from budgetcl.streams.stream import PRETEST, PRETRAIN, PREVALIDATION, STREAM, TEST, VALIDATION

SMALL = {
    "pretrain_classes": 6,
    "stream_classes": 8,
    "steps": 4,
    "train": 5,
    "test": 3,
    "validation": 2,
    "pretrain_train": 4,
}


def small(**changes):
    return glyphs(**{**SMALL, **changes})


def test_the_sets_have_the_sizes_asked_for_and_the_classes_of_their_half():
    stream = small().stream
    sizes = {name: len(stream.rows(name)) for name in (STREAM, PRETRAIN, TEST, PRETEST, VALIDATION, PREVALIDATION)}
    assert sizes == {STREAM: 40, PRETRAIN: 24, TEST: 24, PRETEST: 18, VALIDATION: 16, PREVALIDATION: 12}
    for name in (PRETRAIN, PRETEST, PREVALIDATION):
        assert set(stream.label[stream.rows(name)]) == set(range(6))
    for name in (STREAM, TEST, VALIDATION):
        labels, counts = np.unique(stream.label[stream.rows(name)], return_counts=True)
        assert labels.tolist() == list(range(6, 14))
        assert len(set(counts)) == 1
    assert len(set(stream.label_names)) == 14


def test_in_class_order_each_class_is_revealed_in_one_step_and_steps_are_shuffled():
    stream = small(train=20).stream
    steps = [stream.label[step.revealed] for step in stream]
    assert [len(set(labels)) for labels in steps] == [2, 2, 2, 2]
    assert len(set.union(*(set(labels) for labels in steps))) == 8
    assert all(not np.array_equal(labels, np.sort(labels)) for labels in steps)
    assert stream.shifts == ()
    assert stream.shift is None


def test_in_data_order_the_classes_are_spread_over_the_steps():
    stream = small(order="data", train=40).stream
    assert all(len(set(stream.label[step.revealed])) == 8 for step in stream)
    assert [len(step.revealed) for step in stream] == [80, 80, 80, 80]


def test_uneven_numbers_are_cut_as_evenly_as_they_can():
    assert [step.classes for step in small(steps=3).stream] == [6 + 3, 6 + 6, 6 + 8]


def test_held_out_sets_follow_the_classes_seen():
    for evaluate, names in (("test", (TEST, PRETEST)), ("validation", (VALIDATION, PREVALIDATION))):
        steps = list(small(evaluate=evaluate).stream)
        assert tuple(steps[0].heldout) == names
        views = 3 if evaluate == "test" else 2
        assert [len(step.heldout[names[0]]) for step in steps] == [2 * views * (i + 1) for i in range(4)]
        assert {len(step.heldout[names[1]]) for step in steps} == {6 * views}


def test_without_pretraining_classes_there_is_no_pretraining_set():
    stream = small(pretrain_classes=0).stream
    assert stream.heldout == (TEST,)
    assert len(stream.rows(PRETRAIN)) == 0
    assert next(iter(stream)).classes == 2


def test_no_picture_is_in_two_sets_or_twice_in_one():
    source = small()
    x = source.pixels(np.arange(len(source.stream.label))).numpy().reshape(len(source.stream.label), -1)
    assert len(np.unique(x, axis=0)) == len(x)


def pictures(source, code):
    rows = np.flatnonzero(source.stream.label == code)
    return {x.tobytes() for x in source.pixels(rows).numpy()}


def test_a_character_has_the_same_pictures_in_every_order_and_size_of_the_stream():
    base = small()
    for other, first in ((small(order="data"), 6), (small(stream_classes=20), 6), (small(pretrain_classes=9), 9)):
        assert pictures(base, 6) == pictures(other, first)
    assert pictures(base, 0) == pictures(small(stream_classes=20), 0)
    assert not pictures(base, 6) & pictures(small(seed=1), 6)


def test_the_seed_never_moves_a_character_into_the_other_half():
    assert small(seed=0).stream.label_names == small(seed=1).stream.label_names
    full = glyphs(1000, 1000, train=1, test=1, validation=0, pretrain_train=1, steps=10).stream
    assert len(set(full.label_names)) == 2000
    assert full.label_names[1000:1008] == small().stream.label_names[6:]


def test_all_faces_are_drawn_alike_and_drifting_faces_follow_one_another():
    everything = glyphs(0, 100, train=24, order="data").stream
    share = np.bincount(everything.group[: everything.samples], minlength=12) / everything.samples
    assert share.min() > 0.03
    drifting = glyphs(0, 100, train=24, order="data", faces="drift").stream
    n = drifting.samples
    faces = drifting.group[:n]
    assert not set(faces[: n // 20]) & set(faces[-n // 20 :])
    np.testing.assert_array_equal(drifting.group[drifting.rows(TEST)], everything.group[everything.rows(TEST)])
    np.testing.assert_array_equal(drifting.label, everything.label)


CHANGES = {
    "pretrain_classes": 7, "stream_classes": 9, "steps": 2, "order": "data", "train": 6, "test": 4, "validation": 3,
    "pretrain_train": 5, "faces": "drift", "hardness": 0.5, "evaluate": "validation", "seed": 1,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_every_argument_changes_the_fingerprint(name, value):
    assert small().stream.fingerprint() == small().stream.fingerprint()
    assert small().stream.fingerprint() != small(**{name: value}).stream.fingerprint()


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"pretrain_classes": -1}, "pretrain_classes=-1"),
        ({"pretrain_classes": 1001}, "pretrain_classes=1001"),
        ({"stream_classes": 0}, "stream_classes=0"),
        ({"stream_classes": 2.5}, "stream_classes=2.5"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 9}, "at most 8"),
        ({"order": "data", "steps": 41}, "at most 40"),
        ({"order": "time"}, "order='time'"),
        ({"train": 0}, "train=0"),
        ({"test": True}, "test=True"),
        ({"validation": 0, "evaluate": "validation"}, "validation=0"),
        ({"faces": "some"}, "faces='some'"),
        ({"hardness": -1}, "hardness=-1"),
        ({"evaluate": "train"}, "evaluate='train'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(bad, told):
    with pytest.raises(UserError) as error:
        small(**bad)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
