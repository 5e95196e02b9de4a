"""From records to rows."""

import csv
import io
from itertools import pairwise

import numpy as np
import pytest

from budgetcl.records.record import find, read
from budgetcl.report.boards import boards
from budgetcl.report.page import _csv
from budgetcl.report.runs import AGES, blind_grid, reduce
from budgetcl.report.tables import CSV_COLUMNS, comparison


def reduced(folder):
    return [reduce(results) for results in find([folder]) if results.finished]


@pytest.fixture(scope="module")
def found(records):
    return {board.stream: board for board in boards(reduced(records))}


def test_a_mean_its_interval_and_the_paired_difference_are_students_over_seeds(found):
    board = found["classes"]
    table = comparison(board)
    naive, kd = (np.array([run.summary["average_accuracy"] for run in board.runs[m].values()]) for m in ("naive", "kd"))
    t = 4.302652729749464
    cell = table.row("kd").values["average_accuracy"]
    assert cell.estimate == pytest.approx(kd.mean())
    assert cell.high - cell.estimate == pytest.approx(t * kd.std(ddof=1) / np.sqrt(3))
    difference = table.row("kd").differences["average_accuracy"]
    assert difference.estimate == pytest.approx((kd - naive).mean())
    assert difference.high - difference.estimate == pytest.approx(t * (kd - naive).std(ddof=1) / np.sqrt(3))
    assert difference.differs
    assert not table.row("naive").differences


def test_rows_begin_with_naive_go_down_by_the_primary_column_and_end_with_blind_ones(found):
    table = comparison(found["timed"])
    assert table.primary.key == "near_future"
    assert [row.name for row in table.rows] == ["naive", "er", "kd", "last_label"]
    assert comparison(found["classes"]).primary.key == "average_accuracy"


def test_columns_that_are_empty_for_a_stream_are_left_out(found):
    keys = {name: {column.key for column in comparison(board).accuracy} for name, board in found.items()}
    assert keys["timed"] == {"online", "near_future", "retention"}
    assert {"average_accuracy", "final_accuracy", "forgetting", "final_pretrain"} <= keys["classes"]
    assert not {"online", "near_future", "retention"} & keys["classes"]


def test_a_difference_is_paired_over_the_seeds_that_both_have(tmp_path, write_record, streams):
    for seed in (0, 1, 2):
        write_record(tmp_path / f"n{seed}", streams["classes"](seed), "naive", "baseline", seed, 0.7)
    for seed in (1, 2, 3):
        write_record(tmp_path / f"e{seed}", streams["classes"](seed), "er", "sampling", seed, 0.4)
    (board,) = boards(reduced(tmp_path))
    naive, er = (
        {seed: run.summary["final_accuracy"] for seed, run in board.runs[name].items()} for name in ("naive", "er")
    )
    cell = comparison(board).row("er").differences["final_accuracy"]
    assert cell.estimate == pytest.approx(np.mean([er[seed] - naive[seed] for seed in (1, 2)]))
    assert any("Seeds missing" in note for note in comparison(board).notes)


def test_one_seed_has_no_interval_and_says_so(tmp_path, write_record, streams):
    for method in ("naive", "er"):
        write_record(tmp_path / method, streams["classes"](0), method, "sampling", 0)
    (board,) = boards(reduced(tmp_path))
    table = comparison(board)
    assert np.isnan(table.row("er").values["average_accuracy"].low)
    assert np.isnan(table.row("er").differences["average_accuracy"].low)
    assert any("One seed" in note for note in table.notes)


def test_blind_rows_that_were_not_run_are_computed_and_equal_those_that_were(records, tmp_path, write_record, streams):
    ran = comparison(next(board for board in boards(reduced(records)) if board.stream == "timed")).row("last_label")
    for seed in (0, 1, 2):
        write_record(tmp_path / str(seed), streams["timed"](seed), "naive", "baseline", seed, 0.7)
    (board,) = boards(reduced(tmp_path))
    grids = {results.info["fingerprint"]: blind_grid(results) for results in find([tmp_path])}
    table = comparison(board, grids)
    computed = table.row("last_label")
    assert computed.computed
    for key in ("online", "near_future"):
        assert computed.values[key].estimate == pytest.approx(ran.values[key].estimate)
        assert computed.differences[key].high == pytest.approx(ran.differences[key].high)
    assert {row.name for row in table.rows[1:]} == {"last_label", "recent_mode", "majority"}
    assert any("were not run" in note for note in table.notes)


def test_a_streams_own_blind_rows_need_predictions_ahead(found, records):
    results = next(results for results in find([records]) if results.info["stream"] == "classes")
    assert blind_grid(results) is None


def test_the_csv_has_one_raw_row_per_run(found):
    table = list(csv.DictReader(io.StringIO(_csv(list(found.values())))))
    assert tuple(table[0])[: len(CSV_COLUMNS)] == CSV_COLUMNS
    assert len(table) == 21
    row = next(r for r in table if (r["method"], r["stream"], r["seed"]) == ("kd", "classes", "1"))
    run = found["classes"].runs["kd"][1]
    assert float(row["average_accuracy"]) == run.summary["average_accuracy"]
    assert row["online"] == ""
    assert float(row["forgetting"]) == run.summary["forgetting"]


def test_curves_are_counted_from_the_log(records):
    results = read(records / "er-timed-1")
    run, log = reduce(results), results.predictions
    hit = log["pred"] == log["target"]
    ahead = (log["set"] == "ahead") & (log["index"] >= 48)
    assert run.start == 48  # the warm-up, a tenth of 480, lies behind the largest shift
    assert run.future[24] == pytest.approx(hit[ahead & (log["shift"] == 24)].mean())
    assert run.future[24] == run.summary["near_future"]
    assert run.future[0] == run.summary["online"]
    tenth = ahead & (log["shift"] == 0) & (log["index"] // 48 == 3)
    assert run.along["online"][3] == pytest.approx(hit[tenth].mean())
    assert np.isnan(run.along["online"][0])
    last = (log["set"] == "retention") & (log["step"] == 59)
    share = (log["seen"] - log["origin"]) / 480
    for i, (low, high) in enumerate(pairwise(AGES)):
        mine = last & (share >= low) & ((share < high) | (high == 1))
        assert run.ages[i] == pytest.approx(hit[mine].mean()) if mine.any() else np.isnan(run.ages[i])


def test_spending_adds_up_to_the_allowance(records):
    run = reduce(read(records / "kd-classes-0"))
    assert run.spending == {"teacher": 750.0, "train": 2250.0, "forfeited": 150.0}
    assert sum(run.spending.values()) == run.allowance == 3150
    assert run.spent.tolist() == [1000, 2000, 3000]
