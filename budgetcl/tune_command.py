"""`budgetcl tune`: the trials of each method are runs like any other, on the tuning seeds and the validation split."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import budgetcl
from budgetcl.assemble import build
from budgetcl.budget.formulas import ACCOUNTING_VERSION
from budgetcl.configuration import compose, plain, run_id, searched
from budgetcl.errors import UserError
from budgetcl.records.claim import claimed
from budgetcl.run import execute, reason
from budgetcl.tuning import RATE, RATES, SEEDS, TRIALS, Scored, Settings, Trial, Tuned, check_seeds, search

FILE = "tuning.json"
_AHEAD = ("online", "near_future", "retention")  # measured along a time-stamped stream


@dataclass(frozen=True)
class _Asked:
    """What `budgetcl tune` was asked for.

    Attributes:
        methods: to be tuned.
        trials: settings tried for each.
        seeds: on which each setting is tried.
        rates: the grid of learning rates.
        metric: to be made as large as possible; None: by the stream.
        overrides: whatever else was set.
    """

    methods: tuple[str, ...]
    trials: int
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    metric: str | None
    overrides: tuple[str, ...]


def tune(arguments: Sequence[str]) -> int:
    """Tune methods, one after another, and say what was found and at which price.

    Args:
        arguments: ``method=a,b``, ``trials=8``, ``seeds=100,101``, ``rates=0.01,0.1``, ``metric=near_future``, and
            overrides of the configuration.

    Returns:
        The exit status: 1 where a method could not be tuned; the others are.

    Raises:
        UserError: bad input, or a stream without a part to tune on.
    """
    asked = _asked(arguments)
    first = compose([*asked.overrides, f"method={asked.methods[0]}"])
    stream = build(first.stream).stream
    timed = bool(stream.shifts)
    metric = asked.metric or ("near_future" if timed else "average_accuracy")
    split = _split(first, asked.overrides, timed or metric in _AHEAD, metric)
    named = any(override.startswith("name=") for override in asked.overrides)
    common = [*asked.overrides, split, *([] if named else [f"name=tune/{stream.name}"])]
    place = Path(str(first.output)) / (str(first.name) if named else f"tune/{stream.name}")
    failed = []
    for method in asked.methods:
        try:
            found = _method(method, common, asked, metric)
        except UserError as error:
            failed.append(f"budgetcl: failed: method={method}: {error}")
            print(f"failed: method={method}: {error}", flush=True)
            continue
        entry = _entry(method, found, common, asked, metric, split, stream.name)
        _say(_keep(place, entry), asked)
    if len(failed) < len(asked.methods):
        print(f"kept in {place / FILE}, as a table in {place / 'tuning.md'}", flush=True)
    for line in failed:
        print(line, file=sys.stderr, flush=True)
    return 1 if failed else 0


def _asked(arguments: Sequence[str]) -> _Asked:
    own = {"method": "naive", "trials": str(TRIALS), "metric": ""}
    own |= {"seeds": ",".join(map(str, SEEDS)), "rates": ",".join(map(str, RATES))}
    overrides = []
    for argument in searched(arguments):
        key, _, value = argument.partition("=")
        if key == "seed":
            raise UserError(f"{argument} given; it is tuned on seeds of its own: seeds={SEEDS[0]},{SEEDS[1]}, ...")
        if key in own:
            own[key] = value.strip("[]")
        else:
            overrides.append(argument)
    try:
        seeds = tuple(int(seed) for seed in own["seeds"].split(","))
        rates = tuple(float(rate) for rate in own["rates"].split(","))
        trials = int(own["trials"])
    except ValueError as error:
        raise UserError(f"{error}; numbers are expected: trials=8 seeds=100,101 rates=0.01,0.1") from None
    check_seeds(seeds)
    if trials < len(rates):
        raise UserError(f"trials={trials} given with {len(rates)} learning rates; raise trials, or shorten rates")
    methods = tuple(own["method"].split(","))
    return _Asked(methods, trials, seeds, rates, own["metric"] or None, tuple(overrides))


def _split(cfg: DictConfig, overrides: Sequence[str], timed: bool, metric: str) -> str:
    """Return the override that keeps what is reported out of the tuning.

    A time-stamped stream is measured on the samples that it streams, so only its earlier part will do; any other on its
    validation images.
    """
    key, value = ("part", "prefix") if timed else ("evaluate", "validation")
    if key not in cfg.stream:
        raise UserError(
            f"metric={metric} cannot be tuned on this stream: it has no stream.{key}={value}, so tuning would see what "
            "is reported"
        )
    for override in overrides:
        if override.lstrip("+").startswith(f"stream.{key}="):
            raise UserError(f"{override} given; tuning sets stream.{key}={value} by itself")
    return f"stream.{key}={value}"


def _method(method: str, common: Sequence[str], asked: _Asked, metric: str) -> Tuned:
    base = [*common, f"method={method}"]
    cfg = compose([*base, f"seed={asked.seeds[0]}"])
    knobs = {str(key): list(values) for key, values in (cfg.method.get("tune") or {}).items()}
    rates = knobs.pop(RATE, list(asked.rates))
    grids = {**({RATE: rates} if _has_rate(base) else {}), **knobs}
    start = {}
    for key in knobs:
        value = OmegaConf.select(cfg, key, default=_MISSING)
        if value is _MISSING:
            raise UserError(f"method.tune names {key}, which this configuration does not have")
        start[key] = value

    def attempt(settings: Settings) -> Trial:
        return _attempt([*base, *map(_override, settings.items())], settings, asked.seeds, metric)

    return search(grids, start, asked.trials if grids else 1, attempt)


_MISSING = object()


def _has_rate(base: Sequence[str]) -> bool:
    """Return whether a method learns at a rate at all: whether another one makes another run."""
    one, other = (run_id(plain(compose([*base, f"{RATE}={rate}"]))) for rate in (0.25, 0.5))
    return one != other


def _attempt(overrides: Sequence[str], settings: Settings, seeds: Sequence[int], metric: str) -> Trial:
    runs: list[Scored] = []
    for seed in seeds:
        try:
            results, _ = execute(compose([*overrides, f"seed={seed}"]), overrides, several=True)
        except Exception as error:  # this setting has no score; the others may
            print(f"failed: {' '.join(map(_override, settings.items()))} seed={seed}: {reason(error)}", flush=True)
            return Trial(settings, tuple(runs), reason(error))
        if metric not in results.summary:
            numbers = [name for name, number in results.summary.items() if isinstance(number, float)]
            raise UserError(f"metric={metric} given; a run here has {', '.join(numbers)}")
        value, ledger = results.summary[metric], results.ledger
        predict = ledger["category"] == "predict"
        learning, predicting = (int(ledger["flops"][rows].sum()) for rows in (~predict, predict))
        runs.append(Scored(seed, math.nan if value is None else float(value), learning, predicting))
    return Trial(settings, tuple(runs))


def _override(setting: tuple[str, Any]) -> str:
    key, value = setting
    plainly = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
    return f"{key}={value}" if plainly else f"{key}={json.dumps(value)}"


# --- what is kept, what is said ---------------------------------------------------------------------------------


def _entry(
    method: str, found: Tuned, common: Sequence[str], asked: _Asked, metric: str, split: str, stream: str
) -> dict[str, Any]:
    cfg = compose([*common, f"method={method}", f"seed={SEEDS[0]}"])
    again = ["budgetcl", "tune", *asked.overrides, f"method={method}", f"trials={asked.trials}"]
    again += [
        f"seeds={','.join(map(str, asked.seeds))}",
        f"rates={','.join(map(str, asked.rates))}",
        f"metric={metric}",
    ]
    return {
        "id": run_id(plain(cfg)),
        "method": str(cfg.method.name),
        "stream": stream,
        "split": split,
        "metric": metric,
        "seeds": list(asked.seeds),
        "budget": {name: cfg.budget.get(name) for name in ("updates", "passes", "flops")},
        "settings": dict(found.best.settings),
        "overrides": [_override(setting) for setting in found.best.settings.items()],
        "score": found.best.score,
        "edges": list(found.edges),
        "left_out": list(found.left_out),
        "trials": len(found.trials),
        "runs": [
            {"settings": dict(trial.settings), **asdict(run), "score": run.score if math.isfinite(run.score) else None}
            for trial in found.trials
            for run in trial.runs
        ],
        "failed": [{"settings": dict(trial.settings), "why": trial.failed} for trial in found.trials if trial.failed],
        "command": shlex.join(again),
        "accounting": ACCOUNTING_VERSION,
        "version": budgetcl.__version__,
    }


def _keep(place: Path, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put an entry into the file of its folder, and return it with the runs and the FLOPs of all tuning so far.

    Tuning again, with a wider grid say, adds to what tuning that method at these conditions has cost.
    """
    with claimed(place / f".{FILE}.lock"):
        path = place / FILE
        known = {each["id"]: each for each in (json.loads(path.read_text(encoding="utf-8")) if path.exists() else [])}
        earlier = known.pop(entry["id"], {}).get("runs", [])
        runs = {(json.dumps(run["settings"], sort_keys=True), run["seed"]): run for run in [*earlier, *entry["runs"]]}
        learning, predicting = (sum(run[name] for run in runs.values()) for name in ("learning", "predicting"))
        spent = {"learning_flops": learning, "predict_flops": predicting, "flops": learning + predicting}
        entry = {**entry, **spent, "runs": list(runs.values())}
        entries = [*known.values(), entry]
        for target, text in ((path, json.dumps(entries, indent=1)), (place / "tuning.md", _table(entries))):
            partial = target.with_name(f"{target.name}.partial")
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, target)
    return entry


