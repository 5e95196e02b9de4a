import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from budgetcl.errors import UserError
from budgetcl.streams.stream import PREFIX, PRETEST, PRETRAIN, PREVALIDATION, RETENTION, STREAM, TEST, VALIDATION
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
    return [int(Path(path).stem) for path in source.pixels.pictures._paths]


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


def test_a_stream_without_shifts_or_held_out_samples_asks_nothing(tmp_path):
    path = saved(tmp_path, rows(40))
    assert table(path).stream.asks
    assert not table(path, test=0, order="data").stream.asks
    assert table(path, test=0, order="given", shifts=[0]).stream.asks
    unseen = rows(40).assign(split="train")
    unseen.loc[len(unseen)] = ["x.png", "never streamed", "test"]
    assert not table(saved(tmp_path, unseen, "unseen.csv")).stream.asks


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
    assert len(stream) == 10


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


def test_the_prefix_itself_can_be_streamed_without_anything_later(tmp_path):
    path = saved(tmp_path, rows(4000, label=bursty(4000, 8), time=np.random.default_rng(1).permutation(4000)))
    whole, early = table(path), table(path, part="prefix")
    past = whole.stream.rows(PREFIX)
    assert early.stream.samples == len(early.stream.label) == len(past) == 800
    np.testing.assert_array_equal(early.stream.time, np.sort(whole.stream.time[past]))
    assert set(order_of(early)).isdisjoint(order_of(whole)[: whole.stream.samples])
    assert (early.stream.shift, early.stream.window) == (whole.stream.shift, whole.stream.window)
    # Steps are about as large: 10 of 2,880 samples, 3 of 800.
    assert (len(whole.stream), len(early.stream)) == (10, 3)
    assert len(table(path, part="prefix", chunk=80).stream) == 10
    assert whole.stream.fingerprint() != early.stream.fingerprint()


def test_where_pretraining_rows_are_the_past_they_are_streamed_as_the_prefix(tmp_path):
    split = ["pretrain"] * 60 + ["train"] * 140
    path = saved(tmp_path, rows(200, time=range(200), split=split))
    early = table(path, part="prefix", shift=8).stream
    np.testing.assert_array_equal(early.time, np.arange(60))
    named = saved(tmp_path, rows(200, time=range(200), split=["pretrain"] * 20 + ["prefix"] * 40 + ["train"] * 140))
    early = table(named, part="prefix", shift=8).stream
    np.testing.assert_array_equal(early.time[: early.samples], np.arange(20, 60))
    np.testing.assert_array_equal(early.time[early.rows(PRETRAIN)], np.arange(20))


def test_a_share_is_known_before_the_first_step_the_earliest_or_of_each_class(tmp_path):
    times = np.random.default_rng(3).permutation(500)
    early = table(saved(tmp_path, rows(500, time=times)), pretrain=0.3, prefix=0.2, test=0.2, shift=16).stream
    assert early.time[early.rows(PRETRAIN)].tolist() == list(range(150))
    assert (len(early.rows(PREFIX)), early.samples, len(early.rows(RETENTION))) == (0, 280, 70)
    assert early.window is not None  # chosen on what is known

    order = np.random.default_rng(4).permutation(500)
    given = saved(tmp_path, rows(500, order=order))
    for settings in ({}, {"order": "data"}):
        source = table(given, pretrain=0.1, test=0.0, **settings)
        known = [order[order_of(source)[row]] for row in source.stream.rows(PRETRAIN)]
        assert known == list(range(50))

    shuffled = saved(tmp_path, rows(1000, classes=10))
    sources = [table(shuffled, pretrain=0.3, test=0.1, seed=seed) for seed in (0, 1)]
    sizes = [np.bincount(s.stream.label[s.stream.rows(PRETRAIN)], minlength=10) for s in sources]
    assert np.abs(sizes[0] - 0.3 * np.bincount(sources[0].stream.label)).max() <= 1.01
    for name in (PRETRAIN, TEST):
        drawn = [{order_of(source)[row] for row in source.stream.rows(name)} for source in sources]
        assert drawn[0] == drawn[1]
    assert drawn[0] == {order_of(s)[row] for s in [table(shuffled)] for row in s.stream.rows(TEST)}  # as without


