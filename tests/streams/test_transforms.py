import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetcl.randomness import generator
from budgetcl.streams.transforms import NUMBERS, behind, centre_box, drawn, mirrored, random_box, shifted


def test_shifted_pictures_are_windows_of_the_picture_with_its_border_repeated():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 2, 16, 16)).astype(np.uint8))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    for flip in (False, True):
        turns = 0
        for picture, around in zip(shifted(x, drawn(np.random.default_rng(3), 40), flip).numpy(), padded):
            windows = [around[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
            straight = any(np.array_equal(picture, window) for window in windows)
            turned = any(np.array_equal(picture, window[:, :, ::-1]) for window in windows)
            assert straight != turned
            turns += turned
        assert (10 < turns < 30) if flip else turns == 0


def test_every_shift_is_equally_likely():
    place = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(2, 0).repeat(2, 1)[:16, :16]
    x = torch.from_numpy(np.tile(place, (5000, 1, 1, 1)))
    counts = np.unique(shifted(x, drawn(np.random.default_rng(0), 5000), False).numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 25
    np.testing.assert_allclose(counts, 200, atol=70)


def test_the_centre_is_a_square_in_the_middle():
    assert centre_box(100, 40) == (30, 0, 70, 40)
    assert centre_box(40, 100, 0.5) == (10, 40, 30, 60)


sizes = st.integers(1, 4000)


@given(sizes, sizes, st.integers(0, 1 << 30))
def test_a_random_part_lies_in_the_picture_and_keeps_the_ratio(width, height, seed):
    left, top, right, bottom = random_box(width, height, drawn(np.random.default_rng(seed), 1)[0])
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) > 200:  # else rounding to pixels shows
        assert 0.74 <= (right - left) / (bottom - top) <= 1.36


def test_areas_are_uniform_ratios_are_uniform_in_the_logarithm_and_places_are_everywhere():
    """In a square, against the law: of the tries that fit, the area's mean is below the middle of 8 % and 100 %."""
    numbers = drawn(np.random.default_rng(0), 4000)
    left, top, right, bottom = np.array([random_box(1000, 1000, row) for row in numbers]).T
    area, ratio = (right - left) * (bottom - top) / 1e6, (right - left) / (bottom - top)
    rng = np.random.default_rng(1)  # the law, by rejection
    a, r = rng.uniform(0.08, 1, 200_000), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 200_000))
    fits = (a * r <= 1) & (a / r <= 1)
    grid = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(np.quantile(area, grid), np.quantile(a[fits], grid), atol=0.02)
    np.testing.assert_allclose(np.quantile(ratio, grid), np.quantile(r[fits], grid), atol=0.02)
    for start, side in ((left, right - left), (top, bottom - top)):
        free = side < 900
        np.testing.assert_allclose(np.quantile(start[free] / (1000 - side[free]), grid), grid, atol=0.03)
    assert 0.47 < np.mean([mirrored(row) for row in numbers]) < 0.53


def test_where_no_try_fits_the_largest_central_part_is_taken():
    assert random_box(1000, 10, np.full(NUMBERS, 0.99)) == (500 - 10 * 2 / 3, 0, 500 + 10 * 2 / 3, 10)
    assert random_box(30, 900, np.full(NUMBERS, 0.99)) == (0, 430, 30, 470)


def test_what_a_position_draws_does_not_depend_on_the_positions_behind_it():
    whole = drawn(generator(0, "augment", 3, 5), 12)
    np.testing.assert_array_equal(drawn(generator(0, "augment", 3, 5), 7), whole[:7])


@pytest.mark.parametrize("first", [0, 1, 7])
def test_a_later_part_of_a_batch_draws_what_the_whole_batch_draws_there(first):
    whole = drawn(generator(0, "augment", 3, 5), 12)
    np.testing.assert_array_equal(drawn(behind(generator(0, "augment", 3, 5), first), 12 - first), whole[first:])
