"""What the claims of both papers are measured on: streams, budgets, methods, and the runs that each claim needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from budgetcl.configuration import conf_folder

FIRST_SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
UNLIMITED_TIMES = 60  # as long as at C, at the sizes below: 8,550 updates instead of 96


@dataclass(frozen=True)
class Setting:
    """A stream and a budget, under which methods are compared.

    Attributes:
        name: what it is called in a claim.
        overrides: of the configuration.
        seconds: what naive training takes, about, on one free core.
    """

    name: str
    overrides: tuple[str, ...]
    seconds: float

    @property
    def folder(self) -> str:
        """Where its runs lie: other overrides, another folder."""
        return f"{self.name}-{hashlib.sha256(' '.join(self.overrides).encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Job:
    """One run: a method, or a control of it, under a setting."""

    setting: Setting
    method: str
    seed: int
    control: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What it is found again by."""
        return self.setting.folder, self.method, self.control, self.seed

    @property
    def seconds(self) -> float:
        """What it takes on one free core, about, where methods are as fast as naive training."""
        return self.setting.seconds * (UNLIMITED_TIMES if self.control == "unlimited" else 1)

    def overrides(self, output: Path) -> list[str]:
        """Return what `budgetcl run` would be given."""
        control = [f"control={self.control}"] if self.control else []
        own = [f"method={self.method}", f"seed={self.seed}", *control]
        return [*self.setting.overrides, *own, f"output={output}", f"name={self.setting.folder}"]


# --- sizes: docs/claims.md says why ---------------------------------------------------------------------------

CLASSES, STEPS, UPDATES = 120, 6, 16  # of pretraining and again of the stream; time steps; C in updates of 64
GLYPHS = ("stream=glyphs", f"stream.pretrain_classes={CLASSES}", f"stream.stream_classes={CLASSES}")
AT_C = Setting("glyphs", (*GLYPHS, f"stream.steps={STEPS}", f"budget.updates={UPDATES}"), 4)
BUDGETS = {
    0.25: Setting("glyphs-quarter", (*AT_C.overrides[:-1], f"budget.updates={UPDATES // 4}"), 2),
    1.0: AT_C,
    4.0: Setting("glyphs-4", (*AT_C.overrides[:-1], f"budget.updates={UPDATES * 4}"), 12),
    16.0: Setting("glyphs-16", (*AT_C.overrides[:-1], f"budget.updates={UPDATES * 16}"), 42),
}
TOTAL = 100  # updates, whatever the number of steps
SPLITS = {
    steps: Setting(
        f"glyphs-{steps}-steps",
        ("stream=glyphs", "stream.pretrain_classes=100", "stream.stream_classes=100", f"stream.steps={steps}",
         f"budget.updates={TOTAL // steps}"),
        seconds,
    )
    for steps, seconds in ((10, 4), (20, 5.5), (50, 9))
}  # fmt: skip
WEAK_PASSES = 48_000  # three tenths of what the shipped weights saw
STRENGTHS = {
    "shipped": AT_C,
    "weak": Setting("glyphs-weak", (*AT_C.overrides, "backbone.pretrained=outputs/claims/weak.safetensors"), 4),
    "scratch": Setting("glyphs-scratch", (*AT_C.overrides, "backbone.pretrained=null"), 4),
}
STRONGER = {  # the same at 4 C, where a weak backbone may have been trained far enough to matter
    "shipped": BUDGETS[4.0],
    "weak": Setting("glyphs-weak-4", (*BUDGETS[4.0].overrides, STRENGTHS["weak"].overrides[-1]), 12),
}
KNOBS = [(uploaders, burst, momentum) for momentum in (0, 0.9) for uploaders in (1, 4) for burst in (48, 12)]
MOMENTUM_RATE = 0.01  # the rate that goes with momentum 0.9


def uploads(uploaders: int, burst: int, momentum: float) -> Setting:
    """Return `uploads` with these knobs; S grows with a burst's length, as the default's 96 = 2 x 48 x 1 does."""
    shift = max(32, 2 * burst * uploaders)
    overrides = ["stream=uploads", "stream.samples=1600", f"stream.uploaders={uploaders}", f"stream.burst={burst}",
                 f"stream.shifts=[0,{shift}]", f"stream.shift={shift}"]  # fmt: skip
    if momentum:
        overrides += [f"optimiser.momentum={momentum}", f"optimiser.lr={MOMENTUM_RATE}"]
    return Setting(f"uploads-{uploaders}-{burst}-{momentum}", tuple(overrides), 6)


STREAMED = {knobs: uploads(*knobs) for knobs in KNOBS}

# --- methods -----------------------------------------------------------------------------------------------------

