"""Trackers copy what a run says and change nothing: Weights & Biases offline, for real, and trackers that fail."""

import json
import struct
import warnings
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from budgetcl.cli import main
from budgetcl.errors import UserError
from budgetcl.learners.gradient import GradientLearner
from budgetcl.records.record import find
from budgetcl.records.tracker import Guarded, Tracker

SETTINGS = (
    "stream.pretrain_classes=10", "stream.stream_classes=9", "stream.steps=3", "stream.train=8", "stream.test=3",
    "stream.pretrain_train=8", "reference.batch=8", "budget.updates=4", "method=kd_mse", "name=sweep",
)  # fmt: skip


def only(folder):
    (run,) = find([Path(folder)])
    return run


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untracked")
    assert main(["run", *SETTINGS, f"output={folder}"]) == 0
    return only(folder)


def equal(one, other, same):
    """The same run, whatever tracked it: all tables to the bit but for its clock, and the same summary."""
    for table in ("predictions", "ledger", "stream"):
        same(getattr(one, table), getattr(other, table))
    for name in one.steps:
        if "seconds" not in name:
            np.testing.assert_array_equal(one.steps[name], other.steps[name])
    assert one.prices == other.prices
    assert one.info["id"] == other.info["id"]
    assert {k: v for k, v in one.summary.items() if "second" not in k} == {
        k: v for k, v in other.summary.items() if "second" not in k
    }
    assert one.finished
    assert other.finished


def entries(path):
    """The records of a .wandb file: a LevelDB log (blocks of 32 KiB; crc, length and type before each piece)."""
    from wandb.proto import wandb_internal_pb2

    data, position, piece = Path(path).read_bytes()[7:], 7, b""
    while len(data) >= 7:
        left = 32768 - position % 32768
        if left < 7:
            data, position = data[left:], position + left
            continue
        _, length, kind = struct.unpack("<IHB", data[:7])
        piece += data[7 : 7 + length]
        data, position = data[7 + length :], position + 7 + length
        if kind in (1, 4):  # whole, or the last of several
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            piece = b""
            yield record


def items(pairs):
    return {pair.key or "/".join(pair.nested_key): json.loads(pair.value_json) for pair in pairs}


