import numpy as np
from hypothesis import given
from hypothesis import strategies as st

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
