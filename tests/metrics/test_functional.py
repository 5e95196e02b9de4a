"""The functions against loops that follow their definitions, and against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetcl.errors import UserError
from budgetcl.metrics import (
    accuracy,
    accuracy_at_budget,
    accuracy_by_step,
    accuracy_matrix,
    anytime_accuracy,
    average_accuracy,
    backward_transfer,
    calibration_error,
    class_accuracy,
    final_accuracy,
    forgetting,
    forward_transfer,
    information_retention,
    longtail_accuracy,
    near_future_accuracy,
    near_future_curve,
    negative_flip_rate,
    online_accuracy,
    top_k_hits,
)


def protocol(n, chunk, shifts, seed=0):
    """Make the rows of a stream predicted in chunks at several shifts: (pred, target, index, seen, shift)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    rows = [
        (rng.integers(0, 3), labels[i], i, (i - shift) // chunk * chunk, shift)
        for shift in shifts
        for i in range(shift, n)
    ]
    return [np.array(column) for column in zip(*rows)]


def looped(pred, target, index, seen, shift, start):
    hits = []
    for i in range(start, int(index.max()) + 1):
        leads = [(i - seen[r], r) for r in range(len(index)) if index[r] == i and i - seen[r] >= shift]
        _, row = min(leads)
        hits.append(pred[row] == target[row])
    return sum(map(int, hits)) / len(hits)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(20, 60), chunk=st.integers(1, 6),
    steps=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 9), warmup=st.sampled_from([0, 3, 0.1, 0.25]),
)  # fmt: skip
def test_near_future_accuracy_equals_the_loop_in_any_order_of_rows(n, chunk, steps, seed, warmup):
    shifts = [chunk * step for step in steps]  # so that no two shifts make the same prediction
    pred, target, index, seen, _ = protocol(n, chunk, shifts, seed)
    mixed = np.random.default_rng(seed).permutation(len(pred))
    rows = [column[mixed] for column in (pred, target, index, seen)]
    end = warmup if isinstance(warmup, int) else math.ceil(round(warmup * n, 9))
    for shift in shifts:
        expected = looped(pred, target, index, seen, shift, max(end, shift))
        assert near_future_accuracy(*rows, shift, warmup=warmup) == expected
    start = max(end, *shifts)
    expected = {shift: looped(pred, target, index, seen, shift, start) for shift in shifts}
    assert near_future_curve(*rows, shifts, warmup=warmup) == expected
    assert near_future_curve(*map(torch.from_numpy, rows), shifts, warmup=warmup) == expected


def test_online_accuracy_is_the_curve_at_shift_zero_and_the_plain_mean_behind_the_warmup():
    pred, target, index, seen, _ = protocol(50, 4, [0])
    plain = float(np.mean(pred[5:] == target[5:]))
    assert online_accuracy(pred, target) == plain
    assert online_accuracy(pred, target, index, seen) == plain
    assert near_future_curve(pred, target, index, seen, [0])[0] == plain
    back = slice(None, None, -1)
    assert online_accuracy(pred[back], target[back], index[back]) == plain
    assert online_accuracy(pred, target, samples=80) == float(np.mean(pred[8:] == target[8:]))


def test_a_share_of_the_stream_is_rounded_up_exactly():
    hits = [0] * 3 + [1] * 27
    assert online_accuracy(hits, [1] * 30, warmup=0.1) == 1.0  # 0.1 * 30 is a little above 3 in floating point


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": [1, 2, 3]}, "equally long"),
        ({"seen": [0, 1]}, "equally long"),
        ({"pred": [1.0, float("nan"), 2.0, 2.0]}, "NaN at row 1"),
        ({"pred": [0.5, 1.0, 2.0, 2.0]}, "float64"),
        ({"pred": ["a", "b", "c", "d"]}, "two types"),
        ({"pred": ["a", 1, "c", "d"]}, "mixes types"),
        ({"seen": [0, 1, 3, 3]}, "row 2 predicts index 2 after seen=3"),
        ({"index": [0, 1, 1, 3], "seen": [0, 1, 1, 3]}, "rows 1 and 2 both predict index 1"),
        ({"index": [0, 1, -2, 3]}, "-2 at row 2"),
        ({"shift": -1}, "shift=-1"),
        ({"shift": 4}, "beyond the stream of 4"),
        ({"shift": 2}, "at least 2 samples ahead"),
        ({"samples": 3}, "samples=3"),
        ({"warmup": 4}, "leaves nothing"),
        ({"pred": [], "target": [], "index": [], "seen": []}, "empty"),
        ({"pred": [None, 1, 2, 3]}, "NoneType"),
        ({"index": [0.0, 1.0, 2.0, 3.0]}, "index has the type float64"),
        ({"top_k": 2}, "scores"),
    ],
)
def test_bad_rows_are_refused_with_what_and_where(change, message):
    arguments = {"pred": [1, 1, 2, 2], "target": [1, 2, 2, 2], "index": [0, 1, 2, 3], "seen": [0, 1, 2, 3], "shift": 0}
    with pytest.raises(UserError, match=message) as caught:
        near_future_accuracy(**{**arguments, **change})
    assert "\n" not in str(caught.value)


