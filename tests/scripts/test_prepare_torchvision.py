import gzip
import hashlib
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision import datasets

NAMES = ["apple", "bear", "cup"]


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pickled(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return [path.name, md5(path)]


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    """CIFAR's pickles in small; torchvision is told their MD5 sums."""
    kind, known = request.param, {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param]
    rng, folder, label = np.random.default_rng(0), tmp_path / known.base_folder, "fine_labels"
    sizes = {"train": 24, "test": 6}
    if kind == "cifar10":
        label, sizes = "labels", {"data_batch_1": 12, "data_batch_2": 12, "test_batch": 6}
    files, data = {}, {}
    for name, count in sizes.items():
        data[name] = rng.integers(0, 256, (count, 3072), dtype=np.uint8), (np.arange(count) % 3).tolist()
        files[name] = pickled(folder / name, data=data[name][0], **{label: data[name][1]})
    meta = pickled(folder / known.meta["filename"], **{known.meta["key"]: NAMES})
    monkeypatch.setattr(known, "train_list", [file for name, file in files.items() if "test" not in name])
    monkeypatch.setattr(known, "test_list", [file for name, file in files.items() if "test" in name])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": meta[1]})
    pixels = {
        part: np.concatenate([x for name, (x, _) in data.items() if ("test" in name) == (part == "test")])
        for part in ("train", "test")
    }
    return kind, tmp_path, pixels, folder


def test_cifar_becomes_pictures_to_the_bit(cifar, prepare):
    kind, root, pixels, _ = cifar
    done = prepare(kind, "--root", root, "--expect", "none")
    assert done.returncode == 0, done.stderr
    frame = pq.read_table(root / kind / f"{kind}.parquet").to_pandas()
    for part, count in (("train", 24), ("test", 6)):
        rows = frame[frame["split"] == part]
        assert rows["label"].tolist() == [NAMES[i % 3] for i in range(count)]
        for i, path in enumerate(rows["path"]):
            expected = pixels[part][i].reshape(3, 32, 32).transpose(1, 2, 0)
            assert np.array_equal(np.asarray(Image.open(root / kind / path)), expected)
    assert prepare(kind, "--root", root).returncode == 1
    assert "differs: 50,000 is published" in prepare(kind, "--root", root).stdout


def test_validation_pictures_come_from_each_class_and_leave_train(cifar, prepare):
    kind, root, _, _ = cifar
    assert prepare(kind, "--root", root, "--expect", "none", "--val", 2).returncode == 0
    frame = pq.read_table(root / kind / f"{kind}.parquet").to_pandas()
    assert frame[frame["split"] == "val"]["label"].value_counts().to_dict() == dict.fromkeys(NAMES, 2)
    assert frame[frame["split"] == "train"]["label"].value_counts().to_dict() == dict.fromkeys(NAMES, 6)
    assert frame["path"].is_unique
    assert "val=8 given; fewer than the 8 pictures" in prepare(kind, "--root", root, "--val", 8).stderr


def test_damaged_or_missing_files_are_refused(cifar, prepare):
    kind, root, _, folder = cifar
    with (folder / ("data_batch_2" if kind == "cifar10" else "train")).open("ab") as file:
        file.write(b"x")
    done = prepare(kind, "--root", root)
    assert done.returncode == 2
    assert "corrupted" in done.stderr
    assert "download=True) fetches it" in done.stderr
    assert "cannot be read below" in prepare("mnist", "--root", root).stderr


def idx(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + shape + values.tobytes())


@pytest.mark.parametrize(("kind", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_becomes_grey_pictures_to_the_bit(kind, folder, tmp_path, prepare):
    rng, images = np.random.default_rng(0), {}
    for part, count in (("train", 20), ("t10k", 10)):
        images[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", images[part])
        idx(tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    done = prepare(kind, "--root", tmp_path, "--expect", "none")
    assert done.returncode == 0, done.stderr
    frame = pq.read_table(tmp_path / kind / f"{kind}.parquet").to_pandas()
    assert frame["split"].value_counts().to_dict() == {"train": 20, "test": 10}
    names = getattr(datasets, folder).classes
    test = frame[frame["split"] == "test"]
    assert test["label"].tolist() == names
    for i, path in enumerate(test["path"]):
        assert np.array_equal(np.asarray(Image.open(tmp_path / kind / path)), images["t10k"][i])
    (tmp_path / folder / "raw" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    assert "has not the MD5 sum" in prepare(kind, "--root", tmp_path).stderr
    (tmp_path / folder / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    idx(tmp_path / folder / "raw" / "train-labels-idx1-ubyte", np.zeros(19, np.uint8))
    assert "20 pictures and 19 labels" in prepare(kind, "--root", tmp_path).stderr
