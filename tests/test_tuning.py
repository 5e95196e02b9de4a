"""Tuning: as many trials for each method, on seeds and data that are not reported, and its price beside its result."""

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetcl.cli import main
from budgetcl.configuration import compose, plain, run_id
from budgetcl.errors import UserError
from budgetcl.records.record import find
from budgetcl.tuning import RATE, Scored, Trial, check_seeds, search

SETTINGS = (
    "stream.pretrain_classes=6", "stream.stream_classes=4", "stream.steps=2", "stream.train=4", "stream.test=2",
    "stream.validation=1", "stream.pretrain_train=4", "reference.batch=4", "budget.updates=2",
)  # fmt: skip
GRID = (0.01, 0.03, 0.1, 0.3)


def bowl(rate=0.1, knobs=None, asked=None):
    """A trial whose score falls with the distance, on a log scale, to the best rate, and to the best knobs."""

    def attempt(settings):
        if asked is not None:
            asked.append(dict(settings))
        loss = math.log10(settings.get(RATE, rate) / rate) ** 2
        loss += sum(abs(settings[name] - best) for name, best in (knobs or {}).items())
        return Trial(settings, (Scored(100, 0.8 - loss, 5, 2), Scored(101, 0.6 - loss, 7, 3)))

    return attempt


def test_without_knobs_the_trials_refine_the_rate():
    asked = []
    found = search({RATE: GRID}, {}, 8, bowl(0.07, asked=asked))
    rates = [settings[RATE] for settings in asked]
    assert rates[:4] == list(GRID)
    # 0.1 is best; 0.03 is nearer to 0.07 (log10: -0.37) than 0.3 (0.63): halfway to 0.03 first
    assert rates[4:6] == [0.055, 0.17]
    assert rates[6:] == [0.074, 0.041]  # 0.055 is best now, 0.1 its better neighbour
    assert found.best.settings == {RATE: 0.074}
    assert found.best.score == pytest.approx(0.7, abs=1e-3)
    assert (found.edges, found.left_out) == ((), ())


def test_a_best_rate_at_the_edge_is_followed_and_flagged():
    asked = []
    found = search({RATE: GRID}, {}, 6, bowl(3.0, asked=asked))
    assert [settings[RATE] for settings in asked[4:]] == [0.9, 2.7]  # each a step beyond
    assert found.best.settings == {RATE: 2.7}
    assert found.edges == (RATE,)


def test_of_scores_that_the_seeds_do_not_tell_apart_the_smallest_rate_is_chosen():
    # Differences to the best, 0.1: at 0.03 -0.01 and 0.03, mean 0.01, standard error 0.02; at 0.01 0.02 and 0.03, mean
    # 0.025, standard error 0.005.
    scores = {0.01: (0.68, 0.67), 0.03: (0.71, 0.67), 0.1: (0.70, 0.70), 0.3: (0.70, 0.60)}

    def attempt(settings):
        return Trial(settings, tuple(Scored(100 + i, score, 1, 1) for i, score in enumerate(scores[settings[RATE]])))

    assert search({RATE: GRID}, {}, 4, attempt).best.settings == {RATE: 0.03}
    scores[0.03] = (0.69, 0.68)  # mean 0.015, standard error 0.005
    assert search({RATE: GRID}, {}, 4, attempt).best.settings == {RATE: 0.1}


def test_of_knobs_that_the_seeds_do_not_tell_apart_the_first_is_chosen():
    scores = {1: (0.7, 0.5), 2: (0.6, 0.65), 3: (0.9, 0.9)}

    def attempt(settings):
        return Trial(settings, tuple(Scored(100 + i, score, 1, 1) for i, score in enumerate(scores[settings["knob"]])))

    assert search({"knob": [1, 2]}, {"knob": 1}, 4, attempt).best.settings == {"knob": 1}
    assert search({"knob": [1, 2, 3]}, {"knob": 1}, 4, attempt).best.settings == {"knob": 3}


def test_knobs_are_searched_inside_the_number_one_at_the_best_of_the_others():
    asked = []
    grids = {RATE: GRID, "a": (1, 2, 3), "b": (10, 20)}
    found = search(grids, {"a": 2, "b": 10}, 8, bowl(0.03, {"a": 3, "b": 20}, asked))
    assert all(settings["a"] == 2 and settings["b"] == 10 for settings in asked[:4])
    assert [(s["a"], s["b"]) for s in asked[4:7]] == [(1, 10), (3, 10), (3, 20)]  # what was tried is not tried again
    assert {settings[RATE] for settings in asked[4:7]} == {0.03}
    assert len(asked) == 8
    assert asked[7][RATE] not in GRID
    assert found.best.settings == {RATE: 0.03, "a": 3, "b": 20}
    assert found.edges == ("a", "b")


