import json

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from budgetcl.streams.table import table


@pytest.fixture
def cloc(tmp_path, picture):
    """The authors' layout: lists beside pictures in nested folders; labels with gaps, as bytes and small integers."""
    (tmp_path / "order_files").mkdir()
    number = iter(range(1000))
    for partition, count in {"pretrain": 8, "train": 30, "test": 6}.items():
        paths = [f"part{i % 3}/{i % 2}/{partition}_{i}.jpg" for i in range(count)]
        for path in paths:
            picture(tmp_path / "data" / path, next(number))
        store(tmp_path, partition, "image_paths", np.array(paths, object), h5py.string_dtype())
        store(tmp_path, partition, "labels", np.arange(count) * 7 % 5 * 100, np.uint16)
    return tmp_path


def store(root, partition, what, values, kind=None, name="store_list"):
    with h5py.File(root / "order_files" / f"{partition}_{what}.hdf5", "w") as file:
        file.create_dataset(name, data=values, dtype=kind)


def arguments(root, *more):
    return "--lists", root / "order_files", "--pictures", root / "data", "--expect", "none", *more


def test_the_lists_become_the_table_in_their_order(cloc, prepare):
    done = prepare(*arguments(cloc))
    assert done.returncode == 0, done.stderr
    frame = pq.read_table(cloc / "data" / "cloc.parquet").to_pandas()
    assert list(frame.columns) == ["path", "label", "split", "order"]
    train = frame[frame["split"] == "train"]
    assert train["path"].tolist() == [f"part{i % 3}/{i % 2}/train_{i}.jpg" for i in range(30)]
    assert train["label"].tolist() == [i * 7 % 5 * 100 for i in range(30)]
    assert train["order"].tolist() == list(range(30))
    assert frame["split"].value_counts().to_dict() == {"train": 30, "prefix": 8, "test": 6}
    said = json.loads((cloc / "data" / "cloc.json").read_text())
    assert said["samples"] == {"prefix": 8, "train": 30, "test": 6}
    assert said["read"]["train"] == ["train_image_paths.hdf5", "train_labels.hdf5"]


def test_counts_are_compared_with_the_published_ones(cloc, prepare, prepare_module):
    done = prepare(*arguments(cloc)[:4])
    assert done.returncode == 1
    assert "712 to 713 is published" in done.stdout
    assert "36,750,000 to 39,499,999 is published" in done.stdout


def test_a_store_list_that_is_not_there_or_odd_is_refused(cloc, prepare):
    store(cloc, "train", "labels", np.zeros(30, int), name="labels")
    assert "has no array 'store_list'; it holds ['labels']" in prepare(*arguments(cloc)).stderr
    store(cloc, "train", "labels", np.zeros(29, int))
    assert "has 30 entries, train_labels.hdf5 29" in prepare(*arguments(cloc)).stderr
    store(cloc, "train", "labels", np.zeros(30))
    assert "one row of integer labels is expected" in prepare(*arguments(cloc)).stderr
    (cloc / "order_files" / "train_labels.hdf5").write_bytes(b"no HDF5")
    assert "cannot be read as HDF5" in prepare(*arguments(cloc)).stderr
    (cloc / "order_files" / "train_labels.hdf5").unlink()
    done = prepare(*arguments(cloc))
    assert done.returncode == 2
    assert "train_labels.hdf5 is not; both are expected" in done.stderr
    (cloc / "order_files" / "train_image_paths.hdf5").unlink()
    assert "has no list of the partition 'train'" in prepare(*arguments(cloc)).stderr
    assert not list((cloc / "data").glob("cloc*"))


def test_a_path_that_leaves_the_folder_is_refused(cloc, prepare):
    for path in ("../secret.jpg", "a/../../b.jpg", "", "C:\\b.jpg"):
        store(cloc, "test", "image_paths", np.array([path] * 6, object), h5py.string_dtype())
        done = prepare(*arguments(cloc))
        assert done.returncode == 2
        assert "a path below the pictures' folder is expected" in done.stderr


def test_paths_that_are_no_utf8_are_refused(cloc, prepare):
    store(cloc, "test", "image_paths", np.array([b"\xff.jpg"] * 6))
    assert "no UTF-8 paths" in prepare(*arguments(cloc)).stderr


def test_leaks_and_dead_links_are_found(cloc, prepare):
    store(cloc, "test", "image_paths", [f"part{i % 3}/{i % 2}/train_{i}.jpg" for i in range(6)])
    done = prepare(*arguments(cloc))
    assert done.returncode == 2
    assert "6 pictures stand in two splits, a leak: part0/0/train_0.jpg (train, test)" in done.stderr
    assert "and 1 more" in done.stderr
    store(cloc, "test", "image_paths", [f"part{i % 3}/{i % 2}/test_{i}.jpg" for i in range(6)])
    (cloc / "data" / "part0" / "0" / "train_0.jpg").unlink()
    assert "1 pictures are not below" in prepare(*arguments(cloc)).stderr
    assert prepare(*arguments(cloc, "--missing", "drop")).returncode == 0
    frame = pq.read_table(cloc / "data" / "cloc.parquet").to_pandas()
    train = frame[frame["split"] == "train"]
    assert len(train) == 29
    assert train["order"].tolist() == list(range(29))
    assert train["path"].iloc[0].endswith("train_1.jpg")
    assert prepare(*arguments(cloc, "--missing", "trust")).returncode == 0
    assert pq.read_table(cloc / "data" / "cloc.parquet").num_rows == 44


def test_a_table_elsewhere_says_which_root_a_run_needs(cloc, prepare, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "mine.parquet"
    done = prepare(*arguments(cloc, "--output", elsewhere))
    assert f"stream.root={cloc / 'data'}" in done.stdout
    assert "stream.root" not in prepare(*arguments(cloc)).stdout
    here = pq.read_table(cloc / "data" / "cloc.parquet")
    assert pq.read_table(elsewhere).equals(here)
    assert len(table(str(elsewhere), root=str(cloc / "data"), shifts=[]).stream.label) == 44
