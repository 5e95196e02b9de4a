"""Write the tables of ImageNet2K (BudgetCL, CVPR 2023): class-incremental and data-incremental.

From the three sets as they are distributed, by the rule of the paper's authors:

    python scripts/prepare_imagenet2k.py --imagenet1k DIR --imagenet21k DIR --imagenetv2 DIR

    imagenet1k/{train,val}/<wnid>/<picture>   imagenet21k/<wnid>/<picture>   imagenetv2/<0..999 or wnid>/<picture>

From the authors' order files, text or HDF5, for pictures in the same three folders, or in one tree as theirs:

    python scripts/prepare_imagenet2k.py --lists DIR --imagenet1k DIR --imagenet21k DIR --imagenetv2 DIR
    python scripts/prepare_imagenet2k.py --lists ImageNet2K/order_files --tree ImageNet2K/data

The rule: the first 1,000 folders of ImageNet21K that are not among ImageNet1K's classes nor excluded and hold at least
1,200 pictures; each shuffled (Python's random, seed 0, one generator for all): 50 test, 10 validation, the rest train.
CI is the classes in that order, DI the same pictures shuffled once more. ImageNet1K's train pictures are the
pretraining set, its validation pictures their test set, ImageNetV2 (matched frequency) their validation set.

"First" is the authors' directory order, which their file system chose. By default folders and files are sorted by name,
which anyone can repeat and which is another stream than the published one; the hashes of the train sizes tell.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from budgetcl.data.prepared import Check, Prepared, add_arguments, conclude, script
from budgetcl.errors import UserError, at_least
from budgetcl.streams.order_files import OrderFiles, write_text

EXCLUDED = ("n13867492", "n15102894", "n09450163", "n10994097", "n11196627", "n11318824")  # problematic synsets
TEXT = {
    "pretrain": ("pretrain.txt",),
    "preval": ("preval.txt",),
    "pretest": ("pretest.txt",),
    "cls_inc": ("class_incremental_ordering.txt", "ordering_class_incremental.txt"),
    "data_inc": ("data_incremental_ordering.txt", "ordering_data_incremental.txt"),
    "val": ("val.txt",),
    "test": ("test.txt",),
}
HELD_OUT = ("pretrain", "preval", "pretest", "val", "test")
STREAMS = {"ci": "cls_inc", "di": "data_inc"}
LINE = r"^\s*/?(?:train|val|test)/(?P<wnid>[^/]+)/(?P<file>[^/]+?)\s*$"
TREE_LINE = r"(?P<wnid>[^/]+)/[^/]+?\s*$"  # the authors' zip files may nest folders
STEP = 50  # classes a step, in the published counts
SIZES_IN_ORDER = "6fa0c85209fb87ebaf0728802c806afd5c1991fd2f0b60b43327a49023ad2557"
SIZES_SORTED = "dab317f1d6b6d9af33cfac6e54a175e307d77295cdf3df8d1e54494401cabcea"
STEPS = [
    65067, 65197, 65646, 65041, 65978, 66824, 65281, 64694, 63651, 64471,
    64803, 64549, 64761, 65569, 64775, 64308, 64291, 65820, 65660, 66517,
]  # fmt: skip


@dataclass(frozen=True)
class Folders:
    """Where the pictures of each partition lie.

    Attributes:
        root: what the table's paths are relative to.
        base: partition -> the folder that stands for the order files' ``/train/``, ``/val/`` or ``/test/``.
        renamed: partition -> class -> its folder there, where that has another name.
    """

    root: Path
    base: Mapping[str, Path]
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def located(self, partition: str, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield an order file's samples with paths relative to the root and their folder, the class, as label."""
        codes: dict[Any, str] = {}
        base = os.path.relpath(self.base[partition], self.root)
        line = TREE_LINE if base == "." else LINE
        for batch in rows:
            parts = pc.extract_regex(batch["path"], line)
            if parts.null_count:
                row = int(np.argmin(parts.is_valid().to_numpy(zero_copy_only=False)))
                raise UserError(
                    f"the list of {partition} names {batch['path'][row].as_py()!r}; "
                    "/train/<class>/<file>, or val or test in its stead, is expected"
                )
            wnid, paths = pc.struct_field(parts, "wnid"), batch["path"]
            if pa.types.is_integer(batch["label"].type):
                _one_to_one(codes, batch["label"], wnid, partition)
            if base != ".":
                renamed = self.renamed.get(partition)
                folder = pa.array([renamed.get(w, w) for w in wnid.to_pylist()], pa.string()) if renamed else wnid
                paths = pc.binary_join_element_wise(pa.scalar(base), folder, pc.struct_field(parts, "file"), "/")
            yield pa.RecordBatch.from_pydict({"path": paths, "label": wnid})


