"""Against scipy's t distribution."""

import numpy as np
import pytest
import scipy.stats

from budgetcl.report.student import mean_and_half, spread, student_interval, student_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7, 10, 29, 100])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_quantile_is_that_of_students_t(freedom, level):
    assert student_quantile(freedom, level) == pytest.approx(scipy.stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


def test_an_interval_over_seeds_is_scipys():
    values = [0.51, 0.55, 0.49, 0.6]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    found = student_interval(values)
    assert (found.estimate, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_one_value_has_no_interval_and_does_not_differ_from_zero_by_mistake():
    found = student_interval([0.4])
    assert found.estimate == 0.4
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_points_are_treated_one_by_one_and_gaps_are_left_out():
    mean, half = mean_and_half([[1.0, 2.0, np.nan, np.nan], [3.0, np.nan, 5.0, np.nan], [5.0, 4.0, np.nan, np.nan]])
    assert mean.tolist()[:3] == [3.0, 3.0, 5.0]
    assert np.isnan(mean[3])
    assert half[0] == pytest.approx(4.302652729749464 * 2 / np.sqrt(3))
    assert half[1] == pytest.approx(12.706204736174698)
    assert np.isnan(half[2:]).all()


def test_plots_show_the_seeds_themselves_until_there_are_enough_for_an_interval():
    few = np.array([[0.2, 0.5], [0.4, np.nan], [0.9, 0.7]])
    mean, low, high = spread(few)
    assert mean == pytest.approx([0.5, 0.6])
    assert low.tolist() == [0.2, 0.5]
    assert high.tolist() == [0.9, 0.7]
    many = np.arange(5.0)[:, None]
    mean, low, high = spread(many)
    assert (low[0], high[0]) == pytest.approx(scipy.stats.t.interval(0.95, 4, 2, scipy.stats.sem(many[:, 0])))
    assert np.isnan(spread(many[:1])[1]).all()
