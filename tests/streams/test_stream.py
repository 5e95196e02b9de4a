import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetcl.errors import Unrevealed, UserError
from budgetcl.streams.batch import Source
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import PRETRAIN, RETENTION, SETS, STREAM, TEST, Stream


def stream(labels, bounds, shifts=(), pretrain=(), test=(), retention=(), **kwargs):
    label = np.array([*labels, *pretrain, *test, *(labels[o] for o in retention)], dtype=np.int64)
    sizes = {STREAM: len(labels), PRETRAIN: len(pretrain), TEST: len(test), RETENTION: len(retention)}
    return Stream(
        name="test",
        label=label,
        set=np.concatenate([np.full(n, SETS.index(name), np.int8) for name, n in sizes.items()]),
        bounds=np.array(bounds),
        time=np.arange(len(label), dtype=float),
        group=np.full(len(label), -1),
        origin=np.array([-1] * (len(label) - len(retention)) + list(retention)),
        label_names=tuple(str(i) for i in range(label.max() + 1)),
        source="none",
        shifts=shifts,
        **kwargs,
    )


class Numbered:
    """Pixels whose only value is the index."""

    shape, fingerprint = (1, 1, 1), "numbered"

    def __call__(self, indices, augment=None):
        import torch

        return torch.as_tensor(np.asarray(indices) % 256, dtype=torch.uint8).view(-1, 1, 1, 1)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=10), st.sets(st.integers(0, 12), max_size=4))
def test_each_index_is_predicted_once_per_shift_with_its_smallest_lead(sizes, shifts):
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    n = int(bounds[-1])
    steps = list(stream([0] * n, bounds, shifts=tuple(sorted(shifts))))
    for shift in shifts:
        when = {}
        for step in steps:
            for index in step.ahead.get(shift, ()):
                assert index not in when
                when[int(index)] = step.seen
        for index in range(n):
            # The latest border at which the index still lies at least `shift` ahead.
            usable = [int(s) for s in bounds[:-1] if s + shift <= index]
            assert when.get(index) == (max(usable) if usable else None)


def test_steps_reveal_each_sample_once_in_order_and_count_classes():
    s = stream([2, 2, 0, 2, 1], [0, 2, 3, 5], pretrain=[3, 3])
    steps = list(s)
    assert [step.revealed.tolist() for step in steps] == [[0, 1], [2], [3, 4]]
    assert [step.seen for step in steps] == [0, 2, 3]
    assert [step.classes for step in steps] == [2, 3, 4]
    assert [step.last for step in steps] == [False, False, True]
    assert s.first_seen().tolist() == [1, 2, 0, -1]


def test_heldout_shows_only_classes_seen_and_retention_only_the_past():
    s = stream([0, 0, 1, 1], [0, 2, 4], test=[0, 1, 1], retention=[0, 3], heldout=(TEST, RETENTION))
    first, second = s
    assert {k: v.tolist() for k, v in first.heldout.items()} == {TEST: [4], RETENTION: [7]}
    assert {k: v.tolist() for k, v in second.heldout.items()} == {TEST: [4, 5, 6], RETENTION: [7, 8]}
    only_last = stream([0, 0, 1, 1], [0, 2, 4], test=[0, 1, 1], occasions=(1,))
    assert [bool(step.heldout) for step in only_last] == [False, True]


def test_the_fingerprint_follows_everything_that_may_be_compared():
    base = stream([0, 1, 0], [0, 1, 3])
    assert base.fingerprint() == stream([0, 1, 0], [0, 1, 3]).fingerprint()
    others = [stream([0, 0, 1], [0, 1, 3]), stream([0, 1, 0], [0, 2, 3]), stream([0, 1, 0], [0, 1, 3], shifts=(0,))]
    assert len({base.fingerprint(), *(o.fingerprint() for o in others)}) == 4


@pytest.mark.parametrize(
    ("bounds", "message"), [([0, 2], "run from 0 to 3"), ([0, 0, 3], "at least one sample"), ([1, 3], "run from 0")]
)
def test_bounds_that_do_not_cut_the_stream_are_refused(bounds, message):
    with pytest.raises(UserError, match=message):
        stream([0, 1, 0], bounds)


def test_what_is_not_revealed_can_be_neither_seen_nor_learnt_from():
    s = stream([5, 5, 2, 9], [0, 2, 4], pretrain=[7, 3], test=[5])
    revealed, steps = Revealed(Source(s, Numbered())), list(s)
    assert revealed.labels(np.array([4, 5])).tolist() == [1, 0]  # codes 3 and 7, in the order of their codes
    for index in (0, 2, 6):
        for access in (revealed.labels, revealed.images, revealed.batch):
            with pytest.raises(Unrevealed, match=f"sample {index} is not revealed"):
                access(np.array([4, index]))
    revealed.reveal(steps[0])
    assert revealed.classes == 3
    batch = revealed.batch(np.array([0, 5]))
    assert batch.y.tolist() == [2, 0]
    assert batch.is_new.tolist() == [True, False]
    revealed.reveal(steps[1])
    assert revealed.batch(np.array([0, 3])).is_new.tolist() == [False, True]
    assert revealed.codes(np.array([0, 1, 2, 3, 4, -1])).tolist() == [3, 7, 5, 2, 9, -1]
    with pytest.raises(Unrevealed):
        revealed.labels(np.array([6]))  # held out: never


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 7), st.lists(st.integers(0, 6), max_size=3))
def test_the_step_that_first_reveals_a_class_is_found_in_parts_of_any_size(labels, part, pretrain):
    bounds = np.unique([0, len(labels) // 3, len(labels) // 2, len(labels)])
    s = stream(labels, bounds, pretrain=pretrain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("budgetcl.streams.stream._PART", part)
        found = s.first_seen().tolist()
    for code in range(len(s.label_names)):
        steps = [t for t in range(len(s)) if code in labels[bounds[t] : bounds[t + 1]]]
        assert found[code] == (-1 if code in pretrain else steps[0] if steps else len(s))


def test_a_known_digest_stands_for_the_columns_in_the_fingerprint():
    plain, known, other = (stream([0, 1, 2], [0, 3], digest=digest) for digest in ("", "a", "b"))
    assert len({plain.fingerprint(), known.fingerprint(), other.fingerprint()}) == 3
    assert stream([0, 2, 1], [0, 3], digest="a").fingerprint() == known.fingerprint()
    assert stream([0, 1, 2], [0, 3], digest="a", shifts=(0,)).fingerprint() != known.fingerprint()


def test_a_late_time_step_is_cut_without_looking_at_the_others():
    """Steps hold what they reveal and predict, however long the stream is."""
    n = 20_000
    steps = iter(stream([0, 1] * (n // 2), np.arange(0, n + 1, 10), shifts=(0, 40)))
    sizes = {(len(step.revealed), *(len(rows) for rows in step.ahead.values())) for step in steps if step.number < 1990}
    assert sizes == {(10, 10, 10)}
