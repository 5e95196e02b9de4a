"""The protocol: predict, reveal, learn under an allowance; everything goes into one record."""

from __future__ import annotations

import hashlib
import itertools
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from budgetcl.budget.compute import Compute
from budgetcl.budget.ledger import Exhausted
from budgetcl.errors import UserError
from budgetcl.learners.learner import Learner
from budgetcl.randomness import generator
from budgetcl.records.record import Record, Results
from budgetcl.streams.batch import Query, Source
from budgetcl.streams.revealed import Revealed
from budgetcl.streams.stream import RETENTION, IntArray, TimeStep

# By step, beside what the ledger has. "replaced": training pictures that could not be read, another of the batch stood
# in; "unread": predictions of pictures that could not be read, logged as no answer; "reference_flops" and
# "reference_memory": what the step's reference update costs, for the stream's delay, and the bytes that it needs at
# once, for memory-adjusted FLOPs.
_MEASURED = (
    "seen", "classes", "updates", "stored", "replaced", "unread", "reference_flops", "reference_memory",
    "learning_seconds", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """What a run says of itself after a step.

    Attributes:
        step: the step just done.
        steps: how many there are.
        utilisation: the share of the step's allowance that was spent.
        left: the share of the whole run's allowance that later steps will be granted.
        accuracy: on what was predicted in this step: held-out samples where there were any, else the next samples.
        seconds: since the start.
        damaged: what is wrong with the pictures that could not be read for the first time.
    """

    step: int
    steps: int
    utilisation: float
    left: float
    accuracy: float
    seconds: float
    damaged: tuple[str, ...] = ()


def run(
    source: Source,
    learner: Learner,
    compute: Compute,
    record: Record,
    seed: int,
    narrate: Callable[[Progress], None] = lambda progress: None,
    query_size: int = 512,
) -> Results:
    """Send a learner through a stream.

    Args:
        source: the stream and its pixels.
        learner: learns and predicts; it sees only what was revealed.
        compute: holds the allowance and refuses more.
        record: where predictions and spending are written.
        seed: chooses the step that is audited.
        narrate: called after each step.
        query_size: images per prediction.

    Returns:
        The record, read back; it has no summary yet.

    Raises:
        UserError: bad input. Whatever stops a run, its record stays readable and says that it is unfinished.
    """
    revealed, started = Revealed(source, compute.ranks), time.perf_counter()
    predict = _Predict(source, learner, compute, record, revealed, query_size)
    audited = int(generator(seed, "audit").integers(len(source.stream)))
    steps: dict[str, array[Any]] = {name: array("d" if "seconds" in name else "q") for name in _MEASURED}
    left = compute.budget.left(np.diff(source.stream.bounds))
    try:
        for step in source.stream:
            clock, updates = time.perf_counter(), compute.updates
            known, replaced, unread = len(revealed.damaged), revealed.replaced, predict.unread
            with compute.watched(step.number, audit=step.number == audited) as audit:
                ahead = predict.ahead(step, audit)
                revealed.reveal(step)
                learning = time.perf_counter()
                with compute.step(step, len(source.stream) - step.number - 1):  # opens the allowance
                    learner.fit(step, revealed, compute)  # stops by itself when the ledger refuses
                learning = time.perf_counter() - learning
                heldout = predict.heldout(step, audit)
            _of_one_mind(step.number, learner, compute)
            now, stored = time.perf_counter(), int(sum(learner.nbytes().values()))
            if compute.budget.bytes is not None and stored > compute.budget.bytes:
                raise UserError(
                    f"step {step.number}: {stored:,} bytes are stored ({_listed(learner.nbytes())}), budget.bytes "
                    f"allows {compute.budget.bytes:,}: keep less (memory=reservoir), or allow more"
                )
            steps["seen"].append(step.seen + len(step.revealed))
            steps["classes"].append(revealed.classes)
            steps["updates"].append(compute.updates - updates)
            steps["stored"].append(stored)
            steps["replaced"].append(revealed.replaced - replaced)
            steps["unread"].append(predict.unread - unread)
            steps["reference_flops"].append(compute.reference_flops)
            steps["reference_memory"].append(compute.reference_memory)
            steps["learning_seconds"].append(learning)
            steps["seconds"].append(now - clock)
            narrate(
                Progress(
                    step.number,
                    len(source.stream),
                    compute.ledger.spent / max(1, compute.ledger.allowance),
                    float(left[step.number]),
                    heldout if step.heldout else ahead,
                    now - started,
                    tuple(revealed.damaged.values())[known:],
                )
            )
    except BaseException:
        record.interrupt(_steps(compute, steps), compute.ledger.rows(), compute.prices.to_json())
        raise
    assert compute.audit is not None
    return record.finish(
        _steps(compute, steps),
        compute.ledger.rows(),
        compute.prices.to_json(),
        audit={**vars(compute.audit), "agrees": compute.audit.agrees},
        stored=dict(learner.nbytes()),
        damaged=sorted(revealed.damaged),
    )


class _Predict:
    """Asks the learner and logs what it answers; targets meet predictions here and nowhere else."""

    def __init__(
        self, source: Source, learner: Learner, compute: Compute, record: Record, revealed: Revealed, size: int
    ) -> None:
        self._source, self._learner, self._compute, self._record = source, learner, compute, record
        self._revealed, self._size = revealed, size
        self._looks = False  # whether the learner looks at pictures: only then the next ones are decoded ahead
        self.unread = 0

    def ahead(self, step: TimeStep, audit: bool) -> float:
        """Predict what lies ahead, at all shifts together, and return the share of hits at the smallest one."""
        shifts = _joined(np.full(len(rows), shift) for shift, rows in step.ahead.items())
        hits = self._all(step, step.seen, _joined(step.ahead.values()), "ahead", shifts, audit)
        return _share(hits[shifts == min(step.ahead, default=0)])

    def heldout(self, step: TimeStep, audit: bool) -> float:
        """Predict the held-out samples that are due and return the share of hits."""
        seen = step.seen + len(step.revealed)
        hits = [
            self._all(step, seen, rows, "retention" if name == RETENTION else "heldout", np.full(len(rows), -1), audit)
            for name, rows in step.heldout.items()
        ]
        return _share(np.concatenate([[], *hits]))

    def _all(
        self, step: TimeStep, seen: int, indices: IntArray, kind: str, shifts: IntArray, audit: bool
    ) -> NDArray[np.bool_]:
        before = _hash(self._learner.state_dict()) if audit else None
        parts = [slice(i, i + self._size) for i in range(0, len(indices), self._size)]
        queries = deque(Query(self._source.pixels, indices[part], self._compute.ranks) for part in parts)
        hits = []
        for part in parts:
            for query in itertools.islice(queries, 2 if self._looks else 0):
                query.begin()
            hits.append(self._some(step.number, seen, queries.popleft(), indices[part], kind, shifts[part]))
        if audit and _hash(self._learner.state_dict()) != before:
            raise UserError(
                f"step {step.number}: the learner's state changed while it predicted; predict() must leave weights, "
                "statistics and memory as they are"
            )
        return np.concatenate([np.empty(0, bool), *hits])

    def _some(
        self, step: int, seen: int, query: Query, indices: IntArray, kind: str, shifts: IntArray
    ) -> NDArray[np.bool_]:
        try:
            with self._compute.predicting(step, len(indices), self._revealed.classes):
                answer = self._learner.predict(query, self._compute)
        except Exhausted as refusal:
            raise UserError(
                f"step {step}: predicting {len(indices)} images costs more than is free and the next allowance pays "
                f"for ({refusal}): make predict() cheaper, or raise {self._compute.budget.key}"
                f"{self._compute.reference.advice(getattr(self._learner, 'network', None))}"
            ) from None
        if len(answer.classes) != len(indices):
            raise UserError(f"predict() returned {len(answer.classes)} answers to {len(indices)} images")
        self._looks = query.looked_at
        read = np.ones(len(indices), bool)
        read[list(query.damaged)] = False
        self.unread += len(query.damaged)
        self._revealed.damaged.update({int(indices[place]): reason for place, reason in query.damaged.items()})
        target = self._source.stream.label[indices]
        pred = self._revealed.codes(np.where(read, answer.classes, -1))
        top = self._revealed.codes(np.where(read[:, None], answer.top, -1))
        self._record.log(
            index=indices,
            set=kind,
            shift=shifts,
            seen=seen,
            step=step,
            target=target,
            pred=pred,
            top5=(top == target[:, None]).any(1),
            confidence=np.where(read, answer.confidence, 0),
            origin=self._source.stream.origin[indices],
        )
        return pred == target


def _of_one_mind(step: int, learner: Learner, compute: Compute) -> None:
    """Refuse to go on where the states of several processes have parted; one alone has nothing to compare."""
    if compute.ranks.several:
        states = compute.ranks.heard((_hash(learner.state_dict()), compute.ledger.spent))
        if len(set(states)) > 1:
            raise UserError(
                f"step {step}: the processes' learners or ledgers are no longer equal to the bit: all must run on the "
                "same kind of device with the same versions, draw random numbers from budgetcl.randomness alone, and "
                "let every update of a step reach the same parameters"
            )


def _joined(parts: Iterable[IntArray]) -> IntArray:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {size:,}" for kind, size in sizes.items() if size)


def _share(hits: NDArray[Any]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")


def _steps(compute: Compute, steps: Mapping[str, array[Any]]) -> dict[str, Any]:
    done = len(steps["seconds"])  # the last to be noted
    return {
        name: np.array(column[:done], np.float64 if "seconds" in name else np.int64)
        for name, column in {**compute.ledger.steps(), **steps}.items()
    }


def _hash(state: Any) -> str:
    """Return a hash of nested mappings and sequences of tensors, arrays and numbers."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Mapping):
            for key in value:
                digest.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            value = value.float() if value.dtype == torch.bfloat16 else value  # which numpy does not know
            digest.update(value.numpy(force=True).tobytes())
        elif isinstance(value, np.ndarray):
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()
