import numpy as np

from budgetcl.randomness import generator


def test_equal_places_give_equal_draws_and_unequal_ones_do_not():
    places = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 0, 1), (0, "a", 0, 0, 1), (0, "a", 1, 1)]
    draws = [tuple(generator(*place).integers(0, 1 << 62, 8)) for place in places]
    assert len(set(draws)) == len(places)
    assert draws == [tuple(generator(*place).integers(0, 1 << 62, 8)) for place in places]


def test_neighbouring_updates_do_not_share_numbers():
    # 1,000 draws of one update must not run into those of the next one.
    streams = [generator(0, "a", 0, update).integers(0, 1 << 62, 1000) for update in range(20)]
    assert len(np.unique(np.concatenate(streams))) == 20_000
