import gc
import itertools
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch

from budgetcl.streams.prefetch import Pending, Shown, Workers, ahead, begin


def pictures():
    return [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_position_is_done_once(count):
    done = []
    workers = Workers(count)
    workers.each(100, done.append).result()
    assert sorted(done) == list(range(100))
    workers.each(0, done.append).result()
    assert len(done) == 100


def test_positions_are_shared_among_the_threads():
    """Two tasks that wait for each other end only if they run side by side."""
    barrier = threading.Barrier(2, timeout=5)
    Workers(2).each(2, lambda place: barrier.wait()).result()


def test_work_begins_before_it_is_asked_for_and_without_threads_when_it_is():
    begun = threading.Event()
    Workers(1).each(1, lambda place: begun.set())
    assert begun.wait(5)
    done = []
    pending = Workers(0).each(3, done.append)
    assert done == []
    pending.result()
    assert done == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_error_is_raised_where_the_result_is_asked_for_and_ends_the_work(count):
    done = []

    def task(place):
        if place == 3:
            raise KeyError(place)
        done.append(place)
        time.sleep(0.001)

    pending = Workers(count).each(1000, task)
    with pytest.raises(KeyError):
        pending.result()
    assert len(done) < 900


def test_cancelled_work_is_left_undone():
    gate, done = threading.Event(), []
    workers = Workers(1)
    first = workers.each(1, lambda place: gate.wait(5))
    second = workers.each(10, done.append)
    second.cancel()
    gate.set()
    first.result()
    second.result()
    assert done == []


def test_threads_end_with_their_owner():
    others = set(pictures())  # of other tests; they may end meanwhile
    workers = Workers(3)
    workers.each(10, lambda place: None).result()
    assert set(pictures()) - others
    del workers
    gc.collect()
    deadline = time.monotonic() + 5
    while set(pictures()) - others and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(pictures()) - others


@pytest.mark.parametrize("depth", [0, 1, 4, 50])
def test_results_come_in_order_and_no_more_than_so_many_are_begun_ahead(depth):
    begun, seen = [], []

    def start(item):
        begun.append(item)
        return Pending(lambda: item * 10)

    for result in ahead(range(20), start, depth):
        seen.append(result)
        assert len(begun) == min(20, len(seen) + depth)
    assert seen == [item * 10 for item in range(20)]


def test_what_is_not_used_is_cancelled_and_items_may_be_endless():
    cancelled = []
    with closing(ahead(itertools.count(), lambda i: Pending(lambda: i, lambda: cancelled.append(i)), 3)) as results:
        assert [next(results), next(results)] == [0, 1]
    assert cancelled == [2, 3, 4]


@pytest.mark.parametrize("where", ["draw", "begin", "work"])
@pytest.mark.parametrize("depth", [0, 2, 10])
def test_an_error_is_raised_where_its_result_would_have_been(where, depth):
    def items():
        for i in range(8):
            if where == "draw" and i == 5:
                raise RuntimeError("draw")
            yield i

    def start(item):
        if where == "begin" and item == 5:
            raise RuntimeError("begin")

        def finish():
            if where == "work" and item == 5:
                raise RuntimeError("work")
            return item

        return Pending(finish)

    seen = []
    with pytest.raises(RuntimeError, match=where):
        seen.extend(ahead(items(), start, depth))
    assert seen == [0, 1, 2, 3, 4]


def test_pixels_that_cannot_be_begun_are_made_when_they_are_asked_for():
    calls = []

    def pixels(indices, augment=None):
        calls.append((indices.tolist(), augment))
        return torch.ones(len(indices), 1, 2, 2, dtype=torch.uint8)

    pending = begin(pixels, np.arange(3), "generator")
    assert calls == []
    shown = pending.result()
    assert isinstance(shown, Shown)
    assert (shown.x.shape[0], dict(shown.damaged), calls) == (3, {}, [([0, 1, 2], "generator")])


def test_then_changes_the_result_and_keeps_the_way_to_cancel():
    cancelled = []
    pending = Pending(lambda: 3, lambda: cancelled.append(1)).then(lambda x: x + 1)
    assert pending.result() == 4
    pending.cancel()
    assert cancelled == [1]
