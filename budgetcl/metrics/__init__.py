"""Metrics for streams: functions on numpy or torch arrays, and the same as torchmetrics classes.

The functions need torch and numpy only. The classes are loaded, and torchmetrics with them, when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; at run time each name is loaded when it is asked for
    from budgetcl.metrics.blind import *  # noqa: F403
    from budgetcl.metrics.functional import *  # noqa: F403
    from budgetcl.metrics.log import *  # noqa: F403
    from budgetcl.metrics.online import *  # noqa: F403
    from budgetcl.metrics.retention import *  # noqa: F403
    from budgetcl.metrics.spending import *  # noqa: F403
    from budgetcl.metrics.stats import *  # noqa: F403

_WHERE = {
    "functional": (
        "ByClass", "Retention", "accuracy", "accuracy_at_budget", "accuracy_by_step", "accuracy_matrix",
        "anytime_accuracy", "average_accuracy", "backward_transfer", "calibration_error", "class_accuracy",
        "final_accuracy", "forgetting", "forward_transfer", "information_retention", "longtail_accuracy",
        "near_future_accuracy", "near_future_curve", "negative_flip_rate", "online_accuracy", "top_k_hits",
    ),
    "blind": (
        "BlindMode", "ConstantMode", "DELAYS", "ShiftCurve", "WINDOWS", "blind_accuracy", "blind_predictions",
        "label_autocorrelation", "select_shift", "select_window", "shift_curve",
    ),
    "stats": ("Interval", "Ranks", "bootstrap_interval", "paired_difference", "rank_interval"),
    "log": ("COLUMNS", "check_log", "rows_of"),
    "online": ("BlindAccuracy", "NearFutureAccuracy", "NearFutureCurve", "OnlineAccuracy"),
    "retention": (
        "AverageAccuracy", "BackwardTransfer", "FinalAccuracy", "Forgetting", "ForwardTransfer",
        "InformationRetention", "NegativeFlipRate", "RetentionByAge",
    ),
    "spending": ("AccuracyAtBudget", "AnytimeAccuracy"),
}  # fmt: skip
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
