"""The errors that a user can mend: their message says what was given, what was expected and what mends it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints its message on one line and exits with status 2."""


class DoesNotApply(UserError):
    """What was asked for is no run of its own: it is another run already, or there is none. A sweep goes on."""


class Unrevealed(UserError):
    """A learner asked for a label, or an image, that the stream has not revealed yet."""


def nearest(given: str, known: Iterable[str]) -> str:
    """Return ``did you mean X?`` for the known name nearest to ``given``, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def at_least(minimum: int, **values: object) -> None:
    """Raise :class:`UserError` for each value that is not an integer of at least ``minimum``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UserError(f"{name}={value!r} given; an integer of at least {minimum} is expected")


def between(low: float, high: float, **values: object) -> None:
    """Raise :class:`UserError` for each value that is not a number in ``[low, high]``."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise UserError(f"{name}={value!r} given; a number from {low:g} to {high:g} is expected")


def positive_or_none(**values: object) -> None:
    """Raise :class:`UserError` for each value that is neither a number above 0 nor None."""
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and value > 0):  # type: ignore[operator]
            raise UserError(f"{name}={value!r} given; a number above 0, or null, is expected")


def one_of(known: Iterable[str], **values: object) -> None:
    """Raise :class:`UserError` for each value that is not one of the ``known`` names."""
    known = list(known)
    for name, value in values.items():
        if value not in known:
            raise UserError(f"{name}={value!r} given; {nearest(str(value), known)}")
