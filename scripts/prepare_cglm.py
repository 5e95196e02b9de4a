"""Write the table of CGLM: Google Landmarks V2 in the order of time (BudgetCL, CVPR 2023; EvalOCL, ICCV 2023).

From Google Landmarks V2 and the dates of its pictures:

    python scripts/prepare_cglm.py --ordering upload --gldv2 DIR --dates dates.csv
    python scripts/prepare_cglm.py --ordering upload --gldv2 DIR --metadata FOLDER

    DIR/train_clean.csv (landmark_id, images)   DIR/train.csv (id, landmark_id; compared, if there)
    DIR/train/<a>/<b>/<c>/<id>.jpg              a, b, c: the first three characters of the id

From lists, text (``label<TAB>path[<TAB>time]``: train.txt, test.txt and, if there, pretrain.txt) or HDF5:

    python scripts/prepare_cglm.py --ordering exif --lists CGLM/order_files --pictures CGLM/data

There are two orderings, by the date of upload and by the date in EXIF, which say different things; their authors warn
never to compare across them, so which one it is must be said. The authors' HDF5 lists are in the order of EXIF dates
(the notes of ACM, 2023, say so of their site).

The rule, for the first way: pictures of the clean list with a date; classes under 25 of them dropped; a random tenth is
test; of the rest, by time, the first fifth is the tuning prefix and what follows is streamed. Assumed, as no paper says
it, and settings here: classes are counted after pictures without a date are dropped (--count), the seed of the draw
(--seed), ties in time by picture id, the folders (--rule), the element of the metadata (--element).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa

from budgetcl.data.prepared import Check, Prepared, add_arguments, conclude, script
from budgetcl.errors import UserError, at_least, between
from budgetcl.randomness import generator
from budgetcl.streams.order_files import OrderFiles, parsed

Rows = Iterable[pa.RecordBatch]

RULE = "{0}/{1}/{2}/{id}.jpg"
ELEMENTS = {"upload": "upload_date", "exif": "DateTimeOriginal"}
ORDERINGS = {"upload": "by the date of upload", "exif": "by the date in EXIF"}
WARNING = (
    "CGLM has two orderings, by the date of upload and by the date in EXIF: never compare runs on one with runs on the "
    "other"
)
PARTITIONS = {"pretrain": "prefix", "train": "train", "test": "test"}


def main(options: argparse.Namespace) -> int:
    """Write the table."""
    if (options.lists is None) == (options.gldv2 is None):
        raise UserError("give either gldv2 (with dates or metadata) or lists (with pictures)")
    pictures = options.pictures or (options.gldv2 / "train" if options.gldv2 else options.lists.parent / "data")
    output = options.output or pictures / f"cglm_{options.ordering}.parquet"
    parts, settings, read = listed(options) if options.gldv2 is None else cut(options)
    with Prepared(output, pictures, missing=options.missing) as table:
        for split, rows in parts.items():
            table.add(split, rows)
        checks = checks_of(table) if options.expect == "published" else []
        notes = [WARNING, *([read["unreadable"]] if "unreadable" in read else [])]
        said = table.finish("prepare_cglm.py", ORDERINGS[options.ordering], settings, checks, notes, read=read)
    if "pictures" in read:
        print(", ".join(f"{count:,} {what}" for what, count in read["pictures"].items()))
    return conclude(said, checks, output, pictures)


def checks_of(table: Prepared) -> list[Check]:
    """Compare with what is published: 10,788 classes, about 580 thousand pictures; a tenth test, a fifth prefix."""
    total = {split: sum(counts.values()) for split, counts in table.counts.items()}
    classes, samples = set().union(*table.counts.values()), sum(total.values())
    test = total.get("test", 0)
    return [
        Check("classes", 10_788, len(classes)),
        Check("pictures, in thousands", (575, 585), round(samples / 1000)),
        Check("test, in per cent", 10, round(100 * test / samples)),
        Check("prefix of the rest, in per cent", 20, round(100 * total.get("prefix", 0) / (samples - test))),
    ]


# --- from lists -------------------------------------------------------------------------------------------------------


def listed(options: argparse.Namespace) -> tuple[dict[str, Rows], dict[str, Any], dict[str, Any]]:
    """Return the splits of lists; without a list of the prefix it is cut from the beginning of train's."""
    files = OrderFiles(options.lists, {}, times=options.third == "time")
    read = {name: [file.name for file in files.files(name)] for name in PARTITIONS if files.files(name)}
    rows: dict[str, Rows] = {
        split: files.rows(name, ordered=name != "test") for name, split in PARTITIONS.items() if name in read
    }
    for name in ("train", "test"):
        if name not in read:
            files.rows(name)  # says what is expected
    settings = {"third": options.third, "missing": options.missing}
    if "prefix" not in rows:
        between(0, 0.9, prefix=options.prefix)
        train = pa.Table.from_batches(rows["train"])
        early = round(options.prefix * len(train))
        rows = {"prefix": train[:early].to_batches(), "train": train[early:].to_batches(), "test": rows["test"]}
        settings["prefix"] = options.prefix
    return rows, settings, read


