import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from budgetcl.errors import UserError
from budgetcl.streams.decoding import MOST_PIXELS, Damaged, decoded, shrunk


def save(path, array, mode=None, **options):
    image = Image.fromarray(np.asarray(array, np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def read(path, size=16, channels=3, **options):
    return decoded(str(path), lambda: str(path), size, channels, **options)


def test_a_picture_of_the_right_size_comes_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (16, 16, 3))
    np.testing.assert_array_equal(read(save(tmp_path / "a.png", colour)), colour.transpose(2, 0, 1))
    grey = rng.integers(0, 256, (16, 16))
    np.testing.assert_array_equal(read(save(tmp_path / "b.png", grey), channels=1)[0], grey)
    np.testing.assert_array_equal(read(tmp_path / "b.png"), np.stack([grey] * 3))


def test_bytes_and_files_give_the_same_picture(tmp_path):
    path = save(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (40, 60, 3)))
    np.testing.assert_array_equal(decoded(io.BytesIO(path.read_bytes()), str, 16, 3), read(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (str(tmp_path / "pipe.png"), str(tmp_path), os.devnull):
        for refused in (lambda path=path: read(path), lambda path=path: shrunk(path, lambda: path, 16)):
            with pytest.raises(Damaged, match=r"is no readable picture \(it is no regular file\)"):
                refused()


def test_the_short_side_is_resized_and_the_centre_kept(tmp_path):
    wide = np.zeros((32, 96, 3))
    wide[:, 32:64] = 200  # the centre square
    x = read(save(tmp_path / "wide.png", wide))
    assert x.shape == (3, 16, 16)
    assert (x[:, :, 2:-2] == 200).all()
    np.testing.assert_array_equal(read(save(tmp_path / "tall.png", wide.transpose(1, 0, 2))), x.transpose(0, 2, 1))


def test_resize_then_crop_shows_a_share_of_the_short_side(tmp_path):
    """Against resizing and cropping one after the other, where both are exact."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3))
    path = save(tmp_path / "a.png", picture)
    small = Image.open(path).resize((64, 32), Image.Resampling.BILINEAR)  # the short side to 32
    expected = np.asarray(small)[4:28, 20:44].transpose(2, 0, 1)  # the central 24
    np.testing.assert_allclose(read(path, 24, share=24 / 32).astype(int), expected, atol=1)


def test_jpeg_is_read_at_any_scale_and_close_to_what_was_saved(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 640)[None, :, None], (480, 1, 3))
    path = save(tmp_path / "big.jpg", ramp, quality=95)
    for size in (24, 200, 480):
        expected = (np.arange(size) + 0.5) / size * 480 + 80
        for channels in (1, 3):
            x = read(path, size, channels).astype(float)
            np.testing.assert_allclose(x[0, size // 2], expected * 255 / 640, atol=3)


def test_transparency_lies_on_white(tmp_path):
    clear = np.zeros((16, 16, 4))
    clear[:8, :, 3] = 255  # black above, transparent below
    x = read(save(tmp_path / "clear.png", clear))
    assert x[:, :8].max() == 0
    assert x[:, 8:].min() == 255
    palette = Image.fromarray(np.repeat([0, 1], 128).astype(np.uint8).reshape(16, 16)).convert("P")
    palette.putpalette([10, 20, 30, 0, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    x = read(tmp_path / "palette.png")
    assert x[:, :8].reshape(3, -1).T.tolist() == [[10, 20, 30]] * 128
    assert x[:, 8:].min() == 255


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("numbers", [None, np.full(24, 0.999)])  # the whole picture in both cases, not mirrored
def test_turned_photographs_stand_upright(tmp_path, kind, numbers):
    upright = np.zeros((32, 16, 3))
    upright[:16] = 255  # white above
    upright[:, :4] = 128  # and something at the left
    plain = read(save(tmp_path / f"plain.{kind}", upright), 16, numbers=numbers)
    stored = {3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1), 5: upright.transpose(1, 0, 2)}
    for orientation, array in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = read(save(tmp_path / f"{orientation}.{kind}", array, exif=exif), 16, numbers=numbers)
        np.testing.assert_allclose(turned.astype(int), plain, atol=12 if kind == "jpg" else 0)


def test_sixteen_bits_of_grey_keep_their_upper_eight(tmp_path):
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read(tmp_path / "deep.png", channels=1)[0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(read(tmp_path / "deep.png")[2], np.arange(256).reshape(16, 16))


def png(width, height, depth, colour, rows):
    """A PNG file, byte by byte."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_of_colour_keep_their_upper_eight(tmp_path):
    value = np.random.default_rng(0).integers(0, 65536, (16, 16, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in value)
    (tmp_path / "deep.png").write_bytes(png(16, 16, 16, 2, rows))
    np.testing.assert_array_equal(read(tmp_path / "deep.png"), (value >> 8).transpose(2, 0, 1))


def test_cmyk_becomes_what_it_shows(tmp_path):
    ink = np.zeros((16, 16, 4))
    ink[:, :8, 0] = 255  # cyan at the left, black at the right
    ink[:, 8:, 3] = 255
    Image.fromarray(ink.astype(np.uint8), "CMYK").save(tmp_path / "ink.jpg", quality=95)
    x = read(tmp_path / "ink.jpg").astype(int)
    np.testing.assert_allclose(x[:, 8, 3], [0, 255, 255], atol=8)
    np.testing.assert_allclose(x[:, 8, 12], [0, 0, 0], atol=8)


@pytest.mark.parametrize("kind", ["gif", "png"])
def test_of_an_animation_the_first_frame_is_shown(tmp_path, kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
    assert read(tmp_path / f"a.{kind}")[:, 8, 8].tolist() == [255, 0, 0]


def broken(folder):
    whole = save(folder / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3))).read_bytes()
    photo = save(folder / "whole.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3))).read_bytes()
    (folder / "cut.png").write_bytes(whole[:2000])
    (folder / "cut.jpg").write_bytes(photo[: len(photo) // 2])
    (folder / "text.png").write_text("not a picture")
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "flipped.png").write_bytes(whole[:100] + bytes([whole[100] ^ 255]) + whole[101:])
    (folder / "bomb.png").write_bytes(png(30_000, 30_000, 8, 2, b"\0" * 100))
    (folder / "mine.png").write_bytes(png(9_460, 9_460, 8, 0, b"\0" * 100))  # under what Pillow itself refuses
    save(folder / "other.ppm", np.zeros((16, 16, 3)))


def test_a_monstrous_picture_is_refused_without_a_warning_beside(tmp_path):
    """In a process of its own: pytest has filters for warnings of its own."""
    broken(tmp_path)
    code = """
import sys
from budgetcl.streams.decoding import Damaged, decoded
try:
    decoded(sys.argv[1], str, 16, 3)
except Damaged as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "mine.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "89,478,485 at most" in done.stdout
    assert done.stderr == ""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.png", "none.png is missing: paths are relative to the folder of the table"),
        ("cut.png", "cut.png is no readable picture"),
        ("cut.jpg", "cut.jpg is no readable picture"),
        ("text.png", "text.png is no readable picture (empty, or of another kind than JPEG, PNG, GIF, BMP)"),
        ("zero.jpg", "zero.jpg is no readable picture (empty, or of another kind"),
        ("flipped.png", "flipped.png is no readable picture"),
        ("bomb.png", "bomb.png is no readable picture"),
        ("mine.png", "it says that it has 9,460 x 9,460 pixels; 89,478,485 at most"),
        ("other.ppm", "other.ppm is no readable picture"),
    ],
)
def test_missing_broken_foreign_and_monstrous_files_are_refused_by_name(tmp_path, name, told):
    broken(tmp_path)
    with pytest.raises(Damaged) as error:
        read(tmp_path / name)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_the_largest_picture_that_is_read_has_less_than_the_limit():
    assert 9_459**2 <= MOST_PIXELS < 9_460**2


def test_what_the_system_refuses_is_no_damage_of_the_picture(tmp_path):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match=r"loop.png cannot be read \(Too many levels") as error:
        read(loop)
    assert not isinstance(error.value, Damaged)


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    with pytest.raises(Damaged, match=r"caf\\xe9.png is missing") as error:
        read(str(tmp_path / "caf\udce9.png"))
    str(error.value).encode()
