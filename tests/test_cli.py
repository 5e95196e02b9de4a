"""The command line, end to end: run, run -m, list, price, report, and components of one's own from outside."""

import contextlib
import csv
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from budgetcl import cli
from budgetcl.cli import main
from budgetcl.configuration import compose, conf_folder
from budgetcl.dry_run import estimate
from budgetcl.records.record import find, read

SMALL = (
    "stream.pretrain_classes=10", "stream.stream_classes=9", "stream.steps=3", "stream.train=8", "stream.test=3",
    "stream.pretrain_train=8", "reference.batch=8", "budget.updates=4",
)  # fmt: skip
COLUMNS = {
    *("method", "seed", "stream", "average_accuracy", "final_accuracy", "online", "near_future", "retention"),
    *("updates", "flops", "utilisation", "predict_flops", "bytes"),
}
# A process that can reach nothing: every connection is refused before it is tried.
ALONE = """
import socket, sys
def refuse(*args): raise AssertionError(f"a connection to {args[1:]} was asked for")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
from budgetcl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def records(folder):
    return {run.info["id"]: run for run in find([Path(folder)])}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two methods, two seeds, in this process."""
    folder = tmp_path_factory.mktemp("sweep")
    before = sys.argv
    assert main(["run", "-m", *SMALL, f"output={folder}", "method=naive,kd_mse", "seed=0,1"]) == 0
    sys.argv = before
    return folder


