"""A run that would take more than an hour without a GPU says so before it begins, and how to make it shorter."""

from __future__ import annotations

from omegaconf import DictConfig

from budgetcl.assemble import Parts
from budgetcl.dry_run import estimate

HOUR = 3600.0
# Numbers of images (pictures x channels x height x width) that are trained on: any network gets through fewer in an
# hour on any processor, so that small runs need not be estimated. ResNet-50 manages some 750,000 a second on a laptop.
LIGHT = 1e9


def warning(cfg: DictConfig, parts: Parts) -> str | None:
    """Return what to say of a run that is estimated above an hour on a processor; None where there is nothing to say.

    The estimate is that of the dry run: simulated for a moment, at the speed of a real forward and backward here. It
    knows nothing of how long pictures take to decode.
    """
    if parts.compute.device.type != "cpu" or _numbers(parts) < LIGHT:
        return None
    seconds = estimate(cfg, str(cfg.method.name), 0.3, parts.compute.prices).seconds
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


def _numbers(parts: Parts) -> float:
    """Return how many numbers of images naive training would learn from, at least."""
    budget, stream = parts.compute.budget, parts.source.stream
    channels, height, width = parts.source.pixels.shape
    if budget.passes is not None:
        images = budget.passes * stream.samples
    elif budget.updates is not None:
        images = budget.updates_of(len(stream)) * parts.compute.reference.batch
    else:
        return float("inf")  # an allowance in FLOPs says nothing of images
    return float(images * channels * height * width)
