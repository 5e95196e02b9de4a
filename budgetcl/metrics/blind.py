"""Blind classifiers: they see no image, only past labels; what they score, a metric or a stream gives away for free.

Definitions, here once (protocols of EvalOCL, arXiv 2305.09275, made exact):

- At shift S and chunk c the position t is predicted when ``s`` labels are known, s being the largest multiple of c with
  s + S <= t; no label at or after s is used. With c = 1: s = t - S.
- The prediction is the most frequent of the last ``window`` known labels; ties go to the label seen last. Where fewer
  are known, by what there is.
- Where none is known (s = 0) there is no prediction; it counts as a miss. Positions t < S are not predicted at all and
  do not count. Averages begin after the warm-up, as for learners.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetcl.errors import UserError, at_least
from budgetcl.metrics import _mode
from budgetcl.metrics._arrays import Array, _host, integers, is_text, warmup_end
from budgetcl.randomness import generator

# The grid of EvalOCL's public code.
WINDOWS = (1, 2, 5, 10, 20, 30, 40, 60, 75, 100, 250, 500, 1000, 5000, 25000, 75000)
DELAYS = (0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12288, 16384, 32768, 65536, 131072)

_BLOCK = 1 << 16  # positions whose modes lie in the cache while they are compared at all delays
_INTERPRETED = 1 << 17  # fewer label updates than this take less time in Python than numba takes to be imported
_LARGEST_SPAN = 1 << 24  # labels spread over more than this (or than four times their number) are renumbered


@dataclass(frozen=True)
class _Codes:
    """Labels as small numbers."""

    codes: NDArray[Any]
    classes: int
    values: NDArray[Any] | int  # the label of each code, or what must be added to a code

    @property
    def nothing(self) -> Any:
        """A value of the labels' type that is no label."""
        if isinstance(self.values, int):
            return min(self.values, 0) - 1
        return "" if self.values.dtype.kind == "U" else min(int(self.values[0]), 0) - 1

    def empty(self, n: int) -> NDArray[Any]:
        """Return room for n labels."""
        return np.empty(n, dtype=np.int64 if isinstance(self.values, int) else self.values.dtype)

    def decode(self, codes: NDArray[np.int32], out: NDArray[Any]) -> None:
        """Write the labels of codes into ``out``; what stands for the code -1 is left to the caller."""
        if isinstance(self.values, int):
            np.add(codes, self.values, out=out, dtype=np.int64)
        else:
            out[:] = self.values[codes]


def _encode(labels: Array) -> _Codes:
    if is_text(labels):
        text = _host("labels", labels)
        if text.ndim != 1 or len(text) == 0:
            raise UserError(f"labels has the shape {text.shape}; one filled dimension is expected")
        values, codes = np.unique(text.astype(str), return_inverse=True)
        if values[0] == "":
            raise UserError("labels holds an empty string, which stands for 'no prediction'; give it a name")
        return _Codes(np.asarray(codes, dtype=np.int32), len(values), values)
    array = integers("labels", labels).cpu().numpy()
    low, high = int(array.min()), int(array.max())
    if high - low < min(_LARGEST_SPAN, max(1 << 12, 4 * len(array))):
        codes = np.empty(len(array), dtype=np.int32)
        np.subtract(array, low, out=codes, casting="unsafe")
        return _Codes(codes, high - low + 1, low)
    values, codes = np.unique(array, return_inverse=True)
    return _Codes(np.asarray(codes, dtype=np.int32), len(values), values)


def _modes(
    codes: NDArray[np.int32], classes: int, window: int | None, chunk: int, fast: bool
) -> Iterator[tuple[int, Any]]:
    """Yield (start, the modes known from position start on), block by block."""
    n = len(codes)
    window = n if window is None else min(window, n)
    slide: Callable[..., None] = _mode.compiled() if fast else _mode.slide
    y: Any = codes if fast else codes.tolist()
    state, count, level = ([0, -1, -1], [0] * classes, [0] * (window + 2)) if not fast else (
        np.array([0, -1, -1]), np.zeros(classes, dtype=np.int32), np.zeros(window + 2, dtype=np.int32)
    )  # fmt: skip
    block = np.empty(min(n, _BLOCK), dtype=np.int32)
    for start in range(0, n, len(block)):
        stop = min(n, start + len(block))
        slide(y, window, chunk, start, stop, state, count, level, block)
        yield start, block[: stop - start]


