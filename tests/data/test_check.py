import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from budgetcl.cli import command, main
from budgetcl.data.files import examine
from budgetcl.streams.images import Files


@pytest.fixture
def photos(tmp_path):
    """A sound table of 60 different pictures, and a function that writes it anew with other rows."""
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    lines = []
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "p" / f"{i}.png")
        lines.append(f"p/{i}.png,{'abc'[i // 4 % 3]},2024-01-01T00:00:{i:02d}")

    def write(change=lambda lines: lines, head="path,label,time"):
        (tmp_path / "photos.csv").write_text("\n".join([head, *change(list(lines))]) + "\n")
        return str(tmp_path / "photos.csv")

    write()
    return tmp_path, write


def check(capsys, *arguments):
    status = main(["data", "check", *arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_what_is_no_regular_file_is_broken_and_not_waited_for(photos, capsys):
    folder, write = photos
    os.mkfifo(folder / "p" / "pipe.png")
    (folder / "p" / "folder.png").mkdir()
    odd = ["p/pipe.png,a,2024-01-02", "p/folder.png,b,2024-01-02"]
    status, out, _ = check(capsys, write(lambda lines: lines + odd), "--jobs", "2")
    assert status == 1
    assert "missing or broken: 2;" in out
    assert "pipe.png is no readable picture (it is no regular file)" in out


def test_a_sound_table_is_described_and_nothing_is_wrong(photos, capsys):
    _, write = photos
    status, out, _ = check(capsys, write(), "--jobs", "2")
    assert status == 0
    for line in (
        "60 rows, 3 classes",
        "time: 2024-01-01 00:00:00 UTC to 2024-01-01 00:00:59 UTC",
        "rows a class: 20 to 20, median 20: a 20, b 20, c 20",
        "named more than once: 0",
        "missing or broken: 0; of the same content as another: 0",
        "label autocorrelation: ",
        "blind, 0 samples ahead: ",
        "suggested shift: ",
        "fingerprint: ",
        "nothing is wrong",
    ):
        assert line in out, line
    from budgetcl.streams.table import table

    assert f"fingerprint: {table(write()).stream.fingerprint()}\n" in out


def test_missing_broken_and_equal_pictures_are_found(photos, capsys):
    folder, write = photos
    (folder / "p" / "3.png").unlink()
    (folder / "p" / "5.png").write_bytes(b"")
    whole = (folder / "p" / "8.png").read_bytes()
    (folder / "p" / "8.png").write_bytes(whole[: len(whole) // 2])
    (folder / "p" / "9.png").write_bytes((folder / "p" / "2.png").read_bytes())
    (folder / "p" / "11.png").unlink()
    (folder / "p" / "11.png").symlink_to(folder / "p" / "11.png")
    status, out, _ = check(capsys, write())
    assert status == 1
    assert "missing or broken: 4; of the same content as another: 1" in out
    assert "problem: 4 pictures cannot be shown: " in out
    assert "p/3.png is missing" in out
    assert "problem: the same content twice (one may be drawn to be held out, and the other one learned from): " in out
    assert ": p/9.png = p/2.png\n" in out
    assert "2 problems" in out
    status, out, _ = check(capsys, write(), "--no-files")
    assert status == 0
    assert "missing or broken" not in out


def test_what_is_found_does_not_depend_on_the_number_of_jobs(photos):
    folder, _ = photos
    (folder / "p" / "50.png").write_bytes((folder / "p" / "1.png").read_bytes())
    (folder / "p" / "4.png").unlink()
    pictures = Files(folder, [f"p/{i}.png" for i in range(60)] * 3)
    done = []
    found = [examine(pictures, jobs, lambda now, total: done.append((now, total))) for jobs in (1, 4)]
    assert [row for row, _ in found[0].broken] == [row for row, _ in found[1].broken] == [4, 64, 124]
    expected = [i % 60 for i in range(180)]
    expected = [-1 if i == 4 else 1 if i == 50 else i for i in expected]
    for one in found:
        assert one.same.tolist() == expected
    assert done[-1] == (180, 180)


def test_a_leak_by_path_and_by_content_is_a_problem(photos, capsys):
    folder, write = photos
    head = "path,label,time,split"

    def split(lines):
        return [f"{line},{'test' if i % 10 == 9 else 'train'}" for i, line in enumerate(lines)]

    assert check(capsys, write(split, head))[0] == 0
    (folder / "p" / "9.png").write_bytes((folder / "p" / "2.png").read_bytes())
    status, out, _ = check(capsys, write(split, head))
    assert status == 1
    assert "problem: leak: held-out pictures of the same content as one to learn from: p/9.png = p/2.png" in out
    (folder / "p" / "4.png").write_bytes((folder / "p" / "1.png").read_bytes())  # both are learned from
    assert "problem: the same content twice: p/4.png = p/1.png\n" in check(capsys, write(split, head))[1]
    more = [*(f"p/{i}.png,a,2024-01-02,test" for i in (0, 19)), "p/1.png,a,2024-01-02,train"]
    status, out, _ = check(capsys, write(lambda lines: [*split(lines), *more], head), "--no-files")
    assert status == 1
    assert "problem: named more than once: p/1.png (rows 2 and 63), p/19.png (rows 20 and 62)" in out
    assert "problem: leak: held out and also to be learned from: p/0.png (rows 1 and 61)" in out


def test_repeated_paths_and_lonely_classes_are_told(photos, capsys):
    _, write = photos
    status, out, _ = check(capsys, write(lambda lines: [*lines, lines[3], "p/x.png,d,2024-01-02"]), "--no-files")
    assert status == 1
    assert "problem: named more than once: p/3.png (rows 4 and 61)" in out
    assert "note: classes with one picture, which is never held out: d" in out


def test_what_can_be_said_of_the_labels_is_said_though_pictures_are_repeated(photos, capsys):
    folder, write = photos
    sound = check(capsys, write(), "--no-files")[1]
    status, out, _ = check(capsys, write(lambda lines: [*lines, lines[3], lines[3]]), "--no-files")
    assert status == 1
    assert "stream (were each picture named once): " in out
    for said in ("label autocorrelation: ", "blind, 0 samples ahead: ", "suggested shift: "):
        assert [line for line in out.splitlines() if line.startswith(said)] == [
            line for line in sound.splitlines() if line.startswith(said)
        ]
    assert "fingerprint" in sound
    assert "fingerprint" not in out  # of a stream that no run would have
    (folder / "p" / "3.png").write_bytes(b"")
    status, out, _ = check(capsys, write(lambda lines: [line.replace(",b,", ",a,") for line in lines[:8]]))
    assert status == 1  # each problem is said, on a line of its own
    assert out.count("problem: ") == 2
    assert "all labels are 'a'" in out


def test_without_times_the_order_of_the_table_is_looked_at(photos, capsys):
    _, write = photos
    rows = [f"p/{i}.png,{'abc'[i // 16 % 3]}" for i in range(660)]
    place = np.random.default_rng(0).permutation(len(rows))
    for head, lines, settings in (
        ("path,label", rows, ()),
        ("path,label", rows, ("--order", "given")),
        ("path,label,order", [f"{rows[i]},{i}" for i in place], ()),
    ):
        status, out, _ = check(capsys, write(lambda _, lines=lines: lines, head), "--no-files", *settings)
        assert status == 0
        assert "in the order of the table (stream.order=given stream.shifts=[0,16,32,64]):" in out
        autocorrelation = next(line for line in out.splitlines() if line.startswith("label autocorrelation: "))
        assert float(autocorrelation.split()[2]) > 0.85  # bursts of sixteen
        assert "suggested shift: " in out
        assert "fingerprint: " in out
    out = check(capsys, write(lambda _: rows, "path,label"), "--no-files", "--order", "data")[1]
    assert "nothing is predicted ahead in this order" in out


def test_a_table_of_which_nothing_would_be_predicted_is_a_problem(photos, capsys):
    _, write = photos
    lines = [f"p/{i}.png,class {i}" for i in range(9)]
    status, out, _ = check(capsys, write(lambda _: lines, "path,label"), "--no-files", "--order", "data")
    assert status == 1
    assert "problem: with stream.test and stream.shifts as they are nothing would be predicted: " in out


def test_the_sizes_of_the_classes_are_drawn(photos, capsys):
    _, write = photos
    sizes = [1] * 4 + [3, 3] + [25] * 8 + [130]
    rows = [f"{label}-{i}.png,c{label:02d}" for label, size in enumerate(sizes) for i in range(size)]
    out = check(capsys, write(lambda _: rows, "path,label"), "--no-files")[1]
    lines = [line.split() for line in out.splitlines() if "classes" in line and line.startswith("  ")]
    assert [(" ".join(line[: line.index("rows:")]), int(line[-3 if line[-1][0] == "#" else -2])) for line in lines] == [
        ("1", 4), ("2 to 4", 2), ("5 to 9", 0), ("10 to 19", 0), ("20 to 49", 8), ("50 to 99", 0), ("100 to 199", 1),
    ]  # fmt: skip
    assert [line[-1].count("#") for line in lines] == [20, 10, 0, 0, 40, 0, 5]
    assert "c14 130, c06 25, c07 25, c08 25, c09 25, ..., c05 3, c00 1" in out


def test_pictures_that_links_take_out_of_the_folder_are_told(photos, tmp_path_factory, capsys):
    folder, write = photos
    away = tmp_path_factory.mktemp("away")
    (folder / "p" / "7.png").rename(away / "7.png")
    (folder / "p" / "7.png").symlink_to(away / "7.png")
    (folder / "p" / "8.png").rename(folder / "eight.png")
    (folder / "p" / "8.png").symlink_to("../eight.png")  # stays inside
    status, out, _ = check(capsys, write())
    assert status == 0
    assert f"note: outside the folder of the pictures, by links: 1: p/7.png -> {away / '7.png'}\n" in out
    (folder / "p").rename(away / "p")
    (folder / "p").symlink_to(away / "p")
    out = check(capsys, write())[1]
    assert "note: outside the folder of the pictures, by links: 60: p/0.png -> " in out
    home = tmp_path_factory.mktemp("home") / "linked"
    home.symlink_to(folder)  # the root itself may be a link
    (folder / "p").unlink()
    (away / "p").rename(folder / "p")
    out = check(capsys, str(home / "photos.csv"))[1]
    assert "by links: 1: p/7.png" in out


def test_a_class_whose_only_picture_the_split_holds_out_is_not_said_to_be_learned(photos, capsys):
    _, write = photos
    rows = [*(f"{i}.png,{'ab'[i % 2]},{i},train" for i in range(40)), "t.png,only,50,test", "p.png,one,51,train"]
    _, out, _ = check(capsys, write(lambda lines: rows, "path,label,time,split"), "--no-files")
    assert "note: classes with one picture, which is never held out: one\n" in out


def test_a_table_that_cannot_be_streamed_is_a_problem_and_one_that_cannot_be_read_an_error(photos, capsys):
    folder, write = photos
    status, out, _ = check(
        capsys, write(lambda lines: [line.replace(",a,", ",b,") for line in lines]), "--order", "data"
    )
    assert status == 0
    status, out, _ = check(capsys, write(lambda lines: lines[:1]), "--no-files")
    assert status == 1
    assert "problem: " in out
    status, out, err = check(capsys, write(lambda lines: [*lines, "p/1.png,a,soon"]))
    assert (status, out) == (2, "")
    assert err.startswith("budgetcl: ")
    assert err.count("\n") == 1
    assert check(capsys, str(folder / "none.csv"))[0] == 2
    assert check(capsys, write(), "--jobs", "0")[0] == 2


def test_names_that_are_no_text_can_be_printed(tmp_path, capsys):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(8):
            Image.new("RGB", (9, 9), (i, len(label), label == "cat")).save(tmp_path / label / f"{i}.png")
    with open(os.fsencode(tmp_path) + b"/cat/\xff.png", "wb") as file:
        file.write(b"no picture")
    status, out, _ = check(capsys, str(tmp_path))
    assert status == 1
    assert "\\xff.png is no readable picture" in out
    assert "nothing is predicted ahead in this order" in out


def test_a_note_is_said_once(tmp_path, capsys):
    for name in ("a", "b", "empty"):
        (tmp_path / name).mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    _, out, _ = check(capsys, str(tmp_path))
    assert out.count("the folder of the class 'empty' holds no picture") == 1


def test_a_label_with_a_line_break_stays_on_its_line(photos, capsys):
    _, write = photos
    path = write(lambda lines: [line.replace(",a,", ',"a\na",') for line in lines])
    assert "a a 20" in check(capsys, path)[1]


def test_labels_that_the_terminal_cannot_show_stop_nothing(photos, monkeypatch):
    _, write = photos
    path = write(lambda lines: [line.replace(",a,", ",猫,") for line in lines])
    monkeypatch.setattr("sys.argv", ["budgetcl", "data", "check", path, "--no-files"])
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit) as left:
        command()
    assert left.value.code == 0
    sys.stdout.seek(0)
    assert "\\u732b" in sys.stdout.read()


def test_a_check_that_is_stopped_speaks_of_no_record(photos, monkeypatch, capsys):
    _, write = photos

    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("budgetcl.data.check.examine", stopped)
    status, _, complaint = check(capsys, write())
    assert status == 130
    assert complaint.strip() == "budgetcl: stopped"
