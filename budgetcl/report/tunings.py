"""What it cost to choose a run's settings, where `budgetcl tune` left word of it beside the records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from budgetcl.errors import UserError
from budgetcl.report.runs import Run

Entry = Mapping[str, Any]


def tunings(paths: Sequence[Path]) -> list[Entry]:
    """Return the entries of each ``tuning.json`` at and below some folders.

    Raises:
        UserError: one that cannot be read.
    """
    entries: list[Entry] = []
    for path in sorted({file.resolve() for folder in paths for file in folder.rglob("tuning.json")}):
        try:
            entries += json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"'{path}' cannot be read ({error}): tune again, or take it away") from error
    return entries


def with_tuning(run: Run, entries: Sequence[Entry]) -> Run:
    """Return a run whose summary holds the FLOPs of the tuning that chose its settings, if one of the entries did.

    It did if it tuned this method on this stream and its choice is what the run has; of several, one at the run's own
    budget is preferred.
    """
    chose = [
        entry
        for entry in entries
        if entry["stream"] == run.stream
        and entry["method"] == run.settings.get("method.name")
        and all(run.settings.get(key) == value for key, value in entry["settings"].items())
    ]
    if not chose:
        return run
    entry = max(chose, key=lambda entry: entry["budget"] == run.info.get("budget"))
    return replace(run, info={**run.info, "summary": {**run.summary, "tuning_flops": entry["flops"]}})