def _worth_compiling(updates: int) -> bool:
    return updates > _INTERPRETED or _mode.compiled.cache_info().currsize > 0


def _check(windows: Iterable[int | None], delays: Iterable[int], chunk: int) -> tuple[list[int | None], list[int]]:
    windows, delays = list(windows), [int(delay) for delay in delays]
    if not windows or not delays:
        raise UserError("no window or no delay given; at least one of each is expected")
    for window in windows:
        if window is not None:
            at_least(1, window=int(window) if isinstance(window, np.integer) else window)
    for delay in delays:
        at_least(0, delay=delay)
    at_least(1, chunk=chunk)
    return windows, delays


def blind_predictions(labels: Array, window: int | None, delay: int = 0, chunk: int = 1) -> Any:
    """Return what a blind classifier predicts at each position of a stream.

    Args:
        labels: (n,) integers or strings, in the order of the stream.
        window: how many of the last known labels vote; None: all.
        delay: the shift S, in samples.
        chunk: how many samples are predicted at once, before their labels come.

    Returns:
        (n,) labels, in the type they came in (int64; a tensor on the labels' device; strings). Where no label is known,
        at the first ``delay + chunk`` positions, stands a value that is no label: -1 (one below the smallest label
        where there are negative ones), or the empty string.

    Raises:
        UserError: bad labels, a window or chunk below 1, a negative delay or one beyond the stream.

    Examples:
        >>> blind_predictions([7, 7, 3, 3, 3, 7], window=3).tolist()
        [-1, 7, 7, 7, 3, 3]
        >>> blind_predictions([7, 7, 3, 3, 3, 7], window=1, delay=1, chunk=2).tolist()
        [-1, -1, -1, 7, 7, 3]
    """
    _check([window], [delay], chunk)
    coded = _encode(labels)
    n = len(coded.codes)
    _inside(n, [delay])
    predictions = coded.empty(n)
    for start, modes in _modes(coded.codes, coded.classes, window, chunk, _worth_compiling(n)):
        stop = min(n, delay + start + len(modes))
        if delay + start < stop:
            coded.decode(modes[: stop - delay - start], predictions[delay + start : stop])
    predictions[: delay + chunk] = coded.nothing
    return torch.from_numpy(predictions).to(labels.device) if isinstance(labels, Tensor) else predictions


def _inside(n: int, delays: Iterable[int]) -> None:
    for delay in delays:
        if delay >= n:
            raise UserError(f"delay={delay} lies beyond the stream of {n} labels; give a smaller one")


def _hits(
    codes: NDArray[np.int32], classes: int, window: int | None, delays: Sequence[int], chunk: int, end: int, fast: bool
) -> list[int]:
    """Count the hits from position max(end, delay) on, for each delay."""
    n = len(codes)
    hits = [0] * len(delays)
    for start, modes in _modes(codes, classes, window, chunk, fast):
        for i, delay in enumerate(delays):
            low = max(start, end - delay)
            high = min(start + len(modes), n - delay)
            if low < high:
                same = modes[low - start : high - start] == codes[low + delay : high + delay]
                hits[i] += int(np.count_nonzero(same))
    return hits


def _grid(
    codes: NDArray[np.int32], classes: int, windows: Sequence[int | None], delays: Sequence[int], chunk: int, end: int,
    fast: bool, threads: int = 1,
) -> NDArray[np.float64]:  # fmt: skip
    def row(window: int | None) -> list[int]:
        return _hits(codes, classes, window, delays, chunk, end, fast)

    if threads > 1 and fast:
        with ThreadPoolExecutor(min(threads, len(windows))) as pool:
            hits = list(pool.map(row, windows))
    else:
        hits = [row(window) for window in windows]
    counted = len(codes) - np.maximum(end, np.asarray(delays))
    return np.asarray(hits, dtype=np.float64) / counted


