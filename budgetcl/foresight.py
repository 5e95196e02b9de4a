"""What a run is told before it begins: what would be refused on its way, hours without a GPU."""

from __future__ import annotations

from omegaconf import DictConfig

from budgetcl.assemble import Parts
from budgetcl.dry_run import rehearse, speed, whole
from budgetcl.errors import UserError

HOUR = 3600.0
LIGHT = 3e12  # FLOPs that any processor gets through in an hour: the speed of this one need not be looked at
SECONDS, STEPS = 1.0, 50  # of the processor, and of the stream, to simulate; steps are much alike after so many


def warning(cfg: DictConfig, parts: Parts) -> str | None:
    """Simulate a run, or its first steps where it is long; return what to say of it, None where there is nothing.

    What its method cannot pay for in these steps is refused here, before anything is trained or written. For a long run
    on a processor the time is estimated as well, at the speed of a real forward and backward; how long pictures take to
    decode it does not know.

    Raises:
        UserError: an allowance does not pay for what the method does beside training, or for an update.
    """
    try:
        simulated, tally = rehearse(cfg, SECONDS, parts.compute.prices, parts.source, STEPS)
        flops = whole(simulated, tally)
        if parts.compute.device.type != "cpu" or flops < LIGHT:
            return None
        seconds = flops / speed(simulated)
    except UserError:
        raise
    except Exception as error:  # one's own component need not run on blank images
        return f"what this run costs cannot be foreseen: {type(error).__name__}: {error}"
    if seconds < HOUR:
        return None
    budget = parts.compute.budget
    given = next(name for name in ("updates", "passes", "flops") if getattr(budget, name) is not None)
    smaller = "a smaller stream.size, " if hasattr(cfg.stream, "size") else ""
    return (
        f"this run is estimated at {seconds / HOUR:,.1f} hours without a GPU; shorter: {smaller}"
        f"a lower budget.{given} (now {_said(getattr(budget, given))}), fewer samples, or a smaller backbone; "
        "budgetcl price with the same settings shows what costs how much"
    )


def _said(value: float | tuple[float, ...]) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else f"{min(value):g} to {max(value):g}"