def test_run_says_its_steps_its_numbers_and_where_the_record_is(tmp_path, capfd):
    assert main(["run", *SMALL, f"output={tmp_path}", "name=trial"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert [line.split(" · ")[0] for line in lines[:3]] == ["step 1/3", "step 2/3", "step 3/3"]
    (run,) = records(tmp_path).values()
    used = run.steps["spent"] / run.steps["allowance"]
    for line, left, share in zip(lines, ("67%", "33%", "0%"), used):
        assert f"budget left {left}, used in this step {share:.1%} · accuracy" in line
        assert "to go" in line
    assert f"final accuracy {run.summary['final_accuracy']:.1%}" in lines[3]
    assert lines[4] == f"record: {run.folder}"
    assert run.folder.parent == tmp_path / "trial"


@pytest.mark.parametrize("several", [False, True])
def test_in_a_terminal_one_line_lives_until_the_run_ends(tmp_path, several):
    settings = [*SMALL, f"output={tmp_path}", *(["-m", "seed=0"] if several else [])]
    said = b""
    process, terminal = pty.fork()
    if process == 0:  # the run, in a terminal of its own
        os.environ["COLUMNS"] = "200"
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115 - they end with the process
        os._exit(main(["run", *settings]))
    with contextlib.suppress(OSError):  # the terminal closes with the run
        while part := os.read(terminal, 4096):
            said += part
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    first, *rest = said.decode().split("\r\x1b[K")
    assert first == ""
    assert [line.split(" · budget")[0] for line in rest[:3]] == ["step 1/3", "step 2/3", "step 3/3"]
    assert all("\n" not in line and ("to go · naive(" in line) == several for line in rest[:2])
    if several:  # the end takes the line's place
        assert rest[3].startswith("naive(reference.batch=8,budget.updates=4) · glyphs · seed 0: ")


def test_many_steps_are_said_in_ten_lines_where_nobody_watches(tmp_path, capfd):
    settings = ["stream=uploads", "stream.samples=480", "stream.shifts=[0]", "stream.shift=null", "method=last_label"]
    assert main(["run", *settings, f"output={tmp_path}"]) == 0
    assert len([line for line in capfd.readouterr().out.splitlines() if line.startswith("step ")]) == 10


def test_a_sweep_writes_one_record_each_equal_to_single_runs(sweep, tmp_path, same):
    runs = records(sweep)
    assert len(runs) == 4
    assert {(run.info["method"].split("(")[0], run.info["seed"]) for run in runs.values()} == {
        *(("naive", 0), ("naive", 1), ("kd_mse", 0), ("kd_mse", 1))
    }
    assert all(run.finished for run in runs.values())
    assert main(["run", *SMALL, f"output={tmp_path}", "method=kd_mse", "seed=1"]) == 0
    (single,) = records(tmp_path).values()
    same(single.predictions, runs[single.info["id"]].predictions)
    same(single.ledger, runs[single.info["id"]].ledger)


def test_a_second_process_without_a_network_gives_the_same_run(sweep, tmp_path, same):
    command = [sys.executable, "-c", ALONE, "run", *SMALL, f"output={tmp_path}", "method=kd_mse", "seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (there,) = records(tmp_path).values()
    here = records(sweep)[there.info["id"]]  # the same id
    assert there.info["fingerprint"] == here.info["fingerprint"]
    for table in ("predictions", "ledger", "stream"):
        same(getattr(there, table), getattr(here, table))
    assert there.prices == here.prices
    assert there.info["audit"] == here.info["audit"]


def test_hydras_own_flags_work(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert main(["run", "--cfg", "job", *SMALL, f"output={tmp_path}"]) == 0
    assert "stream_classes: 9" in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_report_of_a_sweep_has_a_page_and_a_table(sweep, capfd):
    assert main(["report", str(sweep)]) == 0
    assert (sweep / "report.html").stat().st_size > 10_000
    with open(sweep / "summary.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert set(rows[0]) >= COLUMNS
    by = {(row["method"].split("(")[0], row["seed"]): row for row in rows}
    assert int(float(by["naive", "0"]["updates"])) == 12
    assert int(float(by["kd_mse", "0"]["updates"])) == 6


# --- list, price ------------------------------------------------------------------------------------------------------


def test_list_names_the_groups_and_their_choices(capfd, tmp_path):
    assert main(["list"]) == 0
    groups = capfd.readouterr().out.split()
    assert set(groups) == {path.name for path in conf_folder().iterdir() if path.is_dir()} - {"hydra"}
    for group in groups:
        for name in (group, f"{group}s"):
            assert main(["list", name]) == 0
            listed = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
            assert listed == sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
    assert main(["list", "methods"]) == 0
    assert "Squared distance to the logits" in capfd.readouterr().out
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "mine.yaml").write_text("# The best.\n_target_: mine.Mine\n")
    assert main(["list", "samplers", "--config-dir", str(tmp_path)]) == 0
    assert "mine" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("stream", "method"), [("glyphs", "kd_mse"), ("glyphs", "max_loss"), ("uploads", "er"), ("uploads", "last_label")]
)
def test_price_says_what_a_real_run_then_spends(go, tiny, stream, method):
    run = go(stream, method)
    said = estimate(tiny(stream, method).cfg, method, seconds=60)
    assert said.updates == (run.steps["updates"].min(), run.steps["updates"].max())
    assert said.simulated == (len(run.steps["updates"]),) * 2
    assert said.total == run.ledger["flops"].sum()
    assert said.utilisation == pytest.approx(run.steps["spent"].sum() / run.steps["allowance"].sum())
    assert ("update" in said.prices) == (method != "last_label")
    if method != "last_label":
        assert said.prices["update"] == pytest.approx(sum(run.category("train")) / run.steps["updates"].sum())
        rows = len(run.predictions["index"][run.predictions["confidence"] > 0])
        assert said.prices["predict"] == pytest.approx(sum(run.category("predict", "flops")) / rows)
    if method == "kd_mse":
        assert said.prices["teacher"] == pytest.approx(sum(run.category("teacher")) / run.steps["updates"].sum())


@pytest.mark.parametrize("settings", [["stream=glyphs", "method=naive,max_loss"], ["stream=uploads", "method=er"]])
def test_price_of_full_sizes_takes_less_than_five_seconds_and_touches_no_disk(tmp_path, monkeypatch, capfd, settings):
    monkeypatch.chdir(tmp_path)
    before = time.process_time()
    assert main(["price", *settings]) == 0
    assert time.process_time() - before < 5
    out = capfd.readouterr().out
    assert all(method in out for method in settings[1].removeprefix("method=").split(","))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "leaves"), [("price", True), ("report", False)])
def test_only_a_price_leaves_its_process_at_once_and_never_before_it_is_said(monkeypatch, capsys, name, leaves):
    def left(status):
        raise InterruptedError(f"{status}, {capsys.readouterr().out}")

    monkeypatch.setattr(sys, "argv", ["budgetcl", name])
    monkeypatch.setattr(cli, "main", lambda: print(name) or 2)
    monkeypatch.setattr(cli.gc, "disable", lambda: None)
    monkeypatch.setattr(cli.os, "_exit", left)
    with pytest.raises(InterruptedError if leaves else SystemExit, match="2, price" if leaves else "2"):
        cli.command()


# --- components of one's own ------------------------------------------------------------------------------------------

PACKAGE = '''
import numpy as np
import torch
from torch.nn import functional as F

from budgetcl.streams.batch import Source
from budgetcl.streams.stream import SETS, STREAM, TEST, Stream


class Oldest:
    """Learns only from the first samples ever revealed."""

    def __init__(self, window):
        self.window = window

    def begin(self, place):
        self._place = place

    def draw(self, n, update):
        return self._place.random("oldest", update).choice(self.reach(), n, replace=False)

    def reach(self):
        return min(self.window, len(self._place.memory))


class Smoothed:
    """Cross-entropy with smoothed labels."""

    teacher = False

    def __init__(self, smoothing):
        self.smoothing = smoothing
        self.key = ("smoothed", smoothing)

    def __call__(self, network, batch):
        outputs = network(batch.x)
        return F.cross_entropy(outputs.logits.float(), batch.y, label_smoothing=self.smoothing), outputs


class Sure:
    """How sure the answers are."""

    def __call__(self, run):
        sure = run.predictions["confidence"]
        return {"sure": sure.mean(), "surest": torch.tensor(sure.max()), "answers": np.int64(len(sure))}


class Stripes:
    """Horizontal or vertical stripes."""

    shape, fingerprint = (1, 24, 24), "stripes 1"

    def __init__(self, label):
        self._label = label

    def __call__(self, indices, augment=None):
        lines = (torch.arange(24) // 3 % 2 * 255).expand(24, 24)
        images = torch.stack([lines.T if label else lines for label in self._label[indices]])
        return images.to(torch.uint8)[:, None]


def stripes(samples, seed):
    label = np.random.default_rng(seed).integers(0, 2, samples + 20)
    stream = Stream(
        name="stripes",
        label=label,
        set=np.repeat([SETS.index(STREAM), SETS.index(TEST)], [samples, 20]).astype(np.int8),
        bounds=np.arange(0, samples + 1, samples // 4),
        time=np.arange(len(label), dtype=float),
        group=np.full(len(label), -1),
        origin=np.full(len(label), -1),
        label_names=("horizontal", "vertical"),
        source="stripes 1",
    )
    return Source(stream, Stripes(label))
'''
CONFIGURATION = {
    "sampler/oldest.yaml": "# The first samples ever.\n_target_: mine.Oldest\nwindow: 12\n",
    "objective/smoothed.yaml": "_target_: mine.Smoothed\nsmoothing: 0.1\n",
    "metrics/more.yaml": "defaults:\n  - default\n  - _self_\nsure:\n  _target_: mine.Sure\n",
    "stream/stripes.yaml": (
        "# @package _global_\n# Stripes.\nstream:\n  _target_: mine.stripes\n  samples: 80\n  seed: ${seed}\n"
        "reference:\n  batch: 8\nbudget:\n  updates: 3\nhead:\n  pretrained: false\n"
    ),
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(PACKAGE)
    for name, text in CONFIGURATION.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("several", [(), ("-m",)])
def test_a_sampler_an_objective_a_metric_and_a_stream_of_ones_own(mine, several):
    choices = ("stream=stripes", "sampler=oldest", "objective=smoothed", "metrics=more", "method.name=mine")
    where = ("--config-dir", str(mine / "conf"))
    assert main(["run", *several, *where, *choices, f"output={mine / 'out'}"]) == 0
    (run,) = records(mine / "out").values()
    assert run.finished
    assert run.info["stream"] == "stripes"
    assert run.info["method"].startswith("mine")
    assert run.info["audit"]["agrees"]
    confidence = run.predictions["confidence"]
    assert json.loads((run.folder / "run.json").read_text())["summary"]["answers"] == len(confidence) == 80
    assert run.summary["sure"] == pytest.approx(confidence.mean())
    assert run.summary["surest"] == pytest.approx(confidence.max())
    assert np.isfinite(run.summary["final_accuracy"])
    assert run.steps["updates"].tolist() == [3] * 4
    assert json.loads(json.dumps(run.prices))
    assert any("smoothed" in price.get("objective", "") for price in run.prices.values())


def test_ones_own_components_are_priced_and_listed_too(mine, capfd):
    where = ("--config-dir", str(mine / "conf"))
    assert main(["price", *where, "stream=stripes", "sampler=oldest", "objective=smoothed"]) == 0
    assert " 3 " in capfd.readouterr().out
    assert main(["list", "streams", *where]) == 0
    assert "stripes" in capfd.readouterr().out


def test_a_component_that_cannot_be_made_or_refuses_is_one_line(mine, capfd):
    where = ("--config-dir", str(mine / "conf"))
    (mine / "conf" / "sampler" / "wrong.yaml").write_text("_target_: mine.Nothing\n")
    for arguments, said in (
        (["sampler=wrong"], "mine.Nothing"),
        (["sampler=oldest", "+sampler.color=3"], "mine.Oldest cannot be made"),
        (["sampler=oldset"], "did you mean 'oldest'?"),
    ):
        assert main(["run", *where, *SMALL, *arguments, f"output={mine / 'out'}"]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("budgetcl: ")
        assert said in line


# --- what is imported when --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["price", "-h"]])
def test_help_imports_neither_torch_nor_hydra(arguments):
    code = (
        "import sys\nfrom budgetcl.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as done:\n    assert not done.code\n"
        "print(sorted({'torch', 'hydra', 'pandas', 'matplotlib'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "budgetcl" in done.stdout


def test_a_configuration_is_read_without_running_anything():
    assert compose(["method=kd_mse"]).method.name == "kd_mse"


def test_a_record_can_be_read_from_its_folder_alone(sweep):
    run = next(iter(records(sweep).values()))
    assert read(run.folder).info == run.info
