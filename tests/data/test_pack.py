import io
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from budgetcl.cli import main
from budgetcl.data.pack import pack
from budgetcl.data.prepared import NOTES
from budgetcl.errors import UserError
from budgetcl.streams.decoding import Damaged, shrunk
from budgetcl.streams.images import Files, ImagePixels
from budgetcl.streams.packed import Packed, altered, pictures_of
from budgetcl.streams.rows import read
from budgetcl.streams.table import table


def photo(rng, width, height):
    """A smooth picture: what JPEG keeps."""
    small = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows = ["path,label,time,split,order"]
    for i in range(40):
        photo(rng, 90 + i, 70).save(folder / f"{i}.jpg", quality=95)
        rows.append(
            f"{i}.jpg,{'cab'[i % 3]},{1000.5 + 39 - i},{'test' if i % 5 == 4 else 'train'},{i if i % 5 < 4 else ''}"
        )
    (folder / "photos.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "packed"
    pack(read(str(folder / "photos.csv")), out, short_side=48, files=3, jobs=2)
    return out


def test_a_packed_table_streams_the_same_rows(folder, packed):
    for settings in ({}, {"order": "time"}, {"order": "class"}, {"order": "data", "validation": 0.2}):
        plain, short = (table(str(path), size=24, **settings) for path in (folder / "photos.csv", packed))
        for name in ("label", "set", "bounds", "time", "origin"):
            np.testing.assert_array_equal(getattr(plain.stream, name), getattr(short.stream, name))
        for name in ("label_names", "shifts", "shift", "heldout", "occasions", "window"):
            assert getattr(plain.stream, name) == getattr(short.stream, name)
        assert plain.stream.fingerprint() != short.stream.fingerprint()  # other pixels
        rows = np.arange(len(plain.stream.label))
        difference = plain.pixels(rows).float() - short.pixels(rows).float()
        assert difference.abs().mean() < 2  # each shows the picture that it is to show, shrunk
    assert short.stream.name == "packed"


def test_any_picture_is_read_alone_and_has_the_short_side(folder, packed):
    rows = read(str(packed))
    pictures = Packed(packed, rows.paths, np.array([39, 0, 17]))
    assert len(pictures) == 3
    for row, i in enumerate((39, 0, 17)):
        assert Image.open(pictures.source(row)).size == (round((90 + i) * 48 / 70), 48)
        assert pictures.name(row).endswith(f":{i}.jpg")


def test_the_number_of_files_and_of_threads_changes_no_picture(folder, packed, tmp_path):
    rows = read(str(folder / "photos.csv"))
    headers = [json.loads((packed / "pack.json").read_text())]
    headers.append(pack(rows, tmp_path / "one", short_side=48, files=1, jobs=1))
    headers.append(pack(rows, tmp_path / "default", short_side=48))
    assert [len(header["files"]) for header in headers] == [3, 1, 1]
    assert len({header["digest"] for header in headers}) == 1
    one, three = (Packed(path, rows.paths) for path in (tmp_path / "one", packed))
    assert all(one.source(row).read() == three.source(row).read() for row in range(40))
    assert pack(rows, tmp_path / "other", short_side=47)["digest"] != headers[0]["digest"]


def test_the_notes_of_a_tables_maker_are_kept_and_what_was_left_out_of_a_folder_is_not_said(folder, tmp_path):
    notes = ("order: by the date of upload", "never compare it with the other one, of Zürich")
    rows = pa.table({"path": [f"{i}.jpg" for i in range(4)], "label": list("abab"), "time": range(2001, 2005)})
    with pq.ParquetWriter(tmp_path / "photos.parquet", rows.schema) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({NOTES: json.dumps(notes)})
    given = read(str(tmp_path / "photos.parquet"), str(folder))
    assert given.notes[:2] == notes
    assert "look like years" in given.notes[2]  # which reading notes, each time
    pack(given, tmp_path / "once")
    pack(read(str(tmp_path / "once")), tmp_path / "twice")
    for out in (tmp_path / "once", tmp_path / "twice"):
        assert read(str(out)).notes == given.notes
        assert table(str(out), size=24).stream.notes.count(notes[1]) == 1
        assert altered(out) == []
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "readme.txt").write_text("")
    shutil.copy(folder / "0.jpg", tmp_path / "in" / "a")
    assert "left out" in read(str(tmp_path / "in")).notes[0]
    pack(read(str(tmp_path / "in")), tmp_path / "pictures")
    assert read(str(tmp_path / "pictures")).notes == ()


def test_the_fingerprint_follows_the_pictures_and_their_order(packed):
    paths = read(str(packed)).paths
    prints = {
        ImagePixels(Packed(packed, paths, rows), 24, 3).fingerprint
        for rows in (None, np.arange(40), np.arange(40)[::-1], np.arange(39))
    }
    assert len(prints) == 3


