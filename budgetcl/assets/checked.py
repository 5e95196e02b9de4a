"""Read and write the files that travel with the package. A file whose hash is not the recorded one is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

from budgetcl.errors import UserError

FOLDER = Path(__file__).parent
SUMS = "SHA256SUMS"


def recorded_hash(name: str, folder: Path = FOLDER) -> str:
    """Return the SHA-256 that ``SHA256SUMS`` records for an asset, without reading the asset.

    Raises:
        UserError: there is no record of it.
    """
    try:
        lines = (folder / SUMS).read_text().split("\n")
    except OSError as error:
        raise UserError(f"{folder / SUMS} cannot be read ({error.strerror}): reinstall budgetcl") from error
    sums = {asset: digest for digest, _, asset in (line.partition("  ") for line in lines)}
    if name not in sums:
        raise UserError(f"{folder / SUMS} names no {name}: reinstall budgetcl")
    return sums[name]


def read_asset(name: str, made_by: str, folder: Path = FOLDER) -> bytes:
    """Return the bytes of an asset whose hash is the recorded one.

    Args:
        name: the file's name.
        made_by: the script that makes it, named in the error.
        folder: where the assets lie.

    Raises:
        UserError: the file is missing or damaged.
    """
    path, expected = folder / name, recorded_hash(name, folder)
    mend = f"reinstall budgetcl, or make the file again with scripts/{made_by}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {mend}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise UserError(f"{path} is damaged: SHA-256 {expected} expected, {found} found; {mend}")
    return data


def write_asset(name: str, data: bytes, folder: Path = FOLDER) -> None:
    """Write an asset and record its hash."""
    (folder / name).write_bytes(data)
    path = folder / SUMS
    lines = path.read_text().split("\n") if path.exists() else []
    kept = [line for line in lines if line and line.partition("  ")[2] != name]
    kept.append(f"{hashlib.sha256(data).hexdigest()}  {name}")
    path.write_text("".join(f"{line}\n" for line in sorted(kept, key=lambda line: line.partition("  ")[2])))