def _one_to_one(codes: dict[Any, str], labels: pa.Array, wnid: pa.Array, partition: str) -> None:
    pairs = pa.table({"code": labels, "wnid": wnid}).group_by(["code", "wnid"]).aggregate([])
    for pair in pairs.to_pylist():
        if codes.setdefault(pair["code"], pair["wnid"]) != pair["wnid"]:
            raise UserError(
                f"the list of {partition} gives the label {pair['code']} to the folders {codes[pair['code']]} and "
                f"{pair['wnid']}; one label a folder is expected"
            )


def folders_of(options: argparse.Namespace) -> Folders:
    """Return where the pictures lie, by the options."""
    three = {name: getattr(options, name) for name in ("imagenet1k", "imagenet21k", "imagenetv2")}
    if options.tree is not None:
        if options.lists is None or any(three.values()):
            raise UserError(
                "tree holds pictures as the authors' order files name them: give lists with it, and no more"
            )
        return Folders(options.tree, dict.fromkeys(TEXT, options.tree))
    absent = [name for name, path in three.items() if path is None or not path.is_dir()]
    if absent:
        raise UserError(f"{absent[0]}={three[absent[0]]} given; the folder of that set is expected, or tree with lists")
    one, many, two = three.values()
    base = {"pretrain": one / "train", "pretest": one / "val", "preval": two}
    base |= dict.fromkeys(("cls_inc", "data_inc", "val", "test"), many)
    root = options.root or Path(os.path.commonpath([path.resolve() for path in three.values()]))
    classes, places = entries(base["pretrain"], "folders"), entries(two, "folders")
    numbered = all(place.isdecimal() for place in places)
    renamed = {"preval": {wnid: str(number) for number, wnid in enumerate(classes)}} if numbered else {}
    if numbered and any(int(place) >= len(classes) for place in places):
        raise UserError(f"{two} holds folders up to {max(map(int, places))}, {one / 'train'} {len(classes)} classes")
    return Folders(root.resolve(), {name: path.resolve() for name, path in base.items()}, renamed)


def entries(folder: Path, kind: str, listing: str = "name") -> list[str]:
    """Return the names of the "folders" or "files" in a folder, by name or as the file system lists them."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing")
    with os.scandir(folder) as found:
        names = [e.name for e in found if (e.is_dir() if kind == "folders" else e.is_file()) and e.name[0] != "."]
    return sorted(names) if listing == "name" else names


def divided(folders: Folders, options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the lines of all order files, by the rule above."""
    listing, lines = options.listing, {partition: list[str]() for partition in TEXT}
    known = entries(folders.base["pretrain"], "folders", listing)
    for partition, part in (("pretrain", "train"), ("preval", "val"), ("pretest", "test")):
        base, renamed = folders.base[partition], folders.renamed.get(partition, {})
        for wnid in known:
            files = entries(base / renamed.get(wnid, wnid), "files", listing)
            lines[partition] += [f"/{part}/{wnid}/{name}" for name in files]
    rng = random.Random(options.seed)
    kept, skipped = 0, {*known, *options.exclude}
    for wnid in entries(folders.base["cls_inc"], "folders", listing):
        if kept == options.classes:
            break
        files = entries(folders.base["cls_inc"] / wnid, "files", listing) if wnid not in skipped else []
        if len(files) < options.least:
            continue
        kept += 1
        rng.shuffle(files)
        test, val = options.test, options.test + options.val
        lines["test"] += [f"/test/{wnid}/{name}" for name in files[:test]]
        lines["val"] += [f"/val/{wnid}/{name}" for name in files[test:val]]
        lines["cls_inc"] += [f"/train/{wnid}/{name}" for name in files[val:]]
    if kept < options.classes:
        raise UserError(
            f"{folders.base['cls_inc']} has {kept} new classes of at least {options.least} pictures; "
            f"classes={options.classes} are expected"
        )
    lines["data_inc"] = lines["cls_inc"].copy()
    rng.shuffle(lines["data_inc"])
    return lines


