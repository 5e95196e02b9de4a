"""One picture, from a file or from bytes: read upright as grey or RGB, cut, resized; or refused with a reason.

Pillow decodes: it reads every kind, lets a large JPEG be decoded at a half, a quarter or an eighth of its size, resizes
in integers (the same bits on every platform), and lets go of the interpreter's lock while it works, so that threads
decode side by side. (torchvision's decoder is a third faster on JPEGs of 500 pixels and slower on those of 2,000.)
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from budgetcl.errors import UserError
from budgetcl.streams.transforms import Box, Numbers, centre_box, mirrored, random_box

FORMATS = ("JPEG", "PNG", "GIF", "BMP")
QUALITY = 95  # of pictures that are encoded anew
MODES = {1: "L", 3: "RGB"}
MOST_PIXELS = 89_478_485  # that are decoded: a quarter of a gigabyte in RGB; Pillow's own mark for a decompression bomb
_ORIENTATION = 0x0112
_Source = TypeVar("_Source", bound=str | os.PathLike[str] | BinaryIO)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # they are refused, with their path
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height


class Damaged(UserError):
    """Pictures that cannot be shown: missing, empty, cut off, no pictures, or too large.

    Attributes:
        reasons: position in what was asked for -> what is wrong, with the path.
    """

    def __init__(self, reasons: Mapping[int, str], advice: str = "") -> None:
        self.reasons = dict(reasons)
        more = f" (and {len(reasons) - 1} more of the same batch)" if len(reasons) > 1 else ""
        super().__init__(f"{next(iter(self.reasons.values()))}{more}{advice}")


def decoded(
    source: str | os.PathLike[str] | BinaryIO,
    name: Callable[[], str],
    size: int,
    channels: int,
    share: float = 1.0,
    numbers: Numbers | None = None,
) -> NDArray[np.uint8]:
    """Return a picture as a square: the middle of it, or the random part that ``numbers`` say.

    It is turned upright (EXIF), transparency lies on white, 16 bits keep their upper eight, CMYK and palettes become
    what they show, of an animation the first frame is taken.

    Args:
        source: a path, or a file of bytes.
        name: what to call it, asked when it is refused.
        size: side of the square, in pixels.
        channels: 1 (grey) or 3 (RGB).
        share: of the short side that the middle square has.
        numbers: of :func:`budgetcl.streams.transforms.random_box`; None for the middle.

    Returns:
        (channels, size, size) uint8, laid out channels last.

    Raises:
        Damaged: the picture is missing, unreadable, or has more than :data:`MOST_PIXELS`.
        UserError: the file is there, but the system does not let it be read.
    """
    mode = MODES[channels]
    try:
        with Image.open(regular(source), formats=FORMATS) as image:
            picture = _cut(_checked(image), mode, size, share, numbers)
        return np.asarray(picture).reshape(size, size, channels).transpose(2, 0, 1)
    except MemoryError:
        raise
    except Exception as error:  # decoders meet hostile bytes: whatever else they raise, it is the picture's fault
        raise refusal(error, name()) from error


def regular(source: _Source) -> _Source:
    """Return a source if it is bytes or the path of a regular file: a pipe or a device would be waited for for ever.

    Raises:
        ValueError: it is a path to something else.
        OSError: there is none.
    """
    if isinstance(source, (str, os.PathLike)) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError("it is no regular file")
    return source


def refusal(error: Exception, name: str) -> UserError:
    """Return what to say of a picture whose decoder failed."""
    name = os.fsencode(name).decode(errors="backslashreplace")
    if isinstance(error, FileNotFoundError):
        return Damaged({0: f"{name} is missing: paths are relative to the folder of the table, or to the root given"})
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"{name} cannot be read ({error.strerror}): the file system refused, not the picture")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = f"empty, or of another kind than {', '.join(FORMATS)}"
    return Damaged({0: f"{name} is no readable picture ({reason})"})


def shrunk(source: str | os.PathLike[str] | BinaryIO, name: Callable[[], str], short_side: int) -> bytes:
    """Return a picture encoded anew, its short side at most ``short_side``, as it is to be packed.

    A JPEG or PNG that is small enough and upright is returned as it is, to the bit; any other that is small enough as
    PNG, which loses nothing; a larger one as JPEG of quality :data:`QUALITY`. All are decoded whole, so that what is
    packed can be read.

    Raises:
        Damaged: the picture is missing, unreadable, or has more than :data:`MOST_PIXELS`.
        UserError: the file is there, but the system does not let it be read.
    """
    try:
        data = source.read() if hasattr(source, "read") else Path(regular(source)).read_bytes()
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            factor = short_side / min(_checked(image).size)
            if factor < 1:
                image.draft(None, (round(2 * factor * image.width), round(2 * factor * image.height)))
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            image.load()
            if factor >= 1 and not turned and image.format in ("JPEG", "MPO", "PNG"):
                return data
            picture = upright(image, "L" if image.mode in ("1", "L") or image.mode.startswith("I") else "RGB")
        out = BytesIO()
        if factor >= 1:
            picture.save(out, "PNG")
        else:
            scale = short_side / min(picture.size)
            size = round(picture.width * scale), round(picture.height * scale)
            picture.resize(size, Image.Resampling.BILINEAR).save(out, "JPEG", quality=QUALITY)
        return out.getvalue()
    except MemoryError:
        raise
    except Exception as error:  # as in decoded
        raise refusal(error, name()) from error


def upright(image: Image.Image, mode: str) -> Image.Image:
    """Return an open image as it is meant to be seen, in a mode."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey: keep the upper eight
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _checked(image: Image.Image) -> Image.Image:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it says that it has {image.width:,} x {image.height:,} pixels; {MOST_PIXELS:,} at most")
    return image


def _cut(image: Image.Image, mode: str, size: int, share: float, numbers: Numbers | None) -> Image.Image:
    width, height = image.size
    if image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS:
        width, height = height, width
    box = centre_box(width, height, share) if numbers is None else random_box(width, height, numbers)
    # Twice the pixels that are kept are enough to decode.
    factor = min(1, 2 * size / min(box[2] - box[0], box[3] - box[1]))
    image.draft(mode, (max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    picture = upright(image, mode)
    scale = picture.width / width, picture.height / height
    cut = picture.resize((size, size), Image.Resampling.BILINEAR, box=_scaled(box, scale, picture.size))
    flip = numbers is not None and mirrored(numbers)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut


def _scaled(box: Box, scale: tuple[float, float], size: tuple[int, int]) -> Box:
    (left, top, right, bottom), (x, y), (width, height) = box, scale, size
    return left * x, top * y, min(right * x, width), min(bottom * y, height)
