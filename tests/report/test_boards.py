"""Which runs may stand in one table."""

from pathlib import Path

import numpy as np
import pytest

from budgetcl.report.boards import boards, differences, incomparable
from budgetcl.report.runs import Run


def run(method="naive", seed=0, fingerprint=None, settings=None, group="sampling", **info):
    info = {
        "id": f"{method}{seed}{fingerprint}{settings}{info}", "method": method, "group": group, "seed": seed,
        "stream": "s", "accounting": 1, "budget": {"updates": 5, "flops": None}, "rest": "stop", "precision": "fp32",
        "fingerprint": fingerprint or f"f{seed}", "summary": {}, **info,
    }  # fmt: skip
    nothing = np.zeros(0)
    return Run(
        folder=Path(info["id"]), info=info, settings=settings or {}, seen=nothing.astype(int), spent=nothing,
        spending={}, allowance=1.0, accuracy={}, future={}, along={}, flops_along=nothing, ages=None, start=0,
    )  # fmt: skip


def rows(board):
    return {name: sorted(runs) for name, runs in board.runs.items()}


def test_methods_and_seeds_of_one_stream_share_a_board_with_naive_first_and_blind_last():
    group = {"naive": "baseline", "majority": "blind", "er": "sampling"}
    given = [run(method, seed, group=group[method]) for method in ("majority", "er", "naive") for seed in (1, 0)]
    (board,) = boards(given)
    assert board.title == "s"
    assert rows(board) == {"naive": [0, 1], "er": [0, 1], "majority": [0, 1]}
    assert board.methods == ("naive", "er", "majority")
    assert board.notes == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"accounting": 2}, "accounting=2"),
        ({"budget": {"updates": 9, "flops": None}}, "budget.updates=9"),
        ({"budget": {"updates": None, "flops": 77}}, "budget.flops=77"),
        ({"rest": "carry"}, "budget.rest=carry"),
        ({"precision": "bf16"}, "precision=bf16"),
        ({"fingerprint": "other", "settings": {"stream.order": "data"}}, "stream.order=data"),
        ({"settings": {"reference.batch": 9}}, "reference.batch=9"),
        ({"settings": {"stream.augment": "crop"}}, "stream.augment=crop"),  # equal fingerprints do not tell
        ({"settings": {"stream.damaged": "replace"}}, "stream.damaged=replace"),
    ],
)
def test_what_may_not_be_compared_is_separated_and_titled_by_what_differs(changed, said):
    found = boards([run("naive"), run("er", **changed)])
    assert [board.methods for board in found] == [("naive",), ("er",)]
    assert said in found[1].title


CGLM = "CGLM has two orderings, by the date of upload and by the date in EXIF: never compare runs on one with the other"


def test_streams_that_look_alike_and_are_not_are_told():
    def upload(seed):
        return run("naive", seed, "up", stream="cglm_upload", notes=["order: by the date of upload", CGLM])

    def exif(seed):
        return run("naive", seed, "ex", stream="cglm_exif", notes=["order: by the date in EXIF", CGLM])

    (line,) = incomparable(boards([upload(0), upload(1), exif(1), run()]))
    assert line == (
        "Different streams, whose runs must not be compared: 'cglm_upload' with the fingerprint up and 'cglm_exif' "
        f"with the fingerprint ex, at seed 1 ({CGLM})."
    )
    (line,) = incomparable(boards([upload(0), exif(1)]))
    assert f"the fingerprint ex ({CGLM})." in line
    (line,) = incomparable(boards([run(seed=3), run("er", 3, "x"), run(seed=4)]))
    assert line == (
        "Different streams, whose runs must not be compared: 's' with the fingerprint f3 and 's' with the fingerprint "
        "x, at seed 3."
    )


def test_one_stream_under_several_conditions_or_seeds_is_no_different_one():
    found = boards([run(), run(seed=1), run(rest="carry"), run(stream="t", fingerprint="t")])
    assert len(found) == 3
    assert incomparable(found) == []
    assert incomparable(boards([run(notes=[CGLM]), run("er", notes=[CGLM]), run("er", 1, notes=[CGLM])])) == []


def test_two_streams_at_one_seed_are_separated_by_fingerprint_even_if_nothing_else_tells_them_apart():
    found = boards([run("naive"), run("er"), run("kd", fingerprint="x"), run("naive", 1), run("kd", 1)])
    assert all(len({(r.seed, r.fingerprint) for r in board.flat}) == len(board.seeds) for board in found)
    assert sorted(board.title for board in found) == ["s (fingerprint=f0)", "s (fingerprint=f1)", "s (fingerprint=x)"]


def test_a_stream_is_the_same_however_its_path_is_spelled():
    (board,) = boards([run(settings={"stream.path": "a.csv"}), run("er", settings={"stream.path": "./a.csv"})])
    assert rows(board) == {"naive": [0], "er": [0]}


def test_streams_of_other_seeds_and_settings_do_not_share_a_board():
    found = boards([run(settings={"stream.samples": 10}), run(seed=1, settings={"stream.samples": 20})])
    assert [board.title for board in found] == ["s (stream.samples=10)", "s (stream.samples=20)"]


def test_a_seed_in_the_settings_separates_nothing():
    (board,) = boards([run(seed=seed, settings={"stream.seed": seed}) for seed in (0, 1)])
    assert board.seeds == (0, 1)


def test_overrides_that_all_rows_share_are_said_once():
    (board,) = boards([run("naive(learner.batch=8)"), run("er(learner.batch=8,budget.free=[score,select])")])
    assert rows(board) == {"naive": [0], "er(budget.free=[score,select])": [0]}
    assert "learner.batch=8" in board.notes[0]


def test_a_method_run_twice_with_a_seed_becomes_two_rows_that_say_what_differs():
    (board,) = boards([run(settings={"learner.batch": 8}), run(settings={"learner.batch": 16}), run("er")])
    assert set(board.methods) == {"naive(learner.batch=8)", "naive(learner.batch=16)", "er"}
    assert "more than once" in board.notes[0]


def test_a_method_run_twice_with_nothing_different_keeps_both_rows():
    (board,) = boards([run(id="one"), run(id="two")])
    assert set(board.methods) == {"naive [one]", "naive [two]"}


def test_a_copy_of_a_record_counts_once():
    (board,) = boards([run(), run()])
    assert rows(board) == {"naive": [0]}


def test_missing_seeds_are_said():
    (board,) = boards([run(), run(seed=1), run("er")])
    assert board.notes == ("Seeds missing here: er: 1.",)


def test_differences_name_only_what_differs():
    assert differences([{"a": 1, "b": 2}, {"a": 1, "b": 3}]) == [("b=2",), ("b=3",)]
    assert differences([{"a": 1}]) == [()]