def build(folders: Folders, options: argparse.Namespace, lists: Path) -> None:
    """Write order files by the rule above, named as the authors'."""
    at_least(1, classes=options.classes)
    at_least(0, test=options.test, val=options.val, seed=options.seed)
    at_least(options.test + options.val + 1, least=options.least)
    lists.mkdir(parents=True, exist_ok=True)
    lines = divided(folders, options)
    for partition, names in TEXT.items():
        write_text(lists / names[0], [pa.RecordBatch.from_pydict({"path": pa.array(lines[partition], pa.string())})])
    classes = dict.fromkeys(line.split("/")[2] for line in lines["cls_inc"])
    (lists / "class_order.txt").write_text("".join(f"{wnid}\n" for wnid in classes), encoding="utf-8")


class Runs:
    """Follows a class-incremental list: each class must come in one piece."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self._last: str | None = None

    def through(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the samples as they are.

        Raises:
            UserError: a class comes back after another one.
        """
        for batch in rows:
            runs = pc.run_end_encode(batch["label"])
            ends = runs.run_ends.to_numpy()
            for wnid, length in zip(runs.values.to_pylist(), np.diff(ends, prepend=0).tolist()):
                if wnid != self._last and wnid in self.seen:
                    line = sum(self.seen.values()) + 1
                    raise UserError(
                        f"the list of cls_inc, line {line}: {wnid} comes back; each class in one piece is expected"
                    )
                self.seen[wnid] = self.seen.get(wnid, 0) + length
                self._last = wnid
            yield batch


def checks_of(counts: Mapping[str, Mapping[str, int]], sizes: Sequence[int]) -> list[Check]:
    """Compare a table's counts, and the train sizes of its new classes in their order, with the published ones."""
    total = {split: sum(count.values()) for split, count in counts.items()}
    both = {name: total.get(name, 0) + total.get(f"pre{name}", 0) for name in ("train", "test", "val")}
    return [
        Check("pretraining classes", 1000, len(counts.get("pretrain", ()))),
        Check("new classes", 1000, len(sizes)),
        Check("train, both", 2_584_070, both["train"]),
        Check("test, both", 100_000, both["test"]),
        Check("validation, both", 20_000, both["val"]),
        Check("train of the new classes", 1_302_903, sum(sizes)),
        Check("smallest new class", 1140, min(sizes)),
        Check("median new class", 1243, int(np.median(sizes))),
        Check("largest new class", 2207, max(sizes)),
        Check("20 steps of 50 classes", STEPS, [sum(sizes[i : i + STEP]) for i in range(0, len(sizes), STEP)]),
        Check("train sizes, sorted (SHA-256)", SIZES_SORTED, hashed(sorted(sizes))),
        Check("train sizes, in order (SHA-256)", SIZES_IN_ORDER, hashed(sizes)),
    ]


def hashed(sizes: Sequence[int]) -> str:
    """Return the SHA-256 of sizes joined by commas."""
    return hashlib.sha256(",".join(map(str, sizes)).encode()).hexdigest()


