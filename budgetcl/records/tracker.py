"""Trackers: they copy what a run says to somewhere else. The record on disk is the truth, a tracker only a view."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Tracker:
    """Tracks nothing: the default, and what the others look like."""

    def begin(self, info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Begin a run."""

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Note the numbers of a time step."""

    def end(self, summary: Mapping[str, Any], ledger: Mapping[str, np.ndarray]) -> None:
        """End a run: its summary, and the ledger as columns. A run that failed says why, as ``summary["failed"]``."""


class Guarded(Tracker):
    """Keeps a tracker from stopping a run: whatever goes wrong in it is said once, and the run goes on without it.

    Args:
        tracker: any tracker.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker: Tracker | None = tracker

    def begin(self, info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Begin a run."""
        self._try(lambda tracker: tracker.begin(info, config))

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Note the numbers of a time step."""
        self._try(lambda tracker: tracker.step(number, values))

    def end(self, summary: Mapping[str, Any], ledger: Mapping[str, np.ndarray]) -> None:
        """End a run."""
        self._try(lambda tracker: tracker.end(summary, ledger))

    def _try(self, action: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        except Exception as error:  # whatever its library raises
            name, self._tracker = type(self._tracker).__name__, None
            warnings.warn(f"{name} failed and is left out of this run: {error}", RuntimeWarning, stacklevel=3)


class Wandb(Tracker):
    """Weights & Biases: step metrics, configuration, ledger and summary, grouped by sweep.

    Args:
        project: the project's name.
        mode: "online" or "offline".
        folder: where wandb keeps its own files.
        group: how runs are grouped; None: the experiment's name.
    """

    def __init__(self, project: str, mode: str, folder: str, group: str | None = None) -> None:
        self.project, self.mode, self.folder, self.group = project, mode, folder, group
        self._run: Any = None

    def begin(self, info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Start wandb's run."""
        import wandb

        Path(self.folder).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self.project,
            mode=self.mode,  # type: ignore[arg-type]
            dir=self.folder,
            group=self.group or str(info["name"]),
            name=f"{info['method']} seed {info['seed']}",
            config={**config, "fingerprint": info.get("fingerprint")},
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a time step."""
        self._run.log(dict(values), step=number)

    def end(self, summary: Mapping[str, Any], ledger: Mapping[str, np.ndarray]) -> None:
        """Log the ledger as a table, the summary as the run's, and finish."""
        import wandb

        rows = [list(row) for row in zip(*(column.tolist() for column in ledger.values()))]
        self._run.log({"ledger": wandb.Table(columns=list(ledger), data=rows)})
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int("failed" in summary))
