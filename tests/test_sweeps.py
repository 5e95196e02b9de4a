"""Sweeps: what is finished stays, what failed is listed, what was stopped goes on, and one process makes a run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import submitit
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from joblib.externals.loky import get_reusable_executor
from PIL import Image

from budgetcl.cli import main
from budgetcl.configuration import conf_folder
from budgetcl.errors import UserError
from budgetcl.learners.baselines import Blind
from budgetcl.records.claim import claimed
from budgetcl.records.record import find

# Sees no image, so that a run takes little time.
SETTINGS = (
    "stream=uploads", "stream.samples=96", "stream.prefix=400", "stream.classes=20", "stream.burst=6",
    "stream.shifts=[0,16,32]", "stream.shift=32", "stream.retention=16", "method=last_label",
)  # fmt: skip


def budgetcl(folder, *overrides):
    return main(["run", *SETTINGS, f"output={folder}", *overrides])


def runs(folder):
    return {run.info["seed"]: run for run in find([Path(folder)])}


def stamps(run):
    return {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()}


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Code of one's own that joblib's workers import, too: new ones, as they keep the path that they started with.

    All tests share these workers, each of which imports torch before it does anything.
    """
    folder = tmp_path_factory.mktemp("workers")
    (folder / "dies.py").write_text("import os\ndef metric():\n    os._exit(9)\n")
    (folder / "threads.py").write_text(
        "import torch\nclass Threads:\n    def __call__(self, run):\n        return {'n': torch.get_num_threads()}\n"
    )
    get_reusable_executor().shutdown(wait=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))  # new workers are given the path of this process
        yield
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def finished(tmp_path, capfd):
    """A finished run of seed 0."""
    assert budgetcl(tmp_path) == 0
    capfd.readouterr()
    return runs(tmp_path)[0]


def test_a_sweep_makes_what_is_missing_and_leaves_what_is_finished(tmp_path, finished, capfd):
    before = stamps(finished)
    assert budgetcl(tmp_path, "-m", "seed=range(0,3)") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(" · ")[0] for line in lines[:3]] == ["already done: last_label", "last_label", "last_label"]
    assert lines[3] == "3 runs: 2 done, 1 already done"
    assert stamps(runs(tmp_path)[0]) == before
    assert sorted(runs(tmp_path)) == [0, 1, 2]


def test_a_single_run_that_is_finished_says_its_numbers_and_its_place(tmp_path, finished, capfd):
    before = stamps(finished)
    assert budgetcl(tmp_path) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith(f"already done: last_label · uploads · seed 0: online {finished.summary['online']:.1%}")
    assert lines[1] == f"record: {finished.folder}"
    assert "rerun=true" in lines[-1]
    assert stamps(finished) == before


