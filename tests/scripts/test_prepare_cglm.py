import csv
import json
from datetime import UTC, datetime, timedelta

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

SIZES = {7: 6, 30: 5, 101: 12, 4000: 9, 512: 2}  # landmark -> pictures in the clean list
START = datetime(2008, 1, 1, tzinfo=UTC)


def path_of(name):
    return f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg"


@pytest.fixture(scope="module")
def landmarks(tmp_path_factory, picture):
    """Google Landmarks V2 in small: its CSV files, its folders, and the metadata of its pictures in both notations."""
    root, rng = tmp_path_factory.mktemp("gldv2"), np.random.default_rng(1)
    ids = {landmark: [rng.bytes(8).hex() for _ in range(size)] for landmark, size in SIZES.items()}
    with (root / "train_clean.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("landmark_id", "images"), *((k, " ".join(names)) for k, names in ids.items())])
    everything = [(name, landmark) for landmark, names in ids.items() for name in names]
    with (root / "train.csv").open("w", newline="") as file:
        rows = [(name, f"http://x/{name}.jpg", landmark) for name, landmark in everything]
        csv.writer(file).writerows([("id", "url", "landmark_id"), *rows, ("f" * 16, "http://x", 9)])
    (root / "metadata").mkdir()
    dates = {}
    for i, (name, _) in enumerate(everything):
        picture(root / "train" / path_of(name), i)
        upload = START + timedelta(seconds=int(rng.integers(40)))  # so that there are ties
        exif = START + timedelta(seconds=int(rng.integers(10**6)))
        dates[name] = (upload, exif)
        if i == 0:
            continue  # one picture without metadata
        (root / "metadata" / f"{name}.txt").write_text(
            f"<response><file><upload_date>{upload:%Y-%m-%dT%H:%M:%SZ}</upload_date></file>"
            f"<metadata><DateTimeOriginal>{exif:%Y:%m:%d %H:%M:%S}</DateTimeOriginal></metadata></response>\n"
        )
    first = everything[0][0]
    with (root / "dates.csv").open("w", newline="") as file:
        rows = [(name, f"{upload:%Y-%m-%dT%H:%M:%SZ}" if name != first else "") for name, (upload, _) in dates.items()]
        csv.writer(file).writerows([("id", "upload_date"), *rows])
    return root, everything, dates


SMALL = ("--least", 6, "--expect", "none")


def frame_of(path):
    return pq.read_table(path).to_pandas()


def test_pictures_are_split_and_ordered_by_the_rule(landmarks, prepare, tmp_path):
    root, everything, dates = landmarks
    out = tmp_path / "cglm.parquet"
    done = prepare("--ordering", "upload", "--gldv2", root, "--metadata", root / "metadata", *SMALL, "--output", out)
    assert done.returncode == 0, done.stderr
    frame = frame_of(out)
    # Landmark 7 has six pictures, one of which has no date; 30 and 512 have too few.
    kept = [(name, landmark) for name, landmark in everything if landmark in (101, 4000)]
    assert sorted(frame["path"]) == sorted(path_of(name) for name, _ in kept)
    assert dict(zip(frame["path"], frame["label"])) == {path_of(name): landmark for name, landmark in kept}
    assert dict(zip(frame["path"], frame["time"])) == {path_of(name): dates[name][0].timestamp() for name, _ in kept}
    assert frame["split"].value_counts().to_dict() == {"train": 15, "prefix": 4, "test": 2}  # of 21: 10 %, then 20 %
    in_time = sorted((name for name, _ in kept), key=lambda name: (dates[name][0], name))
    test = set(frame[frame["split"] == "test"]["path"])
    rest = [path_of(name) for name in in_time if path_of(name) not in test]
    assert frame[frame["split"] == "prefix"]["path"].tolist() == rest[:4]
    assert frame[frame["split"] == "train"].sort_values("order")["path"].tolist() == rest[4:]


def test_all_pictures_count_for_a_class_where_that_is_asked_for(landmarks, prepare, tmp_path):
    root, out = landmarks[0], tmp_path / "cglm.parquet"
    dates = ("--dates", root / "dates.csv", "--count", "all")
    assert prepare("--ordering", "upload", "--gldv2", root, *dates, *SMALL, "--output", out).returncode == 0
    assert set(frame_of(out)["label"]) == {7, 101, 4000}
    assert len(frame_of(out)) == 5 + 12 + 9


def test_dates_from_a_table_and_from_metadata_give_the_same_stream(landmarks, prepare, tmp_path):
    root = landmarks[0]
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    common = ("--ordering", "upload", "--gldv2", root, *SMALL)
    assert prepare(*common, "--dates", root / "dates.csv", "--output", one).returncode == 0
    assert prepare(*common, "--metadata", root / "metadata", "--output", other).returncode == 0
    assert frame_of(one).equals(frame_of(other))
    assert prepare(*common, "--metadata", root / "metadata", "--output", other, "--seed", 1).returncode == 0
    assert not frame_of(one).equals(frame_of(other))


def test_the_two_orderings_differ_and_warn_of_each_other(landmarks, prepare, tmp_path):
    root, said = landmarks[0], {}
    for ordering in ("upload", "exif"):
        out = tmp_path / f"cglm_{ordering}.parquet"
        done = prepare(
            "--ordering", ordering, "--gldv2", root, "--metadata", root / "metadata", *SMALL, "--output", out
        )
        assert done.returncode == 0, done.stderr
        assert "never compare" in done.stdout
        said[ordering] = json.loads(out.with_suffix(".json").read_text())
        assert "never compare" in said[ordering]["notes"][0]
    assert said["upload"]["ordering"] != said["exif"]["ordering"]
    assert said["upload"]["order_sha256"] != said["exif"]["order_sha256"]
    frame, dates = frame_of(tmp_path / "cglm_exif.parquet"), landmarks[2]
    wanted = {path_of(name): exif.timestamp() for name, (_, exif) in dates.items()}
    assert all(wanted[path] == time for path, time in zip(frame["path"], frame["time"]))
    with pytest.raises(SystemExit):  # which of the two must be said
        prepare("--gldv2", root, "--dates", root / "dates.csv")


def test_what_differs_from_the_published_set_is_said(landmarks, prepare, tmp_path):
    root, out = landmarks[0], tmp_path / "cglm.parquet"
    common = ("--ordering", "upload", "--gldv2", root, "--dates", root / "dates.csv", "--output", out)
    done = prepare(*common, "--least", 6)
    assert done.returncode == 1
    assert "differs: 10,788 is published" in done.stdout
    got = {check["name"]: check for check in json.loads(out.with_suffix(".json").read_text())["checks"]}
    assert got["classes"]["got"] == 2
    assert got["test, in per cent"]["agrees"]
    assert json.loads(out.with_suffix(".json").read_text())["read"]["pictures"] == {
        "listed": 34,
        "dated": 33,
        "kept": 21,
    }
    assert "no class keeps least=25 pictures with a date, of 34" in prepare(*common).stderr


def texts(tmp_path, picture, times=True, train=10, pretrain=0):
    lists, number = tmp_path / "order_files", iter(range(1000))
    lists.mkdir(exist_ok=True)
    for partition, count in {"train": train, "test": 4, "pretrain": pretrain}.items():
        lines = []
        for i in range(count):
            path = f"{partition}/{i}.jpg"
            picture(tmp_path / "data" / path, next(number))
            lines.append("\t".join([f"landmark {i % 3}", path, *([str(1000 + i)] if times else [])]))
        if lines:
            (lists / f"{partition}.txt").write_text("\n".join(lines) + "\n")
    return "--ordering", "exif", "--lists", lists, "--expect", "none"


@pytest.mark.parametrize("times", [True, False])
def test_text_lists_keep_their_order_and_begin_with_the_prefix(tmp_path, picture, prepare, times):
    done = prepare(*texts(tmp_path, picture, times))
    assert done.returncode == 0, done.stderr
    frame = frame_of(tmp_path / "data" / "cglm_exif.parquet")
    assert ("time" in frame.columns) == times
    assert frame[frame["split"] == "prefix"]["path"].tolist() == ["train/0.jpg", "train/1.jpg"]
    assert frame[frame["split"] == "train"]["path"].tolist() == [f"train/{i}.jpg" for i in range(2, 10)]
    assert frame[frame["split"] == "train"]["label"].tolist() == [f"landmark {i % 3}" for i in range(2, 10)]
    assert (frame["split"] == "test").sum() == 4


def test_a_list_of_the_prefix_is_taken_as_it_is(tmp_path, picture, prepare):
    assert prepare(*texts(tmp_path, picture, pretrain=5)).returncode == 0
    frame = frame_of(tmp_path / "data" / "cglm_exif.parquet")
    assert frame["split"].value_counts().to_dict() == {"train": 10, "prefix": 5, "test": 4}


def test_a_third_column_that_is_no_time_is_ignored_when_told(tmp_path, picture, prepare):
    arguments = texts(tmp_path, picture)
    list_ = tmp_path / "order_files" / "train.txt"
    list_.write_text("".join(f"landmark {i % 3}\ttrain/{i}.jpg\tsomeone\n" for i in range(10)))
    assert "line 1: time 'someone' given" in prepare(*arguments).stderr
    done = prepare(*arguments, "--third", "ignore")
    assert done.returncode == 0, done.stderr
    assert "time" not in frame_of(tmp_path / "data" / "cglm_exif.parquet").columns


def test_an_unsorted_list_is_refused(tmp_path, picture, prepare):
    arguments = texts(tmp_path, picture)
    list_ = tmp_path / "order_files" / "train.txt"
    lines = list_.read_text().splitlines()
    lines[3], lines[4] = lines[4], lines[3]
    list_.write_text("\n".join(lines))
    done = prepare(*arguments)
    assert done.returncode == 2
    assert "line 5: earlier than the line before" in done.stderr


def test_hdf5_lists_are_read_like_text(tmp_path, picture, prepare):
    arguments = texts(tmp_path, picture, times=False)
    lists = tmp_path / "order_files"
    assert prepare(*arguments, "--output", tmp_path / "text.parquet").returncode == 0
    for partition in ("train", "test"):
        rows = [line.split("\t") for line in (lists / f"{partition}.txt").read_text().splitlines()]
        with h5py.File(lists / f"{partition}_image_paths.hdf5", "w") as file:
            file["store_list"] = [path for _, path in rows]
        with h5py.File(lists / f"{partition}_labels.hdf5", "w") as file:
            file["store_list"] = [int(label.split()[1]) for label, _ in rows]
    assert "train_image_paths.hdf5 and train.txt: leave one of them" in prepare(*arguments).stderr
    for partition in ("train", "test"):
        (lists / f"{partition}.txt").unlink()
    done = prepare(*arguments, "--output", tmp_path / "hdf5.parquet")
    assert done.returncode == 0, done.stderr
    text, hdf5 = frame_of(tmp_path / "text.parquet"), frame_of(tmp_path / "hdf5.parquet")
    assert text.drop(columns="label").equals(hdf5.drop(columns="label"))
    assert [f"landmark {label}" for label in hdf5["label"]] == text["label"].tolist()


def test_one_list_with_times_and_one_without_do_not_go_together(tmp_path, picture, prepare):
    arguments = texts(tmp_path, picture)
    (tmp_path / "order_files" / "test.txt").write_text("landmark 0\ttest/0.jpg\n")
    assert "the lists do not go together: some have times" in prepare(*arguments).stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "train.csv").write_text("id,landmark_id\nabc,7\n"), "34 pictures of train_clean.csv"),
        (
            lambda root: (root / "train_clean.csv").write_text("landmark,images\n1,abc\n"),
            "the columns landmark_id, images",
        ),
        (lambda root: (root / "train_clean.csv").write_text("landmark_id,images\nx,abc\n"), "integers are expected"),
        (lambda root: (root / "train_clean.csv").unlink(), "train_clean.csv is missing"),
        (lambda root: (root / "train_clean.csv").write_text("landmark_id,images\n1,ab\n"), "'ab' is too short"),
        (lambda root: (root / "dates.csv").write_text("id,date\n"), "the columns id, upload_date are expected"),
        (lambda root: (root / "dates.csv").write_text("id,upload_date\n"), "no class keeps least=6"),
    ],
)
def test_csv_files_that_are_not_as_expected_are_refused_in_one_line(landmarks, prepare, tmp_path, change, told):
    for name in ("train.csv", "train_clean.csv", "dates.csv"):
        (tmp_path / name).write_bytes((landmarks[0] / name).read_bytes())
    (tmp_path / "train").mkdir()
    change(tmp_path)
    done = prepare("--ordering", "upload", "--gldv2", tmp_path, "--dates", tmp_path / "dates.csv", *SMALL)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_given_must_go_together(landmarks, prepare):
    root = landmarks[0]
    assert "give either gldv2" in prepare("--ordering", "exif").stderr
    assert "give either dates" in prepare("--ordering", "exif", "--gldv2", root).stderr
    assert "metadata='none' given" in prepare("--ordering", "exif", "--gldv2", root, "--metadata", "none").stderr
    assert "has no list of the partition 'train'" in prepare("--ordering", "exif", "--lists", root).stderr
    wrong = ("--gldv2", root, "--dates", root / "dates.csv", "--test", 1.5)
    assert "test=1.5 given" in prepare("--ordering", "upload", *wrong).stderr


