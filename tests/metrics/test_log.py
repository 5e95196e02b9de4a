"""The prediction log's schema and its checks."""

import numpy as np
import pytest

from budgetcl.errors import UserError
from budgetcl.metrics import COLUMNS, check_log, rows_of

ROWS = {
    "index": [2, 3, 2, 90, 91],
    "set": ["ahead", "ahead", "ahead", "heldout", "retention"],
    "shift": [0, 0, 2, -1, -1],
    "seen": [2, 2, 0, 4, 4],
    "step": [1, 1, 0, 1, 1],
    "target": [5, 6, 5, 5, 6],
    "pred": [5, 5, 6, 5, 6],
    "top5": [True, True, False, True, True],
    "confidence": [0.5, 0.6, 0.7, 0.8, 0.9],
    "origin": [-1, -1, -1, -1, 3],
}


def test_a_good_log_comes_back_in_its_types():
    log = check_log(ROWS)
    assert list(log) == list(COLUMNS)
    assert {name: log[name].dtype.name for name in ("index", "shift", "top5", "confidence")} == {
        "index": "int64", "shift": "int32", "top5": "bool", "confidence": "float32",
    }  # fmt: skip
    assert check_log(log).keys() == log.keys()
    assert rows_of(log, "ahead", shift=0)["index"].tolist() == [2, 3]
    assert rows_of(log, "retention")["origin"].tolist() == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shfit": [0]}, "did you mean 'shift'"),
        ({"seen": [2, 4, 0, 4, 4]}, "row 1 predicts index 3 after seen=4 labels, its own among them: a leak"),
        ({"set": ["ahead", "ahead", "ahed", "heldout", "retention"]}, "'ahed' at row 2"),
        ({"shift": [0, 0, -1, -1, -1]}, "row 2 is predicted ahead at shift=-1"),
        ({"shift": [0, 0, 2, 0, -1]}, "row 3 of the set heldout has shift=0"),
        ({"shift": [0, 2, 2, -1, -1]}, "row 1 predicts index 3 after seen=2 labels: less than its shift=2"),
        ({"index": [2, 2, 2, 90, 91]}, "rows 0 and 1 both predict index 2 at shift=0"),
        ({"index": [2, 3, 2, -4, 91]}, "index is -4 at row 3"),
        ({"origin": [-1, -1, -1, -1, 4]}, "row 4 re-takes position 4"),
        ({"origin": [-1, -1, -1, -1, -1]}, "row 4 is a retention row without an origin"),
        ({"confidence": [0.5, np.nan, 0.7, 0.8, 0.9]}, "confidence is NaN at row 1"),
        ({"target": [5.0, 6.0, 5.0, 5.0, 6.0]}, "'target' has the type float64"),
        ({"pred": [5, 5]}, "equally long"),
        ({"pred": [[5]] * 5}, "one dimension"),
    ],
)
def test_a_bad_log_is_refused_with_what_and_where(change, message):
    with pytest.raises(UserError, match=message):
        check_log(ROWS | change)


def test_a_missing_column_set_or_shift_is_named():
    with pytest.raises(UserError, match="lacks seen, origin"):
        check_log({name: values for name, values in ROWS.items() if name not in ("seen", "origin")})
    with pytest.raises(UserError, match="it holds the shifts 0, 2"):
        rows_of(check_log(ROWS), "ahead", shift=4)
    with pytest.raises(UserError, match="did you mean 'ahead'"):
        rows_of(check_log(ROWS), "ahaed")