def test_a_run_whose_table_has_changed_since_is_not_taken_for_done(tmp_path, capfd):
    table = tmp_path / "photos.csv"
    table.write_text("path,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(40)))
    for i in range(60):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    command = [
        "run",
        "stream=table",
        f"stream.path={table}",
        "stream.steps=2",
        "method=last_label",
        "stream.order=data",
    ]
    command += ["device=cpu", f"output={tmp_path / 'out'}"]
    assert main(command) == main(command) == 0
    assert "already done" in capfd.readouterr().out
    with table.open("a") as file:
        file.writelines(f"{i}.png,c\n" for i in range(40, 60))
    assert main(command) == 2
    complaint = capfd.readouterr().err
    assert "photos.csv is another one than when this run was made" in complaint
    assert "rerun=true" in complaint
    assert main([*command, "rerun=true"]) == main(command) == 0
    (run,) = find([tmp_path / "out"])
    assert run.info["classes"] == 3
    table.unlink()
    assert main(command) == 0  # what was made is still there


def test_the_identity_counts_not_how_it_was_asked_for(tmp_path, finished, capfd):
    assert budgetcl(tmp_path, "learner.window=1", "query=100", "threads=1") == 0  # the value that it has
    assert "already done" in capfd.readouterr().out
    assert budgetcl(tmp_path, "learner.window=3") == 0
    assert "already done" not in capfd.readouterr().out


def test_rerun_makes_it_again_bit_equal_and_keeps_one_record(tmp_path, finished, capfd, same):
    before, columns = stamps(finished), finished.predictions
    assert budgetcl(tmp_path, "rerun=true") == 0
    assert "already done" not in capfd.readouterr().out
    (run,) = find([tmp_path])
    assert run.folder == finished.folder
    assert stamps(run) != before
    same(run.predictions, columns)
    assert "rerun" not in yaml.safe_load(run.config)
    assert [path.name for path in finished.folder.parent.iterdir()] == [finished.folder.name]


def test_a_rerun_that_fails_does_not_cost_the_finished_record(tmp_path, finished, monkeypatch, unrehearsed):
    before = stamps(finished)
    monkeypatch.setattr(Blind, "fit", lambda *given: (_ for _ in ()).throw(UserError("not today")))
    assert budgetcl(tmp_path, "rerun=true") == 2
    assert stamps(finished) == before
    assert json.loads((finished.folder / "run.json").read_text())["finished"]


@pytest.mark.parametrize("spoilt", ["version", "unfinished", "missing", "broken"])
def test_what_is_not_a_whole_record_of_this_version_is_made_again(tmp_path, finished, capfd, spoilt):
    text = finished.folder / "run.json"
    info = json.loads(text.read_text())
    if spoilt == "version":
        info["versions"]["budgetcl"] = "0.0.1"
    info["finished"] = spoilt != "unfinished"
    text.write_text("{" if spoilt == "broken" else json.dumps(info))
    if spoilt == "missing":
        (finished.folder / "predictions.parquet").unlink()
    assert budgetcl(tmp_path) == 0
    assert "already done" not in capfd.readouterr().out
    (run,) = find([tmp_path])
    assert run.finished
    assert run.info["versions"]["budgetcl"] != "0.0.1"
    assert len(run.predictions["index"])


def test_a_sweep_that_was_stopped_goes_on(tmp_path, monkeypatch, capfd, same, unrehearsed):
    whole = tmp_path / "whole"
    assert budgetcl(whole, "-m", "seed=0,1") == 0
    fit, calls = Blind.fit, iter(range(100))

    def stops(self, *given):
        if next(calls) == 9:  # in the fourth of the second run's six steps
            raise KeyboardInterrupt
        return fit(self, *given)

    monkeypatch.setattr(Blind, "fit", stops)
    assert budgetcl(tmp_path / "stopped", "-m", "seed=0,1") == 130
    assert {seed: run.finished for seed, run in runs(tmp_path / "stopped").items()} == {0: True, 1: False}
    monkeypatch.undo()
    capfd.readouterr()
    assert budgetcl(tmp_path / "stopped", "-m", "seed=0,1") == 0
    assert "2 runs: 1 done, 1 already done" in capfd.readouterr().out
    for seed, run in runs(tmp_path / "stopped").items():
        assert run.finished
        same(run.predictions, runs(whole)[seed].predictions)


LAUNCHERS = [(), ("hydra/launcher=joblib_2",)]


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("launcher", LAUNCHERS, ids=["basic", "joblib"])
def test_failed_runs_are_listed_at_the_end_and_stop_no_other(tmp_path, capfd, launcher):
    assert budgetcl(tmp_path, "-m", "learner.window=0,2,5", "metrics.ahead.warmup=0.1,7", *launcher) == 1
    out, error = capfd.readouterr()
    assert "Error executing" not in error
    assert "Traceback" not in error
    lines = error.splitlines()
    assert [line.split(": ")[2] for line in lines] == [
        "learner.window=0 metrics.ahead.warmup=0.1", "learner.window=0 metrics.ahead.warmup=7",
        "learner.window=2 metrics.ahead.warmup=7", "learner.window=5 metrics.ahead.warmup=7",
    ]  # fmt: skip
    assert all(line.startswith("budgetcl: failed: ") for line in lines)
    assert "learner.window=0 given" in lines[0]
    assert "warmup=7 given" in lines[2]
    assert out.splitlines()[-1] == "6 runs: 2 done, 4 failed"
    assert len([run for run in find([tmp_path]) if run.finished]) == 2


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("launcher", LAUNCHERS, ids=["basic", "joblib"])
def test_what_all_runs_share_is_refused_in_one_line(tmp_path, capfd, launcher):
    assert budgetcl(tmp_path, "-m", "seed=0,1", "learner.window=0", *launcher) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("budgetcl: ")]
    assert line.startswith("budgetcl: learner.window=0 given")
    assert budgetcl(tmp_path, "-m", "seed=-1,-2", *launcher) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("budgetcl: ")]
    assert [line.split(": ")[2] for line in lines] == ["seed=-1", "seed=-2"]