# --- from Google Landmarks V2 -----------------------------------------------------------------------------------------


def cut(options: argparse.Namespace) -> tuple[dict[str, Rows], dict[str, Any], dict[str, Any]]:
    """Return the splits of Google Landmarks V2 by the rule above."""
    between(0, 0.9, test=options.test, prefix=options.prefix)
    at_least(1, least=options.least)
    at_least(0, seed=options.seed)
    frame = clean(options.gldv2)
    sizes = {"listed": len(frame)}
    if options.count == "all":
        frame = frequent(frame, options.least)
    frame["time"], unreadable = dates(frame["id"], options)
    odd = f"{len(unreadable):,} dates could not be read, the first: {unreadable[0]!r}" if unreadable else ""
    frame = frame[frame["time"].notna()]
    sizes["dated"] = len(frame)
    if options.count == "dated":
        frame = frequent(frame, options.least)
    sizes["kept"] = len(frame)
    if not len(frame):
        raise UserError(
            f"no class keeps least={options.least} pictures with a date, of {sizes['listed']:,} in the clean list, of "
            f"which {sizes['dated']:,} have one{odd and f'; {odd}, where ISO 8601, EXIF or seconds are expected'}"
        )
    frame = frame.sort_values(["time", "id"], ignore_index=True)
    drawn = generator(options.seed, "test of CGLM").permutation(len(frame))[: round(options.test * len(frame))]
    split = np.full(len(frame), "train", object)
    split[drawn] = "test"
    rest = np.flatnonzero(split == "train")
    split[rest[: round(options.prefix * len(rest))]] = "prefix"
    frame["path"] = [placed(options.rule, name) for name in frame["id"]]
    parts: dict[str, Rows] = {
        name: [pa.RecordBatch.from_pandas(frame.loc[split == name, ["path", "label", "time"]], preserve_index=False)]
        for name in ("prefix", "train", "test")
    }
    names = ("least", "count", "test", "prefix", "seed", "rule", "column", "element", "missing")
    settings = {name: getattr(options, name) for name in names}
    return parts, settings, {"pictures": sizes, **({"unreadable": f"{odd}; left out as undated"} if odd else {})}


def placed(rule: str, name: str) -> str:
    """Return a picture's path."""
    try:
        return rule.format(*name, id=name)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"rule={rule!r} given, which makes no path of {name!r}; {{id}} and {{0}} to {{{len(name) - 1}}}, its "
            f"characters, are what there is (default: {RULE!r})"
        ) from error


def clean(folder: Path) -> pd.DataFrame:
    """Return id and label (the landmark) of the clean list's pictures.

    Raises:
        UserError: a file or a column is missing, or train.csv says another landmark.
    """
    lists = csv(folder / "train_clean.csv", ("landmark_id", "images"))
    lists["id"] = lists.pop("images").str.split()
    frame = lists.explode("id", ignore_index=True).rename(columns={"landmark_id": "label"})
    frame["label"] = whole(frame["label"], folder / "train_clean.csv")
    frame["id"] = frame["id"].astype(object)
    short = frame["id"].str.len() < 3
    if short.any():
        raise UserError(f"{folder / 'train_clean.csv'}: the picture id {frame['id'][short].iloc[0]!r} is too short")
    if (folder / "train.csv").is_file():
        every = csv(folder / "train.csv", ("id", "landmark_id"))
        known = frame["id"].map(every.set_index("id")["landmark_id"].pipe(whole, folder / "train.csv"))
        wrong = frame[known != frame["label"]]
        if len(wrong):
            raise UserError(
                f"{len(wrong)} pictures of train_clean.csv are not in train.csv with the same landmark: "
                f"{', '.join(wrong['id'][:5])}"
            )
    return frame


