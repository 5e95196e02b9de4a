import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from budgetcl.errors import UserError
from budgetcl.streams.stream import PREFIX, PRETEST, PRETRAIN, RETENTION, STREAM, TEST, VALIDATION
from budgetcl.streams.table import table

ROOT = Path(__file__).parents[2]


def write(folder, text, name="photos.csv"):
    (folder / name).write_text(text)
    return str(folder / name)


def rows(n, classes=4, seed=0, **columns):
    """A table of n rows whose pictures do not exist."""
    rng = np.random.default_rng(seed)
    frame = {
        "path": [f"p/{i:05d}.png" for i in range(n)],
        "label": [f"class {c}" for c in rng.integers(classes, size=n)],
    }
    return pd.DataFrame({**frame, **columns})


def saved(folder, frame, name="photos.csv"):
    frame.to_parquet(folder / name) if name.endswith("parquet") else frame.to_csv(folder / name, index=False)
    return str(folder / name)


def order_of(source):
    """The table's rows in the order of the stream's rows."""
    return [int(Path(path).stem) for path in source.pixels._paths]


def test_without_times_the_samples_are_shuffled_and_nothing_is_predicted_ahead(tmp_path):
    source = table(saved(tmp_path, rows(200)))
    stream = source.stream
    assert len(stream) == 10
    assert stream.shifts == ()
    assert stream.shift is None
    assert stream.heldout == (TEST,)
    assert len(stream.rows(TEST)) == 20
    assert sorted(order_of(source)) == list(range(200))
    assert order_of(source)[:180] != sorted(order_of(source)[:180])


def test_labels_stay_with_their_pictures_in_every_order(tmp_path):
    frame = rows(100, time=np.random.default_rng(1).permutation(100))
    for order in ("time", "data", "class"):
        source = table(saved(tmp_path, frame), order=order)
        names = [source.stream.label_names[code] for code in source.stream.label]
        assert names == frame["label"][order_of(source)].tolist()


def test_in_class_order_each_class_is_revealed_in_one_step(tmp_path):
    stream = table(saved(tmp_path, rows(300, classes=7)), order="class", steps=3).stream
    classes = [set(stream.label[step.revealed]) for step in stream]
    assert sum(map(len, classes)) == len(set.union(*classes)) == 7


def test_in_the_order_of_time_ties_keep_the_order_of_the_table(tmp_path):
    times = np.random.default_rng(2).integers(0, 20, 400)
    source = table(saved(tmp_path, rows(400, time=times)))
    stream = source.stream
    placed = order_of(source)[: stream.samples]
    assert placed == sorted(placed, key=lambda row: (times[row], row))
    np.testing.assert_array_equal(stream.time[: stream.samples], times[placed])
    assert {len(step.revealed) for step in list(stream)[:-1]} == {16}


def test_the_prefix_is_the_earliest_part_and_held_out_samples_come_after_it(tmp_path):
    times = np.random.default_rng(3).permutation(500)
    stream = table(saved(tmp_path, rows(500, time=times)), prefix=0.3, test=0.2, shift=16).stream
    prefix, kept = stream.rows(PREFIX), stream.rows(RETENTION)
    np.testing.assert_array_equal(stream.time[prefix], np.arange(150))
    assert (stream.samples, len(kept)) == (280, 70)
    assert stream.time[kept].min() >= 150
    # Each held-out sample belongs to the last streamed one that is not later.
    for row in kept:
        earlier = np.flatnonzero(stream.time[: stream.samples] <= stream.time[row])
        assert stream.origin[row] == (earlier[-1] if len(earlier) else 0)


def test_held_out_samples_are_drawn_class_by_class_and_the_same_for_every_seed(tmp_path):
    path = saved(tmp_path, rows(1000, classes=10))
    first, second = table(path, test=0.2, validation=0.1, seed=0), table(path, test=0.2, validation=0.1, seed=1)
    label = first.stream.label
    whole = np.bincount(label)
    for name, share in ((TEST, 0.2), (VALIDATION, 0.1)):
        assert np.abs(np.bincount(label[first.stream.rows(name)], minlength=10) - share * whole).max() <= 1.01
        held = [{order_of(source)[row] for row in source.stream.rows(name)} for source in (first, second)]
        assert held[0] == held[1]
    assert order_of(first) != order_of(second)
    assert table(path, test=0.2, validation=0.1, evaluate="validation").stream.heldout == (VALIDATION,)


def test_a_split_column_is_followed(tmp_path):
    split = ["stream"] * 40 + ["pretrain"] * 20 + ["test"] * 10 + ["pretest"] * 5 + ["validation"] * 5 + ["prefix"] * 20
    path = saved(tmp_path, rows(100, split=split))
    source = table(path, test=0.5)
    sizes = {name: len(source.stream.rows(name)) for name in (STREAM, PRETRAIN, TEST, PRETEST, VALIDATION, PREFIX)}
    assert list(sizes.values()) == [40, 20, 10, 5, 5, 20]
    assert {order_of(source)[row] for row in source.stream.rows(PRETRAIN)} == set(range(40, 60))
    assert source.stream.heldout == (TEST, PRETEST)
    timed = table(saved(tmp_path, rows(100, split=split, time=range(100))), shift=16).stream
    assert timed.heldout == (RETENTION, PRETEST)
    assert timed.origin[timed.rows(RETENTION)].tolist() == [39] * 10


