import numpy as np
import pytest

from budgetcl.errors import UserError
from budgetcl.metrics.blind import WINDOWS, shift_curve
from budgetcl.streams.stream import PREFIX, RETENTION, STREAM
from budgetcl.streams.uploads import label_correlation, power_law, uploads


def small(**changes):
    arguments = {"samples": 600, "prefix": 400, "classes": 50, "shifts": (0, 16, 32), "shift": 16, "retention": 60}
    return uploads(**{**arguments, **changes})


def streamed(stream):
    return stream.label[: stream.samples]


@pytest.mark.parametrize(("uploaders", "burst"), [(1, 48), (3, 12), (4, 1)])
def test_the_label_correlation_has_its_closed_form(uploaders, burst):
    stream = small(samples=300_000, prefix=2, classes=200, uploaders=uploaders, burst=burst, drift=0, seed=5).stream
    labels = streamed(stream)
    for lag in (1, 2, 16, 32, 128):
        measured = (labels[lag:] == labels[:-lag]).mean()
        # The mean over bursts that are as good as independent draws: some six thousand for bursts of 48.
        assert measured == pytest.approx(label_correlation(lag, uploaders, burst, power_law(200, 1)), abs=0.025)


def test_the_closed_form_has_the_limits_that_it_must_have():
    shares = power_law(100, 1)
    assert shares.sum() == pytest.approx(1)
    assert label_correlation(10**6, 2, 48, shares) == pytest.approx((shares**2).sum())
    assert label_correlation(3, 2, 1, shares) == pytest.approx((shares**2).sum())
    assert label_correlation(1, 1, 10**9, shares) == pytest.approx(1)


def test_classes_follow_the_power_law_and_their_numbers_do_not_tell_how_frequent_they_are():
    labels = streamed(small(samples=200_000, prefix=2, classes=100, burst=1, drift=0).stream)
    counts = np.bincount(labels, minlength=100)
    np.testing.assert_allclose(np.sort(counts)[::-1] / len(labels), power_law(100, 1), rtol=0.15)
    assert abs(np.corrcoef(np.arange(100), np.argsort(np.argsort(counts)))[0, 1]) < 0.3
    flat = streamed(small(samples=200_000, prefix=2, classes=100, burst=1, drift=0, exponent=0).stream)
    np.testing.assert_allclose(np.bincount(flat, minlength=100) / len(flat), 0.01, rtol=0.15)


def test_bursts_last_as_long_as_asked_for():
    stream = small(samples=100_000, prefix=2, classes=1000, burst=20, drift=0, exponent=0).stream
    labels = streamed(stream)
    assert 1 / (labels[1:] != labels[:-1]).mean() == pytest.approx(20, rel=0.05)


def test_drift_moves_the_shares_of_classes_and_without_drift_they_stay():
    def moved(drift):
        labels = streamed(small(samples=60_000, prefix=2, classes=50, burst=1, drift=drift).stream)
        early, late = (np.bincount(part, minlength=50) / len(part) for part in (labels[:5000], labels[-5000:]))
        return np.abs(early - late).sum() / 2

    assert moved(0) < 0.1
    assert moved(1.0) > 0.2


def test_uploaders_take_turns_and_each_has_its_own_class():
    stream = small(samples=5000, uploaders=3, burst=1000, drift=0, classes=1000, exponent=0).stream
    group, labels = stream.group[:5000], streamed(stream)
    assert np.abs(np.bincount(group) / 5000 - 1 / 3).max() < 0.05
    for person in range(3):
        mine = labels[group == person]
        assert (mine[1:] != mine[:-1]).mean() < 0.01


def test_retakes_show_the_character_and_face_of_a_past_upload_in_another_view():
    source = small(samples=500, prefix=100, hardness=0)
    stream = source.stream
    rows = stream.rows(RETENTION)
    origin = stream.origin[rows]
    assert len(rows) == 60
    assert origin.min() < 10
    assert origin.max() > 490
    np.testing.assert_array_equal(stream.label[rows], stream.label[origin])
    np.testing.assert_array_equal(stream.group[rows], stream.group[origin])
    # Without distortions a view is the plain glyph or its negative: the same face shows.
    again, first = (source.pixels(index).numpy().astype(int) for index in (rows, origin))
    same = np.array([np.array_equal(a, b) or np.array_equal(a, 255 - b) for a, b in zip(again, first)])
    assert same.all()
    hard = small(samples=500, prefix=100)
    x = hard.pixels(np.arange(len(stream.label))).numpy().reshape(len(stream.label), -1)
    assert len(np.unique(x, axis=0)) == len(x)


