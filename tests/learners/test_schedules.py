"""Schedules against their formulas, at places that can be worked out by head."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetcl.errors import UserError
from budgetcl.learners.schedules import Constant, Cosine, Infinite, Linear

shares = st.floats(0, 1)


def test_linear_cosine_and_constant_restart_at_each_step():
    for step in (0, 3):
        assert [Linear()(p, step) for p in (0, 0.25, 1)] == [1, 0.75, 0]
        assert [Cosine()(p, step) for p in (0, 1 / 3, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0])
        assert [Constant()(p, step) for p in (0, 0.5, 1)] == [1, 1, 1]


def test_infinite_warms_up_cools_down_and_stays():
    schedule = Infinite(warm=0.2, cool=0.4, level=0.5, anneal=0, floor=0.1)
    # Half-way up from 0.1 to 1; the peak; half-way down from 1 to 0.5; the level from 0.6 on.
    assert [schedule(p, 0) for p in (0, 0.1, 0.2, 0.4, 0.6, 1)] == pytest.approx([0.1, 0.55, 1, 0.75, 0.5, 0.5])
    assert [schedule(p, step) for p in (0, 0.1, 1) for step in (1, 50)] == [0.5] * 6  # no re-warming


def test_infinite_anneals_exponentially_at_the_end_of_each_step():
    schedule = Infinite(warm=0, cool=0, level=0.4, anneal=0.5, floor=0.1)
    for step in (0, 7):
        # Half of the way is the geometric mean of the ends: sqrt(0.4 x 0.1) = 0.2.
        assert [schedule(p, step) for p in (0, 0.5, 0.75, 1)] == pytest.approx([0.4, 0.4, 0.2, 0.1])


def test_the_first_stretch_may_span_several_steps():
    schedule = Infinite(warm=0.25, cool=0.5, level=0.5, anneal=0, floor=0.01, steps=4)
    assert schedule(0.5, 0) == pytest.approx(0.01 + 0.99 / 2)  # an eighth of the stretch: half-way up
    assert schedule(0, 1) == pytest.approx(1)
    assert schedule(0, 2) == pytest.approx(0.75)  # half of it: half-way down
    assert schedule(0, 3) == schedule(1, 9) == 0.5


def test_an_annealing_that_begins_in_the_warm_up_falls_from_where_it_was():
    schedule = Infinite(warm=1, cool=0, level=0.5, anneal=0.5, floor=0.01)
    assert schedule(0.5, 0) == pytest.approx(0.505)
    assert schedule(0.75, 0) == pytest.approx(math.sqrt(0.505 * 0.01))


@given(
    progress=shares, step=st.integers(0, 10**6), warm=shares, cool=shares, level=st.floats(0.01, 1), anneal=shares,
    steps=st.integers(1, 100),
)  # fmt: skip
def test_a_factor_is_a_share_and_no_update_of_infinite_is_for_nothing(progress, step, warm, cool, level, anneal, steps):
    for schedule in (Linear(), Cosine(), Constant()):
        assert 0 <= schedule(progress, step) <= 1
    infinite = Infinite(warm, min(cool, 1 - warm), level, anneal, steps=steps)
    assert 0.00999 <= infinite(progress, step) <= 1


def test_infinite_refuses_what_is_no_schedule():
    with pytest.raises(UserError, match=r"warm=0\.7 and cool=0\.6 given; shares that sum to at most 1"):
        Infinite(warm=0.7, cool=0.6)
    with pytest.raises(UserError, match=r"floor=0\.6 given; at most the level, 0\.5"):
        Infinite(level=0.5, floor=0.6)
    with pytest.raises(UserError, match="floor=0 given"):
        Infinite(floor=0)
    with pytest.raises(UserError, match="steps=0 given"):
        Infinite(steps=0)
