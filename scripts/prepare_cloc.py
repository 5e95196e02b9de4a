"""Write the table of CLOC (39 million Flickr photos with the cell of the earth they were taken in) from HDF5 lists.

    python scripts/prepare_cloc.py --lists CLOC/order_files --pictures CLOC/data

The lists are those of the authors' download site: ``<partition>_image_paths.hdf5`` and ``<partition>_labels.hdf5`` for
the partitions pretrain (the prefix on which the shift and hyperparameters are chosen), train (the stream, in its order)
and test. They hold no times: the order of the stream is the order of the list. EvalOCL's further index files (which
samples to rehearse) belong to its method and are not read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from budgetcl.data.prepared import Check, Prepared, add_arguments, conclude, script
from budgetcl.streams.order_files import OrderFiles

PARTITIONS = {"pretrain": "prefix", "train": "train", "test": "test"}


def main(options: argparse.Namespace) -> int:
    """Write the table."""
    files = OrderFiles(options.lists, {})
    output = options.output or options.pictures / "cloc.parquet"
    with Prepared(output, options.pictures, missing=options.missing) as table:
        for partition, split in PARTITIONS.items():
            table.add(split, files.rows(partition))
        checks = checks_of(table) if options.expect == "published" else []
        said = table.finish(
            "prepare_cloc.py",
            "that of the lists given",
            {"missing": options.missing},
            checks,
            read={partition: [file.name for file in files.files(partition)] for partition in PARTITIONS},
        )
    return conclude(said, checks, output, options.pictures)


def checks_of(table: Prepared) -> list[Check]:
    """Compare with what is published: 39 million photos, of which 36.8 million links live; 712 or 713 classes."""
    classes = set().union(*table.counts.values())
    samples = sum(sum(counts.values()) for counts in table.counts.values())
    return [Check("classes", (712, 713), len(classes)), Check("photos", (36_750_000, 39_499_999), samples)]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="prepare_cloc"
    )
    parser.add_argument("--lists", type=Path, required=True, help="the folder of the HDF5 lists")
    parser.add_argument("--pictures", type=Path, required=True, help="the folder that the lists' paths are relative to")
    add_arguments(parser, "cloc.parquet")
    return parser


if __name__ == "__main__":
    sys.exit(script(main, parser()))
