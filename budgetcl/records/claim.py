"""One process at a time makes a run: a lock beside its record, which the system lets go of when the process ends."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from budgetcl.errors import UserError


class Busy(UserError):
    """Another process is at it."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, and take it away at the end. A killed process leaves the file but not the lock.

    Raises:
        Busy: another process holds it.
        UserError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError as error:
        raise UserError(
            f"the output folder '{path.parent}' cannot be written ({error.strerror}): set output to one that can"
        ) from error
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> TextIO:
    import fcntl

    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - the caller closes it, which lets go of the lock
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise Busy(f"{holder} is at it ('{path}' is locked): wait for it, then start the same again") from None
        except OSError:  # a file system without locks: there is nothing to hold
            return file
        # The file may have been taken away between opening and locking; a lock on what nobody sees holds nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()
