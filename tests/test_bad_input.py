"""Bad input gets one line: what was given, what was expected, what mends it. Nothing of it passes for a result."""

from pathlib import Path

import pytest

from budgetcl.assets import checked
from budgetcl.cli import main
from budgetcl.records.record import find
from budgetcl.streams.rendering import atlas

SMALL = (
    "stream.pretrain_classes=10", "stream.stream_classes=9", "stream.steps=3", "stream.train=8", "stream.test=3",
    "stream.pretrain_train=8", "reference.batch=8", "budget.updates=4",
)  # fmt: skip
CASES = [
    # names, with the nearest right one
    ("method=nave", "method=nave given; did you mean 'naive'?"),
    ("stream=glyph", "stream=glyph given; did you mean 'glyphs'?"),
    ("sampler=qqq", "sampler=qqq given; known: class_balanced, "),
    ("optimiser.lrr=1", "no such key: optimiser.lrr; did you mean 'optimiser.lr'?"),
    ("budjet.updates=1", "no such key: budjet.updates; did you mean 'budget.updates'?"),
    ("stream=uploads stream.burts=5", "no such key: stream.burts; did you mean 'stream.burst'?"),
    ("stream=uploads shift=32", "no such key: shift; did you mean 'stream.shift'?"),
    ("zzzzzz=1", "no such key: zzzzzz; see budgetcl run --cfg job"),
    ("stream.order=colour", "order='colour' given"),
    ("budget.rest=safe", "budget.rest='safe' given; known: carry, stop, truncate"),
    ("budget.free=[teachers]", "did you mean 'teacher'?"),
    ("budget.free=[train]", "'train'"),
    ("precision=fp16", "precision='fp16' given; did you mean 'bf16'?"),
    ("batch_norm=lively", "batch_norm='lively' given; did you mean 'live'?"),
    ("batch_norm=live!", "'batch_norm=live!' given; key=value is expected, special characters in quotes"),
    ("stream=3", "see budgetcl list"),
    ("device=tpu", "device='tpu' given"),
    ("device=3", "device='3' given"),
    ("device=cuda:99", "device=cuda:99 given"),
    ("experiment=nothing", "experiment=nothing given"),
    # numbers
    ("seed=-1", "seed=-1 given; an integer of at least 0"),
    ("seed=1.5", "seed=1.5 given; an integer"),
    ("seed=one", "seed='one' given; an integer"),
    ("seed=null", "seed=None given; an integer"),
    ("threads=0", "threads=0 given; an integer of at least 1"),
    ("query=-5", "query=-5 given; an integer of at least 1"),
    ("stream.steps=0", "steps=0 given; an integer of at least 1"),
    ("stream.steps=2.5", "steps=2.5 given; an integer"),
    ("stream.steps=50", "at most 9"),
    ("stream.stream_classes=2000", "stream_classes=2000 given; a number from 0 to 1000"),
    ("reference.batch=-8", "reference.batch=-8 given; an integer of at least 1"),
    ("learner.batch=2.5", "learner.batch=2.5 given; an integer of at least 1"),
    ("budget.updates=-3", "budget.updates=-3 given; a positive number"),
    ("budget.updates=nan", "budget.updates=nan given; a positive number"),
    ("budget.updates=lots", "budget.updates='lots' given; a positive number"),
    ("budget.updates=null", "exactly one of them is expected"),
    ("budget.flops=1000", "exactly one of them is expected"),
    ("clip=-1", "clip=-1 given; a number above 0"),
    ("optimiser.lr=-1", "optimiser.lr=-1 given; a finite number, 0 or larger"),
    ("optimiser.lr=nan", "optimiser.lr=nan given; a finite number, 0 or larger"),
    ("optimiser.lr=inf", "optimiser.lr=inf given; a finite number, 0 or larger"),
    ("optimiser.lr=fast", "optimiser.lr='fast' given; a finite number, 0 or larger"),
    ("optimiser.momentum=-1", "optimiser refuses its settings"),
    ("head.scale=-1", "head.scale=-1 given; a number from 0"),
    ("method=kd_mse objective.weight=-1", "weight=-1 given"),
    ("method=max_loss sampler.spend=2", "spend=2 given; a number from 0 to 1"),
    ("method=er sampler.share=-0.1", "share=-0.1 given"),
    ("method=max_loss sampler.spend=0", "spend=0 of this step's allowance does not pay for scoring one image"),
    ("method=herding sampler.candidates=3", "8 distinct samples was asked of the candidates that candidates=3 allows"),
    ("method=kmeans sampler.clusters=0", "clusters=0 given; an integer of at least 1"),
    ("method=temperature calibration.share=0", "calibration.share=0 given: nothing would be calibrated"),
    ("method=slca calibration.spend=0", "calibration.spend=0 given: nothing would be calibrated"),
    ("method=gdumb memory.capacity=0", "memory.capacity=0 given; an integer of at least 1"),
    ("method=fifo recent=0", "recent=0 given; an integer of at least 1"),
    ("method=fifo recent=null sampler.window=0", "window=0 given"),
    ("head.pretrained=7", "head.pretrained=7 given; true or false is expected"),
    # numbers that the method makes no use of
    ("recent=-4", "recent=-4 given; an integer of at least 1"),
    ("neighbours=-1", "neighbours=-1 given; an integer of at least 1"),
    ("unlimited_passes=-1", "unlimited_passes=-1 given; a positive number"),
    ("method=last_label recent=-4", "recent=-4 given"),
    ("method=nmc clip=-1", "clip=-1 given; a number above 0, or null"),
    ("method=nmc batch_norm=lively", "did you mean 'live'?"),
    ("method=nmc head.pretrained=7", "head.pretrained=7 given; true or false is expected"),
    ("method=nmc head.scale=-1", "head.scale=-1 given"),
    ("method=nmc sampler.replacement=7", "replacement=7 given; true or false"),
    ("method=last_label sampler=recent sampler.window=-2", "window=-2 given"),
    ("method=last_label learner.window=0", "learner.window=0 given"),
    ("metrics.ahead.warmup=2", "warmup=2 given"),
    # what does not go together
    ("budget.updates=0.5", "does not pay for one update"),
    ("budget.updates=0.5", "budget.rest=carry"),
    (
        "method=fifo learner.batch=30 budget.updates=9",
        "lower learner.batch, reveal more per step, or widen",
    ),
    ("method=recent_mode", "no tuning prefix"),
    ("backbone=small", "the backbone is made for 3 channels (its mean and std); the stream's images have 1"),
    ("backbone@reference.backbone=small", "the backbone is made for 3 channels"),
    ("stream=table", "stream.path has no value: give stream.path=..."),
    ("stream=table stream.path=/nowhere/photos.csv", "/nowhere/photos.csv"),
    ("backbone.pretrained=/nowhere/weights", "/nowhere/weights"),
    ("stream=uploads stream.shifts=[5,3]", "shifts=[5, 3] given; ascending"),
    ("stream=uploads stream.shift=17", "shift=17 given"),
    ("stream=uploads stream.shifts=5", "shifts=5 given; a list is expected, such as shifts=[0,16]"),
    ("rerun=perhaps", "rerun='perhaps' given; true or false is expected"),
    # the command line itself
    ("output=null", "output=None given; the name of a folder"),
    ("name=null", "name=None given; the name of a folder"),
    ("--seed 3", "--seed"),
    ("--config-dir", "--config-dir given without a folder"),
    ("--config-dir /nowhere sampler=mine", "/nowhere given; that is no folder"),
    ("--config-dir=/nowhere sampler=mine", "/nowhere given; that is no folder"),
    ("seed", "'seed' given; key=value is expected"),
    ("method=naive,kd_mse", "--multirun"),
    ("seed=0 +seed=1", "seed"),
]


