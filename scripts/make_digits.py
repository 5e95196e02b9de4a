"""Write scikit-learn's handwritten digits as PNG files and a table, to try a stream of one's own pictures.

    python scripts/make_digits.py [FOLDER]       (default: outputs/digits; needs scikit-learn)
    budgetcl run stream=table stream.path=outputs/digits/photos.csv

The digits are real (1,797 pictures of 8x8 pixels, UCI "Optical Recognition of Handwritten Digits"); their upload times
are invented: digits come in bursts of one class, as photographs do.
"""

from __future__ import annotations

import argparse
import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from budgetcl.randomness import generator

BURST = 8  # digits of one class in a row, on average


def bursts(labels: np.ndarray) -> list[int]:
    """Return the samples in an order in which classes come in bursts."""
    rng = generator(0, "digits")
    left = [rng.permutation(np.flatnonzero(labels == digit)).tolist() for digit in range(10)]
    order: list[int] = []
    while any(left):
        remaining = np.array([len(samples) for samples in left])
        digit = int(rng.choice(10, p=remaining / remaining.sum()))
        for _ in range(int(rng.geometric(1 / BURST))):
            if left[digit]:
                order.append(left[digit].pop())
    return order


def main() -> None:
    """Write FOLDER/photos.csv and FOLDER/pictures/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/digits"))
    folder = parser.parse_args().folder
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    rng = generator(0, "minutes between uploads")
    time = datetime(2024, 1, 1, tzinfo=UTC)
    with open(folder / "photos.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "time"])
        for number, sample in enumerate(bursts(digits.target)):
            time += timedelta(seconds=int(rng.exponential(600)))
            name = f"pictures/{number:04d}.png"
            Image.fromarray((digits.images[sample] * 255 / 16).astype(np.uint8)).save(folder / name)
            writer.writerow([name, f"digit {digits.target[sample]}", time.isoformat()])
    print(f"{len(digits.target)} pictures and {folder / 'photos.csv'}")


if __name__ == "__main__":
    main()
