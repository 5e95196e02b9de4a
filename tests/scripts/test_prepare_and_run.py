"""Published sets in small, from the folders as they are distributed to a report, run by their own presets."""

import importlib.util
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from budgetcl.assemble import build
from budgetcl.cli import main
from budgetcl.configuration import compose, conf_folder
from budgetcl.data.prepared import script
from budgetcl.streams.stream import PREFIX, PRETEST, PRETRAIN, PREVALIDATION, RETENTION, TEST, VALIDATION

SCRIPTS = Path(__file__).parents[2] / "scripts"
PUBLISHED = ("imagenet2k_ci", "imagenet2k_di", "cglm", "cglm_online", "cloc", "cifar10", "cifar100", "mnist",
             "fashion_mnist")  # fmt: skip
SMALL = ("stream.size=16", "stream.resize=null", "reference.batch=4", "budget.updates=1", "device=cpu",
         "precision=fp32", "backbone=small", "backbone@reference.backbone=small")  # fmt: skip


def prepare(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert script(module.main, module.parser(), [*map(str, arguments), "--expect", "none"]) == 0
    del sys.modules[name]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory, picture):
    root, seed = tmp_path_factory.mktemp("imagenet"), iter(range(10**6))
    for number, wnid in enumerate(("n01440764", "n01443537")):
        for i in range(3):
            picture(root / "imagenet1k" / "train" / wnid / f"{wnid}_{i}.JPEG", next(seed))
        picture(root / "imagenet1k" / "val" / wnid / f"ILSVRC2012_val_{number}.JPEG", next(seed))
        picture(root / "imagenetv2" / str(number) / "a.jpeg", next(seed))
    for wnid in ("n02000001", "n02000002", "n02000003", "n02000004"):
        for i in range(6):
            picture(root / "imagenet21k" / wnid / f"{wnid}_{i}.JPEG", next(seed))
    three = [
        argument for name in ("imagenet1k", "imagenet21k", "imagenetv2") for argument in (f"--{name}", root / name)
    ]
    prepare("prepare_imagenet2k", *three, "--classes", 4, "--least", 6, "--test", 1, "--val", 1)
    return root


@pytest.fixture(scope="module")
def cglm(tmp_path_factory, picture):
    root, rng = tmp_path_factory.mktemp("gldv2"), np.random.default_rng(0)
    ids = {landmark: [rng.bytes(8).hex() for _ in range(25)] for landmark in (3, 14, 15)}
    lines = [f"{landmark},{' '.join(names)}\n" for landmark, names in ids.items()]
    (root / "train_clean.csv").write_text("landmark_id,images\n" + "".join(lines))
    names = [name for mine in ids.values() for name in mine]
    for i, name in enumerate(names):
        picture(root / "train" / name[0] / name[1] / name[2] / f"{name}.jpg", i)
    for column in ("upload_date", "DateTimeOriginal"):
        days = rng.permutation(len(names))
        dates = [f"{datetime(2009, 1, 1, tzinfo=UTC) + timedelta(days=int(day)):%Y-%m-%dT%H:%M:%SZ}" for day in days]
        pd.DataFrame({"id": names, column: dates}).to_csv(root / f"{column}.csv", index=False)
    for ordering, column in (("upload", "upload_date"), ("exif", "DateTimeOriginal")):
        prepare("prepare_cglm", "--ordering", ordering, "--gldv2", root, "--dates", root / f"{column}.csv")
    return root / "train"


@pytest.fixture(scope="module")
def cloc(tmp_path_factory, picture):
    root = tmp_path_factory.mktemp("cloc")
    (root / "order_files").mkdir()
    seed = iter(range(1000))
    for partition, count in {"pretrain": 40, "train": 32, "test": 8}.items():
        paths = [f"{i % 3}/{partition}_{i}.jpg" for i in range(count)]
        for path in paths:
            picture(root / "data" / path, next(seed))
        for what, values in (("image_paths", paths), ("labels", np.random.default_rng(0).integers(700, 704, count))):
            with h5py.File(root / "order_files" / f"{partition}_{what}.hdf5", "w") as file:
                file["store_list"] = values
    prepare("prepare_cloc", "--lists", root / "order_files", "--pictures", root / "data")
    return root / "data" / "cloc.parquet"


def stream_of(name, path, *settings):
    return build(compose([f"stream={name}", f"stream.path={path}", *SMALL, *settings]).stream).stream


def test_class_incremental_steps_hold_the_new_classes_in_their_order(imagenet):
    stream = stream_of("imagenet2k_ci", imagenet / "imagenet2k_ci.parquet", "stream.steps=2")
    names = np.array(stream.label_names)
    assert stream.bounds.tolist() == [0, 8, 16]
    assert names[stream.label[:16]].tolist() == [f"n0200000{i}" for i in (1, 2, 3, 4) for _ in range(4)]
    sizes = {name: len(stream.rows(name)) for name in (PRETRAIN, PRETEST, PREVALIDATION, TEST, VALIDATION)}
    assert sizes == {PRETRAIN: 6, PRETEST: 2, PREVALIDATION: 2, TEST: 4, VALIDATION: 4}
    steps = list(stream)
    assert [len(step.heldout[TEST]) for step in steps] == [2, 4]
    assert [len(step.heldout[PRETEST]) for step in steps] == [2, 2]
    assert [step.classes for step in steps] == [4, 6]