def whole(column: pd.Series, path: Path) -> pd.Series:
    """Return landmarks as integers."""
    try:
        return column.astype(np.int64)
    except ValueError as error:
        raise UserError(f"{path}: integers are expected as landmark_id ({error})") from error


def frequent(frame: pd.DataFrame, least: int) -> pd.DataFrame:
    """Return the pictures of classes with at least so many."""
    return frame[frame.groupby("label")["id"].transform("size") >= least].copy()


def dates(ids: pd.Series, options: argparse.Namespace) -> tuple[np.ndarray, list[str]]:
    """Return (n,) seconds, nan where there is no date that can be read, and the dates that cannot."""
    if (options.dates is None) == (options.metadata is None):
        raise UserError("give either dates (a CSV file of id and date) or metadata (a folder of XML answers)")
    if options.dates is not None:
        column = options.column or ELEMENTS[options.ordering]
        frame = csv(options.dates, ("id", column)).drop_duplicates("id").set_index("id")
        texts = ids.map(frame[column])
    else:
        if not options.metadata.is_dir():
            raise UserError(f"metadata={str(options.metadata)!r} given; a folder of <id>.txt or <id>.xml is expected")
        texts = pd.Series([written(options.metadata, name, options) for name in ids])
    # The first text decides between numbers and dates: it must be one that can be read.
    there = np.array([isinstance(text, str) and text.strip() != "" for text in texts], bool)
    seconds = np.full(len(texts), np.nan)
    seconds[there] = parsed(pa.array(texts[there].tolist(), pa.string()))
    return seconds, texts[there & np.isnan(seconds)].tolist()


def written(folder: Path, name: str, options: argparse.Namespace) -> str | None:
    """Return the date in a picture's metadata, or None where there is none."""
    tag = options.element or ELEMENTS[options.ordering]
    for suffix in (".txt", ".xml"):
        try:
            found = ElementTree.parse(folder / f"{name}{suffix}").getroot().find(f".//{tag}")
        except (FileNotFoundError, ElementTree.ParseError):
            continue
        return found.text.strip() if found is not None and found.text else None
    return None


def csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return some columns of a CSV file as text."""
    try:
        return pd.read_csv(path, usecols=list(columns), dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; a CSV file of {', '.join(columns)} is expected") from error
    except ValueError as error:
        raise UserError(
            f"{path}: the columns {', '.join(columns)} are expected ({' '.join(str(error).split())})"
        ) from error


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="prepare_cglm"
    )
    parser.add_argument("--ordering", choices=tuple(ORDERINGS), required=True, help="which date orders the stream")
    parser.add_argument("--gldv2", type=Path, help="the folder of Google Landmarks V2")
    parser.add_argument("--dates", type=Path, help="a CSV file with the columns id and --column")
    parser.add_argument("--column", help="the column of dates (default: upload_date, or DateTimeOriginal for exif)")
    parser.add_argument("--metadata", type=Path, help="a folder of Wikimedia Commons' answers, <id>.txt or <id>.xml")
    parser.add_argument("--element", help="their element that holds the date (default: as --column)")
    parser.add_argument("--lists", type=Path, help="the folder of order files, instead of gldv2")
    parser.add_argument("--third", choices=("time", "ignore"), default="time", help="the third column of text lists")
    parser.add_argument("--pictures", type=Path, help="their folder (default: gldv2/train, or data beside the lists)")
    parser.add_argument("--rule", default=RULE, help="a picture's path by its id (default: %(default)s)")
    parser.add_argument("--least", type=int, default=25, help="pictures that a class has at least")
    parser.add_argument("--count", choices=("dated", "all"), default="dated", help="which pictures count for that")
    parser.add_argument("--test", type=float, default=0.1, help="the share held out at random")
    parser.add_argument("--prefix", type=float, default=0.2, help="the share of the rest that is the tuning prefix")
    parser.add_argument("--seed", type=int, default=0, help="of the random draw")
    add_arguments(parser, "cglm_<ordering>.parquet")
    return parser


if __name__ == "__main__":
    sys.exit(script(main, parser()))
