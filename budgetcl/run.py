"""One run, from its configuration to its concluded record."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from budgetcl.assemble import build
from budgetcl.budget.ranks import here
from budgetcl.configuration import plain, run_id
from budgetcl.controls import SHARED, UNLIMITED, plan, prepared
from budgetcl.errors import DoesNotApply, UserError
from budgetcl.foresight import crowded, warning
from budgetcl.loop import Progress, run
from budgetcl.records.claim import claimed
from budgetcl.records.record import NoRecord, Record, Results, finished, free_place, settle
from budgetcl.records.tracker import Guarded
from budgetcl.streams.batch import Source
from budgetcl.streams.leaks import refuse_leaks
from budgetcl.streams.prefetch import begin
from budgetcl.streams.stream import UNASKED

_BACK = "\r\x1b[K"  # to the beginning of the terminal's line, and clear it


def execute(cfg: DictConfig, overrides: Sequence[str], several: bool, alone: bool = True) -> tuple[Results, bool]:
    """Run a configuration, write its record, and say where it lies.

    A run that is finished already is not made again, unless ``rerun=true``: equal identities have equal results. Of
    several processes the first one looks, writes and says everything; the others do what it decides.

    Args:
        cfg: the composed configuration.
        overrides: what was overridden on the command line; it tells rows of one method apart, and controls are composed
            from it.
        several: whether this is one of several runs; it then says one line at its end.
        alone: whether no other run writes into the same terminal at the same time.

    Returns:
        The record, and whether it was made now.

    Raises:
        UserError: bad input, or another process is at this run.
        DoesNotApply: a control that is another run already, or none.
    """
    for key in ("output", "name"):
        if cfg[key] in (None, ""):
            raise UserError(f"{key}={cfg[key]!r} given; the name of a folder is expected")
    if not isinstance(cfg.rerun, bool):
        raise UserError(f"rerun={cfg.rerun!r} given; true or false is expected")
    planned, again = plan(cfg, overrides), cfg.rerun
    place, identity = Path(str(cfg.output)) / str(cfg.name), run_id(plain(planned.asked))
    ranks = here()
    narrator = _Narrator(f"{planned.label} seed {cfg.seed}", several, alone)
    if before := ranks.told(finished(place, identity)):
        if several and cfg.control == UNLIMITED and cfg.method.name != "naive":  # a sweep asks once for each method
            raise DoesNotApply(SHARED)
        if not again:
            _refuse_changed(planned.asked, before)
            return _already(before, narrator, ranks.rank > 0)
    cfg, parts, budget = prepared(planned.asked, overrides)
    config = plain(cfg)
    del config["rerun"]
    metrics, tracker = build(cfg.metrics), Guarded(build(cfg.tracker))
    method, stream = planned.label, parts.source.stream
    info: dict[str, Any] = {
        "id": identity,
        "name": cfg.name,
        "method": method,
        "group": "control" if planned.of else cfg.method.group,
        "control": {"kind": cfg.control, "of": planned.of} if planned.of else None,
        "seed": cfg.seed,
        "stream": stream.name,
        "notes": list(stream.notes),
        "budget": {
            **{name: getattr(budget, name) for name in ("updates", "passes", "flops", "bytes")},
            "currency": budget.currency.name,
        },
        "rest": budget.rest,
        "currency": parts.compute.budget.currency.name,  # in the ledger
        "free": list(parts.compute.budget.free),
        "device": str(parts.compute.device),
        "processes": ranks.world,
        "threads": cfg.threads,
        "precision": cfg.precision,
    }
    if not stream.asks:
        raise UserError(UNASKED)
    refuse_leaks(parts.source)

    def say(text: str) -> None:
        if ranks.rank == 0:
            print(f"budgetcl: {method}: {text}", file=sys.stderr, flush=True)

    # Each process looks by itself: none waits for another longer than it may.
    for said in (warning(cfg, parts, say), crowded(parts)):
        if said and ranks.rank == 0:
            print(f"note: {said}", flush=True)
    with claimed(place / f".{identity}.lock") if ranks.rank == 0 else nullcontext(), _room(place):
        if (before := ranks.told(finished(place, identity))) and not again:  # made since we looked, by another run
            return _already(before, narrator, ranks.rank > 0)
        folder = before.folder if before else place / f"{_safe(method)}-{stream.name}-{cfg.seed}-{identity}"
        if ranks.rank > 0:
            unwritten = NoRecord(folder)
            return run(parts.source, parts.learner, parts.compute, unwritten, cfg.seed, query_size=cfg.query), True
        draft = free_place(folder)
        record = Record(draft, OmegaConf.to_yaml(OmegaConf.create(config)), info, stream)
        tracker.begin({**info, "fingerprint": stream.fingerprint()}, config)
        for note in () if several else stream.notes:
            print(f"note: {note}")

        def narrate(progress: Progress) -> None:
            narrator(progress)
            tracker.step(progress.step, {"accuracy": progress.accuracy, "utilisation": progress.utilisation})

        summary: dict[str, Any] = {"method": method, "seed": cfg.seed, "stream": stream.name}
        try:
            _pictures(parts.source, draft / "pictures.png")
            results = run(parts.source, parts.learner, parts.compute, record, cfg.seed, narrate, cfg.query)
            for metric in metrics.values():
                summary.update(metric(results))
            record.conclude({key: _finite(value) for key, value in summary.items()})
        except BaseException as error:
            narrator.leave()
            spent = {name: np.array(column) for name, column in parts.compute.ledger.rows().items()}
            tracker.end({**summary, "failed": reason(error)}, spent)
            raise
        tracker.end(summary, results.ledger)
        results = settle(draft, folder)
    narrator.end(results)
    audit = results.info["audit"]
    if not audit["agrees"]:
        print(
            f"budgetcl: {method}: the audit disagrees in step {audit['step']}: {audit['charged']:,} FLOPs charged, "
            f"{audit['counted']:,} counted, operators without a price: {audit['unpriced'] or 'none'}; "
            "run networks through compute only",
            file=sys.stderr,
        )
    return results, True


def reason(error: BaseException) -> str:
    """Return in one line why a run failed; for what is no bad input also where."""
    said = " ".join(str(error).split())
    if isinstance(error, UserError):
        return said
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, OSError):
        return f"{error.strerror or said}: {error.filename or 'disk'}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {said} ({Path(place.filename).name}, line {place.lineno})"


@contextmanager
def _room(place: Path) -> Iterator[None]:
    """Say of a full disk what is full and what mends it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{os.strerror(error.errno)}: '{error.filename or place}' could not be written: free some space, or set "
            "output to a larger disk; the record is unfinished, and the same command makes it anew"
        ) from error


