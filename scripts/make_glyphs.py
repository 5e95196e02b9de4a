"""Render the glyph atlas that ships with the package: 2,000 characters of the DejaVu faces, 48x48 pixels each.

    python scripts/make_glyphs.py

The atlas is shipped as images, not as fonts: another version of FreeType draws other bits, and a fingerprint must be
the same for everybody. So this script documents how the file came about; running it again is only needed to change
the atlas, which changes every fingerprint and asks for a new backbone (scripts/pretrain_glyphs.py).

Kept are letters, numbers, symbols and punctuation that at least 8 of the 12 faces hold, without box drawing, block
elements, braille, hexagrams and private characters, without glyphs that are blank or do not fit the box, and without
near-duplicates: two characters are one class if, in Sans or Serif regular, their mass-centred images differ by less
than a tenth of the heavier one's mass (Latin A, Greek Alpha and Cyrillic A are one class). Of what is left the 2,000
with the most faces are taken, and permuted once: the first half is for pretraining, the second half is streamed.
"""

from __future__ import annotations

import io
import lzma
import unicodedata
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from budgetcl.assets.checked import FOLDER, write_asset

SIZE, EM, CHARACTERS, FEWEST_FACES, THRESHOLD, SEED = 48, 36, 2000, 8, 0.10, 20230325
FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
)  # fmt: skip
REGULAR = (FACES.index("DejaVuSans"), FACES.index("DejaVuSerif"))
LEFT_OUT = ((0x2500, 0x259F), (0x2800, 0x28FF), (0x4DC0, 0x4DFF), (0xE000, 0xF8FF))
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

Glyphs = dict[int, np.ndarray]


def wanted(code: int) -> bool:
    """Tell whether a character is of a kind that makes a class."""
    return unicodedata.category(chr(code))[0] in "LNSP" and not any(low <= code <= high for low, high in LEFT_OUT)


def draw(font: ImageFont.FreeTypeFont, code: int) -> np.ndarray | None:
    """Return the character's ink centred in the box, or None where it is blank or does not fit."""
    canvas = Image.new("L", (4 * EM, 4 * EM))
    ImageDraw.Draw(canvas).text((1.5 * EM, 2 * EM), chr(code), font=font, fill=255, anchor="ls")
    box = canvas.getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) > SIZE - 2:
        return None
    glyph = Image.new("L", (SIZE, SIZE))
    glyph.paste(canvas.crop(box), ((SIZE - box[2] + box[0]) // 2, (SIZE - box[3] + box[1]) // 2))
    return np.asarray(glyph)


def render() -> list[Glyphs]:
    """Return for each face the glyphs of the characters that enough faces can draw."""
    fonts = [ImageFont.truetype(str(FONTS / f"{face}.ttf"), EM, layout_engine=ImageFont.Layout.BASIC) for face in FACES]
    held = [set(filter(wanted, FT2Font(str(FONTS / f"{face}.ttf")).get_charmap())) for face in FACES]
    drawn = [
        {code: glyph for code in sorted(codes) if (glyph := draw(font, code)) is not None}
        for font, codes in zip(fonts, held, strict=True)
    ]
    return [
        {code: glyph for code, glyph in glyphs.items() if sum(code in other for other in drawn) >= FEWEST_FACES}
        for glyphs in drawn
    ]


def centred(glyph: np.ndarray) -> np.ndarray:
    """Return the glyph with its centre of mass in the middle of a larger box."""
    mass, place = glyph.astype(np.int64), np.arange(SIZE)
    row, column = (round((mass.sum(axis) * place).sum() / mass.sum()) for axis in (1, 0))
    box = np.zeros((2 * SIZE, 2 * SIZE), np.int16)
    box[SIZE - row : 2 * SIZE - row, SIZE - column : 2 * SIZE - column] = glyph
    return box


def twins(glyphs: Glyphs) -> set[tuple[int, int]]:
    """Return the pairs (smaller code, larger code) of characters that this face draws nearly alike."""
    images = {code: centred(glyph).ravel() for code, glyph in glyphs.items()}
    # A difference is at least the difference of masses: only neighbours in mass need to be compared.
    codes = sorted(images, key=lambda code: int(images[code].sum()))
    stack = np.stack([images[code] for code in codes])
    mass = stack.sum(1, dtype=np.int64)
    found = set()
    for i, code in enumerate(codes):
        end = np.searchsorted(mass, mass[i] / (1 - THRESHOLD), side="right")
        difference = np.abs(stack[i + 1 : end] - stack[i]).sum(1, dtype=np.int64)
        near = np.flatnonzero(difference < THRESHOLD * mass[i + 1 : end])
        found |= {(min(code, codes[i + 1 + j]), max(code, codes[i + 1 + j])) for j in near}
    return found


def distinct(drawn: list[Glyphs]) -> list[int]:
    """Return the characters, in code order, that have no near-duplicate before them."""
    earlier = defaultdict(set)
    for face in REGULAR:
        for first, second in twins(drawn[face]):
            earlier[second].add(first)
    kept: set[int] = set()
    for code in sorted(set().union(*drawn)):
        if not earlier[code] & kept:
            kept.add(code)
    return sorted(kept)


def main() -> None:
    """Make budgetcl/assets/glyphs.npy.xz and the fonts' licence."""
    drawn = render()
    codes = distinct(drawn)
    faces_of = {code: [face for face, glyphs in enumerate(drawn) if code in glyphs] for code in codes}
    chosen = sorted(codes, key=lambda code: (-len(faces_of[code]), code))[:CHARACTERS]
    order = np.random.Generator(np.random.Philox(SEED)).permutation(sorted(chosen)).tolist()

    face = np.array([face for code in order for face in faces_of[code]], np.uint8)
    start = np.cumsum([0] + [len(faces_of[code]) for code in order])
    images = np.stack([drawn[face][code] for code in order for face in faces_of[code]])
    raw = io.BytesIO()
    # Four arrays, one behind the other: characters, first image of each (and the end), face of each image, images.
    for array in (np.array(order, np.uint32), start.astype(np.uint32), face, images):
        np.lib.format.write_array(raw, array, allow_pickle=False)
    data = lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    write_asset("glyphs.npy.xz", data)
    write_asset("LICENSE-DejaVu.txt", (FONTS / "LICENSE_DEJAVU").read_bytes())
    print(f"{len(codes):,} distinct characters; {len(order):,} kept, {len(images):,} images; {len(data):,} bytes")
    print(f"written to {FOLDER}")


if __name__ == "__main__":
    main()