def test_pretraining_rows_that_the_column_names_stand_and_classes_are_not_cut(tmp_path):
    path = saved(tmp_path, rows(100, split=["pretrain"] * 20 + ["train"] * 80))
    source = table(path, pretrain=0.5)
    assert sorted(order_of(source)[row] for row in source.stream.rows(PRETRAIN)) == list(range(20))
    with pytest.raises(UserError, match=r"pretrain=0.5 given with order=class, .* or set pretrain=0"):
        table(saved(tmp_path, rows(100)), order="class", pretrain=0.5)
    with pytest.raises(UserError, match=r"test=0.5 and pretrain=0.6 given; together at most 0.9"):
        table(saved(tmp_path, rows(100)), order="data", pretrain=0.6, test=0.5)


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
        {"cut": "spans", "steps": 3}, {"order": "given"},
    ]  # fmt: skip
    prints = [table(base, **change).stream.fingerprint() for change in changes]
    assert len({table(base).stream.fingerprint(), *prints}) == 1 + len(changes)


# --- orders -----------------------------------------------------------------------------------------------------


def test_a_given_order_is_followed_and_cut_into_equal_steps(tmp_path):
    place = np.random.default_rng(5).permutation(100) * 7
    path = saved(tmp_path, rows(100, order=place))
    source = table(path, test=0, steps=4)
    assert order_of(source) == np.argsort(place).tolist()
    assert [len(step.revealed) for step in source.stream] == [25] * 4
    assert source.stream.shifts == ()
    assert order_of(table(path, order="data", test=0)) == np.argsort(place).tolist()
    assert table(path, test=0, seed=1).stream.fingerprint() == table(path, test=0, seed=0).stream.fingerprint()
    plain = table(saved(tmp_path, rows(100), "plain.csv"), order="given", test=0)
    assert order_of(plain) == list(range(100))


def test_with_shifts_a_given_order_is_predicted_ahead_and_has_a_prefix(tmp_path):
    place = np.random.default_rng(5).permutation(1000)
    stream = table(saved(tmp_path, rows(1000, order=place)), shifts=[0, 8], prefix=0.3, test=0).stream
    assert (stream.shifts, stream.samples) == ((0, 8), 700)
    source = table(saved(tmp_path, rows(1000, order=place)), shifts=[0, 8], prefix=0.3, test=0)
    kept = np.array(order_of(source))
    assert place[kept[stream.rows(PREFIX)]].tolist() == list(range(300))
    assert place[kept[: stream.samples]].tolist() == list(range(300, 1000))


def test_in_class_order_a_given_order_arranges_classes_and_samples(tmp_path):
    frame = rows(120, classes=6, order=np.random.default_rng(6).permutation(120))
    source = table(saved(tmp_path, frame), order="class", steps=3, test=0)
    stream, placed = source.stream, order_of(source)
    sequence = frame.sort_values("order")["label"].drop_duplicates().tolist()
    for number, step in enumerate(stream):
        mine = [placed[row] for row in step.revealed]
        assert set(frame["label"][mine]) == set(sequence[2 * number : 2 * number + 2])
        assert frame["order"][mine].is_monotonic_increasing


def test_a_class_order_file_is_followed(tmp_path):
    frame, names = rows(90, classes=3), ["class 2", "class 0", "class 1"]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n\n")
    source = table(saved(tmp_path, frame), order="class", class_order=str(tmp_path / "classes.txt"), test=0)
    assert [{source.stream.label_names[c] for c in source.stream.label[s.revealed]} for s in source.stream] == [
        {name} for name in names
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("class 0\nclass 1\n", "class_order lacks 1 labels of .*, the first is 'class 2'"),
        ("class 0\nclass 1\nclass 2\ncat\n", "names 1 labels that .* does not stream, the first is 'cat'"),
        ("class 0\nclass 0\nclass 1\nclass 2\n", "names the label 'class 0' twice"),
        ("\n", "it is empty"),
    ],
)
def test_class_order_files_that_do_not_fit_are_refused(tmp_path, text, told):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=told):
        table(saved(tmp_path, rows(90, classes=3)), order="class", class_order=str(tmp_path / "classes.txt"))