def test_wandb_offline_holds_step_metrics_ledger_config_and_summary(tmp_path, untracked, same, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert main(["run", *SETTINGS, f"output={tmp_path}", "tracker=wandb_offline"]) == 0
    run = only(tmp_path)
    equal(untracked, run, same)
    (folder,) = (tmp_path / "sweep" / "wandb").glob("offline-run-*")
    (store,) = folder.glob("*.wandb")
    records = list(entries(store))
    history = [items(record.history.item) for record in records if record.HasField("history")]
    steps = [row for row in history if "accuracy" in row]
    assert [row["utilisation"] for row in steps] == pytest.approx(run.steps["spent"] / run.steps["allowance"])
    log = run.predictions
    hits = [float((log["pred"] == log["target"])[log["step"] == step].mean()) for step in range(3)]
    assert [row["accuracy"] for row in steps] == pytest.approx(hits)

    (begun,) = [record.run for record in records if record.HasField("run")]
    assert begun.run_group == "sweep"
    config = items(begun.config.update)
    assert config["stream"]["stream_classes"] == 9
    assert config["fingerprint"] == run.info["fingerprint"]

    (path,) = [row["ledger/path"] for row in history if "ledger/path" in row]
    written = json.loads((folder / "files" / path).read_text())
    assert written["columns"] == list(run.ledger)
    assert written["data"] == [list(row) for row in zip(*(column.tolist() for column in run.ledger.values()))]

    summary = {}
    for record in records:
        if record.HasField("summary"):
            summary |= items(record.summary.update)
    for name, value in run.summary.items():
        if value is not None:
            assert summary[name] == pytest.approx(value), name


class Failing(Tracker):
    """Raises where it is told to."""

    calls: ClassVar[list[str]] = []

    def __init__(self, at):
        self.at = at

    def _note(self, where):
        self.calls.append(where)
        if where == self.at:
            raise RuntimeError(f"no {where} today")

    def begin(self, info, config):
        config.clear()
        self._note("begin")

    def step(self, number, values):
        self._note("step")

    def end(self, summary, ledger):
        self._note("end")


@pytest.mark.parametrize(
    ("at", "calls"),
    [("begin", ["begin"]), ("step", ["begin", "step"]), ("end", ["begin", "step", "step", "step", "end"])],
)
def test_a_tracker_that_raises_warns_once_and_the_record_is_the_same(tmp_path, untracked, same, monkeypatch, at, calls):
    monkeypatch.setattr("budgetcl.records.tracker.Tracker", lambda: Failing(at))
    monkeypatch.setattr(Failing, "calls", [])
    with pytest.warns(RuntimeWarning, match=f"Failing failed and is left out of this run: no {at} today") as warned:
        assert main(["run", *SETTINGS, f"output={tmp_path}"]) == 0
    assert len(warned) == 1
    assert Failing.calls == calls
    equal(untracked, only(tmp_path), same)


def test_wandb_that_cannot_be_imported_is_one_warning(tmp_path, monkeypatch, untracked, same):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.warns(RuntimeWarning, match="Wandb failed and is left out of this run"):
        assert main(["run", *SETTINGS, f"output={tmp_path}", "tracker=wandb_offline"]) == 0
    equal(untracked, only(tmp_path), same)


def test_a_guarded_tracker_that_works_says_nothing():
    heard = []

    class Listening(Tracker):
        def step(self, number, values):
            heard.append((number, dict(values)))

    guarded = Guarded(Listening())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guarded.begin({}, {})
        guarded.step(3, {"accuracy": 0.5})
        guarded.end({}, {})
    assert heard == [(3, {"accuracy": 0.5})]


def test_ctrl_c_in_a_tracker_still_stops_the_run():
    class Stopping(Tracker):
        def step(self, number, values):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded(Stopping()).step(0, {})


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("not today"), 2, "not today"),
        (KeyboardInterrupt(), 130, "stopped"),
        (ZeroDivisionError("z"), None, "z"),
    ],
)
def test_a_run_that_fails_is_ended_with_its_reason_and_what_it_spent(
    tmp_path, monkeypatch, error, status, said, unrehearsed
):
    ended, fit = [], GradientLearner.fit

    class Listening(Tracker):
        def end(self, summary, ledger):
            ended.append((dict(summary), {name: column.tolist() for name, column in ledger.items()}))

    def fails(self, step, *given):
        if step.number == 2:
            raise error
        return fit(self, step, *given)

    monkeypatch.setattr("budgetcl.records.tracker.Tracker", Listening)
    monkeypatch.setattr(GradientLearner, "fit", fails)
    if status is None:
        with pytest.raises(ZeroDivisionError):
            main(["run", *SETTINGS, f"output={tmp_path}"])
    else:
        assert main(["run", *SETTINGS, f"output={tmp_path}"]) == status
    ((summary, ledger),) = ended
    assert said in summary["failed"]
    run = only(tmp_path)
    assert not run.finished
    assert ledger == {name: column.tolist() for name, column in run.ledger.items()}
    assert sum(ledger["flops"]) > 0


def test_wandb_ends_a_failed_run_as_failed(tmp_path, monkeypatch, unrehearsed):
    monkeypatch.setattr(GradientLearner, "fit", lambda *given: (_ for _ in ()).throw(UserError("not today")))
    assert main(["run", *SETTINGS, f"output={tmp_path}", "tracker=wandb_offline"]) == 2
    (store,) = (tmp_path / "sweep" / "wandb").glob("offline-run-*/*.wandb")
    records = list(entries(store))
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]
    summary = {}
    for record in records:
        if record.HasField("summary"):
            summary |= items(record.summary.update)
    assert summary["failed"] == "not today"