def test_values_for_which_no_trial_is_left_are_said():
    found = search({RATE: GRID, "a": (1, 2, 3)}, {"a": 2}, 5, bowl(0.03, {"a": 3}))
    assert found.left_out == ("a=3",)
    assert len(found.trials) == 5


def test_a_method_without_anything_to_tune_is_one_trial():
    found = search({}, {}, 1, bowl())
    assert [trial.settings for trial in found.trials] == [{}]
    assert found.edges == ()


def test_a_trial_that_fails_loses_and_all_failing_is_an_error():
    def attempt(settings):
        rate = settings[RATE]
        runs = (Scored(100, math.nan if rate == 0.03 else rate, 1, 1),)
        return Trial(settings, runs, "too hot" if rate > 0.05 else "")

    assert search({RATE: GRID}, {}, 4, attempt).best.settings == {RATE: 0.01}
    with pytest.raises(UserError, match="no trial has a score: too hot"):
        search({RATE: (0.1, 0.3)}, {}, 2, attempt)


@given(
    best=st.floats(1e-5, 1e2),
    rates=st.lists(st.floats(1e-4, 10), min_size=1, max_size=5, unique=True),
    knobs=st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 4), min_size=1, max_size=4), max_size=3),
    more=st.integers(0, 9),
)
def test_no_search_takes_more_trials_than_it_has_nor_one_twice(best, rates, knobs, more):
    asked = []
    found = search(
        {RATE: rates, **knobs}, dict.fromkeys(knobs, 0), len(rates) + more, bowl(best, dict.fromkeys(knobs, 2), asked)
    )
    assert len(asked) == len(found.trials) <= len(rates) + more
    assert len({json.dumps(settings, sort_keys=True) for settings in asked}) == len(asked)
    assert found.best.score == max(trial.score for trial in found.trials)
    ordered = sorted(rates)
    if len(rates) > 1 and not knobs and all(above / below > 2 for below, above in itertools.pairwise(ordered)):
        assert len(asked) >= min(len(rates) + more, len(rates) + 1)


@pytest.mark.parametrize("seeds", [[], [0], [4], [100, 3], [5], [99], [105], [100, 100]])
def test_only_tuning_seeds_tune(seeds):
    with pytest.raises(UserError, match="100-104"):
        check_seeds(seeds)
    check_seeds([100, 104])


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    arguments = ("method=kd_mse,last_label", "trials=3", "rates=0.01,0.1", "seeds=100,101", f"output={folder}")
    assert main(["tune", *SETTINGS, *arguments]) == 0
    return folder / "tune" / "glyphs"


def entries(folder):
    return {entry["method"]: entry for entry in json.loads((folder / "tuning.json").read_text())}


def test_trials_are_runs_on_the_tuning_seeds_and_the_validation_split(tuned):
    runs = [run for run in find([tuned]) if run.info["method"].startswith("kd_mse")]
    assert len(runs) == 3 * 2
    assert {run.info["seed"] for run in runs} == {100, 101}
    for run in find([tuned]):
        assert "evaluate: validation" in run.config
        heldout = run.predictions["index"][run.predictions["set"] == "heldout"]
        assert set(run.stream["set"][heldout].tolist()) <= {"validation", "prevalidation"}


def test_the_entry_sums_the_flops_of_all_trials(tuned):
    entry = entries(tuned)["kd_mse"]
    mine = [run for run in find([tuned]) if run.info["method"].startswith("kd_mse")]
    assert entry["flops"] == sum(int(run.ledger["flops"].sum()) for run in mine)
    assert entry["predict_flops"] == sum(
        int(run.ledger["flops"][run.ledger["category"] == "predict"].sum()) for run in mine
    )
    assert entry["learning_flops"] + entry["predict_flops"] == entry["flops"] > 0
    assert entry["trials"] == 3
    assert len(entry["runs"]) == 6