def test_steps_may_span_equal_times(tmp_path):
    times = np.concatenate([np.arange(0, 10, 0.1), [25.0, 39.9, 40.0]])
    stream = table(saved(tmp_path, rows(103, time=times)), cut="spans", steps=4, prefix=0, test=0, shifts=[0]).stream
    assert [len(step.revealed) for step in stream] == [100, 1, 2]
    assert "3 time steps" in stream.notes[0]


def test_ties_in_time_follow_the_column_order_where_there_is_one(tmp_path):
    times, place = np.random.default_rng(7).integers(0, 9, 200), np.random.default_rng(8).permutation(200)
    source = table(saved(tmp_path, rows(200, time=times, order=place)), order="time", prefix=0, test=0)
    assert order_of(source) == sorted(range(200), key=lambda row: (times[row], place[row]))


# --- sets -------------------------------------------------------------------------------------------------------


def prepared(folder):
    """A table as the prepare scripts write them: pretraining classes 0-2, streamed classes 3-8 in a given order."""
    parts = {"pretrain": (0, 3, 20), "preval": (0, 3, 3), "pretest": (0, 3, 5), "train": (3, 9, 20), "val": (3, 9, 3),
             "test": (3, 9, 5)}  # fmt: skip
    split = [name for name, (low, high, each) in parts.items() for _ in range((high - low) * each)]
    label = [c for low, high, each in parts.values() for c in range(low, high) for _ in range(each)]
    order = np.full(len(split), -1)
    train = np.flatnonzero(np.array(split) == "train")
    order[train] = np.random.default_rng(9).permutation(len(train)) + 1000 * (np.array(label)[train] % 4)
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(len(split))], "label": label, "split": split})
    return saved(folder, frame.assign(order=order), "prepared.parquet"), frame.assign(order=order)


def test_a_prepared_table_streams_as_the_glyphs_do(tmp_path):
    path, frame = prepared(tmp_path)
    stream = table(path, order="class", steps=3).stream
    assert stream.heldout == (TEST, PRETEST)
    sizes = {name: len(stream.rows(name)) for name in (STREAM, PRETRAIN, TEST, PRETEST, VALIDATION, PREVALIDATION)}
    assert sizes == {STREAM: 120, PRETRAIN: 60, TEST: 30, PRETEST: 15, VALIDATION: 18, PREVALIDATION: 9}
    for step in stream:
        # The pretraining classes are evaluated from the first step on, the streamed ones once they were revealed.
        assert set(stream.label[step.heldout[PRETEST]]) == {0, 1, 2}
        seen = set(stream.label[: step.seen + len(step.revealed)])
        assert set(stream.label[step.heldout[TEST]]) == seen
        assert step.classes == 3 + len(seen)
    sequence = frame[frame["order"] >= 0].sort_values("order")["label"].drop_duplicates().astype(str).tolist()
    assert [stream.label_names[c] for c in dict.fromkeys(stream.label[:120].tolist())] == sequence
    counted = table(path, steps=5)
    assert frame["order"][order_of(counted)[:120]].is_monotonic_increasing
    assert [len(step.revealed) for step in counted.stream] == [24] * 5
    assert table(path, evaluate="validation").stream.heldout == (VALIDATION, PREVALIDATION)


def test_the_shift_is_chosen_on_pretraining_rows_where_no_prefix_is_named(tmp_path):
    split = ["pretrain"] * 1000 + ["train"] * 3000
    frame = rows(4000, label=bursty(4000, 8), time=range(4000), split=split)
    stream = table(saved(tmp_path, frame), test=0).stream
    assert len(stream.rows(PREFIX)) == 0
    assert stream.shift in (16, 32, 64)
    assert len(stream.rows(PRETRAIN)) == 1000