def test_a_shift_that_the_log_does_not_hold_is_refused_although_larger_leads_exist():
    rows = np.array(protocol(64, 4, [0, 32])[:4])
    rows = rows[:, rows[2] >= 32]
    assert 0 <= near_future_accuracy(*rows, 32) <= 1
    with pytest.raises(UserError, match="no rows for shift=12"):
        near_future_accuracy(*rows, 12)


def test_readonly_arrays_foreign_integers_and_strings_are_taken():
    pred = np.array([1, 2, 2], dtype=np.uint16)
    pred.setflags(write=False)
    assert accuracy(pred, [1, 2, 1]) == 2 / 3
    assert accuracy(np.array(["x", "y"], dtype=object), np.array(["x", "z"])) == 0.5
    assert accuracy(torch.tensor([1, 0]), np.array([True, True])) == 0.5
    with pytest.raises(UserError, match="64 signed bits"):
        accuracy(np.array([2**63], dtype=np.uint64), [1])


def test_top_k_ties_are_misses():
    assert top_k_hits(np.zeros((2, 6)), [0, 5], k=5).tolist() == [False, False]
    assert top_k_hits([[0.3, 0.3, 0.1]], [1], k=2).tolist() == [True]
    assert online_accuracy(np.eye(3), [0, 1, 0], top_k=1, warmup=0) == 2 / 3
    with pytest.raises(UserError, match="3 at row 0"):
        top_k_hits(np.eye(3), [3, 0, 0], k=1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_retention_by_age_equals_the_loop(rows, bins, seed):
    rng = np.random.default_rng(seed)
    seen = rng.choice([20, 30], rows)
    seen[0] = 30
    origin = rng.integers(0, seen)
    pred, target = rng.integers(0, 2, rows), rng.integers(0, 2, rows)
    kept = information_retention(pred, target, origin, seen, bins)
    last = [r for r in range(rows) if seen[r] == 30]
    assert kept.accuracy == np.mean([pred[r] == target[r] for r in last])
    for b in range(bins):
        low, high = kept.edges[b], kept.edges[b + 1]
        inside = [pred[r] == target[r] for r in last if low < 30 - origin[r] <= high]
        assert kept.count[b] == len(inside)
        assert kept.by_age[b] == pytest.approx(np.mean(inside)) if inside else math.isnan(kept.by_age[b])
    assert sum(kept.count) == len(last)


@pytest.mark.parametrize(
    ("origin", "seen", "bins", "message"),
    [
        ([5, 10], [10, 10], 2, "10 at row 1, not among the 10 seen"),
        ([5, -1], [10, 10], 2, "-1 at row 1"),
        ([5, 1], [10, 10], [0, 5], "age 9 lies in no bin"),
        ([5, 1], [10, 10], [5, 5], "ascending"),
        ([5, 1], [10, 10], 0, "bins=0"),
    ],
)
def test_bad_retention_rows_are_refused(origin, seen, bins, message):
    with pytest.raises(UserError, match=message):
        information_retention([1, 1], [1, 1], origin, seen, bins)


def test_a_matrix_comes_from_a_log_and_gives_the_transfer_metrics():
    rng = np.random.default_rng(0)
    step, task = rng.integers(0, 3, 500), rng.integers(-1, 3, 500)
    pred, target = rng.integers(0, 2, 500), rng.integers(0, 2, 500)
    matrix = accuracy_matrix(pred, target, step, task)
    for i in range(3):
        for j in range(3):
            here = (step == i) & (task == j)
            assert matrix[i, j] == pytest.approx(np.mean(pred[here] == target[here]))
    r = matrix.numpy()
    assert backward_transfer(matrix) == pytest.approx(((r[2, 0] - r[0, 0]) + (r[2, 1] - r[1, 1])) / 2)
    assert forgetting(matrix, "first") == -backward_transfer(r)
    best = [max(r[0, 0], r[1, 0]), r[1, 1]]
    assert forgetting(r) == pytest.approx(np.mean(best - r[2, :2]))
    assert forward_transfer(r, [0, 0.5, 0.5]) == pytest.approx(np.mean([r[0, 1] - 0.5, r[1, 2] - 0.5]))
    assert average_accuracy(r) == pytest.approx(np.mean([r[0, 0], r[1, :2].mean(), r[2].mean()]))
    assert final_accuracy(r) == pytest.approx(r[2].mean())
    steps, by_step = accuracy_by_step(pred, target, step)
    assert steps.tolist() == [0, 1, 2]
    assert by_step[1] == pytest.approx(np.mean((pred == target)[step == 1]))


def test_forgetting_takes_tests_that_are_rarer_than_tasks():
    nan = math.nan
    rare = [[0.8, 0.6, nan, nan], [0.5, 0.7, 0.9, 0.4]]
    assert forgetting(rare) == pytest.approx((0.3 - 0.1) / 2)
    with pytest.raises(UserError, match="no task is tested"):
        forgetting([[nan, 1.0, nan], [1.0, nan, nan]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: backward_transfer([[1.0]]), "needs two"),
        (lambda: backward_transfer([[1.0, 0.0]]), "steps, steps"),
        (lambda: backward_transfer([[1.0, 0.0], [math.nan, 1.0]]), r"\[1, 0\]"),
        (lambda: forward_transfer([[1.0, math.nan], [1.0, 1.0]], [0, 0]), "before it comes"),
        (lambda: forward_transfer([[1.0, 0.0], [1.0, 1.0]], [0]), "1 numbers"),
        (lambda: forgetting([[1.0, 0.0], [1.0, 1.0]], "worst"), "'best' or 'first'"),
        (lambda: accuracy_matrix([1], [1], [0], [-1]), "task"),
        (lambda: anytime_accuracy([1.0, 1.0], [1, 1]), "must ascend"),
        (lambda: anytime_accuracy([1.0, math.nan], [1, 2]), "nan at 1"),
        (lambda: accuracy_at_budget([1.0], [5], 4), "below the first"),
        (lambda: longtail_accuracy([1], [1], [1], (5, 2)), "ascending"),
        (lambda: longtail_accuracy([1], [1, 1], [1]), "equally long"),
        (lambda: calibration_error([1.5], [1]), "1.5 at row 0"),
        (lambda: calibration_error([0.5], [2]), "booleans"),
    ],
)
def test_bad_matrices_and_curves_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.1, 100), st.floats(0, 100))
def test_anytime_accuracy_lies_between_the_extremes_and_ignores_the_unit(values, scale, offset):
    spent = np.arange(len(values), dtype=float)
    area = anytime_accuracy(values, spent)
    assert min(values) - 1e-9 <= area <= max(values) + 1e-9
    assert anytime_accuracy(values, offset + scale * spent) == pytest.approx(area)


