"""One streaming pass over a log says what the functions say; files of all kinds; bad ones end with status 2."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from budgetcl import cli
from budgetcl.errors import UserError
from budgetcl.metrics import (
    accuracy_matrix,
    average_accuracy,
    blind_accuracy,
    blind_predictions,
    calibration_error,
    class_accuracy,
    forgetting,
    information_retention,
    near_future_curve,
    scoring,
)
from budgetcl.metrics.log import SETS

N, CHUNK, SHIFTS = 3000, 8, (0, 8, 24)
LABELS = np.repeat(np.random.default_rng(0).integers(0, 40, N), np.random.default_rng(1).integers(1, 9, N))[:N]


def whole_log():
    """A log of all three sets; the ahead rows are those of the last label."""
    rng = np.random.default_rng(2)
    parts = []
    for shift in SHIFTS:
        index = np.arange(shift, N)
        seen = (index - shift) // CHUNK * CHUNK
        pred = blind_predictions(LABELS, 1, shift, CHUNK)[shift:]
        parts.append(
            {
                "index": index,
                "set": 0,
                "shift": shift,
                "seen": seen,
                "step": seen // CHUNK,
                "task": -1,
                "target": LABELS[shift:],
                "pred": pred,
                "top5": (pred == LABELS[shift:]) | (rng.random(len(index)) < 0.3),
                "confidence": rng.random(len(index)),
                "origin": -1,
            }
        )
    for step, seen in ((0, 1000), (1, 2000), (2, N)):
        for code in (1, 2):
            origin, target = rng.integers(0, seen, 400), rng.integers(0, 5, 400)
            pred = np.where(rng.random(400) < 0.6, target, 7)
            parts.append(
                {
                    "index": N + np.arange(400),
                    "set": code,
                    "shift": -1,
                    "seen": seen,
                    "step": step,
                    "task": rng.integers(0, step + 1, 400),
                    "target": target,
                    "pred": pred,
                    "top5": pred == target,
                    "confidence": rng.random(400),
                    "origin": origin if code == 2 else np.full(400, -1),
                }
            )
    full = [
        {name: np.broadcast_to(np.asarray(value), (len(part["index"]),)) for name, value in part.items()}
        for part in parts
    ]
    return {name: np.concatenate([part[name] for part in full]) for name in full[0]}


LOG = whole_log()


def score(log, pieces, seed=None, **options):
    order = np.arange(len(log["pred"])) if seed is None else np.random.default_rng(seed).permutation(len(log["pred"]))
    scorer = scoring.LogScorer(**options)
    for rows in np.array_split(order, pieces):
        scorer.add({name: values[rows] for name, values in log.items()})
    return scorer.scores()


@pytest.mark.parametrize(("pieces", "seed"), [(1, None), (9, None), (9, 3)])
def test_parts_in_any_order_give_the_numbers_of_the_functions(pieces, seed):
    scores = score(LOG, pieces, seed)
    ahead, held, kept = (LOG["set"] == code for code in (0, 1, 2))
    columns = [LOG[name] for name in ("pred", "target", "index", "seen")]
    at = {s: [c[ahead & (LOG["shift"] == s)] for c in columns] for s in SHIFTS}
    # Shifts apart by whole chunks make the same prediction under one seen: each is scored from its own rows.
    expected = {s: near_future_curve(*at[s], [s], warmup=300)[s] for s in SHIFTS}
    assert scores.curve == expected
    assert scores.numbers["online_accuracy"] == expected[0]
    matrix = accuracy_matrix(*(LOG[name][held] for name in ("pred", "target", "step", "task")))
    by_step = [float((LOG["pred"] == LOG["target"])[held & (LOG["step"] == s)].mean()) for s in range(3)]
    assert scores.numbers["average_accuracy"] == pytest.approx(average_accuracy(by_step))
    assert scores.numbers["final_accuracy"] == pytest.approx(by_step[-1])
    assert scores.numbers["forgetting"] == pytest.approx(forgetting(matrix))
    retention = information_retention(*(LOG[name][kept] for name in ("pred", "target", "origin", "seen")))
    assert scores.numbers["information_retention"] == retention.accuracy
    assert scores.by_age == pytest.approx(np.array(retention.by_age))
    zero = ahead & (LOG["shift"] == 0)
    by_class = class_accuracy(LOG["pred"][zero], LOG["target"][zero])
    assert {label: hits / rows for label, (rows, hits) in scores.by_class.items()} == dict(
        zip(by_class.label, by_class.accuracy)
    )
    assert scores.numbers["class_balanced_accuracy"] == pytest.approx(by_class.balanced)
    right = LOG["pred"] == LOG["target"]
    assert scores.numbers["online_calibration_error"] == pytest.approx(
        calibration_error(LOG["confidence"][zero], right[zero]), abs=1e-6
    )
    assert scores.numbers["online_top5"] == LOG["top5"][zero][300:].mean()
    assert (scores.samples, scores.start, scores.chunk) == (N, 300, CHUNK)
    assert np.array_equal(scores.labels, LABELS)


def test_thinned_confidences_stay_near_the_truth(monkeypatch):
    monkeypatch.setattr(scoring, "_CONFIDENCES_KEPT", 500)
    whole, thin = score(LOG, 1), score(LOG, 40)
    error = "online_calibration_error"
    assert thin.numbers[error] == pytest.approx(whole.numbers[error], abs=0.05)


def test_labels_of_any_size_are_counted_by_class():
    moved = LOG | {"target": LOG["target"] - 5 + 10**12 * (LOG["target"] == 3), "pred": LOG["pred"] - 5}
    scores = score(moved, 5)
    rows = (LOG["set"] == 0) & (LOG["shift"] == 0)
    assert scores.by_class[10**12 - 2][0] == (LOG["target"][rows] == 3).sum()
    assert sum(count for count, _ in scores.by_class.values()) == N


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (100, {"seen": 101}, "row 100 predicts index 100 after seen=101"),
        (100, {"index": 99, "seen": 96}, "row 100 predicts index 99 at shift=0 for the second time"),
        (2999, {"index": 7, "seen": 0}, "row 2999 predicts index 7 at shift=0 for the second time"),
        (3100, {"seen": 104}, "less than its shift=8"),
        (100, {"index": -1, "seen": -1}, "row 100 has index=-1"),
        (100, {"shift": -1}, "row 100 is predicted ahead at shift=-1"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 7])
def test_a_bad_row_is_named_by_its_place_in_the_whole_log(row, change, message, pieces):
    log = {name: values.copy() for name, values in LOG.items()}
    for name, value in change.items():
        log[name][row] = value
    with pytest.raises(UserError, match=message):
        score(log, pieces)


def test_missing_positions_are_counted():
    kept = (LOG["index"] != 1000) | (LOG["shift"] != 8)
    scores = score({name: values[kept] for name, values in LOG.items()}, 3)
    assert scores.missing == {0: 0, 8: 1, 24: 0}
    with pytest.raises(UserError, match="no rows"):
        scoring.LogScorer().scores()
    with pytest.raises(UserError, match="the stream has 500 samples"):
        score(LOG, 1, samples=500)


def table():
    columns = {name: pa.array(values) for name, values in LOG.items()}
    columns["set"] = pa.array(np.array(SETS)[LOG["set"]]).dictionary_encode()
    return pa.table(columns)


def run(*arguments, capsys):
    status = cli.main(["score", *map(str, arguments)])
    return status, capsys.readouterr()


@pytest.mark.parametrize("kind", ["parquet", "csv", "npz"])
def test_the_command_scores_all_kinds_of_files_alike(tmp_path, kind, capsys):
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(table(), path, row_group_size=700)
    elif kind == "csv":
        pa.csv.write_csv(table().set_column(1, "set", table()["set"].cast(pa.string())), path)
    else:
        np.savez(path, **(LOG | {"set": np.array(SETS)[LOG["set"]]}))
    status, shown = run(path, "--shift", "24", "--out", tmp_path / "out", capsys=capsys)
    assert status == 0
    assert "near_future_accuracy (S = 24)" in shown.out
    result = json.loads((tmp_path / "out" / "scores.json").read_text())
    expected = score(LOG, 1)
    assert result["metrics"]["near_future_accuracy"] == expected.curve[24]
    assert result["metrics"]["forgetting"] == pytest.approx(expected.numbers["forgetting"])
    # The log was made by the last label: the blind row with window 1 is that log itself, to the last digit.
    blind = {row["shift"]: (row["blind_window"], row["blind"]) for row in result["curve"]}
    for shift, value in expected.curve.items():
        window, accuracy = blind[shift]
        assert accuracy == blind_accuracy(LABELS, [window], [shift], CHUNK, warmup=300)[0, 0]
        assert value == blind_accuracy(LABELS, [1], [shift], CHUNK, warmup=300)[0, 0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert "http-equiv" not in page
    assert "<script" not in page


def test_a_foreign_log_of_strings_needs_no_more_than_two_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("y_hat,target\n" + "cat,cat\n" * 60 + "dog,cat\n" * 40)
    status, shown = run("mine.csv", "--column", "pred=y_hat", "--warmup", "0", capsys=capsys)
    assert status == 0
    assert "60.00" in shown.out
    result = json.loads((tmp_path / "outputs" / "score" / "mine" / "scores.json").read_text())
    assert result["metrics"]["online_accuracy"] == 0.6


def test_targets_may_come_from_a_file_of_labels(tmp_path, capsys):
    np.save(tmp_path / "labels.npy", LABELS)
    np.savez(tmp_path / "log.npz", pred=LABELS, index=np.arange(N))
    status, _ = run(tmp_path / "log.npz", "--labels", tmp_path / "labels.npy", "--out", tmp_path / "out", capsys=capsys)
    assert status == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["metrics"]["online_accuracy"] == 1.0


def test_the_shift_is_chosen_on_the_labels_of_the_warm_up(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 60, 5000), 4)[:20_000]
    index = np.concatenate([np.arange(s, 20_000) for s in (0, 8, 16)])
    shift = np.concatenate([np.full(20_000 - s, s) for s in (0, 8, 16)])
    np.savez(
        tmp_path / "log.npz", pred=labels[index], target=labels[index], index=index, shift=shift, seen=index - shift
    )
    status, shown = run(tmp_path / "log.npz", "--shift", "auto", "--out", tmp_path / "o", capsys=capsys)
    assert status == 0
    assert "S = 8" in shown.out


def broken(tmp_path):
    good = tmp_path / "good.parquet"
    pa.parquet.write_table(table(), good)
    (tmp_path / "cut.parquet").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 no")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("pred,target\n")
    (tmp_path / "mixed.csv").write_text("pred,target\n" + "1,a\n" * 3)
    (tmp_path / "gap.csv").write_text("pred,target\n1,1\n,1\n")
    (tmp_path / "nan.csv").write_text("pred,target\n1.0,1\nnan,1\n")
    (tmp_path / "set.csv").write_text("pred,target,set\n1,1,ahead\n1,1,test\n")
    (tmp_path / "leak.csv").write_text("pred,target,index,seen\n1,1,0,0\n1,1,1,2\n")
    (tmp_path / "sure.csv").write_text("pred,target,confidence\n1,1,0.5\n1,1,1.5\n")
    (tmp_path / "alone.csv").write_text("pred\n1\n")
    (tmp_path / "other.txt").write_text("1")
    np.savez(tmp_path / "nan.npz", pred=[1.0, np.nan], target=[1, 1])
    np.savez(tmp_path / "ragged.npz", pred=[1, 2], target=[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cut.parquet"], "cut.parquet cannot be read"),
        (["cut.npz"], "cut.npz cannot be read"),
        (["empty.csv"], "empty.csv cannot be read"),
        (["header.csv"], "no rows"),
        (["mixed.csv"], "target is of the type string"),
        (["gap.csv"], "pred has no value at row 1"),
        (["nan.csv"], "pred has no value at row 1"),
        (["nan.npz"], "pred holds nan at row 1"),
        (["set.csv"], "set is 'test' at row 1; known: ahead"),
        (["leak.csv"], "row 1 predicts index 1 after seen=2"),
        (["sure.csv"], "confidence is 1.5 at row 1"),
        (["alone.csv"], "--labels"),
        (["other.txt"], "none of .parquet"),
        (["ragged.npz"], "equally long"),
        (["nowhere.parquet"], "no file"),
        (["good.parquet", "--shift", "5"], "holds no rows at shift=5; it holds 0, 8, 24"),
        (["good.parquet", "--shift", "-3"], "--shift"),
        (["good.parquet", "--column", "pred"], "OURS=YOURS"),
        (["good.parquet", "--column", "prod=x"], "did you mean 'pred'"),
        (["good.parquet", "--column", "pred=x"], "no column 'x'"),
        (["good.parquet", "--samples", "9"], "9 samples"),
    ],
)
def test_bad_logs_end_with_status_2_and_one_line(tmp_path, arguments, message, capsys):
    broken(tmp_path)
    try:
        status, shown = run(tmp_path / arguments[0], *arguments[1:], "--out", tmp_path / "out", capsys=capsys)
    except SystemExit as stop:  # argparse itself
        status, shown = stop.code, capsys.readouterr()
    assert status == 2
    assert message in shown.err.replace("\n", " ")


@pytest.mark.parametrize("kind", ["npy", "txt", "csv", "parquet", "tsv"])
def test_the_blind_command_reads_all_kinds_of_labels(tmp_path, kind, capsys):
    path = tmp_path / f"labels.{kind}"
    if kind == "npy":
        np.save(path, LABELS)
    elif kind == "txt":
        path.write_text("".join(f"class {label}\n" for label in LABELS))
    elif kind == "parquet":
        pa.parquet.write_table(pa.table({"other": LABELS, "label": LABELS}), path)
    else:
        mark = "," if kind == "csv" else "\t"
        path.write_text(f"label{mark}time\n" + "".join(f"{label}{mark}0\n" for label in LABELS))
    options = ["--windows", "1,5,all", "--delays", "0,8,32", "--shuffles", "5", "--out", str(tmp_path / "out")]
    assert cli.main(["blind", str(path), *options]) == 0
    shown = capsys.readouterr().out
    assert "S = " in shown
    result = json.loads((tmp_path / "out" / "blind.json").read_text())
    assert result["accuracy"] == blind_accuracy(LABELS, [1, 5, None], [0, 8, 32]).tolist()
    assert (tmp_path / "out" / "blind.svg").read_text().startswith("<svg")
    assert (tmp_path / "out" / "grid.csv").read_text().startswith("window,0,8,32\n1,")


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("none.npy", None, [], "no file"),
        ("cut.npy", b"\x93NUMPY", [], "cannot be read"),
        ("cut.parquet", b"PAR1", [], "cannot be read"),
        ("two.csv", b"a,b\n1,2\n", [], "--column"),
        ("two.csv", b"a,b\n1,2\n", ["--column", "c"], "no column 'c'"),
        ("gap.csv", b"label,b\n1,2\n,2\n", [], "no label at row 1"),
        ("kind.mat", b"", [], "none of .npy"),
        ("few.txt", b"1\n2\n3\n4\n", ["--delays", "0"], "too short"),
        ("few.txt", b"1\n2\n", ["--delays", "5"], "beyond the stream"),
        ("few.txt", b"1\n2\n", ["--windows", "x"], "no list of numbers"),
    ],
)
def test_bad_labels_end_with_status_2(tmp_path, name, content, options, message, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    try:
        status = cli.main(["blind", str(tmp_path / name), *options])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_no_shift_is_an_answer_of_the_blind_command(tmp_path, capsys):
    np.save(tmp_path / "sorted.npy", np.sort(LABELS))
    assert (
        cli.main(["blind", str(tmp_path / "sorted.npy"), "--delays", "0,4", "--shuffles", "5", "--block", "3000"]) == 0
    )
    assert "no shift" in capsys.readouterr().out