def _refuse_changed(cfg: DictConfig, before: Results) -> None:
    """Refuse to take an earlier run for this one where the stream's files have changed since.

    Where they are gone there is nothing to compare with: what was made stays what it is.
    """
    path = Path(str(cfg.stream.get("path") or ""))
    if not cfg.stream.get("path") or not path.exists():
        return
    status = path.stat()
    settings = json.dumps(OmegaConf.to_container(cfg.stream, resolve=True), sort_keys=True, default=str)
    then, now = before.info["fingerprint"], _fingerprint(settings, status.st_mtime_ns, status.st_size)
    if now != then:
        raise UserError(
            f"the stream of stream.path={path} is another one than when this run was made (the table or the order of "
            f"its classes has changed; its fingerprint was {then} and is {now}): rerun=true makes the run anew in its "
            f"place, another name= keeps both; record: {before.folder}"
        )


@cache
def _fingerprint(settings: str, changed: int, size: int) -> str:
    """Return a stream's fingerprint: the finished runs of a sweep ask for it once, as long as its file is the same."""
    return build(OmegaConf.create(json.loads(settings))).stream.fingerprint()


def _already(results: Results, narrator: _Narrator, silent: bool) -> tuple[Results, bool]:
    if not silent:
        narrator.end(results, "already done: ")
    return results, False


class _Narrator:
    """A live line per time step in a terminal; elsewhere at most ten plain ones, of one of many runs only its end.

    Args:
        name: the run's.
        several: whether this is one of several runs: its live line then says its name, and its end takes the line's
            place.
        alone: whether no other run writes into the same terminal at the same time.
    """

    def __init__(self, name: str, several: bool, alone: bool) -> None:
        self._name = f" · {name}" if several else ""
        self._several, self._live, self._open = several, sys.stdout.isatty() and alone, False

    def __call__(self, progress: Progress) -> None:
        if progress.damaged:
            self.leave()
        for reason in progress.damaged:
            print(f"budgetcl: step {progress.step}: {reason}; the run goes on without it", file=sys.stderr)
        done = progress.step + 1
        tenth = max(1, progress.steps // 10)
        if not self._live and (self._several or (done % tenth and done < progress.steps)):
            return
        eta = progress.seconds / done * (progress.steps - done)
        text = (
            f"step {done}/{progress.steps} · budget left {progress.left:.0%}, "
            f"used in this step {progress.utilisation:.1%} · "
            f"accuracy {progress.accuracy:.1%} · {progress.seconds:.0f} s, {eta:.0f} s to go{self._name}"
        )
        if self._live:
            print(f"{_BACK}{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
            self._open = True
        else:
            print(text, flush=True)

    def leave(self) -> None:
        """Leave the live line, if there is one: the next thing said begins a line of its own."""
        if self._open:
            print(end=_BACK if self._several else "\n", flush=True)
            self._open = False

    def end(self, results: Results, before: str = "") -> None:
        """Say the run's numbers and where its record lies; ``before`` stands in front."""
        self.leave()
        names = ("average_accuracy", "final_accuracy", "online", "near_future", "retention")
        summary, folder = results.summary, results.folder
        shown = (name for name in names if summary.get(name) is not None)
        numbers = " · ".join(f"{name.replace('_', ' ')} {summary[name]:.1%}" for name in shown)
        print(f"{before}{summary['method']} · {summary['stream']} · seed {summary['seed']}: {numbers}", flush=True)
        if not self._several:
            print(f"record: {folder}\nfor tables and plots: budgetcl report {folder}")
            if before:
                print("to run it again: rerun=true")


def _pictures(source: Source, path: Path, count: int = 12) -> None:
    """Write some of the stream's images, evenly spaced in its order, as one strip."""
    from PIL import Image

    rows = np.linspace(0, source.stream.samples - 1, count).astype(np.int64)
    images = begin(source.pixels, rows).result().x.permute(0, 2, 3, 1).numpy()
    strip = np.concatenate(list(np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)), axis=1)
    Image.fromarray(strip.repeat(3, -1) if strip.shape[-1] == 1 else strip).save(path)


def _finite(value: Any) -> Any:
    """Return a number as JSON holds it; None where it is none. Metrics may return numbers of numpy or torch."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", text).strip("_")[:80]