def test_the_chosen_setting_has_its_mean_over_seeds_and_is_among_the_best(tuned):
    entry = entries(tuned)["kd_mse"]
    means = {}
    for run in entry["runs"]:
        means.setdefault(json.dumps(run["settings"]), []).append(run["score"])
    means = {settings: sum(scores) / len(scores) for settings, scores in means.items()}
    assert means[json.dumps(entry["settings"])] == pytest.approx(entry["score"])
    assert means[json.dumps(entry["settings"])] > sorted(means.values())[len(means) // 2]
    chosen = compose([*SETTINGS, "method=kd_mse", *entry["overrides"]])
    assert chosen.optimiser.lr == entry["settings"]["optimiser.lr"]
    assert chosen.objective.weight == entry["settings"]["objective.weight"]


def test_a_method_without_a_rate_has_nothing_to_choose(tuned):
    entry = entries(tuned)["last_label"]
    assert entry["overrides"] == []
    assert entry["trials"] == 1
    assert "nothing to choose" in (tuned / "tuning.md").read_text()


def test_tuning_again_runs_only_what_is_new_and_adds_to_the_bill(tuned, capfd):
    before = entries(tuned)["kd_mse"]
    arguments = ("method=kd_mse", "trials=4", "rates=0.01,0.1", "seeds=100", f"output={tuned.parents[1]}")
    assert main(["tune", *SETTINGS, *arguments]) == 0
    out = capfd.readouterr().out
    assert out.count("already done") == 3
    after = entries(tuned)["kd_mse"]
    assert after["id"] == before["id"]
    assert len(after["runs"]) == 7
    new = [run for run in after["runs"] if run not in before["runs"]]
    assert after["flops"] == before["flops"] + sum(run["learning"] + run["predicting"] for run in new)
    assert "last_label" in entries(tuned)


def test_what_a_method_may_tune_is_no_part_of_its_identity():
    cfg = compose(["method=kd_mse"])
    assert list(cfg.method.tune["objective.weight"]) == [0.03, 0.1, 0.3]
    identity = run_id(plain(cfg))
    cfg.method.tune["objective.weight"] = [7]
    assert run_id(plain(cfg)) == identity


STRIPES = "# @package _global_\nstream:\n  _target_: budgetcl.streams.glyphs.glyphs\n  stream_classes: 4\n  steps: 2\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("seeds=0", "0-4 are those of reported results"),
        ("seeds=100,2", "0-4 are those of reported results"),
        ("seed=100", "seeds=100,101"),
        ("seeds=a", "numbers are expected"),
        ("trials=2", "4 learning rates"),
        ("stream.evaluate=test", "tuning sets stream.evaluate=validation"),
        ("stream=uploads stream.part=stream", "tuning sets stream.part=prefix"),
        ("metric=near_future", "no stream.part=prefix"),
        ("stream=plain", "no stream.evaluate=validation"),
        ("method=nave", "did you mean 'naive'"),
        ("budgett.updates=3", "did you mean 'budget.updates'"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_run(tmp_path, capfd, arguments, said):
    (tmp_path / "conf" / "stream").mkdir(parents=True)
    (tmp_path / "conf" / "stream" / "plain.yaml").write_text(STRIPES)
    where = ("--config-dir", str(tmp_path / "conf"), f"output={tmp_path / 'out'}")
    assert main(["tune", *where, *arguments.split()]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("budgetcl: ")
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_method_that_cannot_be_tuned_stops_no_other(tmp_path, capfd):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "odd.yaml").write_text(
        "# @package _global_\nmethod:\n  name: odd\n  group: own\n  tune:\n    optimiser.colour: [1, 2]\n"
    )
    where = ("--config-dir", str(tmp_path / "conf"), f"output={tmp_path / 'out'}")
    assert main(["tune", *where, *SETTINGS, "method=odd,last_label", "seeds=100"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert (
        line
        == "budgetcl: failed: method=odd: method.tune names optimiser.colour, which this configuration does not have"
    )
    assert list(entries(tmp_path / "out" / "tune" / "glyphs")) == ["last_label"]


def test_a_time_stamped_stream_is_tuned_on_its_prefix(tmp_path):
    small = ("stream=uploads", "stream.samples=64", "stream.prefix=400", "stream.classes=20", "stream.burst=6")
    rest = ("stream.shifts=[0,16]", "stream.shift=16", "stream.retention=8", "method=last_label", "seeds=100")
    assert main(["tune", *small, *rest, f"output={tmp_path}"]) == 0
    (run,) = find([Path(tmp_path)])
    assert run.info["stream_samples"] == 400
    (entry,) = entries(tmp_path / "tune" / "uploads").values()
    assert entry["metric"] == "near_future"
    assert entry["score"] == run.summary["near_future"]
