"""Blind classifiers against the slowest possible reference, and the choice of a shift."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetcl.errors import UserError
from budgetcl.metrics import (
    DELAYS,
    WINDOWS,
    BlindMode,
    ConstantMode,
    _mode,
    blind_accuracy,
    blind_predictions,
    label_autocorrelation,
    select_shift,
    select_window,
    shift_curve,
)
from budgetcl.metrics import blind as module


def reference(labels, window, delay, chunk):
    """Predict position by position from the definition; None where nothing is known."""
    predictions = []
    for t in range(len(labels)):
        known = labels[: max(0, (t - delay) // chunk * chunk)] if t >= delay else []
        votes = known if window is None else known[max(0, len(known) - window) :]
        most = max((votes.count(label) for label in votes), default=0)
        predictions.append(next((label for label in reversed(votes) if votes.count(label) == most), None))
    return predictions


runs = st.lists(st.tuples(st.integers(-3, 4), st.integers(1, 6)), min_size=1, max_size=16).map(
    lambda pairs: [label for label, times in pairs for _ in range(times)]
)
windows = st.one_of(st.none(), st.integers(1, 30))


@pytest.fixture(params=["interpreted", "compiled"])
def path(request, monkeypatch):
    """Both ways through the same source, whatever the size."""
    monkeypatch.setattr(module, "_worth_compiling", lambda updates: request.param == "compiled")
    return request.param


@pytest.mark.parametrize("fast", [False, True])
@settings(max_examples=150, deadline=None)
@given(
    labels=runs, window=windows, delay=st.integers(0, 8), chunk=st.integers(1, 7), scale=st.sampled_from([1, 70_001])
)
def test_predictions_equal_brute_force_for_any_window_delay_and_chunk(fast, labels, window, delay, chunk, scale):
    labels = [scale * label for label in labels]
    delay = min(delay, len(labels) - 1)
    worth, module._worth_compiling = module._worth_compiling, lambda updates: fast
    try:
        predictions = blind_predictions(labels, window, delay, chunk).tolist()
    finally:
        module._worth_compiling = worth
    expected = reference(labels, window, delay, chunk)
    nothing = min(0, min(labels)) - 1
    assert predictions == [nothing if label is None else label for label in expected]


def test_every_window_and_delay_of_the_paper_equals_brute_force(path):
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 9, 90), rng.integers(1, 8, 90))[:160]
    small_windows = [window for window in WINDOWS if window <= 1000]
    small_delays = [delay for delay in DELAYS if delay < len(labels)]
    for chunk in (1, 16):
        grid = blind_accuracy(labels, small_windows, small_delays, chunk, warmup=0.1)
        for i, window in enumerate(small_windows):
            for j, delay in enumerate(small_delays):
                expected = reference(labels.tolist(), window, delay, chunk)
                counted = range(max(16, delay), 160)
                assert grid[i, j] == np.mean([expected[t] == labels[t] for t in counted]), (window, delay, chunk)


@settings(max_examples=60, deadline=None)
@given(labels=runs, window=windows, delay=st.integers(0, 5), chunk=st.integers(1, 4), data=st.data())
def test_no_prediction_uses_a_label_later_than_it_may(labels, window, delay, chunk, data):
    delay = min(delay, len(labels) - 1)
    t = data.draw(st.integers(0, len(labels) - 1))
    changed = labels[: max(0, t - delay)] + [label + 1 for label in labels[max(0, t - delay) :]]
    low = [*labels, -9]  # the same smallest label in both, so that "no prediction" is the same value
    assert blind_predictions(low, window, delay, chunk)[t] == blind_predictions([*changed, -9], window, delay, chunk)[t]


@settings(max_examples=100, deadline=None)
@given(labels=runs, window=windows)
def test_the_streaming_classifier_predicts_what_the_function_does(labels, window):
    blind, predictions = BlindMode(window), []
    for label in labels:
        predictions.append(blind.predict())
        blind.update([label])
    assert predictions == reference(labels, window, 0, 1)


@settings(max_examples=60, deadline=None)
@given(labels=runs, window=windows, data=st.data())
def test_a_streaming_classifier_goes_on_from_its_state(labels, window, data):
    cut = data.draw(st.integers(0, len(labels)))
    whole, first, second = BlindMode(window), BlindMode(window), BlindMode(window)
    first.update(labels[:cut])
    second.load_state_dict(first.state_dict())
    whole.update(labels)
    second.update(np.asarray(labels[cut:], dtype=int))
    assert second.predict() == whole.predict()


def test_a_state_of_another_window_is_refused():
    with pytest.raises(UserError, match="window=3"):
        BlindMode(4).load_state_dict(BlindMode(3).state_dict())


def test_the_constant_predictor_keeps_the_prefix_mode_with_ties_to_the_last_seen():
    constant = ConstantMode(torch.tensor([2, 5, 5, 2]))
    constant.update([9, 9, 9])
    assert constant.predict() == 2
    assert ConstantMode().predict() is None


def test_many_blocks_carry_the_window_over_their_borders(monkeypatch, path):
    labels = np.repeat(np.random.default_rng(1).integers(0, 30, 200), 5)
    whole = blind_accuracy(labels, [1, 7, 200, None], [0, 3, 60], 4)
    monkeypatch.setattr(module, "_BLOCK", 37)
    assert np.array_equal(blind_accuracy(labels, [1, 7, 200, None], [0, 3, 60], 4), whole)


def test_strings_tensors_gaps_and_large_labels_give_the_same_accuracy():
    small = np.random.default_rng(2).integers(0, 5, 400)
    spread = np.array([-(10**12), 70_000, 3, 2**40, 65_536])[small]
    expected = blind_accuracy(small, [1, 5, None], [0, 2])
    for labels in (spread, torch.tensor(spread), np.array([f"c{x}" for x in small]), [f"c{x}" for x in small]):
        assert np.array_equal(blind_accuracy(labels, [1, 5, None], [0, 2]), expected)


def test_predictions_come_back_in_the_type_of_the_labels():
    assert blind_predictions(["a", "b", "b"], 1).tolist() == ["", "a", "b"]
    tensor = blind_predictions(torch.tensor([4, 4, 5], dtype=torch.int32), 1)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.tolist() == [-1, 4, 4]
    assert blind_predictions(np.array([70_000, -5, -5]), 1).tolist() == [-6, 70_000, -5]


def test_threads_do_not_change_the_grid(path):
    labels = np.random.default_rng(3).integers(0, 50, 3000)
    one = blind_accuracy(labels, [1, 5, 50], [0, 16], threads=1)
    assert np.array_equal(blind_accuracy(labels, [1, 5, 50], [0, 16], threads=3), one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": []}, "empty"),
        ({"labels": [1.0, float("nan")]}, "NaN at row 1"),
        ({"labels": [1.5, 2.5]}, "float64"),
        ({"labels": [1, "a"]}, "mixes types"),
        ({"labels": ["a", ""]}, "empty string"),
        ({"labels": [[1, 2]]}, "one dimension"),
        ({"labels": [1, 2], "windows": [0]}, "window=0"),
        ({"labels": [1, 2], "delays": [-1]}, "delay=-1"),
        ({"labels": [1, 2], "delays": [2]}, "beyond the stream of 2"),
        ({"labels": [1, 2], "chunk": 0}, "chunk=0"),
        ({"labels": [1, 2], "warmup": 1.0}, "warmup"),
        ({"labels": [1, 2], "warmup": 2}, "leaves nothing"),
        ({"labels": [1, 2], "windows": []}, "no window"),
    ],
)
def test_bad_input_says_what_and_where(arguments, message):
    with pytest.raises(UserError, match=message):
        blind_accuracy(**{"windows": [1], "delays": [0], **arguments})


def test_a_window_is_chosen_as_the_best_and_smallest():
    labels = np.repeat(np.random.default_rng(0).integers(0, 20, 100), 10)
    assert select_window(labels, [50, 1, 2], 0) == 1  # a window of two is the last label too
    assert select_window(labels, [None, 1], 40) in (None, 1)
    grid = blind_accuracy(labels, [1, 5, 50, None], [40], 4)
    assert select_window(labels, [50, 1, None, 5], 40, 4) == [1, 5, 50, None][int(grid[:, 0].argmax())]


def bursts(n, length, classes=200, seed=0):
    return np.repeat(np.random.default_rng(seed).integers(0, classes, n // length + 1), length)[:n]


def test_the_shift_is_the_reach_of_the_bursts():
    labels = bursts(8000, 32)
    assert select_shift(labels, [1, 5, 20], [0, 8, 16, 32, 64], shuffles=20) == 32


def test_the_curve_agrees_with_its_definition():
    labels = bursts(1600, 8)
    curve = shift_curve(labels, [1, 4, None], [16, 0, 8], block=100, margin=0.02, chunk=4, shuffles=30)
    assert curve.delays == (0, 8, 16)
    grid = blind_accuracy(labels, [1, 4, None], [0, 8, 16], 4)
    assert curve.accuracy == tuple(grid.max(axis=0))
    passes = [best <= null + 0.02 for best, null in zip(curve.accuracy, curve.null)]
    allowed = [d for i, d in enumerate(curve.delays) if all(passes[i:]) and d <= 25]
    assert curve.shift == (allowed[0] if allowed else None)


def test_the_null_keeps_what_is_slower_than_its_blocks():
    labels = np.repeat(np.arange(16), 500)  # drift only: one class after another
    curve = shift_curve(labels, [1, 20], [0, 100], block=500, shuffles=10)
    assert curve.null == curve.accuracy  # shuffling within a block of one class changes nothing


def test_shuffles_do_not_depend_on_threads_but_on_the_seed(path):
    labels = bursts(2000, 5)
    one = shift_curve(labels, [1, 5], [0, 5], shuffles=10, threads=1)
    assert shift_curve(labels, [1, 5], [0, 5], shuffles=10, threads=3) == one
    assert shift_curve(labels, [1, 5], [0, 5], shuffles=10, seed=1).null != one.null


def test_no_shift_is_an_error_that_shows_the_curve():
    with pytest.raises(UserError, match=r"0: \d+\.\d+ \(null \d+\.\d+\); 64: ") as caught:
        select_shift(np.repeat(np.arange(40), 400) % 7, [1], [0, 64], block=300, shuffles=10)
    assert "\n" not in str(caught.value)


def test_progress_counts_to_the_end():
    calls = []
    shift_curve(bursts(500, 5), [1], [0], shuffles=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_autocorrelation_equals_the_direct_count_and_the_closed_form():
    labels = np.random.default_rng(0).integers(0, 4, 500)
    direct = [np.mean([labels[t] == labels[t + k] for t in range(500 - k)]) for k in (0, 1, 7)]
    assert label_autocorrelation(labels, [0, 1, 7]).tolist() == pytest.approx(direct)

    rng, n, burst, classes = np.random.default_rng(1), 400_000, 12, 50
    redrawn = rng.random(n) < 1 / burst
    stream = rng.integers(0, classes, n)[np.maximum.accumulate(np.where(redrawn, np.arange(n), 0))]
    lags = np.array([1, 4, 16, 64])
    kept = (1 - 1 / burst) ** lags  # one uploader: the label stays until it is redrawn
    assert label_autocorrelation(stream, lags) == pytest.approx(kept + (1 - kept) / classes, abs=0.01)
    assert label_autocorrelation(stream, lags, adjusted=True) == pytest.approx(kept, abs=0.01)
    with pytest.raises(UserError, match="two classes"):
        label_autocorrelation([1, 1], [0], adjusted=True)


def test_a_package_that_cannot_be_written_still_compiles(monkeypatch):
    import numba

    def njit(function, **options):
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return ("compiled", function)

    monkeypatch.setattr(numba, "njit", njit)
    assert _mode.compiled.__wrapped__() == ("compiled", _mode.slide)


def test_small_work_is_done_without_numba(monkeypatch):
    monkeypatch.setattr(_mode, "compiled", lru_cache(lambda: pytest.fail("numba is loaded")))
    blind_accuracy(np.arange(8000) % 7, [1, 5], [0, 16], 16)
    with pytest.raises(pytest.fail.Exception):
        blind_accuracy(np.arange(80_000) % 7, [1, 5], [0, 16], 16)


def test_compiled_and_interpreted_are_one_source():
    assert _mode.compiled().py_func is _mode.slide
