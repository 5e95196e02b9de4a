"""Numbers for reading, and sentences."""

import math

import pytest

from budgetcl.metrics.stats import Interval
from budgetcl.report.tables import Column, Comparison, Row
from budgetcl.report.words import findings, mark, quantity, shown, shown_difference

PERCENT = Column("final_accuracy", "final", "percent", 1)
NAN = math.nan


def interval(mean, half=NAN):
    return Interval(mean, mean - half, mean + half, 0.95)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.234e12, "flops", "1.23 T"), (999.6e6, "flops", "1.00 G"), (12.34e6, "flops", "12.3 M"), (0, "flops", "0"),
        (4.1e6, "bytes", "4.10 MB"),
        (512, "bytes", "512 B"), (12345, "count", "12,345"), (5.2e9, "flops/s", "5.20 G/s"),
        (12.34, "seconds", "12.3 s"), (600, "seconds", "10.0 min"), (7200, "seconds", "2.0 h"), (NAN, "flops", "–"),
    ],
)  # fmt: skip
def test_quantities_have_three_digits_and_a_unit(value, unit, text):
    assert quantity(value, unit) == text


def test_a_cell_holds_mean_and_half_width_and_no_width_on_one_seed():
    assert shown(PERCENT, interval(0.5321, 0.0061)) == "53.2 ± 0.6"
    assert shown(PERCENT, interval(0.5321)) == "53.2"
    assert shown(PERCENT, None) == "–"


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (-0.028, 0.003, "−2.8 ± 0.3 ▼"), (0.028, 0.003, "+2.8 ± 0.3 ▲"), (-0.028, 0.03, "−2.8 ± 3.0"),
        (0.01, NAN, "+1.0"), (-0.0001, 0.01, "+0.0 ± 1.0"), (0.0, 0.0, "+0.0 ± 0.0"),
    ],
)  # fmt: skip
def test_a_difference_is_marked_where_its_interval_excludes_zero(mean, half, text):
    assert shown_difference(interval(mean, half)) == text
    assert mark(interval(mean, half)).strip() == ("▲" if "▲" in text else "▼" if "▼" in text else "")


def table(rows, column):
    return Comparison(tuple(rows), (column,), (), (), column, "naive", ())


def test_findings_sort_methods_by_what_was_shown():
    rows = [Row("naive", "baseline", (0, 1), {"final_accuracy": interval(0.5, 0.1)})] + [
        Row(name, "sampling", (0, 1), {}, {"final_accuracy": interval(mean, 0.01)})
        for name, mean in (("up", 0.05), ("down", -0.05), ("even", 0.005))
    ]
    (said,) = findings(table(rows, PERCENT))
    assert said == (
        "Final accuracy against naive, in points. Better: up (+5.0 ± 1.0); worse: down (−5.0 ± 1.0); "
        "not told apart: even (+0.5 ± 1.0)."
    )


def test_findings_are_silent_on_one_seed_but_still_compare_with_blind():
    online = Column("online", "online", "percent", 1)
    rows = [
        Row("naive", "baseline", (0,), {"online": interval(0.5)}),
        Row("er", "sampling", (0,), {"online": interval(0.7)}, {"online": interval(0.2)}),
        Row("last_label", "blind", (0,), {"online": interval(0.6)}),
    ]
    assert findings(table(rows, online)) == [
        "Online accuracy: the best blind classifier, last_label, which sees no image, reaches 60.0%, the best learner, "
        "er, 70.0%; below it: naive."
    ]