def test_what_a_split_column_does_not_name_is_drawn_by_its_share(tmp_path):
    frame = rows(1000, time=np.random.default_rng(10).permutation(1000), split=["train"] * 800 + ["test"] * 200)
    source = table(saved(tmp_path, frame), validation=0.1, prefix=0.25, shift=16)
    stream, placed = source.stream, np.array(order_of(source))
    assert (placed[stream.rows(RETENTION)] >= 800).all()
    assert len(stream.rows(RETENTION)) == 200
    assert len(stream.rows(PREFIX)) == 200
    assert frame["time"][placed[stream.rows(PREFIX)]].max() < frame["time"][placed[: stream.samples]].min()
    assert abs(len(stream.rows(VALIDATION)) - 60) <= 4


def test_a_class_keeps_a_picture_to_learn_from(tmp_path):
    frame = rows(200, classes=2)
    frame.loc[[3, 50, 51], "label"] = ["only one", "a pair", "a pair"]
    for share in (0.1, 0.5, 0.9):
        stream = table(saved(tmp_path, frame), test=share, steps=2).stream
        assert set(stream.label[: stream.samples]) == {0, 1, 2, 3}


def test_labels_that_are_only_held_out_are_told(tmp_path):
    frame = rows(100, split=["train"] * 90 + ["test"] * 10)
    frame.loc[95, "label"] = "unheard of"
    notes = table(saved(tmp_path, frame)).stream.notes
    assert notes == ("1 labels stand in held-out rows only and are never revealed, the first is 'unheard of'",)
    frame["time"] = range(100)
    notes = table(saved(tmp_path, frame), part="prefix", prefix=0.5, shift=8).stream.notes
    assert not any("unheard of" in note for note in notes)  # the prefix shows no held-out row


def test_a_picture_that_is_held_out_and_learned_from_is_refused_and_listed(tmp_path):
    frame = rows(100, split=["train"] * 90 + ["test"] * 10)
    frame.loc[[7, 8], "path"] = ["./" + frame["path"][95], frame["path"][96]]
    with pytest.raises(UserError) as error:
        table(saved(tmp_path, frame))
    listed = "p/00095.png (rows 8 and 96), p/00096.png (rows 9 and 97)"
    assert f"2 pictures are both held out and to be learned from (a leak): {listed}" in str(error.value)