def test_accuracy_at_budget_takes_the_last_model_that_fits():
    assert [accuracy_at_budget([0.2, 0.6, 0.5], [1, 2, 3], b) for b in (1, 1.9, 2, 99)] == [0.2, 0.2, 0.6, 0.5]


def test_groups_of_classes_equal_their_definitions():
    rng = np.random.default_rng(0)
    target, pred, train = rng.integers(0, 6, 300), rng.integers(0, 6, 300), rng.integers(0, 6, 400) ** 2 // 6
    frequency = np.bincount(train, minlength=6)[target]
    expected = {
        "head": np.mean((pred == target)[frequency > 90]),
        "middle": np.mean((pred == target)[(frequency >= 40) & (frequency <= 90)]),
        "tail": np.mean((pred == target)[frequency < 40]),
    }
    assert longtail_accuracy(pred, target, train, (40, 90)) == pytest.approx(expected, nan_ok=True)
    by_class = class_accuracy(pred, target)
    assert by_class.accuracy == pytest.approx([np.mean(pred[target == c] == c) for c in by_class.label])
    assert class_accuracy(["b", "a"], ["b", "b"]).label == ("b",)
    text = longtail_accuracy(pred.astype(str), target.astype(str), train.astype(str), (40, 90))
    assert text == pytest.approx(expected, nan_ok=True)


def test_flips_count_only_what_was_right():
    assert negative_flip_rate([1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]) == 0.25


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_on_a_gpu_give_the_same_numbers():
    pred, target, index, seen, _ = protocol(2000, 16, [0, 64])
    rows = [torch.from_numpy(column).cuda() for column in (pred, target, index, seen)]
    host = near_future_curve(pred, target, index, seen, [0, 64])
    assert near_future_curve(*rows, [0, 64]) == host
