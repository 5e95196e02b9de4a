import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetcl.streams.cuts import by_number, by_span
from budgetcl.streams.orders import sorted_by

NUMBERS = st.one_of(st.integers(-5, 5).map(float), st.floats(-1e3, 1e3), st.sampled_from([0.0, 1e12, -1e12]))


@given(st.lists(NUMBERS, max_size=20), st.randoms())
def test_rows_are_sorted_stably_whatever_the_values(values, random):
    values = np.array(values, float)
    rows = np.array(random.sample(range(len(values)), len(values) // 2 + len(values) % 2), np.int32)
    expected = sorted(rows.tolist(), key=lambda row: values[row])  # Python's sort is stable
    assert sorted_by(values, rows).tolist() == expected


@given(st.integers(1, 60), st.integers(1, 60))
def test_steps_by_number_are_as_numpy_splits(samples, steps):
    expected = np.cumsum([0] + [len(part) for part in np.array_split(np.arange(samples), steps)])
    assert by_number(samples, steps).tolist() == expected.tolist()


@given(st.lists(st.integers(0, 100), min_size=2, max_size=30), st.integers(1, 8))
def test_spans_are_of_equal_time_and_never_empty(times, steps):
    times = np.sort(np.array(times, float))
    bounds = by_span(times, steps)
    assert (np.diff(bounds) > 0).all()
    assert (bounds[0], bounds[-1]) == (0, len(times))
    if times[-1] > times[0]:
        span = np.minimum(np.floor((times - times[0]) / (times[-1] - times[0]) * steps), steps - 1)
        safe = np.abs((times - times[0]) / (times[-1] - times[0]) * steps % 1 - 0.5) < 0.499  # rounding of the edges
        step = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        for one, other in zip(np.flatnonzero(safe)[:-1], np.flatnonzero(safe)[1:]):
            assert (span[one] == span[other]) == (step[one] == step[other])


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.float64])
def test_sorting_takes_columns_of_every_kind(kind):
    values = np.array([3, -1, 3, 2, -1], kind)
    assert sorted_by(values, np.arange(5)).tolist() == [1, 4, 3, 0, 2]
