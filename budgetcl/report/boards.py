"""Which runs may stand in one table: the same stream, the same allowance, the same rules of accounting."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from budgetcl.report.runs import Run

UNCHARGED, SAME_UPDATES, UNLIMITED = CONTROLS = ("uncharged", "same_updates", "unlimited")
_UNSEEN = ("stream.augment", "stream.damaged")  # how pictures are shown to learn from: in no fingerprint
_ORDER = ("baseline", "sampling", "distillation", "partial")  # other groups come behind these, "blind" last


@dataclass(frozen=True)
class Board:
    """Runs that may be compared.

    Attributes:
        stream: the stream's name.
        conditions: what tells this board from another one of the same stream, as "key=value"; empty where there is
            no other.
        runs: row name -> seed -> run.
        notes: what a reader must know of how the rows came about.
        controls: the rows that are controls -> which kind, and the row that they are a control of.
    """

    stream: str
    conditions: tuple[str, ...]
    runs: Mapping[str, Mapping[int, Run]]
    notes: tuple[str, ...] = ()
    controls: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The stream and what tells it apart, as far as a title can hold it."""
        if not self.conditions:
            return self.stream
        more = f" and {len(self.conditions) - 3} more" if len(self.conditions) > 3 else ""
        return f"{self.stream} ({', '.join(self.conditions[:3])}{more})"

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, ascending."""
        return tuple(sorted({seed for runs in self.runs.values() for seed in runs}))

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of its rows: baselines first, blind ones last; controls behind what they are a control of."""
        return tuple(self.runs)

    @property
    def baseline(self) -> str | None:
        """The row that the others are compared to."""
        return "naive" if "naive" in self.runs else None

    @property
    def flat(self) -> tuple[Run, ...]:
        """All runs."""
        return tuple(run for runs in self.runs.values() for run in runs.values())

    def with_controls(self, *kinds: str) -> Board:
        """Return the board with these kinds of controls alone."""
        kept = {name: control for name, control in self.controls.items() if control[0] in kinds}
        runs = {name: runs for name, runs in self.runs.items() if name in kept or name not in self.controls}
        return replace(self, runs=runs, controls=kept)

    def control(self, kind: str, method: str) -> Mapping[int, Run]:
        """Return the runs of a method's control, by seed; none where there are none."""
        return next((self.runs[name] for name, control in self.controls.items() if control == (kind, method)), {})

    def group(self, method: str) -> str:
        """Return the group of a row."""
        return next(iter(self.runs[method].values())).group


def boards(runs: Iterable[Run]) -> list[Board]:
    """Sort runs into boards. Runs that may not be compared are never put into one.

    Two runs share a board if stream, accounting version, allowance, what it is counted in, what becomes of its rest,
    the cap on what is stored, reference and precision are equal, and if no seed would show two streams (fingerprints).
    """
    runs = _unique(runs)
    known: dict[str, Mapping[str, Any]] = {}  # equal fingerprints are one stream, however its settings are spelled
    keys = []
    for run in runs:
        key = conditions(run)
        own = {name: value for name, value in key.items() if name.startswith("stream.") and name not in _UNSEEN}
        others = {name: value for name, value in key.items() if name not in own}
        keys.append({**others, **known.setdefault(run.fingerprint, own)})
    parts: dict[str, list[int]] = {}
    for i, (run, key) in enumerate(zip(runs, keys)):
        parts.setdefault(repr((run.stream, sorted(key.items(), key=str))), []).append(i)
    split: list[tuple[list[int], dict[str, Any]]] = []
    for members in parts.values():
        key = keys[members[0]]
        if _one_stream_a_seed([runs[i] for i in members]):
            split.append((members, key))
            continue
        for fingerprint in dict.fromkeys(runs[i].fingerprint for i in members):
            same = [i for i in members if runs[i].fingerprint == fingerprint]
            split.append((same, {**key, "fingerprint": fingerprint}))
    found = []
    for name in dict.fromkeys(run.stream for run in runs):
        mine = [(members, key) for members, key in split if runs[members[0]].stream == name]
        for (members, _), said in zip(mine, differences([key for _, key in mine])):
            found.append(_board(name, said, [runs[i] for i in members]))
    return found


def incomparable(found: Sequence[Board]) -> list[str]:
    """Return a line for each lot of streams that look alike and are not: their fingerprints at one seed differ.

    Streams look alike by their name, or where the makers of their tables warn of each other (a note of both that says
    "never compare", as for the two orderings of CGLM).
    """
    alike: dict[tuple[str, str], list[Board]] = {}
    for board in found:
        alike.setdefault((board.stream, ""), []).append(board)
        for note in dict.fromkeys(note for run in board.flat for note in run.info.get("notes") or ()):
            if "never compare" in note:
                alike.setdefault(("", str(note)), []).append(board)
    lines = []
    for (_, note), several in alike.items():
        streams: dict[int, dict[str, str]] = {}  # seed -> fingerprint -> name
        for run in (run for board in several for run in board.flat):
            streams.setdefault(run.seed, {}).setdefault(run.fingerprint, run.stream)
        seed, names = max(streams.items(), key=lambda item: (len(item[1]), -item[0]))
        when = f", at seed {seed}"
        if note and len(names) < 2:  # tables whose makers warn are told apart by their names, too
            names, when = {run.fingerprint: board.stream for board in several for run in board.flat[:1]}, ""
            names = names if len(set(names.values())) > 1 else {}
        if len(names) > 1:
            listed = " and ".join(f"'{name}' with the fingerprint {fingerprint}" for fingerprint, name in names.items())
            because = f" ({note})" if note else ""
            lines.append(f"Different streams, whose runs must not be compared: {listed}{when}{because}.")
    return lines


