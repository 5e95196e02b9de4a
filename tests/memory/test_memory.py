import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetcl.errors import UserError
from budgetcl.memory.by_class import RowsByClass
from budgetcl.memory.by_use import RowsByUse
from budgetcl.memory.capped import BalancedReservoir, Greedy, Newest, Reservoir
from budgetcl.memory.memory import Memory

reveals = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=40), min_size=1, max_size=12)


@given(reveals)
def test_columns_counts_and_class_rows_agree_with_a_plain_list(reveals):
    memory, seen = Memory(), []
    for labels in reveals:
        memory.add(np.arange(len(seen), len(seen) + len(labels)) * 3, np.array(labels))
        seen += labels
    assert memory.label.tolist() == seen
    assert memory.index.tolist() == [3 * i for i in range(len(seen))]
    assert memory.new == len(reveals[-1])
    for label in range(max(seen) + 1):
        rows = [i for i, y in enumerate(seen) if y == label]
        assert memory.class_counts[label] == len(rows)
        assert memory.rows_of(label).tolist() == rows
        assert memory.rows_at(np.full(len(rows), label), np.arange(len(rows))).tolist() == rows


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 300)), min_size=1, max_size=60))
def test_rows_of_classes_survive_every_move_of_their_blocks(runs):
    grouped, held, last = RowsByClass(np.int32), {}, 0
    for label, n in runs:
        rows = np.arange(last, last + n)
        grouped.add(rows, np.full(n, label))
        held.setdefault(label, []).extend(rows.tolist())
        last += n
        assert {c: grouped.of(c).tolist() for c in range(len(grouped.counts)) if grouped.counts[c]} == held
    labels = np.array([label for label, rows in held.items() for _ in rows])
    places = np.concatenate([np.arange(len(rows)) for rows in held.values()])
    assert grouped.at(labels, places).tolist() == [row for rows in held.values() for row in rows]
    assert grouped.nbytes == 4 * last + 8 * 3 * (1 + max(held))


@given(st.lists(st.lists(st.integers(0, 40), max_size=12), min_size=1, max_size=60), st.booleans())
def test_each_used_row_counts_in_one_window_and_ages_in_it_are_near_each_other(steps, late):
    memory = Memory()
    memory.add(np.arange(41), np.zeros(41, np.int64))
    for step, rows in enumerate(steps):
        if not late:
            memory.by_use(step)
        for part in (rows[:5], rows[5:]):
            memory.used(np.array(part, np.int64), step)
    now = len(steps)
    uses = memory.by_use(now)
    window = np.repeat(np.arange(len(uses.ends)), np.diff(uses.ends, prepend=0))
    rows = uses.at(np.arange(len(window)))
    last = memory.last_used[rows]
    there = (uses.first[window] <= last) & (last <= uses.last[window])
    assert sorted(rows[there].tolist()) == np.flatnonzero(memory.last_used >= 0).tolist()
    assert (uses.first[1:] > uses.last[:-1]).all()
    youngest, oldest = 1 + now - uses.last, 1 + now - uses.first
    assert (oldest <= 2 * youngest).all()
    assert (oldest[:-1] > 2 * youngest[1:]).all()  # no more windows than need be
    again = RowsByUse.of_state(uses.state_dict())
    assert again.at(np.arange(len(window))).tolist() == rows.tolist()
    assert again.nbytes == uses.nbytes == 4 * len(rows) + 3 * 8 * len(uses.ends)


def test_use_is_remembered_beyond_growth_and_a_state_goes_on():
    memory = Memory()
    memory.add(np.arange(1000), np.zeros(1000, int))
    memory.used(np.array([3, 999]), step=4)
    memory.add(np.arange(1000, 5000), np.ones(4000, int))
    other = Memory()
    other.load_state_dict(memory.state_dict())
    for m in (memory, other):
        assert m.last_used[[3, 999, 5, 4000]].tolist() == [4, 4, -1, -1]
        assert m.rows_of(1).tolist() == list(range(1000, 5000))


# --- limited capacity, stored tensors, states -------------------------------------------------------------------------

