import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetcl.errors import UserError
from budgetcl.streams.order_files import OrderFiles, hdf5_rows, parsed, seconds_of, text_rows, write_hdf5, write_text

NAME = st.text("abä漢𝄞.-_\"' ", min_size=1, max_size=8).map(lambda name: f"x{name}y")
SAMPLES = st.lists(st.tuples(NAME, NAME, st.integers(-(2**40), 2**40)), min_size=1, max_size=20)


def batch(**columns):
    return pa.RecordBatch.from_pydict(columns)


def together(pieces):
    columns = {}
    for piece in pieces:
        for name, values in piece.to_pydict().items():
            columns.setdefault(name, []).extend(values)
    return columns


@given(SAMPLES, st.integers(60, 400))
@settings(max_examples=20, deadline=None)
def test_text_comes_back_as_it_was_written_whatever_the_size_of_the_pieces(samples, block):
    folders, names, times = zip(*samples)
    paths = [f"/train/{folder}/{name}" for folder, name in zip(folders, names)]
    block += 2 * max(len(f"{folder}\t{path}\t{1.5}".encode()) + 20 for folder, path in zip(folders, paths))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "order.txt"
        write_text(path, [batch(path=paths, label=folders)])
        assert path.read_text(encoding="utf-8") == "".join(f"{p}\n" for p in paths)
        assert together(text_rows(path, block=block)) == {"path": paths, "label": list(folders)}
        whole = {"path": paths, "label": list(folders), "time": [t / 8 for t in times]}
        write_text(path, [batch(**whole)], labels=True)
        assert together(text_rows(path, block=block)) == whole


