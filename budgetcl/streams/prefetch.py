"""Work on pictures that is begun now and asked for later: threads, and batches begun ahead of their use.

The smallest interface that keeps a device fed: ``begin(pixels, indices, augment)`` returns a :class:`Pending` at once,
``.result()`` waits for it; :func:`ahead` keeps a bounded number of them under way. What is begun, and in which order,
is decided by the caller's own thread; the threads only fill in rows whose random numbers were drawn before. So the
results are the same, bit for bit, with any number of threads and any depth.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from budgetcl.streams.stream import IntArray
from budgetcl.streams.transforms import behind

Item = TypeVar("Item")
Result = TypeVar("Result")
Other = TypeVar("Other")
MOST_WORKERS = 16  # by default: beyond that, threads wait for the interpreter's lock


@dataclass(frozen=True)
class Shown:
    """What came of asking for pictures.

    Attributes:
        x: (n, channels, height, width) uint8; a damaged picture's row is empty, all zeros.
        damaged: position -> what is wrong, with the path.
    """

    x: Tensor
    damaged: Mapping[int, str] = field(default_factory=dict)


class Pending(Generic[Result]):
    """A result that is being worked on.

    Args:
        finish: called once, by whoever asks for the result, in his own thread; it waits for the work.
        cancel: called if nobody will ask; what has not begun is left undone.
    """

    def __init__(self, finish: Callable[[], Result], cancel: Callable[[], None] = lambda: None) -> None:
        self._finish, self.cancel = finish, cancel

    def result(self) -> Result:
        """Wait for the work, and return its result or raise its error."""
        return self._finish()

    def then(self, function: Callable[[Result], Other]) -> Pending[Other]:
        """Return the same work with something done to its result, when that is asked for."""
        return Pending(lambda: function(self.result()), self.cancel)


@runtime_checkable
class Begins(Protocol):
    """Pixels that are decoded in the background (budgetcl.streams.images); others are made when they are asked for."""

    def begin(self, indices: IntArray, augment: np.random.Generator | None = None) -> Pending[Shown]:
        """Begin to make the pictures."""
        ...


def begin(
    pixels: Callable[[IntArray, np.random.Generator | None], Tensor],
    indices: IntArray,
    augment: np.random.Generator | None = None,
    part: slice | None = None,
) -> Pending[Shown]:
    """Begin to make pictures, augmented where a generator is given; what cannot be begun is made when asked for.

    Where ``part`` is given only these are made; the rows of the others are there, but blank.
    """
    if part is not None and (part.start, part.stop) != (0, len(indices)):
        if augment is not None:
            augment = behind(augment, part.start)
        return begin(pixels, indices[part], augment).then(lambda shown: _among(shown, len(indices), part.start))
    if isinstance(pixels, Begins):
        return pixels.begin(indices, augment)
    return Pending(lambda: Shown(pixels(indices, augment)))


def _among(shown: Shown, n: int, start: int) -> Shown:
    # Memory that nobody wrote to is not there yet: the blank rows take none.
    x = torch.from_numpy(np.zeros((n, *shown.x.permute(0, 2, 3, 1).shape[1:]), np.uint8)).permute(0, 3, 1, 2)
    x[start : start + len(shown.x)] = shown.x
    return Shown(x, {start + place: reason for place, reason in shown.damaged.items()})


def ahead(items: Iterable[Item], begin: Callable[[Item], Pending[Result]], depth: int) -> Generator[Result]:
    """Yield the results of some work in order, with up to ``depth`` further items begun before they are needed.

    Items are drawn and begun in the caller's thread, so no thread of its own is needed; an error in drawing, beginning
    or working is raised where its result would have been yielded. When the iterator is closed (``contextlib.closing``,
    or its last reference gone), what was begun and not used is cancelled.

    Give as many items as will be used: what is begun and not used is wasted.

    Args:
        items: what to work on; it may be endless.
        begin: starts the work on an item.
        depth: items begun beyond the one yielded; 0 begins each when it is asked for.
    """
    waiting: deque[Pending[Result]] = deque()
    begun = _begun(iter(items), begin)
    try:
        while True:
            waiting.extend(itertools.islice(begun, depth + 1 - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for pending in waiting:
            pending.cancel()


def _begun(items: Iterator[Item], begin: Callable[[Item], Pending[Result]]) -> Iterator[Pending[Result]]:
    try:
        yield from map(begin, items)
    except Exception as error:
        failure = error

        def fail() -> Result:
            raise failure

        yield Pending(fail)


class Workers:
    """Threads that do one task for each of many positions.

    No thread is made before the first task, and they end with this object.

    Args:
        count: how many; None: as many as there are processors for this process, at most 16; 0: none, the work is done
            when it is waited for, in the thread that waits.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = min(MOST_WORKERS, available()) if count is None else count
        self._executor: ThreadPoolExecutor | None = None

    def each(self, positions: int, task: Callable[[int], None]) -> Pending[None]:
        """Begin ``task(0) .. task(positions - 1)``, each once, in any order.

        The first error is raised by ``result()``; what has not begun by then is left undone.
        """
        places = iter(range(positions))  # shared: the next free thread takes the next position

        def work() -> None:
            try:
                for place in places:
                    task(place)
            except BaseException:
                cancel()
                raise

        def cancel() -> None:
            for _ in places:
                pass

        if self.count == 0:
            return Pending(work, cancel)
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.count, thread_name_prefix="pictures")
        futures: list[Future[None]] = [self._executor.submit(work) for _ in range(min(self.count, positions))]

        def finish() -> None:
            for future in futures:
                future.result()

        return Pending(finish, cancel)


def available() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