KEEP = (None, Reservoir(), BalancedReservoir(), Greedy(), Newest())
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, 5), max_size=15)),
        st.tuples(st.just("used"), st.integers(0, 2**31)),
        st.tuples(st.sampled_from(["logits", "features"]), st.integers(0, 2**31)),
        st.tuples(st.just("settle"), st.integers(0, 9)),
        st.tuples(st.just("reload"), st.none()),
    ),
    min_size=1,
    max_size=25,
)


class Plain:
    """The same memory as a list of dictionaries."""

    def __init__(self):
        self.rows, self.new = [], 0

    def add(self, index, label):
        self.rows += [{"index": i, "label": y, "used": -1} for i, y in zip(index, label)]
        self.new = len(index)

    def keep(self, index):
        self.new = sum(row["index"] in index for row in self.rows[len(self.rows) - self.new :])
        self.rows = [row for row in self.rows if row["index"] in index]


def agree(memory, plain, widths):
    size = len(plain.rows)
    assert (len(memory), memory.new) == (size, plain.new)
    for name, column in (("index", memory.index), ("label", memory.label), ("used", memory.last_used)):
        assert column.tolist() == [row[name] for row in plain.rows]
    for label in range(len(memory.class_counts)):
        rows = [i for i, row in enumerate(plain.rows) if row["label"] == label]
        assert memory.rows_of(label).tolist() == rows
        assert memory.class_counts[label] == len(rows)
    assert all(row["label"] < len(memory.class_counts) for row in plain.rows)
    for name, width in widths.items():
        values, found = memory.stored(name, np.arange(size), width)
        assert values.dtype == torch.float32
        expected = [row.get(name, []) for row in plain.rows]
        assert found.tolist() == [len(value) for value in expected]
        assert values.tolist() == [value + [0.0] * (width - len(value)) for value in expected]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KEEP), st.integers(1, 30), operations)
def test_any_sequence_of_operations_agrees_with_a_list_of_dictionaries(keep, capacity, operations):
    make = (lambda: Memory()) if keep is None else (lambda: Memory(capacity, keep))
    memory, plain, seen, widths = make(), Plain(), 0, {"logits": 1, "features": 2}
    for operation, value in operations:
        if operation == "add":
            index = [7 * (seen + i) for i in range(len(value))]
            seen += len(value)
            memory.add(np.array(index, np.int64), np.array(value, np.int64))
            plain.add(index, value)
        elif operation == "settle":
            before = memory.index.tolist()
            memory.settle(value)
            kept = memory.index.tolist()
            assert len(kept) == (len(before) if keep is None else min(len(before), capacity))
            assert set(kept) <= set(before)
            plain.keep(set(kept))
        elif operation == "reload":
            state = memory.state_dict()
            memory = make()
            memory.load_state_dict(state)
        elif len(memory):
            random = np.random.default_rng(value)
            rows = random.choice(len(memory), int(random.integers(1, min(9, len(memory) + 1))), replace=False)
            if operation == "used":
                memory.used(rows, value % 50)
                for row in rows:
                    plain.rows[row]["used"] = value % 50
            else:
                widths[operation] += int(random.integers(3))  # a head grows
                values = random.integers(-99, 100, (len(rows), widths[operation])).astype(np.float32)
                memory.store(operation, rows, torch.from_numpy(values))
                for row, one in zip(rows, values.tolist()):
                    plain.rows[row][operation] = one
        agree(memory, plain, widths)


def bits(memory):
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def equal(one, other):
    assert one.keys() == other.keys()
    assert one["stored"].keys() == other["stored"].keys()
    for name, dtype in (("index", np.int32), ("label", np.int64), ("used", np.int32)):
        assert one[name].dtype == other[name].dtype == dtype
        assert np.array_equal(one[name], other[name])
    for name, (tensor, widths) in one["stored"].items():
        assert tensor.dtype == other["stored"][name][0].dtype
        assert torch.equal(tensor, other["stored"][name][0])
        assert np.array_equal(widths, other["stored"][name][1])
    assert one["new"] == other["new"]