def differences(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return for each of several flat settings the "key=value" that not all of them share."""
    keys = sorted({key for each in settings for key in each})
    differing = [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]
    return [tuple(f"{key}={each.get(key)}" for key in differing) for each in settings]


def conditions(run: Run) -> dict[str, Any]:
    """Return what runs must have in common to be compared."""
    budget = run.info.get("budget") or {}
    chosen = {
        key: value
        for key, value in run.settings.items()
        if key.split(".")[0] in ("stream", "reference") and not key.endswith(".seed")
    }
    return {
        **chosen,
        "accounting": run.info.get("accounting"),
        "budget.updates": budget.get("updates"),
        "budget.passes": budget.get("passes"),
        "budget.flops": budget.get("flops"),
        "budget.bytes": budget.get("bytes"),
        "budget.rest": run.info.get("rest"),
        "currency": run.currency,
        "precision": run.info.get("precision"),
    }


def _one_stream_a_seed(runs: Sequence[Run]) -> bool:
    return len({(run.seed, run.fingerprint) for run in runs}) == len({run.seed for run in runs})


def _unique(runs: Iterable[Run]) -> list[Run]:
    """Drop records that were found twice: the same folder below two paths, or a copy of a run."""
    kept: dict[Any, Run] = {}
    for run in runs:
        kept.setdefault(run.info.get("id") or run.folder.resolve(), run)
    return list(kept.values())


def _board(stream: str, said: tuple[str, ...], runs: Sequence[Run]) -> Board:
    names, controls, notes = _names(runs)
    rows: dict[str, dict[int, Run]] = {}
    for run, name in zip(runs, names):
        rows.setdefault(name, {})[run.seed] = run

    found = list(rows)

    def place(name: str) -> tuple[int, bool, int, int]:
        kind, of = controls.get(name, ("", name))
        head = of if of in rows else name
        group = next(iter(rows[head].values())).group
        by_group = len(_ORDER) + (group == "blind") if group not in _ORDER else _ORDER.index(group)
        return by_group, head != "naive", found.index(head), CONTROLS.index(kind) + 1 if kind else 0

    ordered = {name: dict(sorted(rows[name].items())) for name in sorted(rows, key=place)}
    board = Board(stream, said, ordered, notes, controls)
    missing = [
        f"{name}: {', '.join(map(str, sorted(set(board.seeds) - set(mine))))}"
        for name, mine in ordered.items()
        if set(mine) != set(board.seeds)
    ]
    if missing:
        return replace(board, notes=(*notes, f"Seeds missing here: {'; '.join(missing)}."))
    return board


def _names(runs: Sequence[Run]) -> tuple[list[str], dict[str, tuple[str, str]], tuple[str, ...]]:
    """Return the row of each run: its method, without overrides that all runs share, and told apart where needed.

    Also, for the rows that are controls, which kind and of which row.
    """
    changes = [_overrides(run.control[1] if run.control else run.method) for run in runs]
    entries = [each for run, (_, each) in zip(runs, changes) if not run.control] or [each for _, each in changes]
    shared = set.intersection(*map(set, entries)) if entries else set()
    names, kinds = [], []
    for run, (name, each) in zip(runs, changes):
        own = [override for override in each if override not in shared]
        base = f"{name}({','.join(own)})" if own else name
        kinds.append((run.control[0], base) if run.control else None)
        names.append(_control_name(run.control[0], base) if run.control else base)
    notes = [f"All rows were run with {', '.join(sorted(shared))}."] if shared else []
    for name in dict.fromkeys(names):
        mine = [i for i, other in enumerate(names) if other == name]
        if len({runs[i].seed for i in mine}) == len(mine):
            continue
        settings = [_method_settings(runs[i]) for i in mine]
        for i, said in zip(mine, differences(settings)):
            names[i] = f"{name}({','.join(said)})" if said else name
        again = Counter((names[i], runs[i].seed) for i in mine)
        for i in [i for i in mine if again[names[i], runs[i].seed] > 1]:  # nothing in their settings tells them apart
            names[i] = f"{names[i]} [{runs[i].info.get('id') or runs[i].folder.name}]"
        notes.append(f"'{name}' was run more than once with a seed; its rows say what differs.")
    return names, {name: kind for name, kind in zip(names, kinds) if kind}, tuple(notes)


def _control_name(kind: str, of: str) -> str:
    return {UNCHARGED: f"{of}: uncharged", SAME_UPDATES: f"naive: updates of {of}"}.get(kind, f"{of}: {kind}")


def _overrides(label: str) -> tuple[str, list[str]]:
    """Split "name(a=1,b=[2,3])" into the name and its overrides."""
    found = re.fullmatch(r"([^(]+)\((.*)\)", label)
    if not found:
        return label, []
    return found.group(1), re.split(r",(?=[^,\[\]{}]+=)(?![^\[{]*[\]}])", found.group(2))


def _method_settings(run: Run) -> dict[str, Any]:
    ignored = ("stream", "seed", "output", "name", "device", "tracker", "query")
    return {
        key: value
        for key, value in run.settings.items()
        if key.split(".")[0] not in ignored and not key.endswith(".seed")
    }