def test_what_does_not_apply_is_no_failure_and_excuses_none(tmp_path, capfd):
    assert budgetcl(tmp_path, "-m", "method=last_label,majority", "control=same_updates") == 0
    out, error = capfd.readouterr()
    assert out.splitlines()[-2] == "2 runs: 2 not applicable"
    assert out.splitlines()[-1].endswith("makes no updates (last_label, majority)")
    assert error == ""
    assert not list(find([tmp_path]))
    assert budgetcl(tmp_path, "-m", "control=null,same_updates", "metrics.ahead.warmup=7") == 2
    out, error = capfd.readouterr()
    assert "2 runs: 1 not applicable, 1 failed" in out
    assert error.startswith("budgetcl: ")
    assert "warmup=7 given" in error
    assert budgetcl(tmp_path, "control=same_updates") == 2  # asked for alone it is
    assert "makes no updates" in capfd.readouterr().err


# Trains networks.
TRAINED = (
    "stream=glyphs", "stream.pretrain_classes=10", "stream.stream_classes=9", "stream.steps=3", "stream.train=8",
    "stream.test=3", "stream.pretrain_train=8", "reference.batch=8", "budget.updates=4",
)  # fmt: skip


@pytest.mark.usefixtures("workers")
def test_the_joblib_launcher_makes_the_same_records(tmp_path, same):
    command = ("run", "-m", *TRAINED, "method=naive,kd_mse", "seed=1")
    assert main([*command, f"output={tmp_path / 'here'}"]) == 0
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert main([*command, f"output={tmp_path / 'there'}", *parallel]) == 0
    here, there = ({run.info["id"]: run for run in find([tmp_path / place])} for place in ("here", "there"))
    assert len(here) == 2
    assert here.keys() == there.keys()
    for identity, run in there.items():
        assert run.finished
        assert run.info["threads"] == 1
        same(run.predictions, here[identity].predictions)


@pytest.mark.usefixtures("workers")
def test_workers_of_joblib_have_the_threads_of_the_configuration(tmp_path):
    own = ("+metrics.own._target_=threads.Threads", "threads=1,2", "hydra/launcher=joblib_2")
    assert budgetcl(tmp_path, "-m", *own) == 0
    assert sorted((run.info["threads"], run.summary["n"]) for run in find([tmp_path])) == [(1, 1), (2, 2)]


@pytest.mark.usefixtures("workers")
def test_a_process_that_dies_is_said_in_one_line(tmp_path, capfd):
    assert budgetcl(tmp_path, "-m", "+metrics.dies._target_=dies.metric", "seed=0,1", "hydra/launcher=joblib_2") == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("budgetcl: ")]
    assert len(lines) == 1
    assert "the launcher gave up" in lines[0]
    assert "the same command goes on" in lines[0]


def test_what_nobody_foresaw_fails_one_run_and_says_where(tmp_path, capfd, monkeypatch, unrehearsed):
    fit = Blind.fit

    def fails(self, step, *given):
        if step.number == 2 and self.window == 5:
            raise ZeroDivisionError("by design")
        return fit(self, step, *given)

    monkeypatch.setattr(Blind, "fit", fails)
    assert budgetcl(tmp_path, "-m", "learner.window=5,2") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("budgetcl: failed: learner.window=5: ZeroDivisionError: by design (test_sweeps.py, line ")
    assert sorted(run.finished for run in find([tmp_path])) == [False, True]


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path, finished, capfd):
    before = stamps(finished)
    with claimed(finished.folder.parent / f".{finished.info['id']}.lock"):
        assert budgetcl(tmp_path, "rerun=true") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "is at it" in line
    assert "wait for it" in line
    assert stamps(finished) == before
    assert budgetcl(tmp_path, "rerun=true") == 0  # once it is free


