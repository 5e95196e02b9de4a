import gzip
import os
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from budgetcl.errors import UserError
from budgetcl.streams import rows as module
from budgetcl.streams.rows import read
from budgetcl.streams.stream import SETS


def csv(folder, text):
    (folder / "photos.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / "photos.csv")


def parquet(folder, **columns):
    pq.write_table(pa.table(columns), folder / "photos.parquet")
    return str(folder / "photos.parquet")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"not opened here")


def test_a_table_is_read_part_by_part_as_it_is_read_whole(tmp_path, monkeypatch):
    n = 500
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "path": [f"p{i}/{'x' * int(rng.integers(9))}{i}.png" for i in range(n)],
            "label": [f"c{c}" for c in rng.integers(30, size=n)],
            "time": rng.integers(1000, size=n),
            "split": rng.choice(["train", "val", "test"], n),
            "order": rng.permutation(n),
        }
    )
    frame.to_csv(tmp_path / "photos.csv", index=False)
    frame.to_parquet(tmp_path / "photos.parquet", row_group_size=90)
    whole = read(str(tmp_path / "photos.csv"))
    monkeypatch.setattr(module, "_PART", 64)
    monkeypatch.setattr(module, "_BLOCK", 1000)
    cached = str(tmp_path / "cache")
    for rows in (
        read(str(tmp_path / "photos.csv")),
        read(str(tmp_path / "photos.parquet")),
        read(str(tmp_path / "photos.csv"), cache=cached),
        read(str(tmp_path / "photos.csv"), cache=cached),
    ):
        assert list(rows.paths) == frame["path"].tolist() == list(whole.paths)
        assert rows.paths.digest() == whole.paths.digest()
        assert [rows.names[code] for code in rows.label] == frame["label"].tolist()
        assert rows.names == tuple(sorted(set(frame["label"])))
        assert rows.time.tolist() == frame["time"].tolist()
        assert rows.order.tolist() == frame["order"].tolist()
        full = {"train": "stream", "val": "validation", "test": "test"}
        assert [SETS[code] for code in rows.split] == [full[name] for name in frame["split"]]


def test_a_bad_row_is_named_by_its_number_in_the_whole_table(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 300)
    lines = [f"{i}.png,c{i % 3},{i}" for i in range(200)]
    lines[137] = "137.png,c1,soon"
    with pytest.raises(UserError, match="row 138: time 'soon' given"):
        read(csv(tmp_path, "path,label,time\n" + "\n".join(lines)))


