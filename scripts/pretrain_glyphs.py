"""Pretrain the backbone that ships with the package, on the pretraining half of the atlas.

    python scripts/pretrain_glyphs.py [--passes 160000] [--seed 0] [--dry | --out weaker.safetensors]

It plays the part of ImageNet weights: everybody starts from the same file. It sees the first 1,000 characters only,
and views of them that no stream shows. Takes about a minute on one thread; writes budgetcl/assets/ unless --dry.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from budgetcl.assets.checked import write_asset
from budgetcl.models.backbones import GLYPHS, SmallResNet
from budgetcl.randomness import generator
from budgetcl.streams.rendering import BLOCK, HALF, SIDE, atlas, atlas_images, choices, view_key, views

BATCH, RATE, DECAY = 128, 0.2, 5e-4


def draw(labels: np.ndarray, purpose: str, seed: int, hardness: float = 1.0) -> Tensor:
    """Return one fresh view of each character, uint8 (n, 1, 24, 24)."""
    table, images, key = atlas(), atlas_images(), view_key(seed, purpose)
    sample = np.arange(len(labels))
    image = table.start[labels] + choices(key, sample, np.diff(table.start)[labels])
    out = np.empty((len(labels), 1, SIDE, SIDE), np.uint8)
    for start in range(0, len(out), BLOCK):
        block = slice(start, start + BLOCK)
        out[block, 0] = views(images[image[block]], sample[block], key, hardness)
    return torch.from_numpy(out)


def normalised(x: Tensor, backbone: SmallResNet) -> Tensor:
    """Return the pictures as the network will see them."""
    return (x.float() / 255 - backbone.mean[0]) / backbone.std[0]


def main() -> None:
    """Pretrain, print the accuracy on fresh views of the same characters, write the weights in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=160_000, help="pictures trained on, each seen once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    parser.add_argument("--out", type=Path, help="a .safetensors file to write to, instead of the package's own")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    began = time.time()
    labels = generator(arguments.seed, "pretraining labels").permutation(np.arange(arguments.passes) % HALF)
    pictures, y = draw(labels, "pretraining", arguments.seed), torch.from_numpy(labels)
    print(f"{len(y):,} pictures drawn in {time.time() - began:.0f} s; mean {pictures.float().mean() / 255:.3f}, "
          f"std {pictures.float().std() / 255:.3f}")  # fmt: skip
    backbone = SmallResNet(seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    head = nn.Linear(backbone.feature_dim, HALF)
    network = nn.Sequential(backbone, head)
    optimiser = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    updates = len(y) // BATCH
    for update in range(updates):
        rows = slice(update * BATCH, (update + 1) * BATCH)
        optimiser.param_groups[0]["lr"] = RATE * (1 - update / updates)
        loss = nn.functional.cross_entropy(network(normalised(pictures[rows], backbone)), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if update % 100 == 0:
            print(f"update {update} of {updates}, loss {loss.item():.2f}", flush=True)

    network.half().float().eval()
    labels = np.arange(10 * HALF) % HALF
    pictures, y = draw(labels, "pretraining check", arguments.seed), torch.from_numpy(labels)
    with torch.no_grad():
        hits = [network(normalised(part, backbone)).argmax(1) for part in pictures.split(1000)]
    accuracy = 100 * (torch.cat(hits) == y).float().mean()
    print(f"accuracy on {len(y):,} fresh views of its own {HALF:,} classes: {accuracy:.1f} %")
    print(f"{time.time() - began:.0f} s")
    if not arguments.dry:
        tensors = backbone.state_dict() | {"head.weight": head.weight, "head.bias": head.bias}
        half = {name: t.detach().half() if t.is_floating_point() else t for name, t in tensors.items()}
        data = safetensors.torch.save({name: t.contiguous() for name, t in half.items()})
        if arguments.out:
            arguments.out.write_bytes(data)
        else:
            write_asset(GLYPHS, data)
        print(f"written: {arguments.out or GLYPHS}")


if __name__ == "__main__":
    main()
