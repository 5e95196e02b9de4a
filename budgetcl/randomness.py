"""Random numbers without a state: every draw names its own place, so nothing has to be saved.

The number of workers, prefetching, ranks and resuming cannot change a draw.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


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


def lots(seed: int, purpose: str, index: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return one 64-bit lot for each index, the same whenever it is asked for (SplitMix64; Steele et al., OOPSLA 2014).

    Args:
        seed: the seed of the run.
        purpose: what the lots are for.
        index: (n,) what draws them.
    """
    with np.errstate(over="ignore"):
        x = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(_key(seed, purpose) & (1 << 64) - 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