def test_a_folder_of_pictures_is_streamed(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.new("RGB", (40, 30), (i, 0, 0)).save(tmp_path / label / f"{i}.png")
    source = table(str(tmp_path), steps=2)
    assert source.stream.label_names == ("cat", "dog")
    assert source.pixels(np.arange(3)).shape == (3, 3, 32, 32)
    assert len(source.stream.rows(TEST)) == 2


# --- kept -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["time", "data", "class"])
def test_what_is_kept_of_a_table_changes_nothing(tmp_path, order):
    path = saved(tmp_path, rows(500, label=bursty(500, 4), time=np.random.default_rng(11).integers(0, 300, 500)))
    plain = table(path, order=order, seed=3)
    for _ in range(2):
        source = table(path, order=order, seed=3, cache=str(tmp_path / "cache"))
        assert source.stream.fingerprint() == plain.stream.fingerprint()
        for name in ("label", "set", "bounds", "time", "group", "origin"):
            np.testing.assert_array_equal(getattr(source.stream, name), getattr(plain.stream, name))
        assert order_of(source) == order_of(plain)
        assert source.stream.notes == plain.stream.notes
    other = table(path, order=order, seed=4, cache=str(tmp_path / "cache"))
    assert (other.stream.fingerprint() == plain.stream.fingerprint()) == (order == "time")


def test_a_table_that_was_kept_and_changed_is_read_again(tmp_path):
    cache = str(tmp_path / "cache")
    table(saved(tmp_path, rows(100)), cache=cache)
    assert len(table(saved(tmp_path, rows(150)), cache=cache).stream.label) == 150


def test_the_fingerprint_does_not_depend_on_the_order_of_the_rows_where_times_decide(tmp_path):
    frame = rows(300, time=np.random.default_rng(12).permutation(300))
    arguments = {"prefix": 0.2, "test": 0, "shift": 16}
    one = table(saved(tmp_path, frame), **arguments).stream
    other = table(saved(tmp_path, frame.sample(frac=1, random_state=1)), **arguments).stream
    assert one.fingerprint() == other.fingerprint()


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
        ("path,label\na.png,x\nb.png,y\na.png,y\n", {}, "1 picture is named twice: a.png (rows 1 and 3)"),
        ("path,label,time\na.png,x,2024-01-01\nb.png,y,soon\n", {}, "row 2: time 'soon' given"),
        ("path,label,time\na.png,x,2024-01-01\nb.png,y,\n", {}, "row 2: time '' given"),
        ("path,label,time\na.png,x,17\nb.png,y,2024-01-01\n", {}, "row 2: time '2024-01-01' given; seconds"),
        ("path,label,time\na.png,x,1\nb.png,y,nan\n", {}, "row 2: time 'nan' given"),
        (HEAD + "a.png,x,1,stream\nb.png,y,2,trian\n", {}, "row 2: split 'trian' given; one of stream"),
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
        ("path,label,time\na.png,x,1\nb.png,y,2\n", {"part": "prefix", "evaluate": "validation"}, "holds nothing out"),
        ("path,label\na.png,x\nb.png,y\n", {"part": "prefix"}, "has no rows of a prefix with order=data"),
        ("path,label,time\na.png,x,1\nb.png,y,2\n", {"part": "prefix"}, "has 0 rows of a prefix with order=time"),
        ("path,label\na.png,x\nb.png,y\n", {"part": "prefx"}, "part='prefx' given; did you mean"),
        ("path,label\na.png,x\nb.png,y\n", {"cut": "spans"}, "cut=spans given; equal spans of time are cut"),
        ("path,label\na.png,x\nb.png,y\n", {"cut": "span"}, "cut='span' given; did you mean"),
        ("path,label\na.png,x\nb.png,y\n", {"class_order": "x"}, "class_order='x' given; a text file"),
        ("path,label,order\na.png,x,1\nb.png,y,\n", {"test": 0}, "row 2: a streamed row has no place in the column"),
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
    with pytest.raises(UserError, match="path=None given"):
        table(None)
    with pytest.raises(UserError, match="cannot be read as a table"):
        table(write(tmp_path, "no parquet", "photos.parquet"))
    (tmp_path / "photos.csv").write_bytes(b"path,label\na.png,x\nb.png,\xff\xfe\n")
    with pytest.raises(UserError, match=r"row 2: .* no UTF-8"):
        table(str(tmp_path / "photos.csv"))
    (tmp_path / "photos.csv").write_text("path,label\na.png,x,y\n")
    with pytest.raises(UserError, match=r"cannot be read as a table .*Expected 2 columns, got 3"):
        table(str(tmp_path / "photos.csv"))


def test_the_digits_are_written_as_pictures_that_the_table_streams(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "make_digits.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    source = table(str(tmp_path / "photos.csv"))
    stream = source.stream
    assert len(stream.label) == 1797
    assert stream.shift == 16
    assert stream.label_names == tuple(f"digit {i}" for i in range(10))
    from sklearn.datasets import load_digits

    digits = load_digits()
    row = int(stream.rows(RETENTION)[0])
    picture = np.asarray(Image.open(source.pixels.pictures.name(row)))
    found = np.flatnonzero((digits.images * 255 / 16).astype(np.uint8).reshape(1797, -1).__eq__(picture.ravel()).all(1))
    assert stream.label[row] in digits.target[found]
    assert tuple(source.pixels(np.arange(3)).shape) == (3, 3, 32, 32)
