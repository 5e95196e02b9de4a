"""Ranks under several currencies, and where they turn."""

from pathlib import Path

import numpy as np
import pytest

from budgetcl.report.boards import boards
from budgetcl.report.currencies import grids, rankings
from budgetcl.report.runs import Run


def run(method, seed, accuracy, currency="FLOPs", rest="stop", group="sampling", fingerprint=None, **info):
    budget = {"updates": 5, "passes": None, "flops": None, "bytes": info.pop("cap", None), "currency": currency}
    info = {
        "id": f"{method}{seed}{currency}{rest}{budget}", "method": method, "group": group, "seed": seed, "stream": "s",
        "accounting": 1, "budget": budget, "rest": rest, "precision": "fp32", "fingerprint": fingerprint or f"f{seed}",
        "summary": {"average_accuracy": accuracy}, **info,
    }  # fmt: skip
    nothing = np.zeros(0)
    return Run(
        folder=Path(info["id"]), info=info, settings={}, seen=nothing.astype(int), spent=nothing, spending={},
        allowance=1.0, accuracy={}, future={}, along={}, flops_along=nothing, ages=None, start=0,
    )  # fmt: skip


# method -> accuracy of three seeds, under each currency
TABLE = {
    "FLOPs": {"naive": (0.60, 0.61, 0.62), "kd": (0.50, 0.51, 0.53), "er": (0.40, 0.70, 0.55)},
    "iterations": {"naive": (0.60, 0.61, 0.62), "kd": (0.70, 0.72, 0.72), "er": (0.65, 0.60, 0.62)},
}


def runs(table=TABLE, **more):
    return [
        run(method, seed, value, currency, **more)
        for currency, rows in table.items()
        for method, values in rows.items()
        for seed, value in enumerate(values)
    ]


def test_a_currency_makes_a_board_and_boards_that_differ_in_it_alone_are_ranked_side_by_side():
    found = boards(runs())
    assert [board.title for board in found] == ["s (currency=FLOPs)", "s (currency=iterations)"]
    (ranking,) = rankings(found)
    assert ranking.ranks("FLOPs") == {"naive": 1, "er": 2, "kd": 3}
    assert ranking.ranks("iterations") == {"kd": 1, "er": 2, "naive": 3}


def test_the_ranking_turns_only_where_both_intervals_exclude_0():
    (ranking,) = rankings(boards(runs()))
    turns = {(turn.first, turn.second): turn for turn in ranking.turns}
    assert set(turns) == {("naive", "kd"), ("er", "kd"), ("naive", "er")}
    sure = turns["naive", "kd"]
    assert sure.under == ("FLOPs", "iterations")
    assert sure.differences[0].estimate == pytest.approx(np.mean([0.10, 0.10, 0.09]))
    assert sure.differences[1].estimate == pytest.approx(-np.mean([0.10, 0.11, 0.10]))
    half = 4.302652729749464 * np.std([0.10, 0.11, 0.10], ddof=1) / np.sqrt(3)
    assert sure.differences[1].low == pytest.approx(sure.differences[1].estimate - half)
    assert [turn.shown for turn in ranking.turns] == [True, False, False]
    ranks, where = grids(boards(runs()))
    assert ranks.heads == ("method", "FLOPs", "iterations")
    assert [row[0] for row in ranks.rows] == ["naive", "er", "kd"]
    assert [row[-1] for row in where.rows] == ["turns", *["that it turns is not shown"] * 2]


def test_with_one_seed_nothing_turns():
    one = {currency: {m: values[:1] for m, values in rows.items()} for currency, rows in TABLE.items()}
    (ranking,) = rankings(boards(runs(one)))
    assert ranking.turns
    assert not any(turn.shown for turn in ranking.turns)


def test_an_order_that_stays_is_said_to_stay():
    same = {"FLOPs": TABLE["FLOPs"], "iterations": TABLE["FLOPs"]}
    assert grids(boards(runs(same)))[1].rows == ()
    assert "No pair" in grids(boards(runs(same)))[1].caption


def test_a_streams_delay_is_ranked_beside_the_others_and_named_by_its_rest():
    found = boards([*runs(), *[run(m, s, 0.5 + s / 100, rest="carry") for m in ("naive", "kd") for s in range(3)]])
    (ranking,) = rankings(found)
    assert set(ranking.runs) == {"FLOPs", "stream delay", "iterations"}
    assert set(ranking.ranks("stream delay").values()) == {1}  # equal means share a place
    assert set(ranking.ranks("FLOPs")) == {"naive", "kd"}  # er was not run with delay
    assert "Stream delay: FLOPs that arrive with each step" in grids(found)[0].caption


def test_all_five_are_ranked_in_one_table():
    more = {"memory-adjusted FLOPs": TABLE["FLOPs"], "1 seconds": TABLE["FLOPs"]}
    found = boards([*runs({**TABLE, **more}), *runs({"FLOPs": TABLE["FLOPs"]}, rest="carry")])
    heads = ("method", "FLOPs", "iterations", "memory-adjusted FLOPs", "1 seconds", "stream delay")
    assert grids(found)[0].heads == heads


@pytest.mark.parametrize("changed", [{"cap": 1000}, {"precision": "bf16"}])
def test_boards_that_differ_in_more_are_not_compared(changed):
    other = [run(m, s, v, "iterations", **changed) for m, vs in TABLE["iterations"].items() for s, v in enumerate(vs)]
    found = boards([*runs({"FLOPs": TABLE["FLOPs"]}), *other])
    assert len(found) == 2
    assert rankings(found) == []


def test_controls_and_blind_rows_are_left_out_and_seeds_are_those_that_all_have():
    more = [
        run("kd: uncharged", 0, 0.99, control={"kind": "uncharged", "of": "kd"}),
        run("majority", 0, 0.1, group="blind"),
        run("naive", 7, 0.9),
    ]
    (ranking,) = rankings(boards([*runs(), *more]))
    assert set(ranking.ranks("FLOPs")) == {"naive", "kd", "er"}
    assert list(ranking.runs["FLOPs"]["naive"]) == [0, 1, 2]


def test_what_seconds_buy_is_said_to_depend_on_the_machine():
    timed = {"FLOPs": TABLE["FLOPs"], "2 seconds": TABLE["iterations"]}
    assert "2 seconds buy depends on the machine" in grids(boards(runs(timed)))[0].caption
    assert "depends on the machine" not in grids(boards(runs()))[0].caption
