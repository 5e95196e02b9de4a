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
        """End a run: its summary, and the ledger as columns."""


class Wandb(Tracker):
    """Weights & Biases: step metrics, configuration, ledger and summary, grouped by sweep.

    Whatever goes wrong is said once and changes nothing else.

    Args:
        project: the project's name.
        mode: "online" or "offline".
        folder: where wandb keeps its own files.
        group: how runs are grouped; None: the experiment's name.
    """

    def __init__(self, project: str, mode: str, folder: str, group: str | None = None) -> None:
        self.project, self.mode, self.folder, self.group = project, mode, folder, group
        self._run: Any = None
        self._failed = False

    def begin(self, info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Start wandb's run."""
        self._try(lambda: self._begin(info, config))

    def _begin(self, info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
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
        self._try(lambda: self._run.log(dict(values), step=number))

    def end(self, summary: Mapping[str, Any], ledger: Mapping[str, np.ndarray]) -> None:
        """Log the ledger as a table, the summary as the run's, and finish."""
        self._try(lambda: self._end(summary, ledger))

    def _end(self, summary: Mapping[str, Any], ledger: Mapping[str, np.ndarray]) -> None:
        import wandb

        rows = [list(row) for row in zip(*(column.tolist() for column in ledger.values()))]
        self._run.log({"ledger": wandb.Table(columns=list(ledger), data=rows)})
        self._run.summary.update(dict(summary))
        self._run.finish()

    def _try(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # a tracker must never stop a run, whatever its library raises
            self._failed = True
            warnings.warn(f"wandb failed and is left out of this run: {error}", RuntimeWarning, stacklevel=2)