def test_random_parts_of_packed_pictures_are_the_same_with_any_number_of_threads(packed):
    rows = np.random.default_rng(0).integers(0, 40, 30)

    def drawn(workers):
        pixels = ImagePixels(Packed(packed, read(str(packed)).paths), 24, 3, "random_resized_crop", workers=workers)
        return pixels(rows, np.random.default_rng(5))

    assert torch.equal(drawn(0), drawn(3))
    assert not torch.equal(drawn(0), ImagePixels(Packed(packed, read(str(packed)).paths), 24, 3)(rows))


def test_what_is_small_and_upright_is_packed_to_the_bit_the_rest_without_loss_or_shrunk(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in {"a.png": {}, "a.jpg": {}, "a.bmp": {}, "turned.png": {"exif": exif}}.items():
        noise.save(tmp_path / name, **options)
    made = {name: shrunk(str(tmp_path / name), str, 20) for name in ("a.png", "a.jpg", "a.bmp", "turned.png")}
    for name in ("a.png", "a.jpg"):
        assert made[name] == (tmp_path / name).read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made["a.bmp"]))), np.asarray(noise))
    turned = Image.open(io.BytesIO(made["turned.png"]))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(noise), -1))
    smaller = Image.open(io.BytesIO(shrunk(str(tmp_path / "turned.png"), str, 10)))
    assert (smaller.format, smaller.size, smaller.mode) == ("JPEG", (10, 15), "RGB")
    noise.convert("L").save(tmp_path / "grey.png")
    assert Image.open(io.BytesIO(shrunk(str(tmp_path / "grey.png"), str, 10))).mode == "L"


def test_a_stopped_pack_goes_on_from_the_last_whole_file(folder, tmp_path, monkeypatch):
    rows, made = read(str(folder / "photos.csv")), []

    def failing(source, name, short_side):
        made.append(name())
        if len(made) == 30:
            raise KeyboardInterrupt
        return shrunk(source, name, short_side)

    monkeypatch.setattr("budgetcl.data.pack.shrunk", failing)
    with pytest.raises(KeyboardInterrupt):
        pack(rows, tmp_path / "packed", short_side=48, files=4, jobs=1)
    assert not (tmp_path / "packed").exists()
    first = len(made)
    header = pack(rows, tmp_path / "packed", short_side=48, files=4, jobs=1)
    assert len(made) - first == 20  # two of the four files were whole
    assert header["digest"] == pack(rows, tmp_path / "again", short_side=48, jobs=1)["digest"]
    assert sorted(os.listdir(tmp_path)) == ["again", "packed"]
    assert len(os.listdir(tmp_path / "packed")) == 4 + 3