@pytest.mark.parametrize("kind", ["naive", "zoned", "epoch", "timestamps"])
def test_times_are_read_in_every_notation(tmp_path, kind):
    moments = [
        datetime(2024, 3, 1, tzinfo=UTC) + timedelta(hours=int(h)) for h in np.random.default_rng(4).permutation(99)
    ]
    texts = {
        "naive": [moment.strftime("%Y-%m-%d %H:%M:%S") for moment in moments],
        "zoned": [(moment + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00") for moment in moments],
        "epoch": [moment.timestamp() for moment in moments],
        "timestamps": moments,
    }[kind]
    name = "photos.parquet" if kind == "timestamps" else "photos.csv"
    stream = table(saved(tmp_path, rows(99, time=texts), name), prefix=0, test=0, shifts=[0]).stream
    np.testing.assert_allclose(stream.time, sorted(moment.timestamp() for moment in moments))


def test_csv_and_parquet_give_the_same_stream(tmp_path):
    frame = rows(300, time=np.arange(300))
    csv, parquet = table(saved(tmp_path, frame)), table(saved(tmp_path, frame, "photos.parquet"))
    assert csv.stream.fingerprint() == parquet.stream.fingerprint()


def test_labels_that_are_all_integers_are_ordered_as_numbers(tmp_path):
    frame = rows(30).assign(label=[10, 9, 2] * 10)
    assert table(saved(tmp_path, frame)).stream.label_names == ("2", "9", "10")
    assert table(saved(tmp_path, frame, "photos.parquet")).stream.label_names == ("2", "9", "10")
    frame["label"] = ["10", "9", "b"] * 10
    assert table(saved(tmp_path, frame)).stream.label_names == ("10", "9", "b")


def bursty(n, burst, seed=0):
    rng = np.random.default_rng(seed)
    return [f"class {c}" for c in np.repeat(rng.integers(10, size=n), rng.geometric(1 / burst, n))[:n]]


def test_the_shift_is_chosen_on_the_prefix_where_it_is_long_enough(tmp_path):
    path = saved(tmp_path, rows(4000, label=bursty(4000, 8), time=range(4000)))
    stream = table(path).stream
    assert stream.shifts == (0, 16, 32, 64, 128, 256)
    assert stream.shift in (16, 32)
    assert stream.window == 1
    assert stream.notes == ()


def test_a_prefix_that_is_too_short_gives_no_shift_and_says_why(tmp_path):
    path = saved(tmp_path, rows(200, label=bursty(200, 8), time=range(200)))
    stream = table(path).stream
    assert stream.shift is None
    assert len(stream.notes) == 1
    assert "no near-future accuracy" in stream.notes[0]
    assert "\n" not in stream.notes[0]
    given = table(path, shift=24).stream
    assert (given.shift, given.shifts, given.notes) == (24, (0, 16, 24), ())
    assert "shifts=[0]" in table(path, shifts=[0]).stream.notes[0]


def test_steps_or_chunks_cut_the_stream_and_occasions_follow(tmp_path):
    path = saved(tmp_path, rows(300, time=range(300)))
    by_steps = table(path, steps=4, prefix=0, test=0.1).stream
    assert len(by_steps) == 4
    assert by_steps.occasions == (0, 1, 2, 3)
    by_chunk = table(path, chunk=5, prefix=0, test=0.1, occasions=2).stream
    assert len(by_chunk) == 54
    assert by_chunk.occasions == (26, 53)
    assert len(table(path, order="data", chunk=100, test=0).stream) == 3


def test_the_fingerprint_follows_the_table_and_the_protocol_and_not_the_folder(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    frame = rows(300, time=range(300))
    base, moved = saved(tmp_path / "a", frame), saved(tmp_path / "b", frame)
    assert table(base).stream.fingerprint() == table(moved).stream.fingerprint()
    changes = [
        {"size": 16}, {"channels": 1}, {"order": "data"}, {"order": "data", "seed": 1}, {"order": "class"},
        {"steps": 5}, {"chunk": 8}, {"shifts": [0, 8]}, {"shift": 16}, {"test": 0.2}, {"validation": 0.1},
        {"prefix": 0.1}, {"occasions": 3}, {"validation": 0.1, "evaluate": "validation"},
    ]  # fmt: skip
    prints = [table(base, **change).stream.fingerprint() for change in changes]
    assert len({table(base).stream.fingerprint(), *prints}) == 1 + len(changes)


HEAD = "path,label,time,split\n"


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        ("", {}, "cannot be read as a table"),
        ("path,label\n", {}, "has no rows"),
        ("file,label\na.png,x\n", {}, "has no column 'path'; its columns are ['file', 'label']"),
        ("path,labels\na.png,x\n", {}, "has no column 'label'; its columns are ['path', 'labels']: did you mean"),
        ("path,label\na.png,x\nb.png,\n", {}, "row 2: the label is empty"),
        ("path,label\n,x\nb.png,y\n", {}, "row 1: the path is empty"),
        ("path,label\na.png,x\nb.png,x\n", {}, "all labels are 'x'"),
        ("path,label\na.png,x\nb.png,y\na.png,y\n", {}, "rows 1 and 3: the picture a.png is named twice"),
        ("path,label,time\na.png,x,2024-01-01\nb.png,y,soon\n", {}, "row 2: time 'soon' given"),
        ("path,label,time\na.png,x,2024-01-01\nb.png,y,\n", {}, "row 2: time '' given"),
        ("path,label,time\na.png,x,17\nb.png,y,2024-01-01\n", {}, "row 2: time '2024-01-01' given; seconds"),
        ("path,label,time\na.png,x,1\nb.png,y,nan\n", {}, "row 2: time 'nan' given"),
        (HEAD + "a.png,x,1,stream\nb.png,y,2,train\n", {}, "row 2: split 'train' given; one of stream"),
        (HEAD + "a.png,x,1,stream\nb.png,y,2,retention\n", {}, "split 'retention' given"),
        (HEAD + "a.png,x,1,test\nb.png,y,2,test\n", {}, "0 rows are left to stream"),
        ("path,label\na.png,x\nb.png,y\n", {"order": "time"}, "has no column 'time'"),
        ("path,label\na.png,x\nb.png,y\n", {"order": "label"}, "order='label' given"),
        ("path,label\na.png,x\nb.png,y\n", {"test": 0, "steps": 3}, "steps=3 given; at most 2"),
        ("path,label\na.png,x\nb.png,y\n", {"order": "class", "test": 0, "steps": 3}, "at most 2, the classes"),
        ("path,label\na.png,x\nb.png,y\n", {"order": "class", "chunk": 3}, "chunk=3 given with order=class"),
        ("path,label\na.png,x\nb.png,y\n", {"order": "class", "shifts": [0]}, "shifts=[0] given with order=class"),
        ("path,label\na.png,x\nb.png,y\n", {"steps": 2, "chunk": 3}, "steps=2 and chunk=3 given"),
        ("path,label\na.png,x\nb.png,y\n", {"steps": 0}, "steps=0 given"),
        ("path,label\na.png,x\nb.png,y\n", {"test": 0.6, "validation": 0.6}, "together at most 0.9"),
        ("path,label\na.png,x\nb.png,y\n", {"test": 1.5}, "test=1.5 given"),
        ("path,label\na.png,x\nb.png,y\n", {"evaluate": "validation"}, "has no validation rows"),
        ("path,label\na.png,x\nb.png,y\n", {"size": 4}, "size=4 given"),
        ("path,label\na.png,x\nb.png,y\n", {"channels": 2}, "channels=2 given"),
        ("path,label\na.png,x\nb.png,y\n", {"augment": "flip"}, "augment='flip' given"),
        ("path,label,time\na.png,x,1\nb.png,y,2\n", {"shifts": [0, 9], "test": 0, "prefix": 0}, "below the 2 samples"),
        ("path,label,time\na.png,x,1\nb.png,y,2\n", {"shifts": [0], "shift": 1, "prefix": 0}, "shift=1 given"),
    ],
)  # fmt: skip
def test_bad_tables_and_numbers_are_refused_in_one_line(tmp_path, text, arguments, told):
    with pytest.raises(UserError) as error:
        table(write(tmp_path, text), **arguments)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is none"):
        table(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="cannot be read as a table"):
        table(write(tmp_path, "no parquet", "photos.parquet"))
    (tmp_path / "photos.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    with pytest.raises(UserError, match="cannot be read as a table"):
        table(str(tmp_path / "photos.csv"))
    with pytest.raises(UserError, match="cannot be read as a table"):
        table(str(tmp_path))


def test_the_digits_are_written_as_pictures_that_the_table_streams(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "make_digits.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    source = table(str(tmp_path / "photos.csv"))
    source.pixels.check_files()
    stream = source.stream
    assert len(stream.label) == 1797
    assert stream.shift == 16
    assert stream.label_names == tuple(f"digit {i}" for i in range(10))
    from sklearn.datasets import load_digits

    digits = load_digits()
    row = int(stream.rows(RETENTION)[0])
    picture = np.asarray(Image.open(tmp_path / source.pixels._paths[row]))
    found = np.flatnonzero((digits.images * 255 / 16).astype(np.uint8).reshape(1797, -1).__eq__(picture.ravel()).all(1))
    assert stream.label[row] in digits.target[found]
    assert tuple(source.pixels(np.arange(3)).shape) == (3, 3, 32, 32)