def test_data_incremental_steps_hold_the_same_pictures_as_the_table_shuffled_them(imagenet):
    path = imagenet / "imagenet2k_di.parquet"
    di = build(compose(["stream=imagenet2k_di", f"stream.path={path}", *SMALL, "stream.steps=3"]).stream)
    frame = pd.read_parquet(path)
    train = frame[frame["split"] == "train"].sort_values("order")
    assert np.array(di.stream.label_names)[di.stream.label[:16]].tolist() == train["label"].tolist()
    assert (
        di.stream.fingerprint()
        != stream_of("imagenet2k_ci", imagenet / "imagenet2k_ci.parquet", "stream.steps=3").fingerprint()
    )
    assert di.stream.bounds.tolist() == [0, 6, 11, 16]


def test_the_two_orderings_of_cglm_have_different_fingerprints(cglm):
    streams = [stream_of("cglm", cglm / f"cglm_{name}.parquet", "stream.steps=4") for name in ("upload", "exif")]
    assert streams[0].fingerprint() != streams[1].fingerprint()
    for stream in streams:
        assert {name: len(stream.rows(name)) for name in (PREFIX, TEST)} == {PREFIX: 13, TEST: 8}  # 75: 10 %, then 20 %
        assert stream.samples == 54


def test_cglm_by_its_times_measures_retention_and_predicts_ahead(cglm):
    settings = ("stream.chunk=6", "stream.shifts=[0,6]", "stream.shift=6")
    stream = stream_of("cglm_online", cglm / "cglm_upload.parquet", *settings)
    assert len(stream.rows(RETENTION)) == 8
    assert (np.diff(stream.time[: stream.samples]) > 0).all()
    assert stream.shifts == (0, 6)


def test_cloc_predicts_ahead_in_the_order_of_its_list(cloc):
    stream = stream_of("cloc", cloc, "stream.chunk=8", "stream.shifts=[0,8]", "stream.shift=8")
    labels = np.random.default_rng(0).integers(700, 704, 32)
    assert [int(stream.label_names[code]) for code in stream.label[:32]] == labels.tolist()
    assert len(stream.rows(PREFIX)) == 40
    assert next(iter(stream)).ahead.keys() == {0, 8}


@pytest.mark.parametrize(("name", "steps"), [("cifar10", 5), ("cifar100", 10), ("mnist", 5), ("fashion_mnist", 5)])
def test_small_sets_come_class_by_class(name, steps, tmp_path, picture):
    rows = [(f"{part}/{i}.jpg", i % 10, part) for part, count in (("train", 40), ("test", 10)) for i in range(count)]
    for seed, (path, _, _) in enumerate(rows):
        picture(tmp_path / path, seed)
    frame = pd.DataFrame(rows, columns=["path", "label", "split"])
    frame.to_parquet(tmp_path / "small.parquet")
    stream = stream_of(name, tmp_path / "small.parquet")
    assert len(stream) == steps
    for step in stream:
        assert len(set(stream.label[step.revealed])) == 10 // steps
        assert step.classes == (step.number + 1) * 10 // steps
        assert len(step.heldout[TEST]) == step.classes
    other = stream_of(name, tmp_path / "small.parquet", "seed=1")
    assert other.fingerprint() != stream.fingerprint()


@pytest.mark.parametrize("name", [*PUBLISHED])
def test_a_preset_sets_keys_that_a_table_has_and_names_its_table(name):
    text = (conf_folder() / "stream" / f"{name}.yaml").read_text(encoding="utf-8")
    plain = yaml.safe_load((conf_folder() / "stream" / "table.yaml").read_text(encoding="utf-8"))
    assert set(yaml.safe_load(text)["stream"]) <= set(plain["stream"])
    assert f"stream.path={name.split('_')[0]}" in text.splitlines()[1] or name in text.splitlines()[1]


NAMES = ("imagenet2k_ci", "imagenet2k_di", "cglm", "cloc")


@pytest.fixture(scope="module")
def tables(imagenet, cglm, cloc):
    return dict(zip(NAMES, (imagenet / "imagenet2k_ci.parquet", imagenet / "imagenet2k_di.parquet",
                            cglm / "cglm_upload.parquet", cloc)))  # fmt: skip


@pytest.fixture(scope="module")
def runs(tables, tmp_path_factory):
    """One short run of each, by its preset."""
    folder = tmp_path_factory.mktemp("runs")
    for name, path in tables.items():
        cut = ("stream.chunk=16", "stream.shifts=[0,8]", "stream.shift=8") if name == "cloc" else ("stream.steps=2",)
        choice = (f"stream={name}", f"stream.path={path}", *SMALL, *cut, f"output={folder}", "name=small")
        assert main(["run", *choice]) == 0
    return folder / "small"


def test_the_presets_run_and_their_records_warn_of_other_orderings(runs, tables):
    infos = {info["stream"]: info for info in (json.loads(p.read_text()) for p in runs.glob("*/run.json"))}
    assert infos.keys() == {path.stem for path in tables.values()}
    assert all(info["finished"] for info in infos.values())
    assert len({info["fingerprint"] for info in infos.values()}) == 4
    assert any("never compare" in note for note in infos["cglm_upload"]["notes"])
    assert "order: by the date of upload" in infos["cglm_upload"]["notes"]
    assert "order: that of the lists given" in infos["cloc"]["notes"]


def test_the_records_are_reported(runs, tables, capfd):
    assert main(["report", str(runs)]) == 0
    page = (runs / "report.html").read_text()
    assert all(path.stem in page for path in tables.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_pass_the_check_of_ones_own_data(name, tables, capfd):
    assert main(["data", "check", str(tables[name])]) == 0
    assert "fingerprint" in capfd.readouterr().out