def test_retakes_are_due_once_their_upload_was_revealed_and_on_the_occasions_asked_for():
    stream = small(occasions=3).stream
    due = {step.number: step.heldout[RETENTION] for step in stream if step.heldout}
    assert sorted(due) == [11, 24, 37]
    assert len(stream) == 38
    for number, rows in due.items():
        seen = stream.bounds[number + 1]
        assert (stream.origin[rows] < seen).all()
        assert len(rows) == (stream.origin[stream.rows(RETENTION)] < seen).sum()
    assert len(due[37]) == 60


def test_steps_reveal_a_chunk_each_and_predict_every_shift():
    stream = small(chunk=50).stream
    steps = list(stream)
    assert [len(step.revealed) for step in steps] == [50] * 12
    assert steps[2].ahead[16].tolist() == list(range(116, 166))
    assert set(steps[0].ahead) == {0, 16, 32}


def test_the_prefix_is_the_earlier_piece_of_the_same_process_and_can_be_streamed_for_tuning():
    stream = small().stream
    prefix = small(part="prefix").stream
    np.testing.assert_array_equal(stream.label[stream.rows(PREFIX)], streamed(prefix))
    np.testing.assert_array_equal(stream.time[stream.rows(PREFIX)], np.arange(400))
    np.testing.assert_array_equal(stream.time[:600], np.arange(400, 1000))
    assert prefix.samples == 400
    assert len(prefix.rows(PREFIX)) == 0
    longer = small(samples=5000).stream
    np.testing.assert_array_equal(streamed(longer)[:600], streamed(stream))
    np.testing.assert_array_equal(longer.label[longer.rows(PREFIX)], streamed(prefix))


def test_pictures_of_the_prefix_are_those_of_the_streamed_prefix_and_of_nothing_else():
    stream, prefix = small(), small(part="prefix")
    rows = stream.stream.rows(PREFIX)[:30]
    np.testing.assert_array_equal(stream.pixels(rows).numpy(), prefix.pixels(np.arange(30)).numpy())
    own = stream.pixels(stream.stream.rows(STREAM)).numpy()
    assert not {x.tobytes() for x in own} & {x.tobytes() for x in prefix.pixels(np.arange(400)).numpy()}


def test_the_shift_and_the_window_are_chosen_on_the_prefix_by_the_rule():
    shifts = (0, 16, 32, 64, 96)
    stream = uploads(samples=500, prefix=4000, burst=12, shifts=shifts, seed=1).stream
    prefix = stream.label[stream.rows(PREFIX)]
    windows = [window for window in WINDOWS if window <= 2000]
    curve = shift_curve(prefix, windows, shifts, 1000, chunk=16, shuffles=20)
    assert stream.shift == curve.shift in shifts[1:]
    assert stream.window == curve.windows[0]
    assert uploads(samples=900, prefix=4000, burst=12, shifts=shifts, seed=1).stream.shift == stream.shift


def test_a_prefix_that_is_too_short_for_the_rule_is_refused_with_the_curve():
    with pytest.raises(UserError, match=r"prefix=200 given; set shift.*no tested delay") as error:
        uploads(samples=500, prefix=200, shifts=(0, 16, 32))
    assert "\n" not in str(error.value)


def test_without_shifts_above_zero_there_is_no_near_future_shift():
    stream = small(shifts=(0,), shift=None, retention=0).stream
    assert stream.shift is None
    assert stream.heldout == ()


CHANGES = {
    "samples": 601, "prefix": 401, "classes": 51, "uploaders": 2, "burst": 40, "drift": 0.5, "exponent": 0.5,
    "hardness": 1.0, "chunk": 15, "shifts": (0, 16), "shift": 32, "retention": 61, "occasions": 4, "part": "prefix",
    "seed": 1,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_every_argument_changes_the_fingerprint(name, value):
    assert small().stream.fingerprint() == small().stream.fingerprint()
    assert small().stream.fingerprint() != small(**{name: value}).stream.fingerprint()


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"samples": 0}, "samples=0"),
        ({"prefix": 1.5}, "prefix=1.5"),
        ({"classes": 1}, "classes=1"),
        ({"classes": 1001}, "classes=1001"),
        ({"uploaders": 0}, "uploaders=0"),
        ({"burst": 0.5}, "burst=0.5"),
        ({"drift": -1}, "drift=-1"),
        ({"exponent": 9}, "exponent=9"),
        ({"hardness": "high"}, "hardness='high'"),
        ({"chunk": 0}, "chunk=0"),
        ({"shifts": (16, 0)}, "shifts=[16, 0]"),
        ({"shifts": (0, 16, 16)}, "shifts=[0, 16, 16]"),
        ({"shifts": (0, 16, 600)}, "below the 600 samples"),
        ({"shift": 17}, "shift=17"),
        ({"retention": 601}, "retention=601"),
        ({"occasions": 0}, "occasions=0"),
        ({"part": "tuning"}, "part='tuning'"),
        ({"seed": "a"}, "seed='a'"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(bad, told):
    with pytest.raises(UserError) as error:
        small(**bad)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