def filled(n=40, **capped):
    memory = Memory(**capped)
    memory.add(np.arange(n), np.arange(n) % 3)
    memory.store("logits", np.arange(0, n, 2), torch.randn(n // 2, 3))
    memory.store("features", np.arange(5), torch.randn(5, 8))
    memory.used(np.array([1, 4]), 2)
    return memory


def test_a_state_goes_through_a_file_and_back_to_the_bit():
    memory, other = filled(), Memory()
    state = bits(memory)
    other.load_state_dict(state)
    equal(state, other.state_dict())
    assert memory.stored("logits", np.array([2]), 3)[0].half().equal(other.stored("logits", np.array([2]), 3)[0].half())


def test_a_state_is_left_as_it_is_by_the_memories_that_took_it_up():
    """Several learners may start from one state, and none of them writes into another's memory."""
    state = filled().state_dict()
    kept, one, other = bits(filled_from(state)), filled_from(state), filled_from(state)
    for memory, value in ((one, 1.0), (other, 2.0)):
        memory.store("logits", np.array([1, 2]), torch.full((2, 3), value))
        memory.used(np.array([0]), 9)
    equal(state, kept)
    assert one.stored("logits", np.array([1]), 3)[0].tolist() == [[1.0] * 3]


def filled_from(state):
    memory = Memory()
    memory.load_state_dict(state)
    return memory


def test_what_was_stored_follows_its_sample_where_new_samples_must_win_their_place_first():
    """Settled before anything of the new samples is stored, as GDumb's memory is, and again after a step without."""
    memory = Memory(20, Greedy(), early=True)
    memory.add(np.arange(30), np.zeros(30, int))
    memory.settle(0)
    memory.store("features", np.arange(20), torch.arange(20.0)[:, None])
    for step in range(1, 4):
        memory.add(100 * step + np.arange(30), np.full(30, step))
        memory.settle(0)
        values, found = memory.stored("features", np.arange(20), 1)
        old = memory.index < 100
        assert found.tolist() == old.tolist()
        assert values[:, 0].tolist() == np.where(old, memory.index, 0).tolist()
    assert memory.class_counts.tolist() == [5, 5, 5, 5]


def test_the_bytes_of_what_is_stored_are_counted_and_those_of_the_forgotten_are_not():
    memory = Memory(1000, Newest())
    memory.add(np.arange(1000), np.zeros(1000, int))
    plain = memory.nbytes
    assert plain == 1000 * (4 + 8 + 4 + 4) + 3 * 8  # index, label, last use, row of its class; the class's block
    memory.store("logits", np.arange(1000), torch.zeros(1000, 50))
    half = memory.nbytes - plain
    assert half == 1000 * (50 * 2 + 8)  # float16, and how wide each is
    memory.store("features", np.arange(1000), torch.zeros(1000, 50))
    assert memory.nbytes - plain - half == 1000 * (50 * 4 + 8)
    sizes = []
    for step in range(1, 40):
        memory.add(np.arange(1000) + 1000 * step, np.full(1000, step % 5))
        memory.settle(0)
        sizes.append(memory.nbytes)
    assert max(sizes[5:]) == 1000 * 20 + 5 * 24  # nothing grows with the number of steps


def test_a_memory_that_forgets_a_class_knows_it_again_when_it_comes_back():
    memory = Memory(4, Newest())
    memory.add(np.arange(6), np.array([0, 0, 1, 1, 2, 2]))
    memory.settle(0)
    assert memory.class_counts.tolist() == [0, 2, 2]
    assert memory.rows_of(0).tolist() == []
    memory.add(np.array([7]), np.array([0]))
    assert memory.rows_of(0).tolist() == [4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0, "keep": Newest()}, r"memory\.capacity=0 given"),
        ({"capacity": 1.5, "keep": Newest()}, r"memory\.capacity=1\.5 given"),
        ({"capacity": 5}, r"memory\.capacity=5 given without memory\.keep"),
        ({"keep": Newest()}, r"memory\.capacity=None given with memory\.keep"),
    ],
)
def test_a_capacity_and_what_it_keeps_come_together(settings, message):
    with pytest.raises(UserError, match=message):
        Memory(**settings)


def test_a_sample_beyond_what_a_column_can_number_is_refused():
    memory = Memory()
    memory.add(np.array([2**31 - 1]), np.array([0]))
    assert memory.index.tolist() == [2**31 - 1]
    with pytest.raises(UserError, match="2,147,483,648 given"):
        memory.add(np.array([2**31]), np.array([0]))