def main(options: argparse.Namespace) -> int:
    """Write both tables."""
    folders = folders_of(options)
    output = options.output or folders.root / "imagenet2k.parquet"
    lists = options.lists or output.parent / "order_files"
    if options.lists is None:
        build(folders, options, lists)
    files = OrderFiles(lists, TEXT)
    held_out = [partition for partition in HELD_OUT if files.files(partition)]
    sizes: dict[str, int] = {}
    status, sums = 0, set()
    for kind, partition in STREAMS.items():
        path = output.with_name(f"{output.stem}_{kind}{output.suffix}")
        # The second table holds the same pictures: they are looked for once.
        missing = options.missing if kind == "ci" or options.missing == "drop" else "trust"
        with Prepared(path, folders.root, missing=missing) as table:
            for split in held_out:
                table.add(split, folders.located(split, files.rows(split)))
            rows, runs = folders.located(partition, files.rows(partition)), Runs()
            table.add("train", runs.through(rows) if kind == "ci" else rows)
            sizes = sizes or dict(table.counts["train"])
            sums.add(table.train_sum)
            if len(sums) > 1:
                raise UserError("the lists of cls_inc and data_inc do not name the same pictures")
            checks = checks_of(table.counts, list(sizes.values())) if options.expect == "published" else []
            notes = [verdict(list(sizes.values()), options)]
            read = {part: [file.name for file in files.files(part)] for part in (*held_out, partition)}
            said = table.finish(
                "prepare_imagenet2k.py", ordering(kind, options), settings(options), checks, notes, read=read
            )
        status |= conclude(said, checks if kind == "ci" else [], path, folders.root)
    return status


def ordering(kind: str, options: argparse.Namespace) -> str:
    """Return what the order of the stream is."""
    what = {"ci": "class-incremental", "di": "data-incremental"}[kind]
    if options.lists is not None:
        return f"{what}, by the lists given"
    return f"{what}, folders and files {'sorted by name' if options.listing == 'name' else 'in directory order'}"


def verdict(sizes: Sequence[int], options: argparse.Namespace) -> str:
    """Return whether the class order is the published one, as far as the train sizes tell."""
    if hashed(sizes) == SIZES_IN_ORDER:
        if options.lists is not None:
            return "the train sizes are the published ones, in their order"
        return (
            "the class order is the published one by its train sizes; which pictures of a class are test depends on "
            "the order of its files, which no published number tells: compare with the authors' lists"
        )
    if hashed(sorted(sizes)) == SIZES_SORTED:
        return "the classes have the published train sizes in another order: never compare with the published stream"
    return "not the published classes: never compare with the published stream"


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what decided the tables."""
    if options.lists is not None:
        return {"missing": options.missing}
    names = ("classes", "least", "test", "val", "seed", "exclude", "listing", "missing")
    return {name: getattr(options, name) for name in names}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="prepare_imagenet2k"
    )
    for name in ("imagenet1k", "imagenet21k", "imagenetv2"):
        parser.add_argument(f"--{name}", type=Path, help="the folder of that set")
    parser.add_argument("--lists", type=Path, help="the folder of the authors' order files, instead of the rule")
    parser.add_argument("--tree", type=Path, help="the pictures in one tree of train, val and test, instead of three")
    parser.add_argument("--root", type=Path, help="what paths are relative to (default: the sets' common folder)")
    parser.add_argument(
        "--listing", choices=("name", "directory"), default="name", help="the order of folders and files"
    )
    parser.add_argument("--classes", type=int, default=1000, help="new classes")
    parser.add_argument("--least", type=int, default=1200, help="pictures that a new class has at least")
    parser.add_argument("--test", type=int, default=50, help="test pictures of a new class")
    parser.add_argument("--val", type=int, default=10, help="validation pictures of a new class")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffles")
    parser.add_argument("--exclude", nargs="*", default=list(EXCLUDED), help="synsets left out")
    add_arguments(parser, "imagenet2k.parquet (imagenet2k_ci and imagenet2k_di)")
    return parser


if __name__ == "__main__":
    sys.exit(script(main, parser()))
