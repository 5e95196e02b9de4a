import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetcl.streams import paths as module
from budgetcl.streams.paths import Paths, hashes_of

SOME = ["a/b.png", "", "ab", "a/b.png", "\udcff.png", "ü.png"]


def test_paths_come_back_as_they_were_whatever_their_bytes():
    paths = Paths.of(SOME)
    assert list(paths) == SOME
    assert paths[-1] == "ü.png"
    assert paths[1:4] == SOME[1:4]
    assert os.fsencode(paths[4]) == b"\xff.png"
    with pytest.raises(IndexError):
        paths[6]


def test_an_order_is_looked_through_and_orders_add_up():
    paths = Paths.of(SOME).ordered(np.array([5, 2, 0, 4]))
    assert list(paths) == ["ü.png", "ab", "a/b.png", "\udcff.png"]
    assert list(paths.ordered(np.array([3, 0]))) == ["\udcff.png", "ü.png"]


def test_the_digest_tells_paths_and_their_order_and_not_how_they_are_kept():
    order = np.array([3, 1, 0, 2])
    texts = ["a.png", "b.png", "c.png", "d.png"]
    moved = Paths.of(texts).ordered(order)
    assert moved.digest() == Paths.of([texts[i] for i in order]).digest()
    others = [texts, ["a.png", "b.png", "c.png", "e.png"], ["a.pngb", ".png", "c.png", "d.png"], texts[:3]]
    assert len({moved.digest(), *(Paths.of(other).digest() for other in others)}) == 1 + len(others)


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=12))
def test_hashes_are_polynomials_in_the_bytes(texts):
    data, start = np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)])
    expected = [sum((byte + 1) * pow(int(module._FACTOR), i, 1 << 64) for i, byte in enumerate(text)) for text in texts]
    assert hashes_of(data, start).tolist() == [value % (1 << 64) for value in expected]


def test_long_tables_are_hashed_part_by_part(monkeypatch):
    texts = [f"folder/{i * i}.png" for i in range(50)]
    whole = Paths.of(texts)._hashes
    monkeypatch.setattr(module, "_PART", 7)
    np.testing.assert_array_equal(Paths.of(texts)._hashes, whole)


@given(st.lists(st.sampled_from(["a", "b", "c", "ab", "", "ba", "abc"]), max_size=12))
def test_repeated_paths_are_found(texts):
    expected = {text: [i for i, other in enumerate(texts) if other == text] for text in texts}
    found = {texts[places[0]]: places.tolist() for places in Paths.of(texts).repeated()}
    assert found == {text: places for text, places in expected.items() if len(places) > 1}


def test_paths_of_equal_hash_are_compared_themselves():
    paths = Paths.of(["a", "b", "a"])
    paths._hashes = np.zeros(3, np.uint64)
    assert [places.tolist() for places in paths.repeated()] == [[0, 2]]
