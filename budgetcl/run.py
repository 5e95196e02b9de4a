"""One run, from its configuration to its concluded record."""

from __future__ import annotations

import math
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from budgetcl.assemble import build
from budgetcl.budget.ranks import here
from budgetcl.configuration import plain, run_id
from budgetcl.controls import plan, prepared
from budgetcl.errors import UserError
from budgetcl.foresight import cut, warning
from budgetcl.loop import Progress, run
from budgetcl.records.claim import claimed
from budgetcl.records.record import NoRecord, Record, Results, finished, free_place, settle
from budgetcl.records.tracker import Guarded
from budgetcl.streams.batch import Source
from budgetcl.streams.prefetch import begin


def execute(cfg: DictConfig, overrides: Sequence[str], several: bool) -> tuple[Results, bool]:
    """Run a configuration, write its record, and say where it lies.

    A run that is finished already is not made again, unless ``rerun=true``: equal identities have equal results. Of
    several processes the first one looks, writes and says everything; the others do what it decides.

    Args:
        cfg: the composed configuration.
        overrides: what was overridden on the command line; it tells rows of one method apart, and controls are composed
            from it.
        several: whether this is one of several runs; it then says one line at its end.

    Returns:
        The record, and whether it was made now.

    Raises:
        UserError: bad input, or another process is at this run.
    """
    for key in ("output", "name"):
        if cfg[key] in (None, ""):
            raise UserError(f"{key}={cfg[key]!r} given; the name of a folder is expected")
    if not isinstance(cfg.rerun, bool):
        raise UserError(f"rerun={cfg.rerun!r} given; true or false is expected")
    planned, again = plan(cfg, overrides), cfg.rerun
    place, identity = Path(str(cfg.output)) / str(cfg.name), run_id(plain(planned.asked))
    ranks = here()
    narrator = _Narrator(quiet=several)
    if (before := ranks.told(finished(place, identity))) and not again:
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
    for said in (warning(cfg, parts), cut(cfg, parts)) if ranks.rank == 0 else ():
        if said:
            print(f"note: {said}", flush=True)
    with claimed(place / f".{identity}.lock") if ranks.rank == 0 else nullcontext():
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


def _already(results: Results, narrator: _Narrator, silent: bool) -> tuple[Results, bool]:
    if not silent:
        narrator.end(results, "already done: ")
    return results, False


class _Narrator:
    """A live line per time step in a terminal, at most ten plain ones elsewhere, one at the end of one of many runs."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._live = quiet, sys.stdout.isatty() and not quiet

    def __call__(self, progress: Progress) -> None:
        for reason in progress.damaged:
            print(f"budgetcl: step {progress.step}: {reason}; the run goes on without it", file=sys.stderr)
        done = progress.step + 1
        tenth = max(1, progress.steps // 10)
        if self._quiet or (not self._live and done % tenth and done < progress.steps):
            return
        eta = progress.seconds / done * (progress.steps - done)
        text = (
            f"step {done}/{progress.steps} · budget left {1 - progress.utilisation:.0%} · "
            f"accuracy {progress.accuracy:.1%} · {progress.seconds:.0f} s, {eta:.0f} s to go"
        )
        print(f"\r\x1b[K{text}" if self._live else text, end="" if self._live else "\n", flush=True)

    def end(self, results: Results, before: str = "") -> None:
        """Say the run's numbers and where its record lies; ``before`` stands in front."""
        if self._live and not before:
            print()
        names = ("average_accuracy", "final_accuracy", "online", "near_future", "retention")
        summary, folder = results.summary, results.folder
        shown = (name for name in names if summary.get(name) is not None)
        numbers = " · ".join(f"{name.replace('_', ' ')} {summary[name]:.1%}" for name in shown)
        print(f"{before}{summary['method']} · {summary['stream']} · seed {summary['seed']}: {numbers}", flush=True)
        if not self._quiet:
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