# Three processes that begin a run in the same moment: copies of one that has imported all that a run does.
AT_ONCE = """
import os, sys
import budgetcl.run, pyarrow.parquet
from budgetcl.cli import main
def one(number):
    for name in ("stdout", "stderr"):
        setattr(sys, name, open(f"{number}.{name}", "w", buffering=1))
    os._exit(main(sys.argv[1:]))
for number in range(3):
    os.fork() or one(number)
print(*(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3)))
"""


def test_processes_that_start_one_run_at_once_make_it_once(tmp_path, finished, same):
    command = [sys.executable, "-c", AT_ONCE, "run", *SETTINGS, f"output={tmp_path / 'together'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    said = [[(tmp_path / f"{i}.{name}").read_text() for name in ("stdout", "stderr")] for i in range(3)]
    refused = [error for out, error in said if "record: " not in out]
    assert sorted(done.stdout.split()) == ["0"] * (3 - len(refused)) + ["2"] * len(refused)
    assert len(refused) < 3
    assert all("is at it" in error for error in refused)
    assert all(error == "" for out, error in said if "record: " in out)
    (run,) = find([tmp_path / "together"])
    assert run.finished
    same(run.predictions, finished.predictions)
    assert [path.name for path in run.folder.parent.iterdir()] == [run.folder.name]


HOLD = """
import sys, time
from pathlib import Path
from budgetcl.records.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_claim_ends_with_its_process(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".a.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} on .* is at it"), claimed(tmp_path / ".a.lock"):
            pass
        holder.kill()
    assert (tmp_path / ".a.lock").exists()  # the file stays, the lock does not
    with claimed(tmp_path / ".a.lock"):
        assert (tmp_path / ".a.lock").exists()
    assert not (tmp_path / ".a.lock").exists()


@pytest.mark.parametrize(
    ("launcher", "lines"),
    [
        ("slurm", ["--cpus-per-task=1", "--mem=4GB", "--nodes=1", "--ntasks-per-node=1", "--time=240"]),
        ("slurm_gpu", ["--cpus-per-task=4", "--gpus-per-node=1", "--mem=32GB", "--nodes=1", "--time=240"]),
        ("slurm_gpus", ["--gpus-per-node=4", "--ntasks-per-node=4", "--mem=128GB", "--nodes=1"]),
    ],
)
def test_the_slurm_presets_ask_sbatch_for_the_processes_of_a_run(tmp_path, monkeypatch, launcher, lines):
    """The script that would be handed to sbatch, written by submitit."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        overrides = [f"hydra/launcher={launcher}", f"output={tmp_path}", "hydra.launcher.partition=short"]
        cfg = compose("run", overrides=overrides, return_hydra_config=True)
    cfg.hydra.runtime.output_dir = str(tmp_path)
    given = {}
    monkeypatch.setattr(submitit.AutoExecutor, "update_parameters", lambda self, **kwargs: given.update(kwargs))
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", lambda self, *jobs: [])
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    launched = instantiate(cfg.hydra.launcher)
    launched.config = cfg
    launched.launch([["seed=0"], ["seed=1"]], 0)
    executor = submitit.SlurmExecutor(folder=tmp_path)
    monkeypatch.undo()
    plain = {key.removeprefix("slurm_"): value for key, value in given.items()}
    script = executor._make_submission_file_text
    executor.update_parameters(**executor._convert_parameters(plain))
    text = script("command", "uid")
    for line in lines:
        assert f"#SBATCH {line}" in text
    assert "#SBATCH --partition=short" in text
    assert "#SBATCH --job-name=budgetcl" in text
    assert "\nexport OMP_NUM_THREADS=1\n" in text
    meets = "\nexport WORLD_SIZE=$SLURM_NTASKS MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))\n"
    assert (meets in text) == (launcher == "slurm_gpus")
