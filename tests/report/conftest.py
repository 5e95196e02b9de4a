"""Small records: streams made by hand, answers drawn at random, budgets charged to a real ledger."""

import numpy as np
import pytest

from budgetcl.budget.ledger import Exhausted, Ledger
from budgetcl.metrics.blind import BlindMode
from budgetcl.metrics.summary import AheadAccuracy, Retention, StepAccuracy
from budgetcl.records.record import Record
from budgetcl.streams.stream import PRETEST, PRETRAIN, RETENTION, SETS, STREAM, TEST, Stream

CONFIG = "stream:\n  order: class\n  seed: {seed}\nmetrics:\n  ahead:\n    warmup: 0.1\nlearner:\n  batch: 8\n"


def _stream(name, parts, seed, bounds, origin=None, **more):
    label = np.concatenate([labels for _, labels in parts])
    n = len(label)
    return Stream(
        name=name,
        label=label,
        set=np.concatenate([np.full(len(labels), SETS.index(kind), np.int8) for kind, labels in parts]),
        bounds=np.asarray(bounds),
        time=np.arange(n, dtype=np.float64),
        group=np.full(n, -1),
        origin=np.full(n, -1) if origin is None else origin,
        label_names=tuple(map(str, range(int(label.max()) + 1))),
        source=f"by hand {seed}",
        **more,
    )


def classes_stream(seed):
    """Four pretraining classes, six streamed ones in three steps."""
    order = np.random.default_rng(seed).permutation(np.arange(4, 10))
    parts = [
        (STREAM, np.repeat(order, 5)),
        (PRETRAIN, np.repeat(np.arange(4), 5)),
        (TEST, np.repeat(np.arange(4, 10), 20)),
        (PRETEST, np.repeat(np.arange(4), 20)),
    ]
    return _stream("classes", parts, seed, [0, 10, 20, 30], heldout=(TEST, PRETEST))


def timed_stream(seed, n=480):
    """Bursts of sixteen labels, predicted eight at a time, up to 24 ahead."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.integers(0, 12, n // 16), 16)
    origin = np.arange(0, n, 8)
    return _stream(
        "timed",
        [(STREAM, label), (RETENTION, label[origin])],
        seed,
        np.arange(0, n + 1, 8),
        origin=np.concatenate([np.full(n, -1), origin]),
        shifts=(0, 8, 24),
        shift=24,
        heldout=(RETENTION,),
        occasions=(29, 59),
        window=1,
    )


def write(folder, stream, method, group, seed, skill=0.5, finish=True, config=CONFIG, **info):
    """Write the record of a learner that answers right with a probability, or of a blind one."""
    rng = np.random.default_rng([seed, len(method), int(1000 * skill)])
    given = {
        "id": f"{method}-{stream.name}-{seed}-{info.get('budget')}",
        "method": method,
        "group": group,
        "seed": seed,
        "stream": stream.name,
        "budget": {"updates": 10, "flops": None},
        "rest": "stop",
        "free": [],
        "device": "cpu",
        "threads": 1,
        "precision": "fp32",
        **info,
    }
    record = Record(folder, config.format(seed=seed), given, stream)
    ledger, classes = Ledger("stop"), len(stream.label_names)
    blind = BlindMode({"last_label": 1, "majority": None}[method]) if group == "blind" else None
    steps = {name: [] for name in ("seen", "classes", "updates", "stored", "learning_seconds", "seconds")}

    def log(rows, kind, step, seen, shift=-1):
        target = stream.label[rows]
        if blind is not None:
            answer = blind.predict()
            pred = np.full(len(rows), -1 if answer is None else answer)
        else:
            pred = np.where(rng.random(len(rows)) < skill, target, (target + 1) % classes)
        record.log(
            index=rows, set=kind, shift=shift, seen=seen, step=step.number, target=target, pred=pred,
            top5=pred == target, confidence=0.5, origin=stream.origin[rows],
        )  # fmt: skip

    for step in stream:
        for shift, rows in step.ahead.items():
            log(rows, "ahead", step, step.seen, shift)
        if blind is not None:
            blind.update(stream.label[step.revealed])
        updates = 0
        ledger.open(step.number, 1050)
        try:
            while group != "blind":
                ledger.charge((("train", 75, "u"), ("teacher", 25, "t")) if method == "kd" else (("train", 100, "u"),))
                updates += 1
        except Exhausted:
            pass
        ledger.close()
        seen = step.seen + len(step.revealed)
        for name, rows in step.heldout.items():
            log(rows, "retention" if name == RETENTION else "heldout", step, seen)
        for name, value in zip(steps, (seen, step.classes, updates, 4000, 0.1, 0.2)):
            steps[name].append(value)
    columns = {**ledger.steps(), **steps}
    if not finish:
        record.interrupt(columns, ledger.rows(), {})
        return folder
    results = record.finish(columns, ledger.rows(), {}, audit={"step": 1, "counted": 7, "charged": 7, "agrees": True})
    summary = {"method": method, "seed": seed, "stream": stream.name}
    for metric in (StepAccuracy(), AheadAccuracy(), Retention()):
        summary.update(metric(results))
    summary.update(
        updates=int(sum(columns["updates"])), flops=int(sum(columns["spent"])), predict_flops=12.0, bytes=4000,
        utilisation=sum(columns["spent"]) / sum(columns["allowance"]), seconds=0.2 * len(stream),
    )  # fmt: skip
    record.conclude({key: None if value != value else value for key, value in summary.items()})
    return folder


@pytest.fixture(scope="session")
def streams():
    return {"classes": classes_stream, "timed": timed_stream}


@pytest.fixture(scope="session")
def write_record():
    return write


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Three seeds of three learners and a blind one on two streams, and a run that did not end."""
    folder = tmp_path_factory.mktemp("records")
    for seed in (0, 1, 2):
        for method, group, skill in (("naive", "baseline", 0.7), ("kd", "distillation", 0.4), ("er", "sampling", 0.7)):
            for make in (classes_stream, timed_stream):
                stream = make(seed)
                write(folder / f"{method}-{stream.name}-{seed}", stream, method, group, seed, skill)
        write(folder / f"last_label-timed-{seed}", timed_stream(seed), "last_label", "blind", seed)
    write(folder / "killed", classes_stream(3), "naive", "baseline", 3, finish=False)
    return folder