def complaint(capfd, status, expected=2):
    """The one line of standard error."""
    error = capfd.readouterr().err
    assert status == expected
    assert "Traceback" not in error
    assert error.count("\n") == 1, error
    assert error.startswith("budgetcl: ")
    return error.strip()


@pytest.mark.filterwarnings("error")  # hydra's warnings would be further lines
@pytest.mark.parametrize(("arguments", "expected"), CASES, ids=[f"{a} -> {e[:30]}" for a, e in CASES])
def test_bad_input_to_run_is_refused_in_one_line(tmp_path, capfd, arguments, expected):
    before = () if arguments.startswith("stream=") else SMALL
    status = main(["run", f"output={tmp_path}", *before, *arguments.split(" ")])
    assert expected in complaint(capfd, status)
    assert not [run for run in find([tmp_path]) if run.finished]


def test_a_stream_of_which_nothing_would_be_predicted_is_refused_before_anything_is_trained(tmp_path, capfd):
    table = tmp_path / "photos.csv"
    table.write_text("path,label\n" + "".join(f"{i}.png,class {i}\n" for i in range(8)))
    arguments = ["stream=table", f"stream.path={table}", f"output={tmp_path}", "method=last_label"]
    assert "nothing would be predicted" in complaint(capfd, main(["run", *arguments]))
    assert not list(find([tmp_path]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "required: command"),
        (["runn"], "invalid choice: 'runn'"),
        (["run", ""], "'' given; key=value is expected"),
        (["list", "methds"], "did you mean 'method'"),
        (["list", "--config-dir", "/nowhere"], "/nowhere given; that is no folder"),
        (["report"], "required: PATH"),
        (["report", "/nowhere"], "'/nowhere' does not exist"),
        (["price", "method=naive,nave"], "did you mean 'naive'"),
        (["price", "method=naive", "budget.updates=0.2"], "does not pay for one update"),
        (["price", "stream.steps=-1"], "steps=-1 given"),
        (["run", "-m", "method=naive,nave"], "did you mean 'naive'"),
        (["run", "-m", "optimiser.lrr=1,2"], "did you mean 'optimiser.lr'"),
        (["run", "-m", "--cfg", "jobb"], "jobb"),
        (["run", "-m", "--cfg", "job"], "-m and --cfg given"),
        (["run", "-m", "hydra/launcher=nojob"], "pip install 'budgetcl[sweep]'"),
        (["run", "-m", "hydra/launcher=joblib_3"], "did you mean 'joblib_2'"),
    ],
)
def test_bad_input_to_the_commands_is_refused_in_one_line(tmp_path, monkeypatch, capfd, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(capfd, main(arguments))


@pytest.mark.parametrize("asset", ["glyphs.npy.xz", "glyphs-backbone.safetensors"])
def test_a_damaged_asset_is_refused_in_one_line(tmp_path, monkeypatch, capfd, asset):
    data = bytearray((checked.FOLDER / asset).read_bytes())
    data[len(data) // 2] ^= 1
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: bytes(data) if self.name == asset else read(self))
    atlas.cache_clear()
    said = complaint(capfd, main(["run", f"output={tmp_path}", *SMALL]))
    atlas.cache_clear()
    assert f"{asset} is damaged: SHA-256" in said
    assert "reinstall budgetcl" in said
    assert not list(tmp_path.iterdir())