@pytest.mark.parametrize("rule", ["{foo}.jpg", "{99}.jpg", "{id", "{id:d}", "{id.x}", "{id[x]}"])
def test_a_rule_that_makes_no_path_is_refused_with_the_fields_that_there_are(landmarks, prepare, tmp_path, rule):
    given = ("--ordering", "upload", "--gldv2", landmarks[0], "--dates", landmarks[0] / "dates.csv", *SMALL)
    done = prepare(*given, "--rule", rule, "--output", tmp_path / "cglm.parquet")
    assert done.returncode == 2
    assert f"rule={rule!r} given" in done.stderr
    assert "{id} and {0} to {15}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_the_disk_refuses_is_said_in_one_line_and_is_no_difference(landmarks, prepare, tmp_path):
    root = landmarks[0]
    given = ("--ordering", "upload", "--gldv2", root, *SMALL)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.parquet").mkdir()
    dates = ("--dates", root / "dates.csv")
    for more, told in {
        ("--dates", root / "metadata"): "metadata is a folder; a CSV file of id, upload_date is expected",
        (*dates, "--output", tmp_path / "file" / "x" / "cglm.parquet"): "its folder cannot be made (Not a directory)",
        (*dates, "--output", tmp_path / "folder.parquet"): "folder.parquet: Is a directory",
    }.items():
        done = prepare(*given, *more)
        assert done.returncode == 2, more
        assert told in done.stderr
        assert done.stderr.count("\n") == 1


def test_dates_that_cannot_be_read_are_counted_and_shown(landmarks, prepare, tmp_path):
    root, everything, dates = landmarks
    lines = [f"{name},{upload:%Y-%m-%dT%H:%M:%SZ}" for name, (upload, _) in dates.items()]
    lines[20:22] = [f"{everything[20][0]},31/05/2010", f"{everything[21][0]},soon"]
    lines[0] = f"{everything[0][0]}, "  # which is none
    (tmp_path / "dates.csv").write_text("\n".join(["id,upload_date", *lines]))
    out = tmp_path / "cglm.parquet"
    given = ("--ordering", "upload", "--gldv2", root, "--dates", tmp_path / "dates.csv", "--output", out)
    done = prepare(*given, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "34 listed, 31 dated, 19 kept\n" in done.stdout
    assert "note: 2 dates could not be read, the first: '31/05/2010'; left out as undated" in done.stdout
    done = prepare(*given)
    assert done.returncode == 2
    assert "of 34 in the clean list, of which 31 have one; 2 dates could not be read, the first: '31/05" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "could not be read" not in prepare(*given[:5], root / "dates.csv", *given[6:], *SMALL).stdout
