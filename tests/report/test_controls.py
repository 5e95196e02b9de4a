"""Whether a method loses by its idea or by its price, in rows and in words."""

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest

from budgetcl.metrics.stats import Interval
from budgetcl.records.record import find
from budgetcl.report.boards import boards
from budgetcl.report.controls import Verdict, idea_or_price, verdicts
from budgetcl.report.page import report
from budgetcl.report.runs import reduce
from budgetcl.report.tables import comparison
from budgetcl.report.words import findings

# method, control -> how often it is right
SKILLS = {
    ("naive", None): 0.6, ("kd", None): 0.3, ("kd", "uncharged"): 0.9, ("kd", "same_updates"): 0.35,
    ("naive", "unlimited"): 0.95, ("er", None): 0.7,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_record, streams):
    place = tmp_path_factory.mktemp("controls")
    for seed in (0, 1, 2):
        for number, ((method, kind), skill) in enumerate(SKILLS.items()):
            control = {"kind": kind, "of": method} if kind else None
            label = f"{method}: {kind}" if kind else method
            group = "control" if kind else {"naive": "baseline", "kd": "distillation", "er": "sampling"}[method]
            write_record(
                place / f"{number}-{seed}", streams["classes"](seed), label, group, seed, skill, control=control
            )
    return place


@pytest.fixture(scope="module")
def board(folder):
    (found,) = boards(reduce(results) for results in find([folder]))
    return found


def test_controls_stand_below_their_method_and_are_not_ranked(board):
    table = comparison(board)
    assert board.methods == ("naive", "naive: unlimited", "er", "kd", "kd: uncharged", "naive: updates of kd")
    assert [row.name for row in table.rows] == list(board.methods)
    assert [row.name for row in table.entries] == ["naive", "er", "kd"]  # by value, though a control is the highest
    assert table.row("kd: uncharged").control == ("uncharged", "kd")
    said = " ".join(findings(table))
    assert "kd" in said
    for control in board.controls:
        assert control not in said


def test_each_difference_is_paired_by_seed(board):
    (verdict,) = verdicts(board, comparison(board))

    def accuracy(name):
        return np.array([run.summary["average_accuracy"] for run in board.runs[name].values()])

    naive, kd, free, alike = map(accuracy, ("naive", "kd", "kd: uncharged", "naive: updates of kd"))
    assert verdict.method == "kd"
    assert verdict.charged.estimate == pytest.approx((kd - naive).mean())
    assert verdict.idea.estimate == pytest.approx((free - naive).mean())
    assert verdict.price.estimate == pytest.approx((kd - free).mean())
    assert verdict.alike.estimate == pytest.approx((kd - alike).mean())
    half = 4.302652729749464 * (kd - free).std(ddof=1) / np.sqrt(3)
    assert verdict.price.high - verdict.price.estimate == pytest.approx(half)
    assert verdict.words == "Loses by its price; its idea helps."


def interval(sign):
    """An interval above 0, below it, around it, or none at all."""
    ends = {1: (0.01, 0.03), -1: (-0.03, -0.01), 0: (-0.01, 0.03), "one seed": (float("nan"),) * 2}
    return None if sign is None else Interval(sum(ends[sign]) / 2, *ends[sign], 0.95)


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ((-1, -1, -1, None), "Loses by its idea and by its price."),
        ((-1, -1, 0, 0), "Loses by its idea; that its price costs it, too, is not shown."),
        ((-1, None, None, -1), "Loses by its idea."),
        ((-1, 1, -1, 0), "Loses by its price; its idea helps."),
        ((-1, 0, -1, 0), "Loses by its price; that its idea does harm is not shown."),
        ((-1, 0, 0, 0), "Worse than naive. By what it loses is not shown."),
        ((-1, 1, -1, -1), "Worse than naive. Its two controls disagree on its idea."),
        ((0, 1, -1, 1), "A difference to naive is not shown. Its idea helps and its price costs it accuracy."),
        (
            (0, 0, 0, 0),
            "A difference to naive is not shown. An effect of its idea or of its price by itself is not shown.",
        ),
        ((1, 1, 0, 1), "Better than naive. Its idea helps."),
        ((1, 0, 1, 0), "Better than naive. It is better charged than uncharged."),
        (("one seed", "one seed", "one seed", "one seed"), "Not tested: that takes naive and two seeds."),
        ((None, 1, -1, 1), "Not tested: that takes naive and two seeds."),
    ],
)
def test_words_claim_no_more_than_the_intervals_show(signs, said):
    assert Verdict("x", *map(interval, signs)).words == said


def test_there_is_no_such_table_without_controls(board):
    plain = board.with_controls()
    assert plain.methods == ("naive", "er", "kd")
    assert idea_or_price(plain, comparison(plain)) is None
    unlimited = board.with_controls("unlimited")  # the upper line judges no method
    assert idea_or_price(unlimited, comparison(unlimited)) is None


def test_a_control_without_its_method_goes_to_the_end(folder):
    runs = [reduce(results) for results in find([folder]) if results.info["method"] != "kd"]
    (found,) = boards(runs)
    assert found.methods == ("naive", "naive: unlimited", "er", "kd: uncharged", "naive: updates of kd")
    assert verdicts(found, comparison(found)) == ()


def test_overrides_that_all_methods_share_are_dropped_from_controls_as_well(folder):
    runs = [reduce(results) for results in find([folder])]
    for run in runs:
        if control := run.info.get("control"):
            control["of"] += "(learner.batch=8)"
        else:
            run.info["method"] += "(learner.batch=8)"
    (found,) = boards(runs)
    assert "naive: updates of kd" in found.methods
    assert found.controls["kd: uncharged"] == ("uncharged", "kd")


def test_the_page_says_it_and_draws_no_control_but_the_upper_line(folder, tmp_path):
    printed = StringIO()
    with redirect_stdout(printed):
        report([folder], tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for written in (text, html, printed.getvalue()):
        assert "Loses by its price; its idea helps." in written
        assert "↳ kd: uncharged" in written
    assert "18 runs · 3 methods and 3 controls" in html
    steps = (tmp_path / "plots" / "classes-accuracy-steps.svg").read_text(encoding="utf-8")
    assert "naive: unlimited" in steps
    for plot in (tmp_path / "plots").iterdir():
        assert "uncharged" not in plot.read_text(encoding="utf-8")
    rows = (tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()
    assert sum(",uncharged," in row for row in rows) == 3