def _table(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| method | stream | budget | metric | score (%) | chosen | at an edge | runs | learning (FLOPs) "
        "| predicting (FLOPs) |",
        "|---|---|---|---|---:|---|---|---:|---:|---:|",
    ]
    for entry in entries:
        budget = " ".join(f"{name}={value}" for name, value in entry["budget"].items() if value is not None)
        cells = [
            *(entry["method"], entry["stream"], budget, f"{entry['metric']}, {entry['split']}"),
            *(f"{100 * entry['score']:.1f}", " ".join(entry["overrides"]) or "nothing to choose"),
            *(" ".join(entry["edges"]), str(len(entry["runs"]))),
            *(f"{entry['learning_flops']:.3g}", f"{entry['predict_flops']:.3g}"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _say(entry: Mapping[str, Any], asked: _Asked) -> None:
    print(
        f"{entry['method']}: {entry['metric'].replace('_', ' ')} {entry['score']:.1%} with {entry['split']}, "
        f"{entry['trials']} trials on {len(entry['seeds'])} seeds; its {len(entry['runs'])} tuning runs so far cost "
        f"{entry['flops']:.3g} FLOPs, {entry['learning_flops']:.3g} in learning and {entry['predict_flops']:.3g} in "
        "predicting"
    )
    if not entry["overrides"]:
        print("  nothing to choose: it has neither a learning rate nor knobs")
    for key in entry["edges"]:
        print(f"  {key}={entry['settings'][key]} is at the edge of what was tried: a wider grid may have better")
    if entry["left_out"]:
        print(f"  no trial was left for {', '.join(entry['left_out'])}: raise trials, for all methods")
    command = ["budgetcl", "run", "-m", *asked.overrides, f"method={entry['method']}", *entry["overrides"]]
    print(f"  {shlex.join([*command, 'seed=range(0,5)'])}", flush=True)