def test_a_second_pack_into_the_same_folder_is_refused_and_touches_nothing(folder, tmp_path, monkeypatch):
    rows, refused = read(str(folder / "photos.csv")), []

    def meanwhile(source, name, short_side):
        if not refused:
            with pytest.raises(UserError, match=r"packed given: process \d+ on .* is at it .*: wait for it") as error:
                pack(rows, tmp_path / "packed", short_side=32)
            refused.append(str(error.value))
        return shrunk(source, name, short_side)

    monkeypatch.setattr("budgetcl.data.pack.shrunk", meanwhile)
    pack(rows, tmp_path / "packed", short_side=48, jobs=1)
    assert len(refused) == 1
    assert "\n" not in refused[0]
    assert altered(tmp_path / "packed") == []
    assert os.listdir(tmp_path) == ["packed"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out=.* given; .*file cannot be written .File exists.: name another"):
        pack(rows, tmp_path / "file" / "packed")


def test_what_was_begun_by_another_plan_is_begun_again(folder, tmp_path, monkeypatch):
    rows = read(str(folder / "photos.csv"))
    (tmp_path / "packed.partial").mkdir()
    (tmp_path / "packed.partial" / "plan.json").write_text(json.dumps({"format": 1, "short_side": 47}))
    (tmp_path / "packed.partial" / "part-00000.json").write_text("{}")
    pack(rows, tmp_path / "packed", short_side=48)
    assert altered(tmp_path / "packed") == []


def test_damaged_pictures_stop_it_or_are_dropped_with_their_rows(folder, tmp_path):
    rows = read(str(folder / "photos.csv"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for i in range(40):
        data = (folder / f"{i}.jpg").read_bytes()
        (broken / f"{i}.jpg").write_bytes(data[:100] if i in (4, 21) else data)
    rows = replace(rows, root=broken)
    with pytest.raises(UserError, match=r"2 of 40 pictures cannot be read, the first: .*4\.jpg .*--damaged drop"):
        pack(rows, tmp_path / "packed")
    header = pack(rows, tmp_path / "packed", damaged="drop")
    assert (header["pictures"], header["dropped"]) == (38, ["4.jpg", "21.jpg"])
    kept = read(str(tmp_path / "packed"))
    whole = [i for i in range(40) if i not in (4, 21)]
    assert [kept.paths[i] for i in range(38)] == [f"{i}.jpg" for i in whole]
    for name in ("label", "time", "split", "order"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(rows, name)[whole])
    assert Packed(tmp_path / "packed", kept.paths).source(4).read() == (folder / "5.jpg").read_bytes()
    for i in range(40):
        (broken / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 40 pictures can be read"):
        pack(rows, tmp_path / "none", damaged="drop")


def test_a_packed_folder_that_is_not_whole_is_refused_and_altered_bytes_are_found(folder, packed, tmp_path):
    rows = read(str(folder / "photos.csv"))

    def fresh(name):
        pack(rows, tmp_path / name, short_side=48, files=2)
        return tmp_path / name

    cut = fresh("cut")
    (cut / "pictures-00001.bin").write_bytes((cut / "pictures-00001.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"not whole: pictures-00001.bin missing or of another size"):
        table(str(cut))
    later = fresh("later")
    (later / "pack.json").write_text((later / "pack.json").read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="packed in format 2; 1 is known"):
        table(str(later))
    (later / "pack.json").write_text("{")
    with pytest.raises(UserError, match="is no packed folder"):
        table(str(later))
    changed = fresh("changed")
    data = bytearray((changed / "pictures-00000.bin").read_bytes())
    data[10] ^= 1
    (changed / "pictures-00000.bin").write_bytes(bytes(data))
    assert altered(changed) == ["pictures-00000.bin"]
    assert altered(packed) == []


def test_a_picture_damaged_after_packing_is_named(folder, tmp_path):
    out = tmp_path / "packed"
    pack(read(str(folder / "photos.csv")), out, short_side=48)
    data = bytearray((out / "pictures-00000.bin").read_bytes())
    start, end = np.load(out / "offsets.npy")[7:9]
    data[start:end] = bytes(end - start)
    (out / "pictures-00000.bin").write_bytes(bytes(data))
    pixels = ImagePixels(pictures_of(out, read(str(out)).paths, np.arange(40)), 24, 3)
    assert len(pixels(np.arange(7))) == 7
    with pytest.raises(Damaged, match=r"packed:7\.jpg is no readable picture"):
        pixels(np.arange(10))


def test_a_folder_of_pictures_whose_names_are_no_text_is_packed(tmp_path):
    for label in "ab":
        os.makedirs(tmp_path / "in" / label)
        Image.new("L", (9, 9), ord(label)).save(tmp_path / "in" / label / "x.png")
    name = os.fsencode(tmp_path / "in" / "a") + b"/caf\xe9.png"
    os.rename(tmp_path / "in" / "a" / "x.png", name)
    pack(read(str(tmp_path / "in")), tmp_path / "out")
    rows = read(str(tmp_path / "out"))
    assert os.fsencode(rows.paths[0]) == b"a/caf\xe9.png"
    assert [int(x.max()) for x in ImagePixels(Packed(tmp_path / "out", rows.paths), 9, 1)(np.arange(2))] == [97, 98]


def test_the_command_packs_says_what_it_did_and_refuses_in_one_line(folder, tmp_path, capsys):
    given = ["data", "pack", str(folder / "photos.csv"), "--out", str(tmp_path / "packed")]
    assert main([*given, "--short-side", "32", "--files", "2", "--jobs", "1"]) == 0
    told = capsys.readouterr().out
    assert "40 pictures, 0.1 MiB, 2 files" in told or "40 pictures, 0.0 MiB, 2 files" in told
    assert f"stream.path={tmp_path / 'packed'}" in told
    for more, refused in {
        (): "a folder that does not exist yet is expected",
        ("--out", str(tmp_path / "x"), "--files", "41"): "--files=41 given; at most 40",
        ("--out", str(tmp_path / "x"), "--short-side", "0"): "--short-side=0 given",
        ("--out", str(tmp_path / "x"), "--damaged", "skip"): "--damaged='skip' given",
        ("--out", str(tmp_path / "x"), "--jobs", "0"): "--jobs=0 given",
    }.items():
        assert main([*given, *more]) == 2
        error = capsys.readouterr().err
        assert refused in error
        assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_table_of_files_stays_a_table_of_files(folder):
    pictures = pictures_of(folder, read(str(folder / "photos.csv")).paths, np.array([3, 1]))
    assert isinstance(pictures, Files)
    assert pictures.name(0) == str(folder / "3.jpg")
