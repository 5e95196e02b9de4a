"""`budgetcl data check`: what is in a table of pictures, and what is wrong with it, before a run finds out."""

from __future__ import annotations

import argparse

from budgetcl.streams.table import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `budgetcl data check`."""
    parser.add_argument("path", help="a .csv or .parquet table, or a folder of pictures")


def main(options: argparse.Namespace) -> int:
    """Print what was found.

    Returns:
        0 if nothing is wrong, 1 if there are problems.

    Raises:
        UserError: input that is no table of pictures.
    """
    stream = table(options.path).stream
    print(f"fingerprint {stream.fingerprint()}")
    return 0