def test_columns_stand_in_any_order_among_others_and_may_be_quoted(tmp_path):
    text = '\ufefflicence,label,"path"\nfree,"x, y",a.png\n"more ""or"" less", z ,"b, c.png"\n'
    rows = read(csv(tmp_path, text))
    assert list(rows.paths) == ["a.png", "b, c.png"]
    assert rows.names == ("x, y", "z")
    with pytest.raises(UserError, match="2 columns 'label'"):
        read(csv(tmp_path, "path,label,label\na.png,x,y\n"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("d.pq", "a parquet file"),
        ("g.csv.gz", "compressed"),
        ("u.csv", "UTF-16"),
        ("w.csv", "the names of its columns are no text"),
        ("p.csv", "the names of its columns are no text"),
        ("s.csv", r"separated by semicolons \(;\)"),
        ("t.tsv", "separated by tabs"),
        ("m.csv", r"separated by bars \(\|\)"),
    ],
)
def test_files_of_another_kind_are_refused_by_what_they_are(tmp_path, name, told):
    text = "path,label\na.png,x\nb.png,y\n"
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "label": ["x", "y"]}), tmp_path / "d.pq")
    (tmp_path / "g.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "u.csv").write_text(text, encoding="utf-16")
    (tmp_path / "w.csv").write_text(text, encoding="utf-16-le")
    Image.new("L", (8, 8)).save(tmp_path / "p.csv", "PNG")
    (tmp_path / "s.csv").write_text(text.replace(",", ";"))
    (tmp_path / "t.tsv").write_text(text.replace(",", "\t"))
    (tmp_path / "m.csv").write_text("path|label|a,b\n")
    with pytest.raises(UserError, match=rf"{told}.*; a comma-separated UTF-8 \.csv") as error:
        read(str(tmp_path / name))
    assert str(error.value).isprintable()


def test_the_suffix_of_a_table_may_be_of_capitals(tmp_path):
    os.rename(parquet(tmp_path, path=["a.png", "b.png"], label=["x", "y"]), tmp_path / "D.PARQUET")
    assert read(str(tmp_path / "D.PARQUET")).names == ("x", "y")


def test_paths_need_not_be_text(tmp_path):
    rows = read(csv(tmp_path, b"path,label\n\xff\xfe.png,x\nb.png,y\n"))
    assert os.fsencode(rows.paths[0]) == b"\xff\xfe.png"
    rows = read(parquet(tmp_path, path=pa.array([b"\xff.png", b"b.png"], pa.binary()), label=["x", "y"]))
    assert os.fsencode(rows.paths[0]) == b"\xff.png"


def test_labels_of_every_type_are_text_and_in_numerical_order_where_they_are_numbers(tmp_path):
    for label, names in (
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b")),
        ([True, False, True], ("False", "True")),
    ):
        rows = read(parquet(tmp_path, path=["1", "2", "3"], label=label))
        assert rows.names == names


def test_a_label_that_is_no_number_is_empty_and_the_text_nan_is_a_label(tmp_path):
    with pytest.raises(UserError, match="row 2: the label is empty"):
        read(parquet(tmp_path, path=["a", "b", "c"], label=[1.0, np.nan, 2.0]))
    assert read(parquet(tmp_path, path=["a", "b"], label=["nan", "x"])).names == ("nan", "x")


def test_paths_are_made_relative_to_the_root_and_plain(tmp_path):
    inside = tmp_path / "pictures"
    inside.mkdir()
    text = f"path,label\n./a.png,x\nb//c.png,y\nd/../e.png,y\n{inside}/f.png,x\n.g.png,x\nh/..i/..png,x\n"
    rows = read(csv(tmp_path, text), root=str(inside))
    assert list(rows.paths) == ["a.png", "b/c.png", "e.png", "f.png", ".g.png", "h/..i/..png"]
    assert rows.root == inside


@pytest.mark.parametrize("path", ["../a.png", "b/../../a.png", "/etc/a.png", "..", "./../a.png"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path, path):
    with pytest.raises(
        UserError, match=r"row 2: the path .* leaves the root of the pictures, .*: set stream\.root"
    ) as e:
        read(csv(tmp_path, f"path,label\nx.png,x\n{path},y\n"))
    assert "\n" not in str(e.value)


def test_an_order_may_lack_places_but_has_whole_numbers(tmp_path):
    rows = read(csv(tmp_path, "path,label,order\na,x,3\nb,y,\nc,y,-1\n"))
    assert rows.order.tolist() == [3, -1, -1]
    rows = read(parquet(tmp_path, path=["a", "b"], label=["x", "y"], order=pa.array([2.0, None])))
    assert rows.order.tolist() == [2, -1]
    with pytest.raises(UserError, match="row 2: 'soon' is no place in the order"):
        read(csv(tmp_path, "path,label,order\na,x,3\nb,y,soon\n"))


@pytest.mark.parametrize("given", ["+5", "1_0", "9223372036854775808", str(2**70), "1.0"])
def test_an_order_that_only_python_reads_is_refused_with_its_row(tmp_path, given):
    with pytest.raises(UserError) as error:
        read(csv(tmp_path, f"path,label,order\na,x,3\nb,y,\nc,y,{given}\nd,y,soon\n"))
    assert f"row 3: {given!r} is no place in the order" in str(error.value)


def test_a_number_that_is_no_place_in_an_order_is_refused_with_its_row(tmp_path):
    for order in ([1.0, None, 2.5], pa.array([1, 2, 2**63], pa.uint64())):
        with pytest.raises(UserError, match=r"row 3: .* is no place in the order"):
            read(parquet(tmp_path, path=["a", "b", "c"], label=["x", "y", "y"], order=order))
    with pytest.raises(UserError, match=r"row 2: b'\\xff' is a text that is no UTF-8"):
        read(parquet(tmp_path, path=["a", "b"], label=["x", "y"], order=pa.array([None, b"\xff"], pa.binary())))


def test_dates_with_and_without_a_zone_may_stand_side_by_side(tmp_path):
    text = "path,label,time\na,x,2024-03-01\nb,y,2024-03-01T02:00:00+02:00\nc,y,2024-03-01 00:00:01.5Z\n"
    assert np.diff(read(csv(tmp_path, text)).time).tolist() == [0, 1.5]


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ((20240131, 20231201), "look like days like 20240531 and were read as seconds since 1970: 1970-08-23T"),
        (
            (1999, 2024),
            "look like years and were read as seconds since 1970: 1970-01-01T00:33:19 to 1970-01-01T00:33:44",
        ),
        ((1717156800000, 1717156900000), "look like milliseconds or finer and were read .*: the year 56384 to"),
        ((1717156800, 1717156900), None),
        ((2024, 2101), None),
        ((20241331, 20231201), None),
        ((1999.5, 2000), None),
        ((1717156800, 1717156800000), None),
    ],
)
def test_numbers_that_were_hardly_meant_as_seconds_are_told(tmp_path, monkeypatch, times, told):
    monkeypatch.setattr(module, "_PART", 1)
    cached = str(tmp_path / "cache")
    text = csv(tmp_path, f"path,label,time\na,x,{times[0]}\nb,y,{times[1]}\n")
    numbers = parquet(tmp_path, path=["a", "b"], label=["x", "y"], time=[float(time) for time in times])
    for rows in (read(text), read(numbers), read(text, cache=cached), read(text, cache=cached)):
        assert rows.time.tolist() == list(times)
        assert len(rows.notes) == (told is not None)
        assert told is None or re.search(told, rows.notes[0])


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"root=.* given; the folder"):
        read(csv(tmp_path, "path,label\na,x\nb,y\n"), root=str(tmp_path / "none"))