def blind_accuracy(
    labels: Array,
    windows: Sequence[int | None] = WINDOWS,
    delays: Sequence[int] = DELAYS,
    chunk: int = 1,
    *,
    warmup: float = 0.1,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Return the accuracy of blind classifiers for all windows and delays.

    Args:
        labels: (n,) integers or strings, in the order of the stream.
        windows: how many of the last known labels vote; None: all (the running majority).
        delays: shifts S, in samples.
        chunk: how many samples are predicted at once, before their labels come.
        warmup: what does not count: a share of the stream below 1, or a number of samples. A cell counts the positions
            from ``max(warm-up, S)`` on; those without a known label are misses.
        threads: at most so many windows at a time; None: as many as torch uses. It cannot change the result.

    Returns:
        (windows, delays) accuracies in [0, 1].

    Raises:
        UserError: bad labels, a window or chunk below 1, a negative delay or one beyond the stream.

    Examples:
        >>> blind_accuracy([1, 1, 1, 2, 2, 2, 1, 1], windows=[1, 3], delays=[0, 3], warmup=0)
        array([[0.625, 0.2  ],
               [0.375, 0.4  ]])
    """
    windows, delays = _check(windows, delays, chunk)
    coded = _encode(labels)
    n = len(coded.codes)
    _inside(n, delays)
    end = warmup_end(n, warmup)
    fast = _worth_compiling(n * len(windows))
    if fast:
        _mode.compiled()
    return _grid(coded.codes, coded.classes, windows, delays, chunk, end, fast, threads or torch.get_num_threads())


def select_window(
    labels: Array, windows: Sequence[int | None] = WINDOWS, delay: int = 0, chunk: int = 1, *, warmup: float = 0.1
) -> int | None:
    """Return the window that scores best at this delay, the smallest of equals. To be called on a prefix of the stream.

    Args:
        labels: (n,) the prefix's labels.
        windows: the candidates; None stands for all labels and is the largest.
        delay: the shift S, in samples.
        chunk: how many samples are predicted at once.
        warmup: as in :func:`blind_accuracy`.

    Raises:
        UserError: as in :func:`blind_accuracy`.

    Examples:
        >>> select_window([1, 1, 1, 2, 2, 2, 1, 1], [1, 3], delay=0, warmup=0)
        1
    """
    ordered = sorted(windows, key=lambda window: float("inf") if window is None else window)
    scores = blind_accuracy(labels, ordered, [delay], chunk, warmup=warmup)[:, 0]
    return ordered[int(scores.argmax())]


@dataclass(frozen=True)
class ShiftCurve:
    """What a shift is chosen by.

    Attributes:
        delays: (d,) the delays tested, ascending.
        windows: (d,) the best window at each of them.
        accuracy: (d,) the best blind accuracy over all windows.
        null: (d,) the 95th percentile of the same maximum after shuffling the labels within blocks.
        margin: how far above the null still counts as none of the label correlation left.
        block: the length of the blocks; a shift must not exceed a quarter of it.
        shift: the chosen delay, or None where there is none.
    """

    delays: tuple[int, ...]
    windows: tuple[int | None, ...]
    accuracy: tuple[float, ...]
    null: tuple[float, ...]
    margin: float
    block: int
    shift: int | None

    def __str__(self) -> str:
        cells = zip(self.delays, self.accuracy, self.null)
        return "; ".join(f"{delay}: {100 * best:.2f} (null {100 * null:.2f})" for delay, best, null in cells)


def shift_curve(
    labels: Array,
    windows: Sequence[int | None] = WINDOWS,
    delays: Sequence[int] = DELAYS,
    block: int | None = None,
    margin: float = 0.01,
    chunk: int = 1,
    *,
    warmup: float = 0.1,
    shuffles: int = 100,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShiftCurve:
    """Return the best blind accuracy at each delay and what shuffled labels would give; see :func:`select_shift`.

    Args:
        labels: (n,) the labels of the tuning prefix, in order.
        windows: the blind classifiers' windows.
        delays: the delays to test.
        block: the labels are shuffled within blocks of this length: bursts go, slow drift stays. Default n // 16.
        margin: accuracy above the null that still passes.
        chunk: how many samples are predicted at once.
        warmup: as in :func:`blind_accuracy`.
        shuffles: how many times the labels are shuffled.
        seed: of the shuffles.
        threads: at most so many shuffles at a time; None: as many as torch uses. It cannot change the result.
        progress: called with (done, total) after each grid.

    Raises:
        UserError: as in :func:`blind_accuracy`; a block outside 1..n, a negative margin, no shuffles.
    """
    windows, delays = _check(windows, sorted(set(delays)), chunk)
    at_least(1, shuffles=shuffles)
    if not margin >= 0:
        raise UserError(f"margin={margin!r} given; a number of at least 0 is expected (accuracy, 0.01 is one point)")
    coded = _encode(labels)
    codes, n = coded.codes, len(coded.codes)
    _inside(n, delays)
    end = warmup_end(n, warmup)
    block = max(1, n // 16) if block is None else block
    if not 1 <= block <= n:
        raise UserError(f"block={block} given; a length from 1 to the {n} labels is expected")
    fast = _worth_compiling(n * len(windows) * (1 + shuffles))
    if fast:
        _mode.compiled()
    threads = (threads or torch.get_num_threads()) if fast else 1
    total = 1 + shuffles

    observed = _grid(codes, coded.classes, windows, delays, chunk, end, fast, threads)
    if progress:
        progress(1, total)

    def shuffled(i: int) -> NDArray[np.float64]:
        mixed = _shuffle_within(codes, block, generator(seed, "blind null", position=i))
        return _grid(mixed, coded.classes, windows, delays, chunk, end, fast).max(axis=0)

    null = np.empty((shuffles, len(delays)))
    with ThreadPoolExecutor(min(threads, shuffles)) as pool:
        for i, row in enumerate(pool.map(shuffled, range(shuffles))):
            null[i] = row
            if progress:
                progress(2 + i, total)
    best = observed.max(axis=0)
    high = np.quantile(null, 0.95, axis=0, method="higher")
    passes = np.flip(np.logical_and.accumulate(np.flip(best <= high + margin)))
    chosen = next((delay for delay, passed in zip(delays, passes) if passed and 4 * delay <= block), None)
    return ShiftCurve(
        delays=tuple(delays),
        windows=tuple(windows[i] for i in observed.argmax(axis=0)),
        accuracy=tuple(best.tolist()),
        null=tuple(high.tolist()),
        margin=margin,
        block=block,
        shift=chosen,
    )


def _shuffle_within(codes: NDArray[np.int32], block: int, rng: np.random.Generator) -> NDArray[np.int32]:
    mixed = codes.copy()
    for start in range(0, len(mixed), block):
        rng.shuffle(mixed[start : start + block])
    return mixed


def select_shift(
    labels: Array,
    windows: Sequence[int | None] = WINDOWS,
    delays: Sequence[int] = DELAYS,
    block: int | None = None,
    margin: float = 0.01,
    chunk: int = 1,
    *,
    warmup: float = 0.1,
    shuffles: int = 100,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Return the near-future shift S: the smallest delay at which label correlation is gone.

    S is the smallest delay such that at it *and at every larger tested delay* the best blind accuracy over all windows
    is at most ``null + margin``. The null is the 95th percentile, over ``shuffles``, of the same maximum for labels
    shuffled within blocks of length L = ``block``: bursts are destroyed and drift slower than L stays. S <= L / 4 must
    hold, or the shuffle itself would reach as far as the shift. Arguments as in :func:`shift_curve`.

    To be called on the tuning prefix, never on the stream that is scored. The paper (arXiv 2305.09275) gives the idea
    but no rule; this one is ours.

    Raises:
        UserError: no such delay; the message holds the whole curve. Bad input as in :func:`shift_curve`.

    Examples:
        >>> import numpy as np
        >>> bursts = np.repeat(np.random.default_rng(0).integers(0, 50, 500), 8)
        >>> select_shift(bursts, windows=[1, 4], delays=[0, 4, 8, 16], shuffles=20)
        8
    """
    curve = shift_curve(
        labels, windows, delays, block, margin, chunk,
        warmup=warmup, shuffles=shuffles, seed=seed, threads=threads, progress=progress,
    )  # fmt: skip
    if curve.shift is None:
        raise UserError(
            f"no tested delay up to {curve.block // 4} (a quarter of the block of {curve.block}) brings the best blind "
            f"accuracy down to the null + {100 * margin:g} points at it and beyond. Delay: best blind accuracy in %: "
            f"{curve}. Test larger delays on a longer prefix, or give a larger block or margin"
        )
    return curve.shift


def label_autocorrelation(labels: Array, lags: Sequence[int], *, adjusted: bool = False) -> NDArray[np.float64]:
    """Return how often two labels k positions apart are equal, for each lag k.

    Args:
        labels: (n,) integers or strings, in the order of the stream.
        lags: the distances k, each below n.
        adjusted: subtract what independent draws with the same class shares p would give and scale to one:
            ``(P - sum p^2) / (1 - sum p^2)``; 0 means no correlation.

    Returns:
        (lags,) shares P(y[t + k] = y[t]), or their adjusted values.

    Raises:
        UserError: bad labels, a negative lag or one beyond the stream; one class only where ``adjusted``.

    Examples:
        >>> label_autocorrelation([1, 1, 2, 2, 1, 1], [0, 1, 2]).tolist()
        [1.0, 0.6, 0.0]
    """
    coded = _encode(labels)
    codes, n = coded.codes, len(coded.codes)
    for lag in lags:
        at_least(0, lag=int(lag))
        if lag >= n:
            raise UserError(f"lag={lag} lies beyond the stream of {n} labels; give a smaller one")
    equal = np.array([np.count_nonzero(codes[: n - lag] == codes[lag:]) / (n - lag) for lag in lags], dtype=np.float64)
    if not adjusted:
        return equal
    chance = float(((np.bincount(codes) / n) ** 2).sum())
    if chance == 1:
        raise UserError("all labels are the same; an adjusted autocorrelation needs two classes")
    return (equal - chance) / (1 - chance)


class BlindMode:
    """A blind classifier to be fed as labels come: the most frequent of the last ``window``, ties to the one seen last.

    Args:
        window: how many labels vote: 1 is the last label, None all of them (the running majority).

    Examples:
        >>> blind = BlindMode(3)
        >>> blind.predict() is None
        True
        >>> blind.update([5, 5, 2])
        >>> blind.predict()
        5
        >>> blind.update([2])
        >>> blind.predict()
        2
    """

    def __init__(self, window: int | None = None) -> None:
        if window is not None:
            at_least(1, window=window)
        self.window = window
        self._recent: deque[Any] = deque()  # the window's labels; empty where all labels vote
        self._count: dict[Any, int] = {}
        self._level: dict[int, int] = {}  # how many labels have each count
        self._top = 0
        self._best: Any = None  # None: to be found, or no label yet

    def update(self, labels: Array) -> None:
        """Take the next labels, in order."""
        for label in labels.tolist() if isinstance(labels, Tensor | np.ndarray) else labels:
            self._add(label)

    def _move(self, label: Any, by: int) -> int:
        before = self._count.get(label, 0)
        after = before + by
        if before:
            self._level[before] -= 1
        if after:
            self._count[label] = after
            self._level[after] = self._level.get(after, 0) + 1
        else:
            del self._count[label]
        return after

    def _add(self, label: Any) -> None:
        count = self._move(label, +1)
        if count >= self._top:
            self._top, self._best = count, label
        if self.window is None:
            return
        self._recent.append(label)
        if len(self._recent) > self.window:
            old = self._recent.popleft()
            count = self._move(old, -1)
            if count + 1 == self._top:
                if not self._level[self._top]:
                    self._top = count
                    self._best = None
                elif self._best == old:
                    self._best = None

    def predict(self) -> Any:
        """Return the predicted label, or None where none was seen."""
        if self._best is None and self._top:
            self._best = next(label for label in reversed(self._recent) if self._count[label] == self._top)
        return self._best

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs to go on from here."""
        return {"window": self.window, "recent": list(self._recent), "count": dict(self._count), "best": self.predict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            UserError: the state of another window.
        """
        if state["window"] != self.window:
            raise UserError(f"the state is of window={state['window']}, this classifier's window is {self.window}")
        self._recent, self._count = deque(state["recent"]), dict(state["count"])
        self._level = {}
        for count in self._count.values():
            self._level[count] = self._level.get(count, 0) + 1
        self._top, self._best = max(self._count.values(), default=0), state["best"]


class ConstantMode:
    """The blind classifier that always answers the most frequent label of a prefix, ties to the one seen last.

    Args:
        prefix: labels known before the stream; None: it never predicts anything.

    Examples:
        >>> constant = ConstantMode([4, 4, 9])
        >>> constant.update([9, 9, 9])
        >>> constant.predict()
        4
    """

    def __init__(self, prefix: Array | None = None) -> None:
        blind = BlindMode(None)
        blind.update([] if prefix is None else prefix)
        self._label = blind.predict()

    def update(self, labels: Array) -> None:
        """Take the next labels: nothing changes."""

    def predict(self) -> Any:
        """Return the label."""
        return self._label

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` needs to go on from here."""
        return {"label": self._label}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._label = state["label"]