@given(SAMPLES, st.integers(1, 7), st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_hdf5_comes_back_as_it_was_written_whatever_the_size_of_the_pieces(samples, written, read):
    paths, labels = [f"{folder}/{name}" for folder, name, _ in samples], [label for *_, label in samples]
    parts = [slice(low, low + written) for low in range(0, len(paths), written)]
    with TemporaryDirectory() as folder:
        write_hdf5(Path(folder), "train", [batch(path=paths[p], label=pa.array(labels[p])) for p in parts])
        with h5py.File(Path(folder) / "train_image_paths.hdf5") as file:
            assert [path.decode() for path in file["store_list"]] == paths
        files = OrderFiles(Path(folder), {}).files("train")
        pieces = list(hdf5_rows(*files, chunk=read))
        assert together(pieces) == {"path": paths, "label": labels}
        assert max(map(len, pieces)) <= read


def test_text_of_the_three_kinds_is_told_by_its_first_line(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("/train/n01/a.JPEG\n\n/train/n02/b.JPEG\r\n")
    assert together(text_rows(path)) == {"path": ["/train/n01/a.JPEG", "/train/n02/b.JPEG"], "label": ["n01", "n02"]}
    path.write_text('7\ta/"b".jpg\n8\tc d.jpg\n')
    assert together(text_rows(path)) == {"path": ['a/"b".jpg', "c d.jpg"], "label": ["7", "8"]}
    path.write_text("7\ta.jpg\t1.5\n8\tb.jpg\t2\n")
    assert together(text_rows(path)) == {"path": ["a.jpg", "b.jpg"], "label": ["7", "8"], "time": [1.5, 2.0]}
    assert together(text_rows(path, times=False)) == {"path": ["a.jpg", "b.jpg"], "label": ["7", "8"]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read as an order file"),
        (b"a/b.jpg\nc.jpg\n", "line 2: 'c.jpg' has no parent folder to be its class"),
        (b"1\ta.jpg\n2\n", "Expected 2 columns, got 1"),
        (b"1\ta.jpg\t3\t4\n", "4 columns in its first line"),
        (b"1\ta/\xff.jpg\n", "invalid UTF8"),
        (b"1\ta.jpg\t5\n1\tb.jpg\t2010-01-01\n", "line 2: time '2010-01-01' given; seconds"),
        (b"1\ta.jpg\t2010-01-01\n1\tb.jpg\t5x\n", "line 2: time '5x' given"),
        (b"1\ta.jpg\tnan\n", "line 1: time 'nan' given"),
        (b"1\ta.jpg\t5\n1\tb.jpg\t6\n1\tc.jpg\t5.5\n", "line 3: earlier than the line before"),
    ],
)
def test_text_that_cannot_be_read_is_refused_in_one_line(tmp_path, content, told):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        list(text_rows(tmp_path / "list.txt", ordered=True))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fall_in_time_between_two_pieces_is_found(tmp_path):
    times = [*range(100), 50, *range(100, 200)]
    (tmp_path / "list.txt").write_text("".join(f"x\t{i:04d}.jpg\t{t}\n" for i, t in enumerate(times)))
    for block in (100, 257, 1 << 20):
        with pytest.raises(UserError, match="line 101: earlier"):
            list(text_rows(tmp_path / "list.txt", ordered=True, block=block))
        assert len(together(text_rows(tmp_path / "list.txt", block=block))["path"]) == 201


def test_times_are_seconds_dates_or_as_exif_writes_them():
    moment = datetime(2010, 5, 31, 12, 0, 1, tzinfo=UTC).timestamp()
    texts = [
        "2010-05-31T12:00:01Z",
        "2010:05:31 12:00:01",
        "2010-05-31 12:00:01",
        "2010-05-31T14:00:01+02:00",
        " 2010-05-31 ",
    ]
    np.testing.assert_array_equal(parsed(pa.array(texts)), [moment] * 4 + [moment - 43201])
    np.testing.assert_array_equal(parsed(pa.array(["1.5", " 2 ", "1e3"])), [1.5, 2, 1000])
    np.testing.assert_array_equal(parsed(pa.array(["5", "inf", "x", ""])), [5, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(parsed(pa.array(["0000:00:00 00:00:00", "2010-05-31T12:00:01"])), [np.nan, moment])
    assert len(parsed(pa.array([], pa.string()))) == 0
    with pytest.raises(UserError, match="here, line 12: time '' given"):
        seconds_of(pa.array(["5", ""]), "here", before=10)


def store(path, values, name="store_list", **options):
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=values, **options)


def test_paths_of_fixed_length_and_small_labels_are_read_too(tmp_path):
    paths, labels = tmp_path / "p.hdf5", tmp_path / "l.hdf5"
    store(paths, np.array([b"a/b.jpg", b"a/longer.jpg"]))
    store(labels, np.array([200, 3], np.uint8))
    assert together(hdf5_rows(paths, labels)) == {"path": ["a/b.jpg", "a/longer.jpg"], "label": [200, 3]}


@pytest.mark.parametrize(
    ("paths", "labels", "name", "told"),
    [
        ([b"a"], [1], "other", "has no array 'store_list'; it holds ['other']"),
        ([b"a", b"b"], [1], "store_list", "p.hdf5 has 2 entries, l.hdf5 1"),
        ([b"a"], [1.5], "store_list", "one row of integer labels is expected"),
        ([b"a"], [[1]], "store_list", "int64 of shape (1, 1); one row of integer labels"),
        ([1], [1], "store_list", "one row of paths is expected"),
        ([b"a", b"\xff"], [1, 2], "store_list", "no UTF-8 paths"),
    ],
)
def test_hdf5_that_is_not_as_expected_is_refused_in_one_line(tmp_path, paths, labels, name, told):
    store(tmp_path / "p.hdf5", np.array(paths), name)
    store(tmp_path / "l.hdf5", np.array(labels))
    with pytest.raises(UserError) as error:
        list(hdf5_rows(tmp_path / "p.hdf5", tmp_path / "l.hdf5"))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_group_or_no_hdf5_is_refused(tmp_path):
    with h5py.File(tmp_path / "p.hdf5", "w") as file:
        file.create_group("store_list")
    store(tmp_path / "l.hdf5", np.array([1]))
    with pytest.raises(UserError, match="is a group; one row of paths"):
        list(hdf5_rows(tmp_path / "p.hdf5", tmp_path / "l.hdf5"))
    (tmp_path / "p.hdf5").write_bytes(b"text")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        list(hdf5_rows(tmp_path / "p.hdf5", tmp_path / "l.hdf5"))


def test_without_h5py_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'budgetcl\[hdf5\]'"):
        list(hdf5_rows(tmp_path / "p.hdf5", tmp_path / "l.hdf5"))


def test_a_partition_is_found_by_its_names_and_only_once(tmp_path):
    files = OrderFiles(tmp_path, {"cls_inc": ("class.txt", "ordering.txt")})
    assert files.files("cls_inc") == ()
    with pytest.raises(UserError, match=r"one of class.txt, ordering.txt, cls_inc_image_paths.hdf5 is expected"):
        files.rows("cls_inc")
    (tmp_path / "ordering.txt").write_text("a/b.jpg\n")
    assert together(files.rows("cls_inc")) == {"path": ["a/b.jpg"], "label": ["a"]}
    (tmp_path / "class.txt").write_text("a/b.jpg\n")
    with pytest.raises(UserError, match=r"class.txt and ordering.txt: leave one of them"):
        files.rows("cls_inc")
    store(tmp_path / "test_labels.hdf5", np.array([1]))
    with pytest.raises(UserError, match=r"test_image_paths.hdf5 is not; both are expected"):
        files.rows("test")
