import hashlib
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from budgetcl.data import prepared
from budgetcl.data.prepared import Check, Prepared
from budgetcl.errors import UserError


def batch(paths, labels=None, **columns):
    return pa.RecordBatch.from_pydict({"path": paths, "label": labels or ["x"] * len(paths), **columns})


def make(tmp_path, parts, missing="trust", **said):
    with Prepared(tmp_path / "t.parquet", tmp_path, missing) as table:
        for split, *batches in parts:
            table.add(split, batches)
        return table, table.finish("a test", "as it comes", {}, **said)


def test_streamed_rows_are_numbered_through_all_pieces_and_splits(tmp_path):
    parts = [
        ("train", batch(["a", "b"])), ("test", batch(["c"])), ("train", batch(["d"]), batch(["e", "/f ", "g/h"])),
    ]  # fmt: skip
    table, said = make(tmp_path, parts)
    frame = pq.read_table(tmp_path / "t.parquet").to_pandas()
    assert frame["path"].tolist() == ["a", "b", "c", "d", "e", "f", "g/h"]
    assert frame["order"].tolist() == [0, 1, -1, 2, 3, 4, 5]
    assert table.counts == {"train": Counter(x=6), "test": Counter(x=1)}
    assert said["samples"] == {"train": 6, "test": 1}
    assert json.loads((tmp_path / "t.json").read_text()) == said
    notes = pq.ParquetFile(tmp_path / "t.parquet").metadata.metadata[b"budgetcl.notes"]
    assert json.loads(notes) == ["order: as it comes"]


def test_a_table_without_an_order_has_no_such_column(tmp_path):
    with Prepared(tmp_path / "t.parquet", tmp_path, "trust", ordered=False) as table:
        table.add("train", [batch(["a", "b"])])
        table.finish("a test", "chosen by each run", {})
    assert pq.read_table(tmp_path / "t.parquet").column_names == ["path", "label", "split"]


def test_the_sum_of_the_train_pictures_does_not_know_their_order_and_the_hash_does(tmp_path):
    (one, said), (other, told) = (
        make(tmp_path, [("train", batch(paths))]) for paths in (["a", "b", "c"], ["c", "a", "b"])
    )
    assert one.train_sum == other.train_sum
    assert said["order_sha256"] != told["order_sha256"]
    assert said["order_sha256"] == hashlib.sha256(b"a\nb\nc\n").hexdigest()
    assert make(tmp_path, [("train", batch(["a", "b", "d"]))])[0].train_sum != one.train_sum


def test_pictures_named_twice_are_found_among_equal_hashes_by_their_paths(tmp_path, monkeypatch):
    hashed = prepared.hashes_of
    monkeypatch.setattr(prepared, "hashes_of", lambda data, start: hashed(data, start) % np.uint64(3))
    make(tmp_path, [("train", batch(list("abcdefgh"))), ("test", batch(["i"]))])  # equal hashes, no equal path
    with pytest.raises(UserError, match=r"1 pictures are named twice: c$"):
        make(tmp_path, [("train", batch(list("abc")), batch(list("dec"))), ("test", batch(["i"]))])
    with pytest.raises(
        UserError, match=r"2 pictures stand in two splits, a leak: b \(prefix, train\), c \(train, test\)"
    ):
        make(tmp_path, [("prefix", batch(["b"])), ("train", batch(list("abc"))), ("test", batch(["c"]))])


def test_nothing_is_left_of_a_table_that_is_refused(tmp_path):
    for parts, told in (
        ([("test", batch(["a"]))], "there is nothing to stream"),
        ([("train", batch(["a"]), batch(["../b"]))], "a path below the pictures' folder"),
        ([("train", batch(["a"])), ("test", batch(["b"], [3]))], "labels are numbers in some"),
        ([("train", batch(["a"])), ("test", batch(["b"], time=[3.0]))], "some have times"),
        ([("validation", batch(["a"]))], "split='validation' given"),
    ):
        with pytest.raises(UserError, match=told):
            make(tmp_path, parts)
        assert not list(tmp_path.iterdir())


def test_a_table_that_is_there_stays_until_the_new_one_is_whole(tmp_path):
    make(tmp_path, [("train", batch(["a"]))])
    before = (tmp_path / "t.parquet").read_bytes()
    with pytest.raises(UserError):
        make(tmp_path, [("train", batch(["a", "a"]))])
    assert (tmp_path / "t.parquet").read_bytes() == before


def test_pictures_that_are_not_there_are_refused_dropped_or_trusted(tmp_path):
    (tmp_path / "here.png").touch()
    (tmp_path / "folder.png").mkdir()
    parts = [("train", batch([f"no{i}.png" for i in range(7)]), batch(["here.png", "folder.png"]))]
    with pytest.raises(UserError, match=r"8 pictures are not below .*: no0.png, no1.png, .*, no4.png and 3 more"):
        make(tmp_path, parts, missing="refuse")
    _, said = make(tmp_path, parts, missing="drop")
    assert (said["samples"], said["dropped"]) == ({"train": 1}, 8)
    assert pq.read_table(tmp_path / "t.parquet").to_pandas()[["path", "order"]].values.tolist() == [["here.png", 0]]
    _, said = make(tmp_path, parts, missing="trust")
    assert (said["samples"], said["dropped"]) == ({"train": 9}, None)
    with pytest.raises(UserError, match="missing='ignore' given"):
        make(tmp_path, parts, missing="ignore")


def test_the_output_and_the_root_must_make_sense(tmp_path):
    with pytest.raises(UserError, match=r"the name of a .parquet file"):
        Prepared(tmp_path / "t.csv", tmp_path)
    with pytest.raises(UserError, match="the folder of the pictures is expected"):
        Prepared(tmp_path / "t.parquet", tmp_path / "none")


@pytest.mark.parametrize(
    ("expected", "got", "agrees"),
    [(3, 3, True), (3, 4, False), ((3, 5), 5, True), ((3, 5), 6, False), ("a", "a", True)],
)
def test_a_check_agrees_with_a_value_or_a_range(expected, got, agrees):
    check = Check("sizes", expected, got)
    assert check.agrees == agrees
    assert ("agrees" in str(check)) == agrees
    assert ("is published" in str(check)) != agrees
