"""Random numbers without a state: every draw names its own place, so nothing has to be saved.

The number of workers, prefetching, ranks and resuming cannot change a draw.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=1024)
def _key(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:16], "little")


def generator(seed: int, purpose: str, step: int = 0, update: int = 0, position: int = 0) -> np.random.Generator:
    """Return the generator of one purpose at one place of a run (counter-based, Philox 4x64).

    Equal arguments give equal draws in every process and on every platform; unequal ones give independent draws.

    Args:
        seed: the seed of the run.
        purpose: what the numbers are for ("uniform", "order", "augment").
        step: the time step's number.
        update: the update's number within the step.
        position: the position within the batch, where one is needed.
    """
    # The lowest counter word is left to the draws themselves; step, update and position take the upper three.
    counter = np.array([0, position, update, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=counter))
