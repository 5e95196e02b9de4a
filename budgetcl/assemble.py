"""From a configuration to the objects of a run. With the command line, the only place that knows hydra."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import budgetcl
from budgetcl.budget.allowance import Reference
from budgetcl.budget.compute import Compute
from budgetcl.budget.formulas import ACCOUNTING_VERSION
from budgetcl.budget.prices import Prices
from budgetcl.errors import UserError, at_least, nearest, one_of
from budgetcl.learners.learner import Learner
from budgetcl.models.heads import LinearHead
from budgetcl.models.network import Network
from budgetcl.objectives.cross_entropy import CrossEntropy
from budgetcl.streams.batch import Source

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h

# What a result depends on; the rest (device, output, tracker, name) is recorded, not hashed.
SCIENTIFIC = ("stream", "budget", "reference", "learner", "metrics", "seed", "threads", "precision")
# Overrides of these do not make another method.
_NOT_THE_METHOD = ("method", "seed", "stream", "output", "name", "device", "tracker", "threads", "experiment", "hydra")


@dataclass(frozen=True)
class Parts:
    """What a run is made of, beside its record."""

    source: Source
    learner: Learner
    compute: Compute


def conf_folder() -> Path:
    """Return where the configuration lies: inside the installed package, or beside it in a checkout."""
    package = Path(budgetcl.__file__).parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "run.yaml").exists():
            return folder
    raise UserError(f"the configuration is missing beside '{package}': install budgetcl again")


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free instead of handing it back after each update: some 5 % of the CPU time."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
            libc = ctypes.CDLL(None)
            libc.mallopt(_MMAP_THRESHOLD, 1 << 28)
            libc.mallopt(_TRIM_THRESHOLD, 1 << 28)


def device_of(name: str) -> torch.device:
    """Return the device of a name; "auto" takes CUDA, then MPS, then the CPU."""
    kind, _, number = str(name).partition(":")
    one_of(("auto", "cpu", "cuda", "mps"), device=kind)
    if number and not (kind == "cuda" and number.isdecimal() and int(number) < torch.cuda.device_count()):
        raise UserError(f"device={name} given; torch finds {torch.cuda.device_count()} CUDA devices, counted from 0")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={name} given, but torch finds no CUDA device: set device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps given, but torch finds no MPS device: set device=cpu")
    return torch.device(name)


def build(node: Any, **arguments: Any) -> Any:
    """Instantiate one component of the configuration; its own refusals come through as they are.

    Raises:
        UserError: the component refused its arguments, or does not know one of them.
    """
    try:
        return instantiate(node, **arguments)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        first = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{node.get('_target_', 'a component')} cannot be made: {first}") from error


def make_parts(cfg: DictConfig, source: Source | None = None) -> Parts:
    """Make stream, learner and compute of a configuration."""
    at_least(0, seed=cfg.seed)
    at_least(1, threads=cfg.threads, query=cfg.query)
    torch.set_num_threads(cfg.threads)
    keep_freed_memory()
    source = source or build(cfg.stream)
    prices = Prices()
    backbone = build(cfg.reference.backbone)
    reference = Reference(
        Network(backbone, LinearHead(backbone.feature_dim)),
        CrossEntropy(),
        cfg.reference.batch,
        source.pixels.shape,
        prices,
    )
    compute = Compute(prices, build(cfg.budget), reference, device_of(cfg.device), cfg.precision)
    return Parts(source, build(cfg.learner), compute)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as resolved, plain data."""
    data = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items() if key != "hydra"}


def run_id(config: Mapping[str, Any]) -> str:
    """Return the hash of the scientific part of a configuration."""
    data = {key: config[key] for key in SCIENTIFIC}
    data["method"], data["accounting"] = config["method"]["name"], ACCOUNTING_VERSION
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:12]


def method_label(name: str, overrides: Sequence[str]) -> str:
    """Return what a row is called: the method's name, and what was changed about it."""
    changes = [
        override
        for override in overrides
        if override.lstrip("+~").split("=")[0].split(".")[0].split("@")[0] not in _NOT_THE_METHOD
    ]
    return f"{name}({','.join(changes)})" if changes else str(name)


def compose(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of some overrides without hydra's command line (``--config-dir`` is understood)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    overrides = list(overrides)
    for option in ("--config-dir", "-cd"):
        if option in overrides:
            at = overrides.index(option)
            if at + 1 == len(overrides):
                raise UserError(f"{option} given without a folder")
            folder = Path(overrides[at + 1]).absolute()
            if not folder.is_dir():
                raise UserError(f"{option} {overrides[at + 1]} given; that is no folder")
            overrides[at : at + 2] = [f"hydra.searchpath=[file://{folder}]"]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_folder())):
        return hydra_compose("run", overrides=overrides)


def known_keys() -> list[str]:
    """Return the keys of the default configuration, dotted, and the groups."""

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, Mapping):
            return []
        keys = []
        for key, value in node.items():
            keys += [f"{prefix}{key}", *walk(value, f"{prefix}{key}.")]
        return keys

    return walk(OmegaConf.to_container(compose([]), resolve=False), "") + groups([conf_folder()])


def groups(folders: Sequence[Path]) -> list[str]:
    """Return the names of the configuration's groups."""
    return sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir()})


def list_group(group: str | None, config_dir: str | None) -> None:
    """Print the groups, or the choices of one with the line that describes each.

    Raises:
        UserError: there is no such group or folder.
    """
    folders = [conf_folder(), *([Path(config_dir)] if config_dir else [])]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder} given; that is no folder")
    names = [name for name in groups(folders) if name not in ("hydra",)]
    if group is None:
        for name in names:
            print(name)
        return
    name = next((n for n in names if group in (n, f"{n}s")), None)
    if name is None:
        raise UserError(f"no such group: {group}; {nearest(group, names)}")
    choices = {path.stem: path for folder in folders for path in sorted((folder / name).glob("*.yaml"))}
    width = max(map(len, choices), default=0)
    for choice, path in choices.items():
        comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        described = next((line for line in comments if not line.startswith("@package")), "")
        print(f"{choice:<{width}}  {described}".rstrip())
