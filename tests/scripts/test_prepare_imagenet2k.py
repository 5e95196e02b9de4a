import hashlib
import json
import random
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

OLD = ["n01440764", "n01443537", "n02084071"]
NEW = {
    "n00007846": 14,
    "n02121808": 9,
    "n03001627": 12,
    "n04379243": 10,
    "n04530566": 16,
    "n09450163": 20,
    "n11111111": 5,
}
# Six classes hold at least 9 pictures, one of them is excluded; ImageNet1K's classes also stand in ImageNet21K.
TINY = ["--classes", "4", "--least", "9", "--test", "3", "--val", "2"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory, picture):
    """ImageNet1K, 21K and V2 in small, laid out as they are distributed."""
    root, seed = tmp_path_factory.mktemp("sets"), iter(range(10**6))
    for number, wnid in enumerate(OLD):
        for i in range(6):
            picture(root / "imagenet1k" / "train" / wnid / f"{wnid}_{i}.JPEG", next(seed))
        for i in range(3):
            picture(root / "imagenet1k" / "val" / wnid / f"ILSVRC2012_val_{number * 3 + i:08d}.JPEG", next(seed))
        for i in range(2):
            picture(root / "imagenetv2" / str(number) / f"{i}-{wnid}.jpeg", next(seed))
        for i in range(11):
            picture(root / "imagenet21k" / wnid / f"{wnid}_{i}.JPEG", next(seed))
    for wnid, count in NEW.items():
        for i in range(count):
            picture(root / "imagenet21k" / wnid / f"{wnid}_{i}.JPEG", next(seed))
    return root


def three(root):
    return [a for name in ("imagenet1k", "imagenet21k", "imagenetv2") for a in (f"--{name}", root / name)]


@pytest.fixture(scope="module")
def built(sets, tmp_path_factory, prepare):
    out = tmp_path_factory.mktemp("built") / "imagenet2k.parquet"
    done = prepare(*three(sets), "--output", out, *TINY, "--expect", "none")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def table(out, kind):
    return pq.read_table(out.with_name(f"imagenet2k_{kind}.parquet")).to_pandas()


def of(frame, split):
    return frame[frame["split"] == split]


def test_the_split_is_the_rule_written_out_by_hand(sets, built):
    """The authors' rule, step by step, on the folders sorted by name."""
    random.seed(0)
    wanted, test, val, train = ["n00007846", "n02121808", "n03001627", "n04379243"], [], [], []
    for wnid in wanted:
        files = sorted(path.name for path in (sets / "imagenet21k" / wnid).iterdir())
        assert len(files) >= 9
        random.shuffle(files)
        test += [f"imagenet21k/{wnid}/{name}" for name in files[:3]]
        val += [f"imagenet21k/{wnid}/{name}" for name in files[3:5]]
        train += [f"imagenet21k/{wnid}/{name}" for name in files[5:]]
    shuffled = list(train)
    random.shuffle(shuffled)
    ci, di = table(built[0], "ci"), table(built[0], "di")
    assert of(ci, "train").sort_values("order")["path"].tolist() == train
    assert of(di, "train").sort_values("order")["path"].tolist() == shuffled
    for frame in (ci, di):
        assert of(frame, "test")["path"].tolist() == test
        assert of(frame, "val")["path"].tolist() == val
        assert of(frame, "train")["order"].tolist() == list(range(len(train)))
        assert set(frame[frame["split"] != "train"]["order"]) == {-1}
    assert shuffled != train


def test_the_pretraining_sets_are_train_val_and_v2_of_imagenet1k(sets, built):
    frame = table(built[0], "ci")
    assert of(frame, "pretrain")["path"].tolist() == [
        f"imagenet1k/train/{w}/{w}_{i}.JPEG" for w in OLD for i in range(6)
    ]
    assert of(frame, "pretest")["label"].value_counts().to_dict() == dict.fromkeys(OLD, 3)
    assert of(frame, "preval")["path"].tolist() == [
        f"imagenetv2/{n}/{i}-{w}.jpeg" for n, w in enumerate(OLD) for i in (0, 1)
    ]
    assert of(frame, "preval")["label"].tolist() == [w for w in OLD for _ in range(2)]
    assert all((sets / path).is_file() for path in frame["path"])


def test_labels_are_the_folders_and_excluded_small_and_old_classes_stay_out(built):
    frame = table(built[0], "ci")
    assert set(of(frame, "train")["label"]) == {"n00007846", "n02121808", "n03001627", "n04379243"}
    assert not set(of(frame, "train")["label"]) & {*OLD, "n09450163", "n11111111"}
    for path, label in zip(frame["path"], frame["label"]):
        assert label == path.split("/")[-2] or path.startswith("imagenetv2/")


