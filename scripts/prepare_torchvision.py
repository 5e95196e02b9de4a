"""Write CIFAR10, CIFAR100, MNIST or Fashion-MNIST as PNG files and a table, from the files that torchvision knows.

    python scripts/prepare_torchvision.py cifar10 --root DATA          -> DATA/cifar10/cifar10.parquet

    DATA/cifar-10-batches-py/   DATA/cifar-100-python/   DATA/MNIST/raw/   DATA/FashionMNIST/raw/

Nothing is downloaded: where the files are missing, torchvision fetches them with
``python -c "import torchvision; torchvision.datasets.CIFAR10('DATA', download=True)"``. CIFAR's files are compared with
torchvision's MD5 sums before they are read; MNIST's archives are, where they still lie beside the extracted files.

PNG keeps every pixel. The table has no order of its own: a run takes the training pictures class by class
(stream.order=class) or shuffled (stream.order=data). --val holds out training pictures of each class for tuning.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from budgetcl.data.prepared import Check, Prepared, conclude, script
from budgetcl.errors import UserError, at_least
from budgetcl.randomness import generator

KINDS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
SAMPLES = {"cifar10": (50_000, 10_000, 10), "cifar100": (50_000, 10_000, 100)}  # train, test, classes
SAMPLES |= dict.fromkeys(("mnist", "fashion_mnist"), (60_000, 10_000, 10))


def main(options: argparse.Namespace) -> int:
    """Write the pictures and the table."""
    at_least(0, val=options.val, seed=options.seed)
    output = options.output or options.root / options.kind / f"{options.kind}.parquet"
    folder = output.parent
    sets = {"train": read(options.kind, options.root, True), "test": read(options.kind, options.root, False)}
    held_out = drawn(sets["train"][1], options.val, options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    with Prepared(output, folder, ordered=False) as table:
        for split, rows in (("train", ~held_out), ("val", held_out)):
            table.add(split, [written(folder, "train", sets["train"], np.flatnonzero(rows))] if rows.any() else [])
        table.add("test", [written(folder, "test", sets["test"], np.arange(len(sets["test"][1])))])
        checks = checks_of(options.kind, table, options.val) if options.expect == "published" else []
        said = table.finish(
            "prepare_torchvision.py",
            "chosen by each run: by class or shuffled",
            {"val": options.val, "seed": options.seed},
            checks,
        )
    return conclude(said, checks, output, folder)


def read(kind: str, root: Path, train: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return (n, height, width[, 3]) uint8 pixels, (n,) labels and the classes' names.

    Raises:
        UserError: the files are not there, or not those that torchvision knows.
    """
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    known = getattr(datasets, KINDS[kind])
    try:
        data: Any = known(str(root), train=train, download=False)
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
        raise UserError(
            f"{KINDS[kind]} cannot be read below {root} ({' '.join(str(error).split())}): "
            f"torchvision.datasets.{KINDS[kind]}({str(root)!r}, download=True) fetches it"
        ) from error
    for name, md5 in getattr(known, "resources", ()):
        archive = Path(data.raw_folder) / name
        if archive.is_file() and not check_integrity(str(archive), md5):
            raise UserError(f"{archive} has not the MD5 sum {md5} that torchvision knows: fetch it again")
    pixels, labels = np.asarray(data.data, np.uint8), np.asarray(data.targets, np.int64)
    if len(pixels) != len(labels):
        raise UserError(f"{KINDS[kind]} below {root} has {len(pixels)} pictures and {len(labels)} labels")
    return pixels, labels, [str(name) for name in data.classes]


def drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return which samples are held out: ``count`` of each class, at random."""
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        if count >= len(mine):
            raise UserError(f"val={count} given; fewer than the {len(mine)} pictures of class {label} are expected")
        held_out[generator(seed, "validation", int(label)).permutation(mine)[:count]] = True
    return held_out


def written(
    folder: Path, part: str, data: tuple[np.ndarray, np.ndarray, list[str]], rows: np.ndarray
) -> pa.RecordBatch:
    """Write pictures as ``<part>/<class number>/<number>.png`` and return their rows."""
    from PIL import Image

    pixels, labels, names = data
    paths = [f"{part}/{labels[row]}/{row:05d}.png" for row in rows]
    for label in np.unique(labels[rows]):
        (folder / part / str(label)).mkdir(parents=True, exist_ok=True)
    for row, path in zip(rows, paths):
        Image.fromarray(pixels[row]).save(folder / path)
    return pa.RecordBatch.from_pydict({"path": paths, "label": [names[label] for label in labels[rows]]})


def checks_of(kind: str, table: Prepared, val: int) -> list[Check]:
    """Compare with the known sizes."""
    train, test, classes = SAMPLES[kind]
    got = {split: sum(counts.values()) for split, counts in table.counts.items()}
    return [
        Check("classes", classes, len(table.counts["train"])),
        Check("train and validation", train, got["train"] + got.get("val", 0)),
        Check("validation", val * classes, got.get("val", 0)),
        Check("test", test, got["test"]),
    ]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="prepare_torchvision"
    )
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("--root", type=Path, required=True, help="the folder that torchvision's classes are given")
    parser.add_argument("--output", type=Path, help="the table; the pictures lie beside it (default: <root>/<kind>/)")
    parser.add_argument("--val", type=int, default=0, help="training pictures of each class held out for tuning")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--expect", choices=("published", "none"), default="published", help="compare the known sizes")
    return parser


if __name__ == "__main__":
    sys.exit(script(main, parser()))
