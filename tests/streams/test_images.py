import numpy as np
import pytest
import torch
from PIL import Image

from budgetcl.errors import UserError
from budgetcl.streams.images import ImagePixels, decoded, shifted


def save(path, array, **options):
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)
    return path


def test_a_picture_of_the_right_size_comes_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (16, 16, 3))
    np.testing.assert_array_equal(decoded(save(tmp_path / "a.png", colour), 16, 3), colour.transpose(2, 0, 1))
    grey = rng.integers(0, 256, (16, 16))
    np.testing.assert_array_equal(decoded(save(tmp_path / "b.png", grey), 16, 1)[0], grey)
    np.testing.assert_array_equal(decoded(tmp_path / "b.png", 16, 3), np.stack([grey] * 3))


def test_the_short_side_is_resized_and_the_centre_kept(tmp_path):
    wide = np.zeros((32, 96, 3))
    wide[:, 32:64] = 200  # the centre square
    x = decoded(save(tmp_path / "wide.png", wide), 16, 3)
    assert x.shape == (3, 16, 16)
    assert (x[:, :, 2:-2] == 200).all()


def test_jpeg_is_read_at_any_scale_and_close_to_what_was_saved(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 640)[None, :, None], (480, 1, 3))
    x = decoded(save(tmp_path / "big.jpg", ramp, quality=95), 24, 3).astype(float)
    expected = (np.arange(24) + 0.5) / 24 * 480 + 80
    np.testing.assert_allclose(x[0, 12], expected * 255 / 640, atol=3)


def test_transparency_lies_on_white_and_turned_photographs_stand_upright(tmp_path):
    clear = np.zeros((16, 16, 4))
    clear[:8, :, 3] = 255  # black above, transparent below
    x = decoded(save(tmp_path / "clear.png", clear), 16, 3)
    assert x[:, :8].max() == 0
    assert x[:, 8:].min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is left in the file is above in the picture
    left = np.zeros((16, 16, 3))
    left[:, :8] = 255
    x = decoded(save(tmp_path / "turned.png", left, exif=exif), 16, 3)
    assert x[:, :8].min() == 255
    assert x[:, 8:].max() == 0


def test_sixteen_bits_of_grey_keep_their_upper_eight(tmp_path):
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(decoded(tmp_path / "deep.png", 16, 1)[0], np.arange(256).reshape(16, 16))


def test_missing_broken_and_foreign_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"none.png is missing"):
        decoded(tmp_path / "none.png", 16, 3)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"text.png is no readable PNG or JPEG"):
        decoded(tmp_path / "text.png", 16, 3)
    save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut.png is no readable"):
        decoded(tmp_path / "cut.png", 16, 3)
    save(tmp_path / "other.bmp", np.zeros((16, 16, 3)))
    with pytest.raises(UserError, match=r"other.bmp is no readable"):
        decoded(tmp_path / "other.bmp", 16, 3)


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        save(tmp_path / f"{i}.png", np.full((16, 16, 3), 40 * i))
    return tmp_path


NAMES = [f"{i}.png" for i in range(6)]


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_pixels_are_the_files_in_the_order_asked_for_kept_or_not(folder, memory):
    pixels = ImagePixels(folder, NAMES, 16, 3, memory=memory)
    x = pixels(np.array([5, 0, 5, 2]))
    assert (x.dtype, tuple(x.shape)) == (torch.uint8, (4, 3, 16, 16))
    assert x[:, 0, 0, 0].tolist() == [200, 0, 200, 80]
    (folder / "5.png").unlink()
    if memory:
        assert pixels(np.array([5])).max() == 200
    else:
        with pytest.raises(UserError, match="missing"):
            pixels(np.array([5]))
    assert tuple(pixels(np.array([], dtype=np.int64)).shape) == (0, 3, 16, 16)


def test_files_are_first_needed_when_they_are_looked_at_and_can_be_checked_before(folder):
    pixels = ImagePixels(folder, [*NAMES, "gone.png", "lost.png"], 16, 3)
    assert len(pixels(np.arange(6))) == 6
    with pytest.raises(UserError, match=r"2 of 8 pictures are missing, the first is .*gone.png"):
        pixels.check_files()
    ImagePixels(folder, NAMES, 16, 3).check_files()


def test_the_fingerprint_follows_names_and_form_but_not_the_folder_or_augmentation(folder, tmp_path_factory):
    base = ImagePixels(folder, NAMES, 16, 3).fingerprint
    assert base == ImagePixels(tmp_path_factory.mktemp("other"), NAMES, 16, 3, "crop", memory=0).fingerprint
    others = [
        ImagePixels(folder, NAMES[::-1], 16, 3),
        ImagePixels(folder, NAMES, 17, 3),
        ImagePixels(folder, NAMES, 16, 1),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 4


def test_augmentation_needs_both_the_option_and_a_generator_and_follows_the_generator(folder):
    save(folder / "0.png", np.random.default_rng(0).integers(0, 256, (16, 16, 3)))
    rows = np.zeros(50, np.int64)
    plain = ImagePixels(folder, NAMES, 16, 3)
    assert torch.equal(plain(rows, np.random.default_rng(0)), plain(rows))
    for augment in ("crop", "crop_flip"):
        pixels = ImagePixels(folder, NAMES, 16, 3, augment)
        assert torch.equal(pixels(rows), plain(rows))
        moved = pixels(rows, np.random.default_rng(1))
        assert torch.equal(moved, pixels(rows, np.random.default_rng(1)))
        assert not torch.equal(moved, pixels(rows, np.random.default_rng(2)))
        assert 15 < len(torch.unique(moved.flatten(1), dim=0)) <= (25 if augment == "crop" else 50)


def test_shifted_pictures_are_windows_of_the_picture_with_its_border_repeated():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 2, 16, 16)).astype(np.uint8))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    for flip in (False, True):
        mirrored = 0
        for picture, around in zip(shifted(x, np.random.default_rng(3), flip).numpy(), padded):
            windows = [around[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
            straight = any(np.array_equal(picture, window) for window in windows)
            turned = any(np.array_equal(picture, window[:, :, ::-1]) for window in windows)
            assert straight != turned
            mirrored += turned
        assert (10 < mirrored < 30) if flip else mirrored == 0


def test_options_that_do_not_exist_are_refused(folder):
    with pytest.raises(UserError, match="augment='flip'"):
        ImagePixels(folder, NAMES, 16, 3, "flip")
    with pytest.raises(UserError, match="channels=4"):
        ImagePixels(folder, NAMES, 16, 4)