SWEPT = ("naive", "class_balanced", "kd_mse", "herding", "max_loss", "head_only")
SPLIT = ("naive", "class_balanced", "kd_mse", "herding")
COSTLY = ("kd_bce", "kd_kl", "kd_cosine", "kd_mse", "kd_feature", "herding", "kmeans", "least_confidence", "margin",
          "max_loss", "bias_correction")  # fmt: skip
PRICED = ("kd_kl", "kd_mse", "herding", "max_loss")  # of these also naive with their updates
HEADS = ("naive", "head_only", "head_only_cached")
TRAINED, FROZEN, BLIND = ("fifo", "er", "naive", "ace", "head_only"), ("nmc", "knn_hnsw"), ("last_label", "majority")


PAPERS = ("naive", "class_balanced", "recency_biased", "fifo", "herding", "kmeans", "least_confidence", "max_loss",
          "kd_bce", "kd_kl", "kd_cosine", "kd_mse", "cosine_head", "ace", "weight_aligning", "bias_correction",
          "temperature", "head_only", "head_only_cached", "er", "mir", "gdumb", "rwalk", "polrs",
          "knn_hnsw")  # fmt: skip


def neighbours() -> list[str]:
    """Return every method that looks at images and is in neither paper's tables."""
    known = sorted((conf_folder() / "method").glob("*.yaml"))
    return [path.stem for path in known if path.stem not in PAPERS and "group: blind" not in path.read_text("utf-8")]


def jobs_of(claim: str, seeds: Sequence[int]) -> list[Job]:
    """Return the runs that a claim needs, seed by seed."""
    match claim:
        case "methods":
            return [Job(AT_C, method, seed) for seed in seeds for method in PAPERS]
        case "neighbours":
            return [Job(AT_C, method, seed) for seed in seeds for method in neighbours()]
        case "price":
            pairs = [(method, "uncharged") for method in COSTLY] + [(method, "same_updates") for method in PRICED]
            return [Job(AT_C, method, seed, control) for seed in seeds for method, control in pairs]
        case "budget":
            settings = [setting for times, setting in BUDGETS.items() if times < 16]
            return [Job(setting, method, seed) for seed in seeds for setting in settings for method in SWEPT]
        case "large":
            return [Job(BUDGETS[16.0], method, seed) for seed in seeds for method in SWEPT]
        case "online":
            settings = [setting for (_, _, momentum), setting in STREAMED.items() if not momentum]
            methods = (*TRAINED, *FROZEN, *BLIND)
            return [Job(setting, method, seed) for seed in seeds for setting in settings for method in methods]
        case "momentum":
            settings = [setting for (_, _, momentum), setting in STREAMED.items() if momentum]
            return [Job(setting, method, seed) for seed in seeds for setting in settings for method in TRAINED]
        case "backbone":
            return [Job(setting, method, seed) for seed in seeds for setting in STRENGTHS.values() for method in HEADS]
        case "backbone-4":
            return [Job(setting, method, seed) for seed in seeds for setting in STRONGER.values() for method in HEADS]
        case "steps":
            return [Job(setting, method, seed) for seed in seeds for setting in SPLITS.values() for method in SPLIT]
        case "unlimited":
            return [Job(AT_C, "naive", seed, "unlimited") for seed in seeds]
    raise SystemExit(f"no such claim: {claim}; one of {', '.join((*CLAIMS, *APART))} is expected")


CLAIMS = (
    "methods", "price", "backbone", "budget", "online", "backbone-4", "steps", "large", "momentum", "neighbours",
)  # fmt: skip
APART = ("unlimited",)


# Without these a claim says nothing; they come first.
CORE = {
    "methods": PAPERS[: PAPERS.index("er")],
    "price": ("kd_kl", "kd_mse", "kd_cosine", "herding", "kmeans", "least_confidence", "max_loss"),
    "budget": ("naive", "kd_mse", "herding", "head_only"),
    "online": ("fifo", "er", "naive", "nmc", *BLIND),
    "backbone": ("naive", "head_only"),
    "backbone-4": ("naive", "head_only"),
    "steps": ("naive", "kd_mse", "herding"),
    "large": ("naive", "kd_mse", "herding"),
}


def planned(chosen: Sequence[str]) -> list[Job]:
    """Return all runs, each once, in the order in which they are made."""
    first, more = (
        [(claim, job) for claim in chosen for job in jobs_of(claim, seeds)] for seeds in (FIRST_SEEDS, MORE_SEEDS)
    )
    core = [
        job for claim, job in first + more if job.method in CORE.get(claim, ()) and job.control != "same_updates"
    ]  # fmt: skip
    return list(dict.fromkeys([*core, *(job for _, job in first + more)]))