def test_order_files_are_written_and_read_back_to_the_same_tables(sets, built, tmp_path, prepare):
    lists = built[0].parent / "order_files"
    lines = (lists / "class_incremental_ordering.txt").read_text().splitlines()
    assert lines[0].startswith("/train/n00007846/")
    assert (lists / "class_order.txt").read_text().split() == ["n00007846", "n02121808", "n03001627", "n04379243"]
    again = tmp_path / "imagenet2k.parquet"
    done = prepare("--lists", lists, *three(sets), "--output", again, "--expect", "none")
    assert done.returncode == 0, done.stderr
    for kind in ("ci", "di"):
        assert table(again, kind).equals(table(built[0], kind))


def tree(sets, built, root):
    """The authors' tree: all pictures under train, val and test by class."""
    for kind, name in (
        ("pretrain", "pretrain"), ("preval", "preval"), ("pretest", "pretest"), ("train", "class_incremental_ordering"),
        ("val", "val"), ("test", "test"),
    ):  # fmt: skip
        lines = (built[0].parent / "order_files" / f"{name}.txt").read_text().split()
        for line, path in zip(lines, of(table(built[0], "ci"), kind)["path"]):
            target = root / "data" / line[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((sets / path).read_bytes())
    return root / "data"


def hdf5(path, values):
    with h5py.File(path, "w") as file:
        file["store_list"] = values


def test_the_authors_hdf5_lists_and_tree_give_the_same_samples(sets, built, tmp_path, prepare):
    data, lists = tree(sets, built, tmp_path), tmp_path / "order_files"
    lists.mkdir()
    codes = {wnid: code for code, wnid in enumerate([*OLD, *sorted(NEW)])}
    for name, text in {
        "pretrain": "pretrain", "preval": "preval", "pretest": "pretest", "test": "test",
        "cls_inc": "class_incremental_ordering", "data_inc": "data_incremental_ordering",
    }.items():  # fmt: skip
        lines = (built[0].parent / "order_files" / f"{text}.txt").read_text().split()
        paths = [line[1:] for line in lines]
        if name == "pretrain":  # as a zip file that holds its own folder unpacks
            paths = [f"{Path(path).parent}/{Path(path).parent.name}/{Path(path).name}" for path in paths]
            for line, path in zip(lines, paths):
                (data / path).parent.mkdir(exist_ok=True)
                (data / line[1:]).rename(data / path)
        hdf5(lists / f"{name}_image_paths.hdf5", paths)
        hdf5(lists / f"{name}_labels.hdf5", np.array([codes[line.split("/")[2]] for line in lines]))
    done = prepare("--lists", lists, "--tree", data, "--expect", "none")
    assert done.returncode == 0, done.stderr
    out = data / "imagenet2k.parquet"
    for kind in ("ci", "di"):
        mine, theirs = table(built[0], kind), table(out, kind)
        for split in ("pretrain", "preval", "pretest", "train", "test"):
            assert of(mine, split)["label"].tolist() == of(theirs, split)["label"].tolist()
            assert [p.split("/")[-1] for p in of(mine, split)["path"]] == [
                p.split("/")[-1] for p in of(theirs, split)["path"]
            ]
        assert not len(of(theirs, "val"))
    labels = np.array(h5py.File(lists / "cls_inc_labels.hdf5")["store_list"])
    labels[0] = codes["n02121808"]
    hdf5(lists / "cls_inc_labels.hdf5", labels)
    done = prepare("--lists", lists, "--tree", data, "--expect", "none")
    assert done.returncode == 2
    assert "one label a folder is expected" in done.stderr


def test_what_differs_from_the_published_set_is_said_and_is_the_exit_status(sets, tmp_path, prepare):
    done = prepare(*three(sets), "--output", tmp_path / "x.parquet", *TINY)
    assert done.returncode == 1
    assert "differs: 1,302,903 is published" in done.stdout
    assert "not the published classes: never compare with the published stream" in done.stdout
    said = json.loads((tmp_path / "x_ci.json").read_text())
    got = {check["name"]: check for check in said["checks"]}
    sizes = [9, 4, 7, 5]  # of n00007846, n02121808, n03001627, n04379243, less 5 each
    assert got["train of the new classes"]["got"] == sum(sizes)
    assert got["train, both"]["got"] == sum(sizes) + 18
    assert got["test, both"]["got"] == 12 + 9
    assert got["validation, both"]["got"] == 8 + 6
    assert got["train sizes, in order (SHA-256)"]["got"] == hashlib.sha256(b"9,4,7,5").hexdigest()
    assert got["train sizes, sorted (SHA-256)"]["got"] == hashlib.sha256(b"4,5,7,9").hexdigest()
    assert not any(check["agrees"] for check in got.values())
    assert said["ordering"] == "class-incremental, folders and files sorted by name"
    other = json.loads((tmp_path / "x_di.json").read_text())
    assert other["order_sha256"] != said["order_sha256"]
    assert str(sets) not in json.dumps(said)


def test_directory_order_is_the_file_systems(sets, tmp_path, prepare_module, monkeypatch):
    """Another listing gives other classes first; the generator goes on from class to class."""
    found = prepare_module.os.scandir

    class Backwards:
        def __init__(self, folder):
            with found(folder) as entries:
                self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self._entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(prepare_module.os, "scandir", Backwards)
    options = prepare_module.parser().parse_args([str(a) for a in [*three(sets), *TINY, "--listing", "directory"]])
    lines = prepare_module.divided(prepare_module.folders_of(options), options)
    random.seed(0)
    files = sorted((path.name for path in (sets / "imagenet21k" / "n04530566").iterdir()), reverse=True)
    random.shuffle(files)
    assert lines["test"][:3] == [f"/test/n04530566/{name}" for name in files[:3]]
    assert list(dict.fromkeys(line.split("/")[2] for line in lines["cls_inc"])) == [
        "n04530566", "n04379243", "n03001627", "n02121808",
    ]  # fmt: skip


def test_the_published_hashes_and_counts_are_accepted(prepare_module):
    """Sizes that give the 20 published steps agree in what they give, and not in what they do not."""
    steps = prepare_module.STEPS
    assert sum(steps) == 1_302_903
    assert (min(steps), max(steps)) == (63_651, 66_824)
    sizes = [step // 50 + (i < step % 50) for step in steps for i in range(50)]
    counts = {
        "pretrain": dict.fromkeys(map(str, range(1000)), 0) | {"0": 1_281_167},
        "train": {"x": 1_302_903}, "test": {"x": 50_000}, "pretest": {"x": 50_000}, "val": {"x": 10_000},
        "preval": {"x": 10_000},
    }  # fmt: skip
    agrees = {check.name: check.agrees for check in prepare_module.checks_of(counts, sizes)}
    assert [name for name, ok in agrees.items() if not ok] == [
        "smallest new class", "median new class", "largest new class", "train sizes, sorted (SHA-256)",
        "train sizes, in order (SHA-256)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--classes", "9"], "has 5 new classes of at least 9 pictures; classes=9 are expected"),
        (["--least", "5"], "least=5 given; an integer of at least 6"),
        (["--imagenetv2", "nowhere"], "imagenetv2=nowhere given"),
        (["--tree", "."], "give lists with it"),
        (["--lists", "."], "no list of the partition 'cls_inc'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(sets, tmp_path, arguments, told, prepare):
    done = prepare(*three(sets), "--output", tmp_path / "x.parquet", *TINY, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.parquet*"))


def edited(built, tmp_path, name, change):
    lists = tmp_path / "lists"
    lists.mkdir()
    for path in (built[0].parent / "order_files").glob("*.txt"):
        lines = path.read_text().splitlines()
        (lists / path.name).write_text("\n".join(change(lines) if path.stem == name else lines) + "\n")
    return lists


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("test", lambda lines: [*lines, "/test/n00007846/none.JPEG"], "1 pictures are not below"),
        ("class_incremental_ordering", lambda lines: [*lines[1:], lines[0]], "n00007846 comes back"),
        ("data_incremental_ordering", lambda lines: lines[1:], "do not name the same pictures"),
        ("val", lambda lines: ["no/such/line"], "'no/such/line'; /train/<class>/<file>"),
        ("pretest", lambda lines: ["/val/n01440764/../x.JPEG"], "/train/<class>/<file>"),
        ("pretrain", lambda lines: [*lines, lines[0]], "1 pictures are named twice"),
    ],
)
def test_lists_that_cannot_be_right_are_refused(sets, built, tmp_path, name, change, told, prepare):
    lists = edited(built, tmp_path, name, change)
    done = prepare("--lists", lists, *three(sets), "--output", tmp_path / "x.parquet", "--expect", "none")
    assert done.returncode == 2
    assert told in done.stderr
    assert not list(tmp_path.glob("*.partial"))


def test_a_test_picture_in_train_is_a_leak(sets, built, tmp_path, prepare):
    first = (built[0].parent / "order_files" / "class_incremental_ordering.txt").read_text().split()[0]
    lists = edited(built, tmp_path, "test", lambda lines: [*lines, first.replace("/train/", "/test/")])
    done = prepare("--lists", lists, *three(sets), "--output", tmp_path / "x.parquet", "--expect", "none")
    assert done.returncode == 2
    assert f"1 pictures stand in two splits, a leak: imagenet21k/{first[7:]} (test, train)" in done.stderr


def test_missing_pictures_are_listed_and_can_be_left_out(sets, built, tmp_path, prepare):
    gone = [f"/test/n00007846/gone_{i}.JPEG" for i in range(8)]
    lists = edited(built, tmp_path, "test", lambda lines: lines + gone)
    out = tmp_path / "imagenet2k.parquet"
    done = prepare("--lists", lists, *three(sets), "--output", out, "--expect", "none")
    assert "8 pictures are not below" in done.stderr
    assert "gone_4.JPEG and 3 more" in done.stderr
    assert "gone_5" not in done.stderr
    done = prepare("--lists", lists, *three(sets), "--output", out, "--expect", "none", "--missing", "drop")
    assert done.returncode == 0, done.stderr
    assert table(out, "ci").equals(table(built[0], "ci"))
    assert json.loads((tmp_path / "imagenet2k_ci.json").read_text())["dropped"] == 8
