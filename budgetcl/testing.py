"""The conformance kit: sends a component through small runs of the real protocol and says what it does wrong.

    from budgetcl.testing import check_component
    check_component(MySampler)

It is to a sampler, an objective or a learner what ``check_estimator`` is to an estimator of scikit-learn. Each check
names what it expects; all failures are said together.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from budgetcl.budget.allowance import Budget, Reference
from budgetcl.budget.compute import Compute
from budgetcl.budget.prices import Prices
from budgetcl.companions.averaging import Averaging
from budgetcl.companions.calibration import Calibration
from budgetcl.companions.regularisers import Regulariser
from budgetcl.companions.teachers import LastStep
from budgetcl.errors import UserError
from budgetcl.learners.gradient import GradientLearner
from budgetcl.learners.learner import Learner
from budgetcl.loop import run
from budgetcl.memory.memory import Memory
from budgetcl.memory.uniform import Uniform
from budgetcl.models.backbones import SmallResNet
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.models.parts import Everything
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.objectives.distillation import MSEDistillation
from budgetcl.randomness import generator
from budgetcl.streams.batch import Query, Source
from budgetcl.streams.glyphs import glyphs
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import RETENTION, TimeStep
from budgetcl.streams.uploads import uploads

__all__ = ["Failed", "check_component", "check_learner"]

Columns = dict[str, NDArray[Any]]
_HANDED_OVER = 2  # the step before which a fresh learner takes up the state of the one before


class Failed(AssertionError):
    """A component does not conform; the message lists every check that failed, and what each expects."""


class MemoryRecord:
    """Stands where a record does and keeps what is written in memory.

    Attributes:
        steps: columns by time step.
        ledger: columns of the ledger.
        prices: the price list.
        info: what the run says of itself.
    """

    folder = None

    def __init__(self) -> None:
        self._parts: list[Columns] = []

    def log(self, **columns: Any) -> None:
        """Append rows to the prediction log."""
        n = len(columns["index"])
        self._parts.append({name: np.broadcast_to(np.asarray(value), (n,)) for name, value in columns.items()})

    def finish(self, steps: Mapping[str, Any], ledger: Mapping[str, Any], prices: Any, **info: Any) -> MemoryRecord:
        """Keep what was spent."""
        self.steps = {name: np.asarray(column) for name, column in steps.items()}
        self.ledger = {name: np.asarray(column) for name, column in ledger.items()}
        self.prices, self.info = prices, info
        return self

    interrupt = finish

    @property
    def predictions(self) -> Columns:
        """The prediction log."""
        return {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}


@dataclass(frozen=True)
class Bench:
    """What a learner is tried on: a stream, and a compute of its own for each run.

    Attributes:
        source: a stream that predicts ahead, or holds samples out, or both.
        compute: makes a compute.
    """

    source: Source
    compute: Callable[[], Compute]


def check_component(component: Any, **settings: Any) -> list[str]:
    """Check a component of one's own: a sampler, an objective, a part, a head, a memory, a companion or a schedule.

    It is put into a learner that is otherwise the plain one (uniform sampling, cross-entropy, everything trained; for a
    teacher, distillation from the last step's network), and that learner goes through :func:`check_learner`. Beside, it
    must have an effect: on the weights, or on the price.

    Args:
        component: its class, or a function that makes one; called with ``settings`` for each run.
        settings: for it.

    Returns:
        What was checked.

    Raises:
        Failed: with all that is wrong.
        UserError: it is nothing that can be checked.
    """
    make = functools.partial(component, **settings)
    role = _role(component, make)

    def learner() -> GradientLearner:
        return _plain(role == "teacher", **{role: make if role == "head" else make()})

    done, wrong, effect = [], [], False
    for name, bench in _benches().items():
        try:
            first, checks = _checked(learner, bench)
        except Failed as failure:
            wrong.append(f"on the {name} stream: {failure}")
        else:
            done += [f"{name}: {check}" for check in checks]
            effect = effect or _difference(_plain_run(name, role == "teacher"), first) is not None
    if not wrong and not effect:
        wrong.append("it has no effect: weights, draws and prices are those of the plain learner")
    done.append("has an effect")
    if wrong:
        raise Failed("; ".join(wrong))
    return done


def check_learner(make: Callable[[], Learner], bench: Bench) -> list[str]:
    """Check a learner on a stream.

    - finite numbers: every confidence is one;
    - price truth: what an always-on counter sees is what was charged; no step spends more than its allowance;
    - determinism and resume: a second run, in which a fresh learner takes up the state between two steps, is equal to
      the first to the bit;
    - causality: other labels from some position on change no earlier prediction; an answer does not depend on the other
      images of its query; predicting changes nothing.

    Args:
        make: makes a fresh learner; called for each run.
        bench: what it is tried on.

    Returns:
        What was checked.

    Raises:
        Failed: with all that is wrong.
    """
    return _checked(make, bench)[1]


def _checked(make: Callable[[], Learner], bench: Bench) -> tuple[MemoryRecord, list[str]]:
    """Return the learner's run, and what was checked."""
    wrong: list[str] = []
    learner = make()
    compute = bench.compute()
    try:
        first = _run(bench.source, learner, compute)
    except UserError as error:
        raise Failed(f"it does not run: {error}") from error
    for check in (_finite, _prices, _same_answers, _resumes, _looks_ahead):
        try:
            said = check(make, bench, first, learner, compute)
        except UserError as error:
            said = f"{_name(check)}: {error}"
        if said:
            wrong.append(said)
    if wrong:
        raise Failed("; ".join(wrong))
    return first, ["finite numbers", "price truth", "queries apart", "determinism and resume", "causality"]


# --- the checks -------------------------------------------------------------------------------------------------------


def _finite(
    make: Callable[[], Learner], bench: Bench, first: MemoryRecord, learner: Learner, compute: Compute
) -> str | None:
    if np.isfinite(first.predictions["confidence"]).all():
        return None
    return (
        "numbers: a confidence is not finite; batches of one class, samples without old classes and rates of 0.05 must "
        "be bearable"
    )


def _prices(
    make: Callable[[], Learner], bench: Bench, first: MemoryRecord, learner: Learner, compute: Compute
) -> str | None:
    audit = first.info["audit"]
    if not audit["agrees"]:
        return (
            f"price truth: in step {audit['step']} {audit['charged']:,} FLOPs were charged for networks, "
            f"{audit['counted']:,} were counted, operators without a price: {audit['unpriced'] or 'none'}; run "
            "networks through compute, other work inside compute.work(category, flops, function)"
        )
    steps = first.steps
    if (steps["spent"] > steps["allowance"] + steps["carried_in"]).any():
        return "price truth: a step spent more than its allowance"
    return None


def _same_answers(
    make: Callable[[], Learner], bench: Bench, first: MemoryRecord, learner: Learner, compute: Compute
) -> str | None:
    """Ask the trained learner for the same images in other company."""
    classes = int(first.steps["classes"][-1])
    x = bench.source.pixels(np.arange(min(16, len(bench.source.stream.label))))
    order = torch.from_numpy(generator(0, "order of a query").permutation(len(x)))
    replaced = torch.cat([x[:1], 255 - x[1:]])

    def ask(images: torch.Tensor) -> tuple[NDArray[Any], ...]:
        with compute.predicting(10**6, 1000 * len(images), classes):
            answer = learner.predict(Query(_Given(images), np.arange(len(images))), compute)
        return np.asarray(answer.classes), np.asarray(answer.top), np.asarray(answer.confidence)

    plain, permuted, other = ask(x), ask(x[order]), ask(replaced)
    for mine, theirs, alone in zip(plain, permuted, other):
        if not _equal(mine[order], theirs) or not _equal(mine[:1], alone[:1]):
            return "causality: the answer to an image depends on the other images of its query"
    return None


def _resumes(
    make: Callable[[], Learner], bench: Bench, first: MemoryRecord, learner: Learner, compute: Compute
) -> str | None:
    """Run again, and hand the state over to a fresh learner on the way."""
    again = _HandedOver(make, min(_HANDED_OVER, len(bench.source.stream) - 1))
    second = _run(bench.source, again, bench.compute())
    different = _difference(first, second)
    if different is None:
        return None
    third = _difference(first, _run(bench.source, make(), bench.compute()))
    if third is not None:
        return f"determinism: two runs differ ({third}); draw random numbers from place.random(purpose, update) only"
    return (
        f"resume: a run that goes on from state_dict() differs ({different}); state_dict and load_state_dict must hold "
        "all that later steps depend on, and begin(place) must need nothing else"
    )


def _looks_ahead(
    make: Callable[[], Learner], bench: Bench, first: MemoryRecord, learner: Learner, compute: Compute
) -> str | None:
    """Change all labels that are revealed from the middle on, and those of the pictures that test retention."""
    stream = bench.source.stream
    if len(stream.label_names) < 2:  # there are no other labels
        return None
    middle = len(stream) // 2
    t = int(stream.bounds[middle])
    changed = np.concatenate([np.arange(t, stream.samples), stream.rows(RETENTION)])
    label = stream.label.copy()
    label[changed] = (label[changed] + 1) % len(stream.label_names)
    source = Source(replace(stream, label=label, _rows_of={}), bench.source.pixels)
    other = _run(source, _Stopped(make(), max(1, middle)), bench.compute())
    mine, theirs = (run.predictions for run in (first, other))
    before, then = mine["seen"] <= t, theirs["seen"] <= t
    if any(not _equal(mine[name][before], theirs[name][then]) for name in _ANSWERS):
        return "causality: labels that are revealed later change a prediction; learn from what was revealed only"
    return None


_ANSWERS = ("index", "set", "shift", "seen", "step", "pred", "confidence")


@functools.cache
def _plain_run(name: str, taught: bool = False) -> MemoryRecord:
    bench = _benches()[name]
    return _run(bench.source, _plain(taught), bench.compute())


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _difference(one: MemoryRecord, other: MemoryRecord) -> str | None:
    """Return what differs first; None where both are equal to the bit. Times are left out."""
    for table, names in (("predictions", _ANSWERS), ("ledger", tuple(one.ledger)), ("steps", tuple(one.steps))):
        mine, theirs = getattr(one, table), getattr(other, table)
        for name in names:
            if "seconds" not in name and not _equal(mine[name], theirs[name]):
                return f"column {name} of the {table}"
    return None


class _HandedOver:
    """Replaces the learner by a fresh one with its state, before a step."""

    def __init__(self, make: Callable[[], Learner], step: int) -> None:
        self._make, self._step, self._learner = make, step, make()

    def fit(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        """Hand over where it is time to, then learn."""
        if step.number == self._step:
            state = copy.deepcopy(self._learner.state_dict())
            self._learner = self._make()
            self._learner.load_state_dict(state)
        self._learner.fit(step, revealed, compute)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)


class _Enough(Exception):
    """What later steps would show is not asked for."""


class _Stopped:
    """Ends a run where a step would be learned, after its images were predicted."""

    def __init__(self, learner: Learner, step: int) -> None:
        self._learner, self._step = learner, step

    def fit(self, step: TimeStep, revealed: Revealed, compute: Compute) -> None:
        """Learn, in earlier steps."""
        if step.number == self._step:
            raise _Enough
        self._learner.fit(step, revealed, compute)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)


