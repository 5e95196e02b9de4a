import os
from pathlib import Path

import numpy as np
import pytest

from budgetcl.errors import UserError
from budgetcl.streams.cache import Columns, forget_others, kept, parts, place


def filled(columns):
    columns.append("a", np.arange(3))
    columns.append("b", np.array([1.5]))
    columns.append("a", np.arange(3, 5))
    columns.append("none", np.empty(0, np.int8))
    return {"names": ["x", "y"]}


@pytest.mark.parametrize("in_files", [False, True])
def test_columns_grow_in_memory_and_in_files_alike(tmp_path, in_files):
    columns, facts = kept(tmp_path / "kept" if in_files else None, filled)
    assert columns["a"].tolist() == [0, 1, 2, 3, 4]
    assert columns["b"].tolist() == [1.5]
    assert columns["none"].dtype == np.int8
    assert len(columns["none"]) == 0
    assert columns.get("c") is None
    assert facts == {"names": ["x", "y"]}
    with pytest.raises(ValueError, match="read-only"):
        columns["a"][0] = 7


def test_what_is_kept_is_made_once(tmp_path):
    kept(tmp_path / "kept", filled)

    def never(columns):
        raise AssertionError("made again")

    columns, facts = kept(tmp_path / "kept", never)
    assert columns["a"].tolist() == [0, 1, 2, 3, 4]
    assert facts == {"names": ["x", "y"]}


def test_a_column_can_be_looked_at_while_others_grow_and_dropped(tmp_path):
    for folder in (None, tmp_path):
        columns = Columns(folder)
        columns.append("a", np.arange(4))
        for _, part in parts(columns["a"], size=3):
            columns.append("b", part + 1)
        columns.drop("a")
        assert columns.get("a") is None
        assert columns["b"].tolist() == [1, 2, 3, 4]


def test_what_fails_leaves_nothing_behind(tmp_path):
    def fails(columns):
        columns.append("a", np.arange(3))
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        kept(tmp_path / "kept", fails)
    assert list(tmp_path.iterdir()) == []


def test_another_process_that_was_first_is_no_error(tmp_path):
    def overtaken(columns):
        kept(tmp_path / "kept", filled)
        return filled(columns)

    assert kept(tmp_path / "kept", overtaken)[0]["a"].tolist() == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_written_is_refused_with_the_key_that_mends_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* set stream\.cache") as error:
        kept(tmp_path / "file" / "kept", filled)
    assert "\n" not in str(error.value)


def test_others_can_read_what_is_kept_as_far_as_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        kept(tmp_path / "kept", filled)
    finally:
        os.umask(before)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "kept").iterdir()} == {0o640}


def test_what_another_user_keeps_to_himself_is_refused_with_the_key_that_mends_it(tmp_path, monkeypatch):
    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refused)  # modes mean nothing to root
    with pytest.raises(UserError, match=r"cannot be read \(Perm.* stream\.cache=FOLDER .*--cache") as error:
        kept(tmp_path / "kept", filled)
    assert "\n" not in str(error.value)


def test_a_changed_table_gets_another_place_and_its_earlier_state_is_forgotten(tmp_path):
    table = tmp_path / "photos.csv"
    table.write_text("path,label\n")
    cache = str(tmp_path / "cache")
    first = place(table, cache)
    assert first == place(table, cache)
    assert first != place(table, cache, "another root")
    os.utime(table, ns=(0, 0))
    second = place(table, cache)
    assert first != second
    for home in (first, second):
        kept(home / "rows", filled)
    forget_others(second)
    assert not first.exists()
    assert (second / "rows").exists()


def test_small_tables_are_kept_only_where_that_is_asked_for(tmp_path, monkeypatch):
    table = tmp_path / "photos.csv"
    table.write_text("path,label\n")
    assert place(table, None) is None
    monkeypatch.setattr("budgetcl.streams.cache.LARGE", 5)
    assert place(table, None).parent == tmp_path / "photos.csv.cache"
