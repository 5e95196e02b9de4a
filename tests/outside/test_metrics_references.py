"""Metrics against other people's code: scikit-learn, river, and numbers computed with Avalanche."""

import numpy as np
import pytest
import sklearn.metrics
from river import dummy, evaluate
from river import metrics as river_metrics

from budgetcl.metrics import (
    BlindMode,
    backward_transfer,
    blind_accuracy,
    calibration_error,
    class_accuracy,
    forgetting,
    forward_transfer,
    near_future_accuracy,
    online_accuracy,
    top_k_hits,
)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn(k):
    rng = np.random.default_rng(k)
    scores, target = rng.random((500, 9)), rng.integers(0, 9, 500)
    expected = sklearn.metrics.top_k_accuracy_score(target, scores, k=k, labels=np.arange(9))
    assert online_accuracy(scores, target, top_k=k, warmup=0) == pytest.approx(expected)
    assert float(top_k_hits(scores, target, k).double().mean()) == pytest.approx(expected)


def test_class_accuracy_equals_scikit_learns_recall():
    rng = np.random.default_rng(0)
    target, pred = rng.integers(0, 7, 400), rng.integers(0, 7, 400)
    by_class = class_accuracy(pred, target)
    assert by_class.accuracy == pytest.approx(sklearn.metrics.recall_score(target, pred, average=None))
    assert by_class.balanced == pytest.approx(sklearn.metrics.balanced_accuracy_score(target, pred))


def river_accuracy(stream, model, delay):
    """Let river predict, hold labels back by ``delay`` samples, and count hits."""
    counted = []

    class Hits(river_metrics.Accuracy):
        def update(self, y_true, y_pred, w=1.0):
            counted.append(y_true == y_pred)
            return super().update(y_true, y_pred, w)

    evaluate.progressive_val_score(stream, model, Hits(), moment="t", delay=delay)
    return counted


@pytest.mark.parametrize("delay", [0, 1, 5, 20])
def test_online_accuracy_with_delay_equals_rivers_progressive_validation(delay):
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 6, 300), rng.integers(1, 12, 300))[:600].tolist()
    stream = [({"t": t}, label) for t, label in enumerate(labels)]
    # River reveals a label once the clock has passed its time + delay: at t the labels before t - delay are known.
    counted = river_accuracy(stream, dummy.NoChangeClassifier(), delay if delay == 0 else delay + 0.5)
    hits = np.zeros(600, dtype=bool)
    hits[600 - len(counted) :] = counted  # river skips nothing but the first predictions without a past
    blind = blind_accuracy(labels, [1], [delay], warmup=60)[0, 0]
    assert blind == pytest.approx(np.mean(hits[60:]))

    # And a log of a streaming classifier under the same clock, scored by the functions.
    mode, rows = BlindMode(1), []
    for t, label in enumerate(labels):
        if t > delay:
            mode.update([labels[t - delay - 1]])
        if t >= delay:
            rows.append((-1 if mode.predict() is None else mode.predict(), label, t, t - delay))
    assert near_future_accuracy(*zip(*rows), shift=delay, warmup=60) == blind


def test_transfer_equals_avalanche():
    # Computed with avalanche-lib 0.6.0: StreamForgetting, StreamBWT and StreamForwardTransfer driven experience by
    # experience over this matrix (100 samples each), the first row of zero-shot accuracies being the untrained model's.
    untrained = [0.10, 0.12, 0.08, 0.05]
    matrix = [
        [0.80, 0.15, 0.10, 0.05],
        [0.60, 0.90, 0.20, 0.10],
        [0.70, 0.50, 0.75, 0.20],
        [0.40, 0.65, 0.55, 0.85],
    ]
    assert forgetting(matrix, "first") == pytest.approx(0.2833333333333333)
    assert backward_transfer(matrix) == pytest.approx(-0.2833333333333333)
    assert forward_transfer(matrix, untrained) == pytest.approx(0.10)
    three = [row[:3] for row in matrix[:3]]
    assert forgetting(three, "first") == pytest.approx(0.25)
    # Avalanche takes the first accuracy where Chaudhry et al. take the best: here the first is the best of each task.
    assert forgetting(matrix) == forgetting(matrix, "first")


def test_calibration_error_equals_its_definition_in_numpy():
    rng = np.random.default_rng(0)
    confidence = rng.random(1000)
    hits = rng.random(1000) < confidence**2
    place = np.digitize(confidence, np.linspace(0, 1, 11)[1:-1])
    gaps = [abs(confidence[place == b].mean() - hits[place == b].mean()) * np.mean(place == b) for b in range(10)]
    assert calibration_error(confidence, hits, bins=10) == pytest.approx(sum(gaps), abs=1e-6)