# --- folders ----------------------------------------------------------------------------------------------------


def test_in_a_folder_of_pictures_the_folders_are_the_labels(tmp_path):
    for name in ("cat/1.png", "cat/deep/2.JPG", "dog/1.jpeg", "dog/.hidden.png", ".git/x/1.png"):
        picture(tmp_path / "photos" / name)
    (tmp_path / "photos" / "dog" / "list.txt").write_text("")
    rows = read(str(tmp_path / "photos"))
    assert list(rows.paths) == ["cat/1.png", "cat/deep/2.JPG", "dog/1.jpeg"]
    assert [rows.names[code] for code in rows.label] == ["cat", "cat", "dog"]
    assert rows.name == "photos"
    assert rows.split is rows.time is rows.order is None
    assert rows.notes == ("left out as no pictures by their names: 1 files, the first is dog/list.txt",)


def test_folders_named_after_the_sets_are_the_split(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "val/dog/2.png", "test/cat/1.png"):
        picture(tmp_path / name)
    rows = read(str(tmp_path))
    by_path = {path: (rows.names[code], SETS[s]) for path, code, s in zip(rows.paths, rows.label, rows.split)}
    assert by_path == {
        "train/cat/1.png": ("cat", "stream"),
        "train/dog/1.png": ("dog", "stream"),
        "val/dog/2.png": ("dog", "validation"),
        "test/cat/1.png": ("cat", "test"),
    }


def test_a_class_without_pictures_is_told(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    rows = read(str(tmp_path))
    assert rows.names == ("cat",)
    assert rows.notes == ("the folder of the class 'dog' holds no picture",)


def test_folders_that_cannot_be_read_as_classes_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no pictures"):
        read(str(tmp_path))
    picture(tmp_path / "cat" / "1.png")
    with pytest.raises(UserError, match="which is its own root"):
        read(str(tmp_path), root=str(tmp_path))
    picture(tmp_path / "2.png")
    with pytest.raises(UserError, match=r"1 pictures lie in no folder of a class, the first is 2\.png"):
        read(str(tmp_path))
    (tmp_path / "2.png").unlink()
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(UserError, match="rename it"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("folders", "odd"),
    [
        (("train", "valid", "test"), r"\['valid'\]"),
        (("Training", "Testing"), r"\['Testing', 'Training'\]"),
        (("train", "test", "__MACOSX"), r"\['__MACOSX'\]"),
    ],
)
def test_folders_that_are_half_a_split_are_refused_and_not_read_as_classes(tmp_path, folders, odd):
    for name in folders:
        for label in ("cat", "dog"):
            picture(tmp_path / name / label / f"{name}.png")
    with pytest.raises(UserError, match=rf"{odd}, which are no names of a split; rename or move") as e:
        read(str(tmp_path))
    assert "\n" not in str(e.value)


def test_a_class_may_be_called_as_a_set_is(tmp_path):
    for name in ("train/1.png", "train/deep/2.png", "bus/1.png"):
        picture(tmp_path / name)
    assert read(str(tmp_path)).names == ("bus", "train")


def test_a_link_that_leads_back_is_refused_and_others_are_followed(tmp_path):
    picture(tmp_path / "elsewhere" / "1.png")
    picture(tmp_path / "photos" / "cat" / "2.png")
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    assert list(read(str(tmp_path / "photos")).paths) == ["cat/2.png", "dog/1.png"]
    (tmp_path / "photos" / "cat" / "again").symlink_to(tmp_path / "photos")
    with pytest.raises(UserError, match="link that leads back"):
        read(str(tmp_path / "photos"))


def test_a_folder_that_links_show_twice_is_refused(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / split / "dog" / f"{split}.png")
    picture(tmp_path / "train" / "cat" / "1.png")
    (tmp_path / "test" / "cat").symlink_to(tmp_path / "train" / "cat")
    with pytest.raises(UserError, match=r"train/cat and .*test/cat are the same folder, by a link"):
        read(str(tmp_path))


def test_names_that_are_no_text_are_read_in_folders(tmp_path):
    folder = os.fsencode(tmp_path / "cat")
    os.mkdir(folder)
    with open(folder + b"/\xff.png", "wb"):
        pass
    assert os.fsencode(read(str(tmp_path)).paths[0]) == b"cat/\xff.png"


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("time", pa.array([1, 2], pa.time64("us")), "time: time64"),
        ("time", [True, False], "time: bool"),
        ("time", [[1], [2]], "time: list"),
        ("label", [["a"], ["b"]], "label: list"),
        ("path", [["a"], ["b"]], "path: list"),
    ],
)
def test_columns_of_another_kind_are_refused_with_it(tmp_path, column, values, kind):
    with pytest.raises(UserError, match=rf"photos.parquet, from row 1: .*{kind}"):
        read(parquet(tmp_path, **{"path": ["a.png", "b.png"], "label": ["x", "y"], column: values}))