class _Given:
    """Pixels that were given."""

    fingerprint = "given"

    def __init__(self, images: torch.Tensor) -> None:
        self._images = images
        self.shape = (images.shape[1], images.shape[2], images.shape[3])

    def __call__(self, indices: NDArray[np.int64], augment: np.random.Generator | None = None) -> torch.Tensor:
        return self._images[torch.from_numpy(indices)]


def _run(source: Source, learner: Any, compute: Compute) -> MemoryRecord:
    # The seed chooses the audited step: here the second one, where there are old and new classes.
    steps = len(source.stream)
    seed = next(s for s in range(1000) if int(generator(s, "audit").integers(steps)) == min(1, steps - 1))
    record = MemoryRecord()
    with contextlib.suppress(_Enough):
        run(source, learner, compute, record, seed)  # type: ignore[arg-type]
    return record


# --- what it is tried on ----------------------------------------------------------------------------------------------


def _plain(taught: bool = False, /, **parts: Any) -> GradientLearner:
    """Return the plain learner, or the plain one that distils, with some of its parts replaced."""
    chosen: dict[str, Any] = {
        "backbone": SmallResNet(1, (8, 16)),
        "head": functools.partial(LinearHead, scale=1.0),  # rows so large that an angle's gradient throws none far
        "part": Everything(),
        "sampler": Uniform(),
        "objective": MSEDistillation(0.1) if taught else CrossEntropy(),
        "optimiser": functools.partial(torch.optim.SGD, lr=0.05),
        "schedule": lambda progress, step: 1.0,
        "batch": 4,
        "batch_norm": "frozen",
    }
    return GradientLearner(**{**chosen, **parts})


