"""What a run is told before it begins: what would be refused on its way, what is less than was asked, long hours."""

from __future__ import annotations

from omegaconf import DictConfig

from budgetcl.assemble import Parts
from budgetcl.companions.calibration import Calibration
from budgetcl.dry_run import Tally, rehearse, speed, whole
from budgetcl.errors import UserError
from budgetcl.late import refusal

HOUR = 3600.0
LIGHT = 3e12  # FLOPs that any processor gets through in an hour: the speed of this one need not be looked at
SECONDS, STEPS = 1.0, 50  # of the processor, and of the stream, to simulate; steps are much alike after so many
CERTAIN = 60.0  # seconds of the processor, to make sure of what a late step seems to be refused for


def warning(cfg: DictConfig, parts: Parts) -> str | None:
    """Simulate a run, or its first steps where it is long; return what to say of it, None where there is nothing.

    What its method cannot pay for in these steps is refused here, before anything is trained or written. An overhead
    that grows with what was seen is looked for in the last steps (:mod:`budgetcl.late`); where one seems to be too
    large, the whole run is simulated, step by step, so that none is refused that would go through. For a long run on a
    processor the time is estimated as well, at the speed of a real forward and backward; how long pictures take to
    decode it does not know.

    Raises:
        UserError: an allowance does not pay for what the method does beside training, or for an update.
    """
    try:
        simulated, tally = rehearse(cfg, SECONDS, parts.compute.prices, parts.source, STEPS)
        said = _uncalibrated(simulated, tally), _late(cfg, parts, tally), _long(cfg, parts, simulated, tally)
    except UserError:
        raise
    except Exception as error:  # one's own component need not run on blank images
        return f"what this run costs cannot be foreseen: {type(error).__name__}: {error}"
    return "; ".join(filter(None, said)) or None


def _long(cfg: DictConfig, parts: Parts, simulated: Parts, tally: Tally) -> str | None:
    """Return what to say of a run that takes hours without a GPU, None of a shorter one."""
    flops = whole(simulated, tally)
    if parts.compute.device.type != "cpu" or flops < LIGHT or (seconds := flops / speed(simulated)) < HOUR:
        return None
    budget = parts.compute.budget
    given = next(name for name in ("updates", "passes", "flops") if getattr(budget, name) is not None)
    smaller = "a smaller stream.size, " if hasattr(cfg.stream, "size") else ""
    return (
        f"this run is estimated at {seconds / HOUR:,.1f} hours without a GPU; shorter: {smaller}"
        f"a lower budget.{given} (now {_said(getattr(budget, given))}), fewer samples, or a smaller backbone; "
        "budgetcl price with the same settings shows what costs how much"
    )


def _uncalibrated(simulated: Parts, tally: Tally) -> str | None:
    """Return what to say where a calibration was chosen and no step that was simulated calibrates; else None."""
    calibration = getattr(getattr(simulated, "learner", None), "calibration", None)
    if type(calibration) in (type(None), Calibration) or "calibrate" in tally.ledger["category"]:
        return None
    return (
        f"nothing is calibrated in the first {len(tally.steps['updates'])} of {len(simulated.source.stream)} steps, "
        "which were simulated: no new classes came beside old ones, nothing was held out, or an allowance does not pay "
        "for one image; raise calibration.share or calibration.spend, or the budget"
    )


def _late(cfg: DictConfig, parts: Parts, tally: Tally) -> str | None:
    """Return what to say of the steps that were not simulated, None where there is nothing.

    Raises:
        UserError: what one of them would be refused for.
    """
    steps = len(parts.source.stream)
    if len(tally.steps["updates"]) == steps:
        return None
    try:
        feared = refusal(cfg, parts, tally)
    except Exception:  # one's own component need not run on a stream with steps left out
        return None
    if feared is None:
        return None
    done = len(rehearse(cfg, CERTAIN, parts.compute.prices, parts.source)[1].steps["updates"])
    if done == steps:
        return None
    return f"the first {done} steps can be paid for, a late one perhaps not: {feared}"


def crowded(parts: Parts) -> str | None:
    """Return what to say where a memory has fewer places than the stream has classes; None where it has enough."""
    stream, capacity = parts.source.stream, getattr(getattr(parts.learner, "memory", None), "capacity", None)
    classes = int((stream.first_seen() < len(stream)).sum())
    if capacity is None or capacity >= classes:
        return None
    return (
        f"memory.capacity={capacity}, and the stream reveals {classes} classes: some classes keep no sample between "
        "steps, and lots or ages decide which; raise memory.capacity"
    )


def _said(value: float | tuple[float, ...]) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else f"{min(value):g} to {max(value):g}"
