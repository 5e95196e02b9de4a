"""The stream "glyphs": many classes, half of them for pretraining, half revealed step by step (BudgetCL, CVPR 2023).

It has the structure of ImageNet2K at a size that a laptop trains: characters instead of photographs, class- or
data-incremental, a pretrained backbone that knows one half of the classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetcl.errors import UserError, at_least, between, one_of
from budgetcl.randomness import generator
from budgetcl.streams.batch import Source
from budgetcl.streams.cuts import by_number
from budgetcl.streams.rendering import HALF, GlyphPixels, atlas, choices, view_key
from budgetcl.streams.stream import (
    PRETEST,
    PRETRAIN,
    PREVALIDATION,
    SETS,
    STREAM,
    TEST,
    VALIDATION,
    IntArray,
    Stream,
)

# Views of one character are numbered kind << 40 | character << 24 | draw, so that no two sets share a view, and a
# character's pictures are the same in every order and size of the stream.
TRAINED, TESTED, VALIDATED, UPLOADED, RETAKEN, EARLIER = range(6)


def view_number(kind: int, character: IntArray, draw: IntArray) -> IntArray:
    """Return the number of a view: of one kind, one character, one draw."""
    return (np.int64(kind) << 40) | (character << 24) | draw


def character_name(code: int) -> str:
    """Return a class's name, such as ``A (U+0041)``."""
    return f"{chr(code)} (U+{code:04X})"


@dataclass(frozen=True)
class _Rows:
    set: str
    label: IntArray
    draw: IntArray
    kind: int


def glyphs(
    pretrain_classes: int = 300,
    stream_classes: int = 300,
    steps: int = 10,
    order: str = "class",
    train: int = 24,
    test: int = 6,
    validation: int = 4,
    pretrain_train: int = 24,
    faces: str = "all",
    hardness: float = 1.0,
    evaluate: str = "test",
    seed: int = 0,
) -> Source:
    """Return the stream of characters, class- or data-incremental.

    The pretraining classes are the first of the atlas's pretraining half, in its fixed order; the streamed classes the
    first of the other half. The seed changes views and order only, so the shipped backbone never saw a streamed class.

    Args:
        pretrain_classes: 0 to 1,000; their training views are in memory at the first step.
        stream_classes: 1 to 1,000.
        steps: the number of time steps.
        order: "class", each step reveals its own classes; or "data", all classes shuffled over all steps.
        train: streamed views a class.
        test: held-out test views a class, pretraining classes included.
        validation: held-out validation views a class, for tuning.
        pretrain_train: training views a pretraining class.
        faces: "all", every view in a random face; or "drift", the faces follow one another along the stream while the
            held-out views are in all of them.
        hardness: factor on the distortions, 0 to 4.
        evaluate: "test" or "validation", the sets held out.
        seed: of views and order.

    Raises:
        UserError: a number out of range, or more steps than there is to reveal.
    """
    at_least(0, pretrain_classes=pretrain_classes, validation=validation, pretrain_train=pretrain_train, seed=seed)
    at_least(1, stream_classes=stream_classes, steps=steps, train=train, test=test)
    between(0, HALF, pretrain_classes=pretrain_classes, stream_classes=stream_classes)
    between(0, 10_000, train=train, test=test, validation=validation, pretrain_train=pretrain_train)
    between(0, 4, hardness=hardness)
    one_of(("class", "data"), order=order)
    one_of(("all", "drift"), faces=faces)
    one_of(("test", "validation"), evaluate=evaluate)
    if evaluate == "validation" and not validation:
        raise UserError("validation=0 given with evaluate=validation; at least 1 view a class is expected")

    cut = stream_classes if order == "class" else stream_classes * train
    if steps > cut:
        raise UserError(f"steps={steps} given; order={order} with {stream_classes} classes allows at most {cut}")
    known = np.arange(pretrain_classes)
    streamed = np.arange(pretrain_classes, pretrain_classes + stream_classes)
    arrange = _by_class if order == "class" else _by_data
    reveal, bounds = arrange(streamed, steps, train, seed)
    tested = [_each(TEST, streamed, test, TESTED), _each(PRETEST, known, test, TESTED)]
    validated = [
        _each(VALIDATION, streamed, validation, VALIDATED),
        _each(PREVALIDATION, known, validation, VALIDATED),
    ]
    shown, hidden = (tested, validated) if evaluate == "test" else (validated, tested)
    parts = [reveal, _each(PRETRAIN, known, pretrain_train, TRAINED), *shown, *hidden]
    label = np.concatenate([part.label for part in parts])
    sets = np.concatenate([np.full(len(part.label), SETS.index(part.set), np.int8) for part in parts])
    kind = np.concatenate([np.full(len(part.label), part.kind) for part in parts])

    table, key = atlas(), view_key(seed, "face")
    characters = np.concatenate([known, HALF + np.arange(stream_classes)])
    character = characters[label]
    number = view_number(0, character, np.concatenate([part.draw for part in parts])) | (kind.astype(np.int64) << 40)
    count = np.diff(table.start)[character]
    face = choices(key, number, count)
    samples = len(reveal.label)
    if faces == "drift":
        face[:samples] = np.arange(samples) * count[:samples] // samples
    image = table.start[character] + face

    # The sets that are not evaluated come last and are never rendered.
    pixels = GlyphPixels(image, number, seed, hardness, usual=len(label) - sum(len(part.label) for part in hidden))
    stream = Stream(
        name="glyphs",
        label=label,
        set=sets,
        bounds=bounds,
        time=np.arange(len(label), dtype=np.float64),
        group=table.face[image],
        origin=np.full(len(label), -1, np.int64),
        label_names=tuple(character_name(int(code)) for code in table.characters[characters]),
        source=pixels.fingerprint,
        heldout=tuple(part.set for part in shown if len(part.label)),
    )
    return Source(stream, pixels)


def _each(name: str, classes: IntArray, views: int, kind: int) -> _Rows:
    return _Rows(name, np.repeat(classes, views), np.tile(np.arange(views), len(classes)), kind)


def _by_class(classes: IntArray, steps: int, views: int, seed: int) -> tuple[_Rows, IntArray]:
    order = generator(seed, "order of classes").permutation(classes)
    parts = [_each(STREAM, part, views, TRAINED) for part in np.array_split(order, steps)]
    shuffles = [generator(seed, "order", step).permutation(len(part.label)) for step, part in enumerate(parts)]
    label = np.concatenate([part.label[shuffle] for part, shuffle in zip(parts, shuffles)])
    draw = np.concatenate([part.draw[shuffle] for part, shuffle in zip(parts, shuffles)])
    return _Rows(STREAM, label, draw, TRAINED), np.cumsum([0] + [len(shuffle) for shuffle in shuffles])


def _by_data(classes: IntArray, steps: int, views: int, seed: int) -> tuple[_Rows, IntArray]:
    rows = _each(STREAM, classes, views, TRAINED)
    shuffle = generator(seed, "order").permutation(len(rows.label))
    return _Rows(STREAM, rows.label[shuffle], rows.draw[shuffle], TRAINED), by_number(len(shuffle), steps)