@functools.cache
def _benches() -> dict[str, Bench]:
    prices = Prices()

    def compute(source: Source) -> Compute:
        reference = Reference(
            Network(SmallResNet(1, (8, 16)), LinearHead(16)), CrossEntropy(), 4, source.pixels.shape, prices
        )
        return Compute(prices, Budget(updates=3), reference, torch.device("cpu"))

    sources = {
        "class-incremental": glyphs(
            pretrain_classes=3, stream_classes=6, steps=3, train=5, pretrain_train=5, test=2, validation=1
        ),
        "time-stamped": uploads(
            samples=24, prefix=200, classes=8, chunk=8, shifts=[0, 8], shift=8, burst=4, retention=8, occasions=2
        ),
        "one class": glyphs(pretrain_classes=0, stream_classes=1, steps=1, train=4, test=2),
    }
    # Every other pixel, drawn once: networks cost a quarter, and so many streams' pictures are not kept between runs.
    drawn = {
        name: Source(source.stream, _Given(source.pixels(np.arange(len(source.stream.label)))[:, :, ::2, ::2]))
        for name, source in sources.items()
    }
    return {name: Bench(source, functools.partial(compute, source)) for name, source in drawn.items()}


def _role(component: Any, make: Callable[[], Any]) -> str:
    """Return the name of the learner's part that a component is."""
    if isinstance(component, type) and issubclass(component, LinearHead):
        return "head"
    made = make()
    for kind, role in (
        (LastStep, "teacher"),
        (Regulariser, "regulariser"),
        (Averaging, "averaging"),
        (Calibration, "calibration"),
        (Memory, "memory"),
    ):
        if isinstance(made, kind):
            return role
    if all(hasattr(made, name) for name in ("begin", "draw", "reach")):
        return "sampler"
    if all(hasattr(made, name) for name in ("key", "teacher")) and callable(made):
        return "objective"
    if callable(made):
        try:
            made(0.0, 0)
        except Exception:
            return "part"
        return "schedule"
    raise UserError(
        f"{made!r} given; a sampler, an objective, a part, a head, a memory, a companion or a schedule is expected "
        "(for a learner: check_learner)"
    )


def _name(check: Callable[..., Any]) -> str:
    return check.__name__.strip("_").replace("_", " ")
